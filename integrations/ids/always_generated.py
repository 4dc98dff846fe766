"""Always generated: an INSERT gives the id of a column that is GENERATED ALWAYS only where it says so."""

from __future__ import annotations

import re
from collections.abc import Callable

from .id_column import quoted

_ASK = (
    "SELECT coalesce((SELECT attidentity = 'a' FROM pg_attribute "
    "WHERE attrelid = to_regclass(%s) AND attname = %s AND NOT attisdropped), false)"
)
_COLUMNS = re.compile(
    r'(?:\s|--[^\n]*\n|/\*.*?\*/)*INSERT\s+INTO\s+(?:"?\w+"?\.)?"?(\w+)"?\s*\(([^()]*)\)(?!\s*OVERRIDING\b)',
    re.IGNORECASE | re.DOTALL,
)


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


def overriding(statement: str, columns: dict[str, str]) -> str:
    """The SQL statement; an INSERT that gives one of `columns`, by table, gives it in spite of GENERATED ALWAYS."""
    found = _COLUMNS.match(statement)
    column = None if found is None else columns.get(found[1].lower())
    if found is None or column is None:
        return statement
    if column.lower() not in (one.strip().strip('"').lower() for one in found[2].split(",")):
        return statement
    return f"{statement[: found.end()]} OVERRIDING SYSTEM VALUE{statement[found.end() :]}"
