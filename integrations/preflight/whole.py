"""Whole: what is wrong with a manager as a whole: its session factory, its engine, the columns of its ids.

The factory is found by the manager's object, its class or its code.  Whether ids of the rows that a method creates can
be reserved is looked up in PostgreSQL's catalog.  While PostgreSQL cannot be asked, the tables that the manager's code
maps are looked at instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

from sqlalchemy import Connection, Integer, MetaData, Table, Uuid, text
from sqlalchemy import inspect as inspect_orm
from sqlalchemy.exc import SQLAlchemyError

from ...records import attributes
from ...words import first_line
from ..code.class_code import ClassCode
from ..code.members import is_mapped_class
from ..code.method_code import facts_of, names_in
from ..ids.id_reserve import look_up, quoted
from ..manager import held
from ..manager.held import ASYNC_WAY, without_factory
from ..manager.manager_connection import engine_held
from ..operations import ManagerOperation
from . import misfits
from .evidence import Evidence


def lacking(evidence: Evidence) -> str | None:
    """What to say of a manager that certainly has no session factory."""
    if is_mapped_class(evidence.cls):
        name = evidence.cls.__name__
        return (
            f"{name} is a mapped class, and its objects are rows: write a class that has {name}'s session factory as "
            "session_factory, and a method for each change that the engine makes to them, and declare these methods"
        )
    manager = evidence.manager
    if manager is not None:
        own = attributes(manager)
        kinds = {name: kind for name, kind in evidence.held.items() if name in own}
        return None if hasattr(manager, "session_factory") else without_factory(kinds)
    made = made_by(evidence)
    return without_factory(evidence.held) if made is not None and not made else None


def is_named(evidence: Evidence) -> bool:
    """Whether the class has a session factory, or any code that was read names one."""
    if evidence.member("session_factory") is not None or evidence.member("__getattr__") is not None:
        return True
    functions = [function for _, function in evidence.code.everything()]
    if any("session_factory" in getattr(base, "__annotations__", {}) for base in evidence.cls.__mro__):
        return True
    return not functions or any("session_factory" in names_in(one) for one in functions)


def made_by(evidence: Evidence) -> set[str] | None:
    """Name what makes `session_factory`: empty if nothing does, None if unseen."""
    made: set[str] = set()
    if evidence.member("session_factory") is not None or evidence.member("__getattr__") is not None:
        return None
    for base in evidence.cls.__mro__[:-1]:
        if "__init__" in vars(base) and not facts_of(vars(base)["__init__"]).read:
            return None
    for _, function in evidence.code.everything():
        facts = facts_of(function)
        if not facts.read or None in facts.sets:
            return None
        calls = facts.assigned.get("session_factory", [])
        made |= {call.last for call in calls}
        if "session_factory" in facts.sets and not calls:
            return None
    # A base written in C, or generated fields.
    is_plain = all(type(base) is type for base in evidence.cls.__mro__)
    has_fields = any("session_factory" in getattr(base, "__annotations__", {}) for base in evidence.cls.__mro__)
    return made if is_plain and not has_fields else (made or None)


_FIND = text(
    "SELECT n.nspname, c.relname, pg_table_is_visible(c.oid), "
    "has_schema_privilege(n.oid, 'USAGE') AS usable, current_user FROM pg_class c "
    "JOIN pg_namespace n ON n.oid = c.relnamespace "
    "WHERE c.relname = :table AND c.relkind IN ('r', 'p', 'f', 'v') "
    "AND n.nspname NOT IN ('pg_catalog', 'information_schema')"
)
_USABLE = text("SELECT has_sequence_privilege(CAST(:sequence AS regclass), 'USAGE'), current_user")
_INTEGERS = frozenset({"smallint", "integer", "bigint"})


def refusal_by_catalog(connection: Connection, table: str, column: str) -> str | None:
    """Why ids of `table.column` cannot be reserved, with the way out; None where they can.

    `table` may have its schema before a dot; without one it is searched for as the connection does.
    """
    schema, _, name = table.rpartition(".")
    rows = connection.execute(_FIND, {"table": name}).all()
    here = [row for row in rows if (row.nspname == schema if schema else row.pg_table_is_visible)]
    closed = [row for row in here or rows if not row.usable]
    if closed and len(closed) == len(here or rows):
        # Without USAGE a schema is left out of the search path.
        of, role = closed[0].nspname, closed[0].current_user
        return f"{role} may not use schema {of} of table {name}: GRANT USAGE ON SCHEMA {quoted(of)} TO {role}"
    if not here:
        found = sorted(f"{row.nspname}.{row.relname}" for row in rows)
        meant = {row.nspname for row in connection.execute(_FIND, {"table": column})}
        if not schema and name in meant:
            return f'table {table} does not exist: write creates="{name}.{column}.id" for table {column} of its schema'
        if found:
            return f'table {table} does not exist, but {found[0]} does: declare creates="{found[0]}.{column}"'
        other = 'declare the one that is written, creates="schema.table.column"'
        return f"table {table} does not exist: create it, or {other}"
    named = quoted(here[0].nspname, here[0].relname)
    known = look_up(connection, named, column)
    if known is None:
        return f'table {table} has no column {column!r}: declare creates="{table}.COLUMN" with the column of its key'
    if known.type == "uuid":
        return None
    if known.type not in _INTEGERS:
        return f"{table}.{column} is {known.type}, and ids can be reserved only of integers and UUIDs: {_WITHOUT}"
    sequence = known.sequence
    if sequence is None:
        return f"{table}.{column} has no sequence: make it SERIAL or IDENTITY, or {_WITHOUT}"
    usable, role = connection.execute(_USABLE, {"sequence": sequence}).one()
    return None if usable else f"{role} may not use {sequence}: GRANT USAGE ON SEQUENCE {sequence} TO {role}"


_WITHOUT = "declare the operation without creates="


def refusal_by_tables(tables: list[Table], table: str, column: str) -> str | None:
    """Judge by the tables that a manager's code maps, as far as they agree."""
    schema, _, name = table.rpartition(".")
    named = [one for one in tables if one.name == name and (not schema or one.schema == schema)]
    if not named or any(_may_be_reserved(one, column) for one in named):
        return None
    return f"the key {table}.{column} is neither an integer with a sequence nor a UUID: {_WITHOUT}"


def mapped_tables(code: ClassCode) -> list[Table]:
    """The tables of all metadata that the modules of a class's methods name."""
    found: dict[int, MetaData] = {}
    for one in _named_by(code):
        metadata = one if isinstance(one, MetaData) else one.metadata if isinstance(one, Table) else None
        if metadata is None and is_mapped_class(one):
            metadata = inspect_orm(one).local_table.metadata
        if metadata is not None:
            found[id(metadata)] = metadata
    return [table for metadata in found.values() for table in metadata.tables.values()]


def _named_by(code: ClassCode) -> Iterator[Any]:
    scopes = {id(function.__globals__): function.__globals__ for _, function in code.everything()}
    for scope in scopes.values():
        for value in list(scope.values()):
            if isinstance(value, ModuleType) and not value.__name__.startswith("sqlalchemy"):
                yield from list(vars(value).values())
            else:
                yield value


def _may_be_reserved(table: Table, column: str) -> bool:
    found = table.columns.get(column)
    if found is None:
        return False
    is_integer = isinstance(found.type, Integer) and found.autoincrement is not False
    # A type of the host's own is PostgreSQL's to know.
    return is_integer or isinstance(found.type, Uuid) or type(found.type).__module__.partition(".")[0] != "sqlalchemy"


def unusable(evidence: Evidence, matching: dict[str, ManagerOperation]) -> Iterator[str]:
    """Reasons for which the manager cannot be served at all, each with the way out."""
    manager, member = evidence.manager, evidence.member("session_factory")
    if isinstance(member, property) and member.fset is None:
        yield "its session_factory is a property, and a copy needs one of its own: give the property a setter"
    if manager is None:
        made = made_by(evidence)
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
    tables = mapped_tables(evidence.code)
    found = {one: refusal_by_tables(tables, *one) for one in wanted}
    return {one: reason for one, reason in found.items() if reason is not None}


def _by_catalog(engine: Any, wanted: set[tuple[str, str]]) -> Iterator[tuple[tuple[str, str], str]]:
    schemas = engine.get_execution_options().get("schema_translate_map") or {}
    with engine.connect() as connection:
        for table, column in sorted(wanted):
            schema, _, name = table.rpartition(".")
            there = schemas.get(schema or None, schema)
            reason = refusal_by_catalog(connection, f"{there}.{name}" if there else name, column)
            if reason is not None:
                yield (table, column), reason
