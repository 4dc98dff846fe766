"""Shown rows: what was seen of the tests by which the code of a read decides about its rows.

A read may leave rows out, or show them in another way, that it never had to show while PostgreSQL was up.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from ..code.row_tests import RowTest
from .explanations import Unknown
from .rows import Row

Tests = tuple[Collection[RowTest], Collection[str]]


class ShownRows:
    """What came out for the rows of each table that a manager has shown.  State is replaced as a whole."""

    def __init__(self, seen: Mapping[str, Collection[str]] | None = None) -> None:
        """`seen`: what `dump` gave."""
        # table -> the tests of its read, and the columns of which it may show each value once; not stored.
        self.tests: Mapping[str, Tests] = {}
        self._seen = {table: frozenset(found) for table, found in (seen or {}).items()}

    def observe(self, table: str, rows: Collection[Row]) -> None:
        """Take in the rows of one answer."""
        found = self._outcomes(table, rows)
        if not found.keys() <= self._seen.get(table, frozenset()):
            self._seen = {**self._seen, table: self._seen.get(table, frozenset()) | found.keys()}

    def check(self, table: str, rows: Collection[Row]) -> None:
        """Raise `Unknown` where the read may decide otherwise about these rows than about those that it has shown."""
        for outcome, why in self._outcomes(table, rows).items():
            if outcome not in self._seen.get(table, ()):
                raise Unknown(why)

    def _outcomes(self, table: str, rows: Collection[Row]) -> dict[str, str]:
        """What comes out for the rows, each with the reason why it is not known when it is new."""
        tests, united = self.tests.get(table, ((), ()))
        found: dict[str, str] = {}
        for test in tests:
            for outcome in {test.outcome(row) for row in rows} - {None}:
                found[f"{test}: {outcome}"] = f"no row was shown for which `{test}` is {outcome}"
        for column in united:
            if _has_twins(row.get(column) for row in rows):
                found[f"{column} twice"] = f"two rows with one {column} were never shown"
        return found

    def dump(self) -> dict[str, list[str]]:
        """The state, to be stored."""
        return {table: sorted(found) for table, found in self._seen.items()}


def _has_twins(values: Iterable[Any]) -> bool:
    found = [value for value in values if isinstance(value, str | int)]
    return len(set(found)) < len(found)
