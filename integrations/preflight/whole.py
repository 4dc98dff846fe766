"""Whole: what is wrong with a manager as a whole: its session factory, its engine, the columns of its ids."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from ...words import first_line
from ..manager import held
from ..manager.held import ASYNC_WAY
from ..manager.manager_connection import engine_held
from ..operations import ManagerOperation
from . import factory, id_columns, misfits
from .evidence import Evidence


def unusable(evidence: Evidence, matching: dict[str, ManagerOperation]) -> Iterator[str]:
    """Reasons for which the manager cannot be served at all, each with the way out."""
    manager, member = evidence.manager, evidence.member("session_factory")
    if isinstance(member, property) and member.fset is None:
        yield "its session_factory is a property, and a copy needs one of its own: give the property a setter"
    if manager is None:
        made = factory.made_by(evidence)
        if made and made <= {"async_sessionmaker"}:
            yield f"its sessions are asynchronous: {ASYNC_WAY}"
        return
    if not hasattr(manager, "session_factory"):
        return
    engine = engine_held(manager)
    if engine is None and any(operation.creates for operation in matching.values()):
        yield "its sessions have no engine, by which ids are reserved: give sessionmaker bind=engine"
    if held.ASYNC in map(held.kind_of, (engine, getattr(manager, "engine", None), manager.session_factory)):
        yield f"its sessions are asynchronous: {ASYNC_WAY}"
        return
    dialect = getattr(engine, "dialect", None)
    name, driver = getattr(dialect, "name", None), getattr(dialect, "driver", None)
    if isinstance(name, str) and (name, driver) != ("postgresql", "psycopg2"):
        yield (
            f"its engine is of {name}+{driver}, and calls are delivered into PostgreSQL by psycopg2: "
            "make the engine with a URL that begins with postgresql+psycopg2://"
        )


def columns_refused(
    evidence: Evidence, matching: dict[str, ManagerOperation], engine: Any, unseen: list[str]
) -> dict[tuple[str, str], str]:
    """Of each id column that cannot be served: why."""
    wanted = {misfits.column_of(one) for one in matching.values() if one.creates}
    if engine is not None and wanted:
        try:
            return dict(_by_catalog(engine, wanted))
        except SQLAlchemyError as exc:
            unseen.append(f"PostgreSQL was not asked for the tables: {first_line(exc)}")
    tables = id_columns.mapped_tables(evidence.code)
    found = {one: id_columns.refusal_by_tables(tables, *one) for one in wanted}
    return {one: reason for one, reason in found.items() if reason is not None}


def _by_catalog(engine: Any, wanted: set[tuple[str, str]]) -> Iterator[tuple[tuple[str, str], str]]:
    schemas = engine.get_execution_options().get("schema_translate_map") or {}
    with engine.connect() as connection:
        for table, column in sorted(wanted):
            schema, _, name = table.rpartition(".")
            there = schemas.get(schema or None, schema)
            reason = id_columns.refusal_by_catalog(connection, f"{there}.{name}" if there else name, column)
            if reason is not None:
                yield (table, column), reason
