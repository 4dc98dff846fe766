"""Row ids: the row for which the id of a caller stands, and ids for rows that a replayed call writes on the side.

A manager that adds a second buy to the open position answers with an existing row's id (`SameRow`).  In an outage its
caller has an id that no row has; what it does with that id is meant for the row that the manager took.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from ... import OutboxError
from ...log import Log
from ...results import decode_result, encode_result
from ...store.store import Store

_log = Log("outbox.integrations")

_META = "same_rows"
_KEPT = 5000


class SameRow:
    """The ids of positions that stand for another one, in the order in which they were found.  Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._store: Store | None = None
        self._rows: dict[Any, Any] = {}

    def keep_in(self, store: Store) -> None:
        """Keep them in this store; takes over those that it has."""
        with self._lock:
            if store is not self._store:
                self._store = store
                kept = store.get_meta(_META)
                self._rows = dict(decode_result(kept)) if kept is not None else {}

    def note(self, told: Any, id_: Any) -> None:
        """A caller has the id `told` for the row with `id_`; durable before PostgreSQL commits that row.

        An earlier try of the same delivery, which was rolled back, may have found another row, or none.
        """
        with self._lock:
            if self._rows.get(told, told) == id_:
                return
            self._rows.pop(told, None)
            if told != id_:
                self._rows[told] = id_
            for oldest in list(self._rows)[:-_KEPT]:
                del self._rows[oldest]
            if self._store is not None:
                try:
                    data = encode_result([list(pair) for pair in self._rows.items()])
                    self._store.put_meta(_META, data, despite_halt=True)
                except OutboxError as exc:
                    _log.error("the row of id %(told)s could not be kept: %(error)s", told=told, error=exc)

    def of(self, id_: Any) -> Any:
        """The id of the row that is meant by `id_`."""
        # Without the lock, which is held while a row is stored: each call asks, also that of a signal handler.
        try:
            return self._rows.get(id_, id_)
        except TypeError:  # what cannot be hashed is no id
            return id_


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
