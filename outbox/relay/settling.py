"""Settling: what PostgreSQL has acknowledged becomes settled in the store, at once or beside the next batch.

A batch of which anything failed, or behind which nothing is to be delivered, is settled at once: `settle`.  Any other
is owed: `owe` keeps it, `begin` hands it to another thread while PostgreSQL has the next batch, and `finish` waits for
that thread, or settles what is owed where none has begun.  Until then nobody may discard those entries, nor the ones
of the batch at hand: they are claimed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..box import Outbox
from ..errors import TargetUnavailable
from ..log import Log
from ..store.continuity import Ahead
from ..store.kept_files import InDelivery
from ..store.ledger import Settlement
from ..worker import Later, Worker
from .scan import Batch, Scan

_log = Log("outbox.relay")


class Settling:
    """Belongs to one relay's step; not thread-safe."""

    def __init__(self, box: Outbox, scan: Scan) -> None:
        self._store, self._progress, self._path, self._scan = box.store, box.progress, box.path, scan
        self.memory = Ahead(box.store)
        # What PostgreSQL has acknowledged and the store has not recorded yet: that is done while the next batch runs.
        self._owed: Settlement | None = None
        # Not while recording fails: each failure must be known before the next batch.
        self.may_owe = True
        self._beside: Worker[None] | Later[None] = Later()
        # What is in this step's batch, and in the one that is owed, cannot be discarded meanwhile.
        self._claims: InDelivery | None = None
        self._batch_range = self._owed_range = (0, 0)

    @property
    def owes(self) -> bool:
        """Whether something is to be recorded beside the next batch."""
        return self._owed is not None

    def open(self) -> None:
        """Be ready to claim entries; the relay's role is held.  Raises OSError."""
        self._claims = InDelivery(self._path)

    def close(self) -> None:
        """Let go of every claim; may be called twice."""
        if self._claims is not None:
            self._claims.close()
            self._claims = None

    @contextmanager
    def beside_a_thread(self) -> Iterator[None]:
        """Within the block recording one batch and delivering the next go on at the same time."""
        worker: Worker[None] = Worker("outbox-settle")
        self._beside = worker
        try:
            yield
        finally:
            self._beside = Later()
            worker.close()

    def claim(self, batch: Batch) -> bool:
        """Keep operators from discarding what is in the batch; False where one does, or has done since it was read.

        Raises `TargetUnavailable` where the system does not let us, and `DurabilityError`.
        """
        if not batch.records or self._claims is None:
            return True
        self._batch_range = batch.records[0].seq, batch.records[-1].seq
        try:
            claimed = self._claims.claim(*self._batch_range)
        except OSError as exc:
            raise TargetUnavailable(f"the entries of a batch cannot be locked: {exc}") from exc
        if claimed and self._scan.is_current():
            return True
        self.finish()
        self._scan.distrust()
        return False

    def begin(self, batch: Batch, limit: int) -> None:
        """While the target has the batch, record the one before it and look for at most `limit` entries behind it."""
        try:
            self._beside.begin(self._meanwhile(batch, limit))
        except RuntimeError as exc:
            _log.warning("recording goes on without a thread of its own: %(error)s", error=exc)
            self._beside = Later()
            self._beside.begin(self._meanwhile(batch, limit))

    def _meanwhile(self, batch: Batch, limit: int) -> Callable[[], None]:
        owed = self._owed

        def work() -> None:
            if owed is not None:
                self._store.settle(owed)
            if not batch.exhausted:
                self._scan.look_ahead(batch, limit)

        return work

    def finish(self) -> None:
        """Record now, or end recording, what waits for the next batch.  Raises `DurabilityError`."""
        if self._owed is None and not self._beside.busy:
            return
        answer, owed = self._beside.wait(), self._owed
        self._owed = None
        self.memory.forget()
        try:
            if answer is not None:
                answer()
            elif owed is not None:
                self._store.settle(owed)
        except BaseException:
            # It comes again, and its receipts keep the effects from being repeated.
            self._scan.distrust()
            raise

    def owe(self, settlement: Settlement, batch: Batch) -> None:
        """Leave a batch that was applied completely to be recorded beside the next one, or by `finish`."""
        if not settlement.completed:
            return
        self._owed, self._owed_range = settlement, self._batch_range
        first = batch.records[0].seq if batch.whole else 0
        self.memory.know(settlement.marks, range(first, batch.last_seq + 1) if first else range(0))

    def settle(self, settlement: Settlement) -> None:
        """Record now what became of a batch, in one commit.  Raises `DurabilityError`."""
        if settlement:
            self._store.settle(settlement)
            self.may_owe = True

    def end_step(self) -> None:
        """Only what PostgreSQL has acknowledged and the store has not recorded yet must not be discarded."""
        self.unclaim()
        if self._owed is None:
            # Recorded, or not to be relied on: what comes again may have been lost by PostgreSQL meanwhile.
            self._progress.acknowledge(frozenset())

    def unclaim(self) -> None:
        """Let operators discard what is not owed."""
        if self._claims is not None:
            self._claims.keep(*[self._owed_range] if self._owed is not None else [])
