"""Side ids: ids for the rows that a replayed call writes beside the one whose id it returns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def _none(*_: Any) -> None:
    """Let PostgreSQL give the id."""


class SideIds:
    """Ids for the rows that a replayed call writes on the side: first those that were noted at the call."""

    def __init__(
        self,
        noted: dict[str, list[Any]] | None = None,
        take: Callable[..., Any] = _none,
        column_of: Callable[[str | None, str], str | None] = _none,
    ) -> None:
        """`column_of(schema, table)`: the column of the ids that `take` has for a table."""
        self._noted = {column: list(ids) for column, ids in (noted or {}).items()}
        self._take, self.column_of = take, column_of
        # "table.column" -> the ids that were used.
        self.taken: dict[str, list[Any]] = {}

    def __call__(self, *names: str | None) -> Any:
        """The next id of a column, `(schema, table, column)`, or None where PostgreSQL is to give it."""
        place = ".".join(name for name in names if name is not None)
        left = self._noted.get(place)
        id_ = left.pop(0) if left else self._take(*names)
        if id_ is not None:
            self.taken.setdefault(place, []).append(id_)
        return id_
