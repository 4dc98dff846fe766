"""Final ids without PostgreSQL: blocks taken from its sequences while it is up, kept durably, handed out at once.

An id that was handed out is never handed out again, also after a crash: a chunk is checked out durably before the
first of its ids is used, and what a crash leaves of it is a gap.
"""

from __future__ import annotations

import json
import threading
from collections import deque

from sqlalchemy import Engine, text

from .. import Outbox, OutboxError

_CHUNK = 64


class IdReserveEmpty(OutboxError):
    """No reserved id is left, or none was ever fetched."""


class IdReserve:
    """Reserved ids of one table's `id` column.  Thread-safe; one object per table and store."""

    def __init__(self, outbox: Outbox, table: str) -> None:
        self._outbox, self._table = outbox, table
        self._meta = f"ids:{table}"
        self._lock = threading.Lock()
        self._chunk: deque[int] = deque()
        stored = outbox.store.get_meta(self._meta)
        # Ranges [first, last] of ids that are free, oldest first.
        self._ranges: list[list[int]] = json.loads(stored) if stored else []

    def left(self) -> int:
        """How many ids can be handed out without PostgreSQL."""
        with self._lock:
            return len(self._chunk) + sum(last - first + 1 for first, last in self._ranges)

    def take(self) -> int:
        """The next id.  Raises `IdReserveEmpty` or `DurabilityError`."""
        with self._lock:
            if not self._chunk:
                self._check_out()
            return self._chunk.popleft()

    def fill(self, engine: Engine, wanted: int) -> None:
        """Fetch ids from the table's sequence until `wanted` are in reserve.  Raises `SQLAlchemyError`."""
        missing = wanted - self.left()
        if missing <= 0:
            return
        query = text("SELECT nextval(pg_get_serial_sequence(:table, 'id')) FROM generate_series(1, :missing)")
        with engine.connect() as connection:
            fetched = sorted(connection.execute(query, {"table": self._table, "missing": missing}).scalars())
        with self._lock:
            for number in fetched:
                if self._ranges and self._ranges[-1][1] == number - 1:
                    self._ranges[-1][1] = number
                else:
                    self._ranges.append([number, number])
            self._save()

    def _check_out(self) -> None:
        if not self._ranges:
            raise IdReserveEmpty(
                f"no id is left in the reserve of {self._table}",
                hint="PostgreSQL must be reachable to fetch more; the reserve is filled when the engine starts",
            )
        first, last = self._ranges[0]
        taken = range(first, min(first + _CHUNK, last + 1))
        if taken[-1] == last:
            self._ranges.pop(0)
        else:
            self._ranges[0][0] = taken[-1] + 1
        self._save()
        self._chunk.extend(taken)

    def _save(self) -> None:
        self._outbox.store.put_meta(self._meta, json.dumps(self._ranges).encode())
