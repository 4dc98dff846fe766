"""Reads the rows that the paper engine's manager has written."""

from __future__ import annotations

from typing import Any

from sqlalchemy import text

from outbox.integrations.paper import DatabaseManager


def rows(manager: DatabaseManager, sql: str) -> list[dict[str, Any]]:
    with manager.engine.connect() as connection:
        return [dict(row) for row in connection.execute(text(sql)).mappings()]


def one(manager: DatabaseManager, sql: str) -> dict[str, Any]:
    (row,) = rows(manager, sql)
    return row
