"""Housekeeping: every minute the relay clears killed readers and prunes the expired ledger."""

from __future__ import annotations

from datetime import timedelta

from ..clock import Clock
from ..errors import DurabilityError, StoreCorrupt
from ..log import Log
from ..store.envelope import to_us
from ..store.store import Store

_log = Log("outbox.relay")

_EVERY_S = 60.0
# So much of the ledger's expired part at once, and after so many seconds more of it, idle or with work waiting.
_PRUNE_ROWS = 2500
_PRUNE_ROWS_BUSY = 500
_PRUNE_PAUSE_S = 1.0


class Housekeeping:
    """Belongs to one relay's step; not thread-safe."""

    def __init__(self, store: Store, clock: Clock, retention_hours: float) -> None:
        self._store, self._clock = store, clock
        self._keep_us = timedelta(hours=retention_hours) // timedelta(microseconds=1)
        # When it is due, in monotonic seconds.
        self.due_at = 0.0

    def run(self, now: float, *, idle: bool, prune: bool) -> None:
        """Do it now.  Pruning goes piece by piece; not where PostgreSQL may still need the history."""
        self.due_at = now + _EVERY_S
        self._store.reader_check()
        if not prune or self._store.halt_reason is not None:
            return
        # A relay that is never idle must prune too, or its history fills the store.
        most = _PRUNE_ROWS if idle else _PRUNE_ROWS_BUSY
        try:
            if self._store.prune(to_us(self._clock.now()) - self._keep_us, most=most) >= most:
                self.due_at = now + _PRUNE_PAUSE_S
        except (StoreCorrupt, DurabilityError) as exc:
            # An old record that cannot be read or deleted is no reason to stop deliveries.
            _log.error("the ledger cannot be pruned: %(error)s", error=exc)
