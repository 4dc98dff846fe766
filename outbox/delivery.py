"""Delivery: moves one batch of pending entries to the target at a time, in order, once per key.

`Delivery.step(now)` is the whole of it: mend, peek, apply, settle, schedule.  It sleeps never and reads no clock; who
drives it, and when, is the business of `relay.py`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from .box import Outbox
from .breaker import Breaker
from .continuity import Ahead
from .envelope import Record, to_us
from .errors import DurabilityError, OutboxError, StoreCorrupt, TargetMisconfigured, TargetUnavailable
from .ledger import Settlement
from .locks import Role, RoleLock
from .reconcile import Reconciler
from .scan import Batch, Retry, Scan
from .state_file import StateFile
from .target import Outcome, Target, units
from .worker import Later, Worker

_log = logging.getLogger("outbox.relay")

_HOUSEKEEPING_S = 60.0
_PROBE_S = 60.0
# So much of the ledger's expired part at once, and after so many seconds more of it, idle or with work waiting.
_PRUNE_ROWS = 2500
_PRUNE_ROWS_BUSY = 500
_PRUNE_PAUSE_S = 1.0
_PUBLISH_S = 1.0
# Of an error's text: what is published must fit its file.
_SAID_CHARS = 1000
# So long after an entry came the program counts as enqueueing: as long as a trading loop may pause.
_BUSY_S = 60.0
# While somebody waits for the deliveries, the longest pause between two tries.
HURRY_S = 1.0


class Delivery:
    """The deliveries of one outbox into one target.  Driven by one thread at a time."""

    def __init__(self, box: Outbox, target: Target) -> None:
        """`box` may be opened or attached.  Settings come from `box.config`, time and randomness from `box.clock`."""
        self._box, self._target = box, target
        self._config, self._clock = box.config, box.clock
        self._breaker = Breaker(self._config.backoff_base, self._config.backoff_cap, self._clock.random)
        self._role: RoleLock | None = None
        self._limit = self._config.batch_size
        self._scan = Scan(box.store)
        # What PostgreSQL has acknowledged and the store has not recorded yet: that is done while the next batch runs.
        self._owed: Settlement | None = None
        # Not while recording fails: each failure must be known before the next batch.
        self._may_owe = True
        self._memory = Ahead(box.store)
        self._beside: Worker[None] | Later[None] = Later()
        self._reconciler = Reconciler(box, target, self._memory)
        self._seen_seq = -1
        self._caught_up = False
        # The newest entry of the last look, and until when the program counts as enqueueing.
        self._newest_seq: int | None = None
        self._busy_until = 0.0
        # How many wait for the deliveries right now.
        self._draining = 0
        self._next_housekeeping = 0.0
        # Somebody who waits wants to know whether the target still has everything.
        self._probe_wanted = False
        self._next_probe = 0.0
        self._stopped_line = False
        self._last_error: str | None = None
        self._moved_at = self._clock.monotonic()
        self._last_applied_at: str | None = None
        self._published: dict[str, object] = {}
        self._publish_at = 0.0
        # Why the relay's thread died, or None.
        self.died: str | None = None

    # -- one step

    def step(self, now: float) -> float:
        """Move one batch.  `now` is monotonic seconds; returns the seconds until the next step is due, 0 for at once.

        Takes the relay's role at the first call.  Raises `StoreLocked`, or what reading the store raises.
        """
        self._take_role()
        pause = self._breaker.wait(now)
        if pause > 0:
            return pause
        try:
            if self._reconciler.wanted:
                self._record_owed()
                self._mend()
            batch = self._scan.next_batch(now, self._reach(now))
            self._look_whether_busy(batch, now)
            if not self._yields(now) and (self._owed is not None or not batch.exhausted):
                self._beside.begin(self._meanwhile(batch, self._reach(now)))
            outcome = self._apply(batch)
            self._record_owed()
            self._settle(batch, outcome, now)
            return self._schedule(batch, outcome, now)
        except (DurabilityError, TargetUnavailable, TargetMisconfigured) as exc:
            # The batch comes again, and its receipts keep the effects from being repeated.
            self._scan.distrust()
            self._fail(exc, now)
            self._housekeep(now, idle=False)
            self._publish(now)
            self._tell()
            return self._breaker.wait(now)

    def _reach(self, now: float) -> int:
        """How many entries to take at once; a single one where that is to show which one takes too long."""
        limit = min(self._limit, self._config.busy_batch_size) if self._yields(now) else self._limit
        return limit * self._target.lanes if self._limit > 1 else 1

    def _look_whether_busy(self, batch: Batch, now: float) -> None:
        if self._newest_seq is not None and batch.newest_seq > self._newest_seq:
            self._busy_until = now + _BUSY_S
        self._newest_seq = batch.newest_seq

    def _yields(self, now: float) -> bool:
        """Whether to go easy on the disk and the interpreter, since the program enqueues and waits for both.

        Then batches are small, and one thing is done after the other: measured in `docs/performance.md`.
        """
        return now < self._busy_until and self._config.busy_batch_size < self._config.batch_size

    def _mend(self) -> None:
        """Put back what the target has forgotten.  Raises while that waits for an operator, or fails."""
        with _foreseen():
            mended = self._reconciler.mend()
        if mended is not None:
            # What was put back comes before whatever was read before that.
            self._scan.distrust()
            self._recover()

    def _meanwhile(self, batch: Batch, limit: int) -> Callable[[], None]:
        """What to do for the batches before and behind this one while the target has it."""
        owed = self._owed

        def work() -> None:
            if owed is not None:
                self._box.store.settle(owed)
            if not batch.exhausted:
                self._scan.look_ahead(batch, limit)

        return work

    def _record_owed(self) -> None:
        """Record now, or end recording, what waits for the next batch.  Raises `DurabilityError`."""
        answer, owed = self._beside.wait(), self._owed
        self._owed = None
        self._memory.forget()
        try:
            if answer is not None:
                answer()
            elif owed is not None:
                self._box.store.settle(owed)
        except BaseException:
            # It comes again, and its receipts keep the effects from being repeated.
            self._scan.distrust()
            raise

    def _pay(self) -> None:
        """Record what is owed where no step follows; what cannot be recorded comes again."""
        try:
            self._record_owed()
        except OutboxError as exc:
            self._fail(exc, self._clock.monotonic())

    def _apply(self, batch: Batch) -> Outcome:
        if not batch.records:
            return Outcome()
        try:
            with _foreseen():
                outcome = self._target.apply(self._box.store.identity.store_id, batch.records)
        except (TargetUnavailable, TargetMisconfigured) as exc:
            outcome = Outcome(interruption=exc)
        self._reconciler.note(outcome.interruption)
        return outcome

    def _settle(self, batch: Batch, outcome: Outcome, now: float) -> None:
        """Record the outcome in one commit, or owe that to the next step.  Raises `DurabilityError`."""
        settlement = Settlement(completed=outcome.completed, marks=outcome.marks)
        settlement.dead += [(record, "another entry of its transaction is damaged") for record in batch.broken]
        lenient = self._best_effort(record for record, _ in outcome.rejected)
        for record, error in outcome.rejected:
            if not error.permanent and record.attempts < self._config.max_retries:
                settlement.retried.append((record, str(error)))
            elif record.seq in lenient:
                settlement.dropped.append((record, str(error)))
            else:
                settlement.dead.append((record, str(error)))
        plain = not (settlement.dead or settlement.dropped or settlement.retried or outcome.interruption)
        may_owe = self._may_owe and not self._yields(now)
        later = plain and may_owe and not batch.exhausted and self._scan.next_retry is None
        if later and settlement:
            self._owed = settlement
            first = batch.records[0].seq if batch.whole and batch.records else 0
            self._memory.know(settlement.marks, range(first, batch.last_seq + 1) if first else range(0))
        elif settlement:
            self._box.store.settle(settlement)
            self._may_owe = True
        retries = {
            record.seq: Retry(now + self._breaker.backoff(record.attempts + 1), record.seq not in lenient)
            for record, _ in settlement.retried
        }
        self._scan.refused(settlement, retries)
        if outcome.stalled:
            self._scan.stalled(outcome.stalled, now, self._config.stall_timeout)
            fields = {"seq": outcome.stalled[0].seq, "operation": outcome.stalled[0].operation}
            _log.warning("an entry takes too long in PostgreSQL although it is alone", extra=fields)
        if settlement.dead:
            record, why = settlement.dead[0]
            fields = {"entries": len(settlement.dead), "seq": record.seq, "operation": record.operation, "why": why}
            _log.error("entries became dead letters", extra=fields)
        if outcome.interruption is None:
            done = {record.seq for record, _ in outcome.completed} | {record.seq for record, _ in outcome.rejected}
            self._scan.passed(batch, done)

    def _best_effort(self, records: Iterable[Record]) -> set[int]:
        """Sequence numbers of those that need no operator: a group does not count unless all of it is best effort."""
        operations = self._target.operations
        return {
            record.seq
            for unit in units(records)
            if all(item.operation in operations and operations[item.operation].best_effort for item in unit)
            for record in unit
        }

    def _schedule(self, batch: Batch, outcome: Outcome, now: float) -> float:
        """Note how the step went; returns the wait until the next one."""
        if outcome.completed or outcome.rejected or batch.broken:
            self._moved_at = now
        if outcome.completed:
            self._last_applied_at = self._clock.now().isoformat()
        if outcome.interruption is not None:
            self._fail(outcome.interruption, now)
        elif batch.records:
            self._recover()
        next_retry = self._scan.next_retry
        self._caught_up = outcome.interruption is None and batch.exhausted and next_retry is None
        if self._caught_up:
            self._seen_seq = batch.newest_seq
            self._moved_at = now
        self._housekeep(now, idle=self._caught_up)
        self._probe(now)
        self._caught_up &= not self._reconciler.waiting
        self._publish(now)
        self._tell()
        if outcome.interruption is not None:
            return self._breaker.wait(now)
        if not batch.exhausted or self._reconciler.waiting:
            return 0.0
        wait = self._config.sync_interval
        return wait if next_retry is None else max(0.0, min(wait, next_retry - now))

    def _tell(self) -> None:
        """Called after each step."""

    def _fail(self, exc: OutboxError, now: float) -> None:
        delay = self._breaker.failed(now)
        stopped = isinstance(exc, TargetMisconfigured)
        self._may_owe &= not isinstance(exc, DurabilityError)
        if isinstance(exc, TargetUnavailable) and exc.stalled:
            self._limit = max(1, self._limit // 2)
        if str(exc) != self._last_error or stopped != self._stopped_line:
            level = logging.ERROR if stopped or isinstance(exc, DurabilityError) else logging.WARNING
            _log.log(level, "delivery failed", extra={"error": str(exc), "retry_in_s": round(delay, 3)})
        self._last_error, self._stopped_line = str(exc), stopped
        if self._draining:
            self._breaker.hurry(now, HURRY_S)

    def _recover(self) -> None:
        if self._last_error is not None:
            _log.info("delivery works again", extra={"after": self._last_error})
        self._breaker.succeeded()
        self._last_error, self._stopped_line = None, False
        self._limit = min(self._config.batch_size, self._limit * 2)

    def _housekeep(self, now: float, *, idle: bool) -> None:
        """Every minute: clear killed readers and prune the ledger's expired part, piece by piece."""
        if now < self._next_housekeeping:
            return
        self._next_housekeeping = now + _HOUSEKEEPING_S
        self._box.store.reader_check()
        # In an outage nobody knows what PostgreSQL has, and whether it will need the history.
        unknown = self._last_error is not None or self._reconciler.waiting
        if self._box.store.halt_reason is not None or unknown:
            return
        keep = timedelta(hours=self._config.retention_hours)
        before_us = to_us(self._clock.now()) - keep // timedelta(microseconds=1)
        # A relay that is never idle must prune too, or its history fills the store.
        most = _PRUNE_ROWS if idle else _PRUNE_ROWS_BUSY
        try:
            if self._box.store.prune(before_us, most=most) >= most:
                self._next_housekeeping = now + _PRUNE_PAUSE_S
        except (StoreCorrupt, DurabilityError) as exc:
            # An old record that cannot be read or deleted is no reason to stop deliveries.
            _log.error("the ledger cannot be pruned", extra={"error": str(exc)})

    def _probe(self, now: float) -> None:
        """When idle, ask the target now and then whether it still has everything: a batch would tell by itself."""
        if self._caught_up and (self._probe_wanted or now >= self._next_probe):
            self._probe_wanted, self._next_probe = False, now + _PROBE_S
            with _foreseen():
                fine = self._reconciler.probe()
            if fine and self._last_error is not None:
                # What failed has been settled or discarded meanwhile, and no batch will tell that delivery works.
                self._recover()

    def _publish(self, now: float, *, force: bool = False) -> None:
        """Tell other processes how it goes: at once when something changed, else every second."""
        state: dict[str, object] = {
            "pid": os.getpid(),
            "breaker": self._breaker.state,
            "stopped": self._stopped_line,
            "last_error": self._last_error and self._last_error[:_SAID_CHARS],
            "died": self.died and self.died[:_SAID_CHARS],
            "held_back": self._scan.held,
            "slow": self._scan.slow,
        }
        if state == self._published and now < self._publish_at and not force:
            return
        self._published, self._publish_at = state, now + _PUBLISH_S
        moving = {"moved_at": self._moved_at, "last_applied_at": self._last_applied_at}
        try:
            StateFile(self._box.path / "relay.state").write({**state, **moving})
        except OSError as exc:
            _log.warning("relay state could not be published", extra={"error": str(exc)})

    def _take_role(self) -> None:
        if self._role is None:
            self._role = RoleLock(self._box.path, Role.RELAY)
            self._reconciler.resume()

    def _leave_role(self) -> None:
        if self._role is not None:
            self._role.release(clean=True)
            self._role = None


@contextmanager
def _foreseen() -> Iterator[None]:
    """A defect in the target must neither drop an entry nor end the deliveries: the line stops and tries again."""
    try:
        yield
    except OutboxError:
        raise
    except Exception as exc:
        _log.exception("target failed unexpectedly")
        raise TargetMisconfigured(f"unexpected {type(exc).__name__}: {exc}") from exc
