"""Side rows: how many rows with a reserved id the calls of a method write beside the one whose id they return.

Their ids are taken at the call, so that the ids of a table are in the order of the calls, also where deliveries come
later.  A method may write as many rows as an argument has items; else the fewest that were seen are expected, since an
id that is taken in vain is lost to an outage.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# More are left to the delivery: a bulk must not use up the ids of an outage.
MOST = 256


class SideRows:
    """By operation and "table.column": the fewest rows, and the arguments that had as many items each time."""

    def __init__(self, state: Mapping[str, Any] | None = None) -> None:
        """`state`: what `dump` gave."""
        self._seen: dict[str, dict[str, tuple[int, list[str]]]] = {
            name: {column: (fewest, list(names)) for column, (fewest, names) in one.items()}
            for name, one in (state or {}).items()
        }

    def learn(self, name: str, call: Mapping[str, Any], taken: Mapping[str, int]) -> bool:
        """Take in how many ids a call took; whether that is new."""
        known = self._seen.get(name, {})
        if not (known or taken):
            return False
        now: dict[str, tuple[int, list[str]]] = {}
        for column in {*known, *taken}:
            count = taken.get(column, 0)
            fewest, names = known.get(column, (count, list(call)))
            now[column] = (min(fewest, count), [one for one in names if _size(call.get(one)) == count])
        if now == known:
            return False
        self._seen[name] = now
        return True

    def by_size(self, name: str, call: Mapping[str, Any]) -> dict[str, int]:
        """How many rows a call writes by the size of an argument, where that explains what was seen."""
        known = self._seen.get(name, {})
        return {column: _size(call.get(names[0])) or 0 for column, (_, names) in known.items() if names}

    def fewest(self, name: str) -> dict[str, int]:
        """How many rows each call wrote at least."""
        return {column: fewest for column, (fewest, _) in self._seen.get(name, {}).items()}

    def dump(self) -> dict[str, Any]:
        """The state, to be stored."""
        return {name: {column: list(one) for column, one in known.items()} for name, known in self._seen.items()}


def _size(value: Any) -> int | None:
    return len(value) if isinstance(value, list | tuple | dict | set | frozenset) else None
