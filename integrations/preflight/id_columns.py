"""Id columns: whether ids of the rows that a method creates can be reserved, looked up in PostgreSQL's catalog.

While PostgreSQL cannot be asked, the tables that the manager's code maps are looked at instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

from sqlalchemy import Connection, Integer, MetaData, Table, Uuid, text
from sqlalchemy import inspect as inspect_orm

from ..code.class_code import ClassCode
from ..code.members import is_mapped_class
from ..ids.id_column import look_up, quoted

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
