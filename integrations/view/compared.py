"""Compared: how often the local view's own answer to a read was the manager's, while PostgreSQL could answer it.

What is learned of a manager may be wrong: it may decide by something that no call shows.  Each read of the engine is a
test of that, before an outage has to rely on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass
from typing import Any

from ..plain_data import SCALARS
from .containers import taken_apart

# A read that was answered otherwise is answered again after so many equal answers in a row.
_EQUAL_AGAIN = 20
# So many digits of a float are compared: the order of a sum changes the last ones.
_DIGITS = 12


@dataclass(slots=True)
class Counts:
    """Answers of one read: compared at all, differing, and equal since the last that differed."""

    compared: int = 0
    differed: int = 0
    equal: int = 0


class Compared:
    """The counts of one manager's reads.  Not thread-safe: the view's lock is held."""

    def __init__(self, state: Mapping[str, list[int]] | None = None, agrees: dict[str, bool] | None = None) -> None:
        # By question about sessions: whether the view's own answer was the manager's when they were compared last.
        self.agrees: dict[str, bool] = {} if agrees is None else agrees
        self._counts = {read: Counts(*counts) for read, counts in (state or {}).items()}

    def note(self, read: str, *, equal: bool) -> bool:
        """Take in one comparison; whether it changes what is answered."""
        counts = self._counts.setdefault(read, Counts())
        counts.compared += 1
        if not equal:
            counts.differed += 1
            counts.equal = 0
            return True
        counts.equal += 1
        return counts.differed > 0 and counts.equal == _EQUAL_AGAIN

    def distrusted(self, read: str) -> str | None:
        """Why a read is not answered without PostgreSQL; None where it is."""
        counts = self._counts.get(read)
        if counts is None or not counts.differed or counts.equal >= _EQUAL_AGAIN:
            return None
        return f"{counts.differed} of {counts.compared} answers differed from the manager's, {counts.equal} equal since"

    def all_distrusted(self) -> dict[str, str]:
        """By read, why it is not answered."""
        found = {read: self.distrusted(read) for read in sorted(self._counts)}
        return {read: why for read, why in found.items() if why is not None}

    def dump(self) -> dict[str, tuple[int, ...]]:
        """The counts, to be stored."""
        return {read: astuple(counts) for read, counts in self._counts.items()}


WAY_BACK = f"answers are compared while PostgreSQL is up: after {_EQUAL_AGAIN} equal ones it is answered again"


def is_equal(one: Any, other: Any) -> bool:
    """Whether two answers are equal, type by type; rows may stand in another order, since few reads name one."""
    return bool(_rows(one) == _rows(other))


def _rows(answer: Any) -> Any:
    if isinstance(answer, list | tuple):
        return type(answer), sorted((_plain(item, set()) for item in answer), key=repr)
    return _plain(answer, set())


def _plain(value: Any, inside: set[int]) -> Any:
    """A value that is equal to another one's where both show the same."""
    if type(value) is float:
        return float, f"{value:.{_DIGITS}g}"
    if isinstance(value, SCALARS):
        return type(value), str(value)
    if isinstance(value, set | frozenset):
        return type(value), sorted((_plain(item, inside) for item in value), key=repr)
    if id(value) in inside:
        return None
    inside.add(id(value))
    container, parts = taken_apart(value)
    found = container, [(name, _plain(part, inside)) for name, part in sorted(parts.items())]
    inside.discard(id(value))
    return found
