"""Rewritten SQL: statements of a replayed call, with the time of the call and the ids that its caller got.

`now()` and the like give the time of the call, in what SQLAlchemy sends, also where a table's own default reads the
clock: the insert gives that column, as PostgreSQL would have at the call.  The catalog, asked once for each table, says
of which tables that is so: the default would give all rows of a batch, and of an outage, the time of one transaction.

In SQL text the INSERTs are found, also those in a common table expression, and behind a semicolon, and their rows are
given values for more columns.  What is quoted, or said in a comment, is none.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any
from weakref import WeakKeyDictionary

import psycopg2.extensions
from sqlalchemy import ClauseElement, Connection, Insert, Select, Table, TextClause, literal_column, text
from sqlalchemy.dialects.postgresql.psycopg2 import dialect as psycopg2_dialect
from sqlalchemy.exc import CompileError, SQLAlchemyError

from ..ids.id_reserve import quoted
from ..sql_text import bare

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


def table_of_rows(statement: Insert) -> Table | None:
    """The table of rows for which more columns can be given; None where the rows of `values()` are tuples."""
    many = statement._multi_values
    if many and not all(isinstance(row, Mapping) for rows in many for row in rows):
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


def with_defaults(statement: Insert, table: Table, given: Collection[str]) -> Insert:
    """An insert of rows that gives the columns whose default in PostgreSQL reads the clock, but those `given`."""
    missing = {key: default for key, default in _defaults_of(table).items() if key not in given}
    return with_values(statement, [missing] * count_rows(statement)) if missing else statement


def selected_with_defaults(statement: Insert) -> Insert:
    """The same for an insert of what is selected."""
    select = statement.select
    if not isinstance(select, Select):
        return statement
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


_INTO = re.compile(
    r'\b(?P<verb>INSERT|MERGE)\s+INTO\s+(?P<name>(?:"?(?P<schema>\w+)"?\.)?"?(?P<table>\w+)"?)', re.IGNORECASE
)
# Up to the first value.
_ROWS = re.compile(r"(?:\s+AS\s+\w+)?\s*\((?P<columns>[^()]*)\)\s*VALUES\s*(?=\()", re.IGNORECASE)
_GIVEN = re.compile(
    r'\bINSERT\s+INTO\s+(?:"?\w+"?\.)?"?(?P<table>\w+)"?(?:\s+AS\s+\w+)?\s*\((?P<columns>[^()]*)\)'
    r"(?!\s*(?:OVERRIDING|\)))",
    re.IGNORECASE,
)
_PAREN = re.compile(r"[()]")
_NEXT = re.compile(r"\s*,\s*(?=\()")
# Longer statements have their values in them, and do not come again.
_KEPT_CHARS = 10_000


@dataclass(frozen=True, slots=True)
class InsertText:
    """One INSERT in SQL text; schema and table as PostgreSQL takes names that are not quoted."""

    schema: str | None
    table: str
    # The table as the text names it.
    name: str
    # Empty where the text names none, or where its rows are no VALUES.
    columns: tuple[str, ...] = ()
    # Where the columns begin, and each row of values.
    columns_at: int = 0
    rows_at: tuple[int, ...] = ()

    def gives(self, column: str) -> bool:
        """Whether it has values for a column."""
        return column.lower() in self.columns

    def edits(self, values: Mapping[str, str]) -> Iterator[tuple[int, str]]:
        """What is to stand where in the text, so that each row has these values, which are SQL, too."""
        yield self.columns_at, "".join(f"{quoted(column)}, " for column in values)
        for at in self.rows_at:
            yield at, "".join(f"{value}, " for value in values.values())


def inserts_in(statement: str) -> tuple[InsertText, ...]:
    """The INSERTs of a statement, in the order of the text."""
    return (_found if len(statement) <= _KEPT_CHARS else _found.__wrapped__)(statement)


def edited(statement: str, edits: Iterable[tuple[int, str]]) -> str:
    """The statement with what `InsertText.edits` gives."""
    for at, what in sorted(edits, reverse=True):
        statement = statement[:at] + what + statement[at:]
    return statement


def overriding(statement: str, columns: Mapping[str, str]) -> str:
    """The statement; INSERTs that give one of `columns`, by table, do so in spite of GENERATED ALWAYS."""
    edits = list[tuple[int, str]]()
    for found in _GIVEN.finditer(bare(statement)):
        column = columns.get(found["table"].lower())
        if column is not None and column.lower() in _names(found["columns"]):
            edits.append((found.end(), " OVERRIDING SYSTEM VALUE"))
    return edited(statement, edits)


@lru_cache(maxsize=1024)
def _found(statement: str) -> tuple[InsertText, ...]:
    if _INTO.search(statement) is None:
        return ()
    unquoted = bare(statement)
    return tuple(_insert(statement, unquoted, one) for one in _INTO.finditer(unquoted))


def _insert(statement: str, unquoted: str, into: re.Match[str]) -> InsertText:
    schema, table = None if into["schema"] is None else into["schema"].lower(), into["table"].lower()
    name = statement[into.start("name") : into.end("name")]
    rows = _ROWS.match(unquoted, into.end()) if into["verb"].upper() == "INSERT" else None
    if rows is None:
        return InsertText(schema, table, name)
    return InsertText(
        schema, table, name, _names(rows["columns"]), rows.start("columns"), tuple(_rows_at(unquoted, rows.end()))
    )


def _names(columns: str) -> tuple[str, ...]:
    return tuple(one.strip().strip('"').lower() for one in columns.split(","))


def _rows_at(unquoted: str, start: int) -> Iterator[int]:
    """Where the rows of values begin, behind their parentheses."""
    while True:
        yield start + 1
        depth, end = 0, len(unquoted)
        for paren in _PAREN.finditer(unquoted, start):
            depth += 1 if paren[0] == "(" else -1
            if not depth:
                end = paren.end()
                break
        following = _NEXT.match(unquoted, end)
        if following is None:
            return
        start = following.end()


_DEFAULTS = """
    SELECT a.attname, pg_get_expr(d.adbin, d.adrelid) FROM pg_attrdef d
    JOIN pg_attribute a ON a.attrelid = d.adrelid AND a.attnum = d.adnum
    WHERE d.adrelid = to_regclass(%s) AND a.attgenerated = '' AND NOT a.attisdropped ORDER BY d.adnum
"""
_ASK = (
    "SELECT coalesce((SELECT attidentity = 'a' FROM pg_attribute "
    "WHERE attrelid = to_regclass(%s) AND attname = %s AND NOT attisdropped), false)"
)
# A partition counts as the table that it belongs to.
_WRITTEN_ROWS = text("""
    SELECT named.relname, sum(n_tup_ins + n_tup_upd + n_tup_del) FROM pg_stat_xact_user_tables AS counted
    JOIN pg_class AS named ON named.oid = coalesce(pg_partition_root(counted.relid), counted.relid)
    WHERE n_tup_ins + n_tup_upd + n_tup_del > 0 GROUP BY named.relname
""")


class AlwaysGenerated:
    """Which columns are GENERATED ALWAYS, as PostgreSQL said when it was asked first."""

    def __init__(self) -> None:
        self._known: dict[tuple[str | None, str, str], bool] = {}

    def has(self, schema: str | None, table: str, column: str, ask: Callable[[str, tuple[str, str]], object]) -> bool:
        """Whether a column is one; `ask` gets one value from PostgreSQL for a question and its arguments."""
        place = schema, table, column
        if place not in self._known:
            self._known[place] = ask(_ASK, (quoted(schema, table), column)) is True
        return self._known[place]

    def forget(self) -> None:
        """Ask again: columns may have been altered."""
        self._known.clear()


class TableClock:
    """Asks the catalog once for each table."""

    def __init__(self) -> None:
        self._known: dict[str, dict[str, str]] = {}

    def forget(self) -> None:
        """Something failed: a table may have been altered."""
        self._known.clear()

    def defaults(self, raw: Any, name: str) -> dict[str, str]:
        """The defaults of a table that read the clock, as SQL by column.

        `raw` is the driver's connection, `name` the table as an INSERT names it.
        """
        known = self._known.get(name)
        if known is None:
            with raw.cursor(cursor_factory=psycopg2.extensions.cursor) as cursor:
                cursor.execute(_DEFAULTS, (name,))
                # The driver would take a percent sign for one of its own.
                known = {column: sql for column, sql in cursor if reads_clock(sql) and "%" not in sql}
            self._known[name] = known
        return known


@dataclass(frozen=True, slots=True)
class Catalog:
    """For all replays of one manager, and what is made in a transaction that is rolled back."""

    always: AlwaysGenerated = field(default_factory=AlwaysGenerated)
    clocks: TableClock = field(default_factory=TableClock)

    @contextmanager
    def forgotten_after_failure(self) -> Iterator[None]:
        """Ask again what the block used, if PostgreSQL fails in it."""
        try:
            yield
        except SQLAlchemyError:
            self.forget()
            raise

    def forget(self) -> None:
        """Something failed: a table may have been altered."""
        self.always.forget()
        self.clocks.forget()


def rows_written(connection: Connection) -> dict[str, int]:
    """How many rows of each table were inserted, updated or deleted; those of other tables stay as they are."""
    return {table: int(rows) for table, rows in connection.execute(_WRITTEN_ROWS)}
