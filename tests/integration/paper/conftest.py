"""Fixtures for tests of the paper engine's manager, and its rows."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from outbox.integrations.paper import DatabaseManager


@pytest.fixture
def manager(postgres_url: str) -> Iterator[DatabaseManager]:
    one = DatabaseManager(postgres_url)
    yield one
    one.close()


@pytest.fixture
def session_id(manager: DatabaseManager) -> int:
    return manager.create_trading_session("ma", "IBM", "1d", "paper", 1000)
