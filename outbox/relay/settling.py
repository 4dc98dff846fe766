"""Settling: what becomes of a batch.  What PostgreSQL has acknowledged is recorded, at once or beside the next batch.

A batch of which anything failed, or behind which nothing is to be delivered, is settled at once: `settle`.  Any other
is owed: `owe` keeps it, `begin` hands it to another thread while PostgreSQL has the next batch, and `finish` waits for
that thread, or settles what is owed where none has begun.  Until then nobody may discard those entries, nor the ones
of the batch at hand: they are claimed.

`Refusals` carries out the fates of entries that were not applied: another try, a wait, a dead letter, or nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from uuid import UUID

from ..box import Outbox
from ..errors import OutboxError, TargetUnavailable
from ..fate import Failed, Fate, of_refusal, spare_children
from ..log import Log
from ..store.continuity import Mark, Memory, RelaySessions
from ..store.envelope import Record, Unit
from ..store.kept_files import InDelivery
from ..store.ledger import Settlement
from ..target import Outcome, Target, is_best_effort
from ..worker import Later, Worker
from .link import Link
from .scan import Batch, Retry, Scan, Waits


class Ahead:
    """A memory that also knows what PostgreSQL has acknowledged and the store has not recorded yet."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self.forget()

    def forget(self) -> None:
        """The store knows it too now, or never will."""
        self._newest: list[Mark] = []
        self._settled = range(0)
        # The store's watermark as of the batch that is being applied, of which nothing is settled yet; None: ask it.
        self.recorded: int | None = None

    def know(self, newest: list[Mark], settled: range) -> None:
        """`newest` was acknowledged, and with it all that was pending in the range `settled` of sequence numbers."""
        self._newest, self._settled = newest, settled

    def marks(self) -> list[Mark]:
        newest = self._newest
        return [*newest, *(mark for mark in self._memory.marks() if all(mark.lane != new.lane for new in newest))]

    def watermark(self) -> int:
        recorded = self._memory.watermark() if self.recorded is None else self.recorded
        return self._settled[-1] if recorded + 1 in self._settled else recorded

    def last_seq(self) -> int:
        return self._memory.last_seq()

    def sessions(self) -> RelaySessions | None:
        return self._memory.sessions()

    def begin_session(self, *sessions: UUID) -> None:
        self._memory.begin_session(*sessions)

    def proofs(self) -> list[Record]:
        return self._memory.proofs()


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
        if claimed and self._is_current():
            return True
        self.finish()
        self._scan.distrust()
        return False

    def _is_current(self) -> bool:
        """Whether nothing was requeued or discarded since the batch was read; notes the watermark, too."""
        releases, self.memory.recorded = self._store.standing()
        return releases == self._scan.releases

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
        self.memory.recorded = None
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
        self.memory.recorded = None
        self.unclaim()
        if self._owed is None:
            # Recorded, or not to be relied on: what comes again may have been lost by PostgreSQL meanwhile.
            self._progress.acknowledge(frozenset())

    def unclaim(self) -> None:
        """Let operators discard what is not owed."""
        if self._claims is not None:
            self._claims.keep(*[self._owed_range] if self._owed is not None else [])


class Refusals:
    """Belongs to one relay's step; not thread-safe."""

    def __init__(
        self,
        waits: Waits,
        target: Target,
        link: Link,
        max_retries: int,
    ) -> None:
        """Refused entries are tried again up to `max_retries` times."""
        self._waits, self._target, self._link = waits, target, link
        self._max_retries = max_retries

    def carry_out(self, batch: Batch, outcome: Outcome, settlement: Settlement, now: float) -> dict[int, Retry]:
        """Add to `settlement` what was refused, and let wait what cannot be applied yet.

        Leaves the fates in `outcome.failed`, oldest first.  Returns when the refused entries that are tried again are
        due, by sequence number.
        """
        failed = sorted(outcome.failed, key=lambda one: one.seq)
        failed = spare_children(
            failed,
            is_best_effort=self._is_best_effort,
            waits_before=self._waits.waits_before,
            may_be_late=lambda unit: self._may_be_late(unit, batch),
        )
        self._let_wait([one for one in failed if one.fate.waits], outcome.parked, now)
        settlement.dead += [(record, "another entry of its transaction is damaged") for record in batch.broken]
        retries: dict[int, Retry] = {}
        outcome.failed = [one if one.fate.waits else self._refuse(one, settlement, retries, now) for one in failed]
        return retries

    def _may_be_late(self, unit: Unit, batch: Batch) -> bool:
        """The other may have been on its way on another connection; the next try shows it."""
        beside = self._target.lanes > 1 and batch.records[0].seq < unit[0].seq
        return beside or self._link.is_late(unit[0].seq)

    def _let_wait(self, waiting: list[Failed], parked: dict[str, OutboxError], now: float) -> None:
        """Let units wait that fail though their data is not the cause; they are tried again with backoff."""

        def due(times: int) -> float:
            return now + self._link.breaker.backoff(times)

        # The oldest entry of each operation that is concerned: an entry that waits alone concerns itself only.
        concerned: dict[str, int] = {}
        for one in waiting:
            if one.fate is Fate.PARKED and one.operation is not None and not self._waits.waits_alone(one.unit):
                concerned.setdefault(one.operation, one.seq)
        for name in [name for name in parked if name in concerned]:
            if name not in self._waits.parked:
                _log.error("operation %(operation)r is parked: %(error)s", operation=name, error=parked[name])
            self._waits.park(name, str(parked[name]), concerned[name], due)
        for one in waiting:
            if one.operation not in concerned:
                self._waits.wait(one.unit, str(one.error), due)

    def _refuse(self, one: Failed, settlement: Settlement, retries: dict[int, Retry], now: float) -> Failed:
        """Settle a refused unit, or note when it is tried again; returns it with its fate."""
        lenient, attempts = self._is_best_effort(one.unit), one.unit[0].attempts
        early = None
        if one.fate is Fate.RETRIED:
            # The members of a group share one fate.
            dues = [self._waits.take_early(record.seq, now) for record in one.unit]
            early = max([due for due in dues if due is not None], default=None)
        may_retry = attempts < self._max_retries
        fate = of_refusal(one, early=early is not None, may_retry=may_retry, is_best_effort=lenient)
        why = [(record, str(one.error)) for record in one.unit]
        if fate is Fate.DISCARDED:
            settlement.dropped += why
        elif fate is Fate.DEAD:
            if not one.holds_back:
                # Without its ordering key nothing waits for it.
                why = [(replace(record, order_by=None), said) for record, said in why]
            settlement.dead += why
        else:
            settlement.retried += why if fate is Fate.RETRIED else []
            due = now + self._link.breaker.backoff(attempts + 1) if early is None else early
            retries.update(dict.fromkeys((record.seq for record in one.unit), Retry(due, not lenient)))
        return replace(one, fate=fate)

    def _is_best_effort(self, unit: Unit) -> bool:
        return is_best_effort(unit, self._target.operations)
