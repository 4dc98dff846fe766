"""Gatherings: what has the rows of one answer: a list, a tuple, or a dict by a column of theirs or by a key alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from .explanations import Unknown
from .rows import Row

_KINDS = {list: "list", tuple: "tuple", dict: "dict", type(None): "none"}
# A column, and whether the dict has its text.
By = list[Any]


@dataclass(frozen=True, slots=True)
class Gathering:
    """How a manager gives the rows of one table: what it was seen to give with rows, and without any."""

    full: str | None = None
    empty: str | None = None
    # What the keys of the dict may be, as far as every answer agrees; None before one had rows.
    by: list[By] | None = None

    def opened(self, table: str, shown: Any) -> tuple[list[Any], list[Any] | None]:
        """The rows in an answer, and the keys of the dict that has them.  Raises `Unknown`."""
        kind = _KINDS.get(type(shown))
        if kind is None:
            raise Unknown(f"{table} are shown as a {type(shown).__name__}, which is no list, tuple or dict")
        if kind == "dict":
            return list(shown.values()), list(shown)
        return list(shown or ()), None

    def learned(self, table: str, shown: Any, keys: list[Any] | None, rows: list[Row]) -> Gathering:
        """What is known with one more answer.  Raises `Unknown` where it is of another kind than before."""
        kind = _KINDS[type(shown)]
        before = self.full if rows else self.empty
        if before not in (None, kind):
            raise Unknown(f"{table} are shown as a {before} and as a {kind}")
        if not rows:
            return Gathering(self.full, kind, self.by)
        by = None if keys is None else [one for one in _fitting(keys, rows) if self.by is None or one in self.by]
        if by == []:
            raise Unknown(f"{table} are shown as a dict by no column of theirs")
        return Gathering(kind, self.empty, by)

    def put_together(self, table: str, shown: list[Any], rows: list[Row]) -> Any:
        """An answer with these rows; `rows` are the same with all that is known of them.  Raises `Unknown`."""
        kind = (self.full or self.empty) if shown else (self.empty or self.full)
        if kind == "none" and not shown:
            return None
        if kind == "none" or (kind == "dict" and shown and self.by is None):
            raise Unknown("how the manager shows rows was never seen")
        if kind != "dict":
            return tuple(shown) if kind == "tuple" else shown
        answers = [[_key(one, row) for row in rows] for one in self.by or ()]
        if any(one != answers[0] for one in answers[1:]):
            names = " or ".join(sorted({repr(one[0]) for one in self.by or ()}))
            raise Unknown(f"whether {table} are shown by {names} was not seen")
        return dict(zip(answers[0], shown, strict=True)) if shown else {}

    def dump(self) -> list[Any]:
        """The state, to be stored."""
        return [self.full, self.empty, self.by]


def _key(by: By, row: Row) -> Any:
    column, as_text = by
    return str(row.get(column)) if as_text else row.get(column)


def _fitting(keys: list[Any], rows: list[Row]) -> Iterable[By]:
    columns = [column for column in rows[0] if all(column in row for row in rows)]
    for by in ([column, as_text] for column in columns for as_text in (False, True)):
        found = [_key(by, row) for row in rows]
        if found == keys and [type(one) for one in found] == [type(one) for one in keys]:
            yield by
