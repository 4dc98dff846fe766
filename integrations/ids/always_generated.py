"""Always generated: columns that are GENERATED ALWAYS, of which an INSERT gives an id only where it says so."""

from __future__ import annotations

from collections.abc import Callable

from .id_column import quoted

_ASK = (
    "SELECT coalesce((SELECT attidentity = 'a' FROM pg_attribute "
    "WHERE attrelid = to_regclass(%s) AND attname = %s AND NOT attisdropped), false)"
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
