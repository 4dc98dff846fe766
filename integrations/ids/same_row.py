"""Same row: ids that callers were given for a new row where the manager then answered with an existing row's.

A manager that adds a second buy to the open position does so.  In an outage its caller has an id that no row has; what
it does with that id is meant for the row that the manager took.
"""

from __future__ import annotations

import threading
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
