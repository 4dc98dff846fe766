"""Tables read: which tables each read was seen to use, kept in the store.

The code of a read does not name all of them: a view, a function, a table of a reflected schema, or SQL that is put
together stands for them.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Collection

from ... import Outbox, OutboxError
from ...log import Log

_log = Log("outbox.integrations")

_META = "tables-read"


class TablesRead:
    """What is known of one manager's reads.  Thread-safe."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox, self._lock = outbox, threading.Lock()
        stored = outbox.store.get_meta(_META)
        self._tables: dict[str, frozenset[str]] = (
            {} if stored is None else {read: frozenset(tables) for read, tables in json.loads(stored).items()}
        )

    def of(self, read: str) -> frozenset[str]:
        """The tables that a read was seen to use, without their schemas."""
        return self._tables.get(read, frozenset())

    def note(self, read: str, tables: Collection[str]) -> bool:
        """Take in which tables a read has used; whether that is news.  On disk when it returns."""
        if self.of(read).issuperset(tables):
            return False
        with self._lock:
            self._tables[read] = self.of(read).union(tables)
            data = json.dumps({name: sorted(known) for name, known in self._tables.items()})
            try:
                self._outbox.store.put_meta(_META, data.encode())
            except OutboxError as exc:
                _log.warning("the tables that %(read)s uses could not be kept: %(error)s", read=read, error=exc)
        return True
