"""Insert text: finds the INSERTs in SQL text, and gives their rows values for more columns.

Also those in a common table expression, and behind a semicolon.  What is quoted, or said in a comment, is none.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

from ..ids.id_reserve import quoted
from ..sql_text import bare

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
