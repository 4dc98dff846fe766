"""PostgreSQL's clock in a replay: `now()` and the like give the time of the call, in what SQLAlchemy sends.

Also where a table's own default reads the clock: the insert gives that column, as PostgreSQL would have at the call.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any
from weakref import WeakKeyDictionary

from sqlalchemy import ClauseElement, Insert, Select, Table, TextClause, literal_column
from sqlalchemy.dialects.postgresql.psycopg2 import dialect as psycopg2_dialect
from sqlalchemy.exc import CompileError

_STATEMENT = re.compile(
    r"(?:\s|--[^\n]*\n|/\*.*?\*/|\()*(?:SELECT|INSERT|UPDATE|DELETE|MERGE|WITH|VALUES)\b", re.IGNORECASE | re.DOTALL
)
# What is quoted or said in a comment, else what reads the clock.
_TOKEN = re.compile(
    r"""\bE'(?:[^'\\]|\\.|'')*' | '(?:[^']|'')*' | "(?:[^"]|"")*" | \$(?P<tag>\w*)\$.*?\$(?P=tag)\$
      | --[^\n]* | /\*.*?\*/
      | (?<![\w.$"])(?<!%\()(?:pg_catalog\.)?
        (?:(?P<call>now|transaction_timestamp|statement_timestamp|clock_timestamp)\s*\(\s*\)
          |(?P<word>current_timestamp|localtimestamp|current_date|current_time|localtime)\b
           (?:\s*\(\s*(?P<digits>\d+)\s*\))?)""",
    re.IGNORECASE | re.DOTALL | re.VERBOSE,
)
_TYPES = {
    "current_timestamp": "timestamptz",
    "localtimestamp": "timestamp",
    "current_date": "date",
    "current_time": "timetz",
    "localtime": "time",
}


def at_time(statement: str, at: datetime) -> str:
    """The statement as it would have read the clock at `at`, which is aware."""
    if not reads_clock(statement) or not _STATEMENT.match(statement):
        return statement
    literal = f"CAST('{at.astimezone(UTC).isoformat(sep=' ')}' AS timestamptz)"

    def replace(found: re.Match[str]) -> str:
        if found["call"]:
            return literal
        if not found["word"]:
            return found[0]
        type_ = _TYPES[found["word"].lower()]
        return f"CAST({literal} AS {type_}{'(' + found['digits'] + ')' if found['digits'] else ''})"

    return _TOKEN.sub(replace, statement)


@lru_cache(maxsize=1024)
def reads_clock(statement: str) -> bool:
    """Whether SQL reads PostgreSQL's clock."""
    return any(found["call"] or found["word"] for found in _TOKEN.finditer(statement))


def table_of(statement: Any) -> Table | None:
    """The table that an insert of rows fills; None for other statements, and for inserts of what is selected."""
    if not isinstance(statement, Insert) or statement.select is not None:
        return None
    return statement.table if isinstance(statement.table, Table) else None


def given(statement: Insert, parameters: list[dict[str, Any]]) -> set[str]:
    """The keys of the columns for which an insert gives values."""
    columns: set[Any] = {*(statement._values or ()), *(parameters[0] if parameters else ())}
    for rows in statement._multi_values or ():
        columns.update(rows[0] if rows and isinstance(rows[0], Mapping) else ())
    return {str(getattr(column, "key", column)) for column in columns}


def with_values(statement: Insert, extra: Sequence[Mapping[str, Any]]) -> Insert:
    """An insert that gives values for more columns: one mapping for each of its rows, in order."""
    if not statement._multi_values:
        return statement.values(dict(extra[0]))
    rest = iter(extra)
    changed: Any = statement._generate()
    changed._multi_values = tuple([{**dict(row), **next(rest)} for row in rows] for rows in statement._multi_values)
    result: Insert = changed
    return result


def count_rows(statement: Insert) -> int:
    """How many rows the statement itself has values for."""
    return sum(len(rows) for rows in statement._multi_values) if statement._multi_values else 1


def has_rows_by_name(statement: Insert) -> bool:
    """Whether more columns can be given: not where the rows of `values()` are tuples."""
    return all(isinstance(row, Mapping) for rows in statement._multi_values or () for row in rows)


def with_defaults(statement: Any, parameters: list[dict[str, Any]]) -> Any:
    """An insert that gives the columns whose default in PostgreSQL reads the clock."""
    if isinstance(statement, Insert) and isinstance(statement.select, Select):
        return _selected_with_defaults(statement, statement.select)
    table = table_of(statement)
    if table is None or not has_rows_by_name(statement):
        return statement
    names = given(statement, parameters)
    missing = {key: default for key, default in _defaults_of(table).items() if key not in names}
    return with_values(statement, [missing] * count_rows(statement)) if missing else statement


def _selected_with_defaults(statement: Insert, select: Select[Any]) -> Insert:
    """The same for an insert of what is selected."""
    names = [str(getattr(name, "key", name)) for name in statement._select_names or ()]
    defaults = _defaults_of(statement.table) if isinstance(statement.table, Table) else {}
    missing = {key: default for key, default in defaults.items() if key not in names}
    if not missing:
        return statement
    changed: Any = statement._generate()
    changed._select_names = [*names, *missing]
    changed.select = select.add_columns(*(_as_column(default) for default in missing.values()))
    result: Insert = changed
    return result


def _as_column(default: Any) -> Any:
    return literal_column(default.text) if isinstance(default, TextClause) else default


_defaults: WeakKeyDictionary[Table, dict[str, ClauseElement]] = WeakKeyDictionary()


def _defaults_of(table: Table) -> dict[str, ClauseElement]:
    """The server defaults of a table that read the clock, by key of the column."""
    known = _defaults.get(table)
    if known is None:
        known = _defaults[table] = {
            column.key: default
            for column in table.columns
            if (default := getattr(column.server_default, "arg", None)) is not None and _is_clock(default)
        }
    return known


def _is_clock(default: Any) -> bool:
    if isinstance(default, TextClause):
        return reads_clock(default.text)
    if not isinstance(default, ClauseElement):
        return False
    try:
        return reads_clock(str(default.compile(dialect=psycopg2_dialect())))  # type: ignore[no-untyped-call]
    except CompileError:
        return False
