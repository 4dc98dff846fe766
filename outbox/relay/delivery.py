"""Delivery: moves one batch of pending entries to the target at a time, in order, once per key.

`Delivery.step(now)` is the whole of it: mend, peek, apply, settle, schedule.  It sleeps never and reads no clock; who
drives it, and when, is the business of `relay.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..box import Outbox
from ..errors import DurabilityError, OutboxError, TargetMisconfigured, TargetUnavailable
from ..log import Log
from ..store.continuity import Ahead
from ..store.ledger import Settlement
from ..store.locks import Role, RoleLock
from ..store.rates import Pace
from ..store.reads import PAUSE
from ..store.withdrawal import InDelivery
from ..target import Outcome, Target
from ..worker import Later, Worker
from .breaker import Breaker
from .housekeeping import Housekeeping
from .orders import ORDER
from .publication import Publication
from .reconcile import Reconciler
from .refusals import Refusals
from .scan import Batch, Retry, Scan

_log = Log("outbox.relay")

_PROBE_S = 60.0
# Of an error's text: what is published must fit its file.
_SAID_CHARS = 1000
# So long after an entry came the program counts as enqueueing: as long as a trading loop may pause.
_BUSY_S = 60.0
# So long after an operator's process had an entry of the batch the batch is read again.
_CLAIM_S = 0.01
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
        # What is in this step's batch, and in the one that is owed, cannot be discarded meanwhile.
        self._in_delivery: InDelivery | None = None
        self._batch_range = self._owed_range = (0, 0)
        # As of which release it was asked whether what was discarded had been applied.
        self._asked, self._ask_at = -1, 0.0
        self._limit = self._config.batch_size
        self._scan = Scan(box.store, self._is_best_effort)
        self._refusals = Refusals(self._scan, target, self._breaker, self._config.max_retries, self._is_best_effort)
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
        self._housekeeping = Housekeeping(box.store, box.clock, box.config.retention_hours)
        # Somebody who waits wants to know whether the target still has everything.
        self._probe_wanted = False
        self._next_probe = 0.0
        self._stopped_line = False
        self._last_error: str | None = None
        self._moved_at = self._clock.monotonic()
        self._last_applied_at: str | None = None
        self._pace = Pace()
        # Whether an operator had paused the deliveries at the last step.
        self._paused = False
        self._publication = Publication(box.path, box.clock)
        # Why the relay's thread died, or None.
        self.died: str | None = None

    # -- one step

    def step(self, now: float) -> float:
        """Move one batch.  `now` is monotonic seconds; returns the seconds until the next step is due, 0 for at once.

        Takes the relay's role at the first call.  Raises `StoreLocked`, or what reading the store raises.
        """
        self._take_role()
        # Of an operator, in any process.
        orders = self._box.store.existing_metas(PAUSE, ORDER)
        if self._is_paused(PAUSE in orders):
            return self._rest(now)
        if self._draining:
            self._scan.hurry(now + HURRY_S)
        pause = self._breaker.wait(now)
        if pause > 0:
            return pause
        try:
            if self._reconciler.able and (self._reconciler.waiting or ORDER in orders):
                self._record_owed()
                self._mend()
            batch = self._scan.next_batch(now, self._reach(now))
            if not self._claim(batch):
                return _CLAIM_S
            self._look_whether_busy(batch, now)
            if not self._yields(now) and (self._owed is not None or not batch.exhausted):
                self._beside.begin(self._meanwhile(batch, self._reach(now)))
            outcome = self._apply(batch)
            self._record_owed()
            # Before it is recorded: who waits for the effect need not wait for our disk too.
            self._box.progress.acknowledge(record.seq for record, _ in outcome.completed)
            self._settle(batch, outcome, now)
            took_s = self._clock.monotonic() - now
            self._pace.batch(len(outcome.completed), took_s)
            self._publication.delivered(outcome.by_lane)
            if batch.records and _log.is_detailed:
                self._describe(batch, outcome, took_s)
            self._pace.sample(now, batch.newest_seq)
            return self._schedule(batch, outcome, now)
        except (DurabilityError, TargetUnavailable, TargetMisconfigured) as exc:
            # The batch comes again, and its receipts keep the effects from being repeated.
            self._scan.distrust()
            self._caught_up = False
            self._fail(exc, now)
            self._housekeep(now, idle=False)
            self._publish(now)
            self._tell()
            return self._breaker.wait(now)
        finally:
            self._keep_owed()
            if self._owed is None:
                # Recorded, or not to be relied on: what comes again may have been lost by PostgreSQL meanwhile.
                self._box.progress.acknowledge(())

    def _is_paused(self, ordered: bool) -> bool:
        """Whether an operator lets nothing be delivered now; `ordered`: there is a pause, which may have ended."""
        before, pause = self._paused, self._box.pauses.current(forget=True) if ordered else None
        self._paused = pause is not None
        if pause is not None and not before:
            _log.warning("%(pause)s", pause=pause.sentence())
            self._pay()
            self._target.close()
        elif pause is None and before:
            _log.info("the pause has ended, delivery goes on")
        return self._paused

    def _rest(self, now: float) -> float:
        """What a step is while deliveries are paused; returns the seconds until it is looked again."""
        self._caught_up = False
        # To stand still is no trouble of the relay now.
        self._moved_at = now
        self._housekeep(now, idle=True)
        self._publish(now)
        self._tell()
        return HURRY_S

    def _claim(self, batch: Batch) -> bool:
        """Keep operators from discarding what is in the batch; False where one does, or has done since it was read.

        Raises `TargetUnavailable` where the system does not let us.
        """
        if not batch.records or self._in_delivery is None:
            return True
        self._batch_range = batch.records[0].seq, batch.records[-1].seq
        try:
            claimed = self._in_delivery.claim(*self._batch_range)
        except OSError as exc:
            raise TargetUnavailable(f"the entries of a batch cannot be locked: {exc}") from exc
        if claimed and self._scan.is_current():
            return True
        self._record_owed()
        self._scan.distrust()
        return False

    def _keep_owed(self) -> None:
        """Only what PostgreSQL has acknowledged and the store has not recorded yet must not be discarded."""
        if self._in_delivery is not None:
            self._in_delivery.keep(*[self._owed_range] if self._owed is not None else [])

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

        Then batches are small, one step after the other: `docs/explanation/decisions/011-busy-batches.md`.
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
        if self._owed is None and not self._beside.busy:
            return
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
        finally:
            self._keep_owed()

    def _apply(self, batch: Batch) -> Outcome:
        if not batch.records:
            return Outcome()
        try:
            with _foreseen():
                outcome = self._target.apply(self._box.store.identity.store_id, batch.records)
        except (TargetUnavailable, TargetMisconfigured) as exc:
            outcome = Outcome(interruption=exc)
        if outcome.interruption is not None:
            self._reconciler.note(outcome.interruption)
        return outcome

    def _settle(self, batch: Batch, outcome: Outcome, now: float) -> None:
        """Record the outcome in one commit, or owe that to the next step.  Raises `DurabilityError`."""
        settlement = Settlement(completed=outcome.completed, marks=outcome.marks)
        retries: dict[int, Retry] = {}
        if outcome.rejected or outcome.waiting or batch.broken:
            most_s = HURRY_S if self._draining else math.inf
            retries = self._refusals.sort(batch, outcome, settlement, now, most_s)
        waits = outcome.waiting or outcome.parked
        plain = not (settlement.dead or settlement.dropped or settlement.retried or outcome.interruption or waits)
        may_owe = self._may_owe and not self._yields(now)
        later = plain and may_owe and not batch.exhausted and self._scan.next_retry is None
        if later and settlement:
            self._owed, self._owed_range = settlement, self._batch_range
            first = batch.records[0].seq if batch.whole and batch.records else 0
            self._memory.know(settlement.marks, range(first, batch.last_seq + 1) if first else range(0))
        elif settlement:
            self._box.store.settle(settlement)
            self._may_owe = True
        self._scan.refused(settlement, retries)
        if outcome.stalled:
            self._scan.stalled(outcome.stalled, now, self._config.stall_timeout)
            _log.warning(
                "entry %(seq)s of operation %(operation)r takes too long in PostgreSQL although it is alone",
                seq=outcome.stalled[0].seq,
                operation=outcome.stalled[0].operation,
            )
        if settlement.dead:
            record, why = settlement.dead[0]
            _log.error(
                "entries became dead letters: %(entries)s, the first is %(seq)s of operation %(operation)r: %(why)s "
                "(see `atb outbox list`)",
                entries=len(settlement.dead),
                seq=record.seq,
                operation=record.operation,
                why=why,
            )
        if outcome.interruption is None:
            done = {record.seq for record, _ in outcome.completed} | {record.seq for record, _ in outcome.rejected}
            self._scan.passed(batch, done)

    def _describe(self, batch: Batch, outcome: Outcome, took_s: float) -> None:
        """One line for each batch, for those who look for what the relay does with its time."""
        _log.debug(
            "batch of %(claimed)s, from %(first)s to %(last)s: %(delivered)s delivered, %(rejected)s rejected, "
            "%(waiting)s waiting, settled %(settled)s, took %(took_ms)s ms",
            claimed=len(batch.records),
            first=batch.records[0].seq,
            last=batch.records[-1].seq,
            delivered=len(outcome.completed),
            rejected=len(outcome.rejected),
            waiting=sum(len(one.unit) for one in outcome.waiting),
            settled="now" if self._owed is None else "with the next batch",
            took_ms=round(took_s * 1000, 1),
        )

    def _is_best_effort(self, name: str) -> bool:
        operation = self._target.operations.get(name)
        return operation is not None and operation.best_effort

    def _schedule(self, batch: Batch, outcome: Outcome, now: float) -> float:
        """Note how the step went; returns the wait until the next one."""
        if outcome.completed or outcome.rejected or outcome.waiting or batch.broken:
            self._moved_at = now
        if outcome.completed:
            self._last_applied_at = self._clock.now().isoformat()
        if outcome.interruption is not None:
            self._fail(outcome.interruption, now)
        elif batch.records:
            self._recover()
        next_retry = self._scan.next_retry
        self._caught_up = outcome.interruption is None and batch.exhausted and not self._scan.awaits
        if self._caught_up:
            self._seen_seq = batch.newest_seq
            self._moved_at = now
            self._publication.inherited = {}
        self._housekeep(now, idle=self._caught_up)
        self._probe(now)
        self._confirm_withdrawn(now)
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
        self._publication.inherited = {}
        delay = self._breaker.failed(now)
        stopped = isinstance(exc, TargetMisconfigured)
        self._may_owe &= not isinstance(exc, DurabilityError)
        if isinstance(exc, TargetUnavailable) and exc.stalled:
            self._limit = max(1, self._limit // 2)
        if str(exc) != self._last_error or stopped != self._stopped_line:
            log = _log.error if stopped or isinstance(exc, DurabilityError) else _log.warning
            log("delivery failed: %(error)s (next try in %(retry_in_s)s s)", error=exc, retry_in_s=round(delay, 1))
        else:
            _log.debug(
                "delivery failed again: %(error)s (next try in %(retry_in_s)s s)", error=exc, retry_in_s=round(delay, 1)
            )
        self._last_error, self._stopped_line = str(exc), stopped
        if self._draining:
            self._breaker.hurry(now, HURRY_S)

    def _recover(self) -> None:
        if self._last_error is not None:
            _log.info("delivery works again after: %(after)s", after=self._last_error)
        self._breaker.succeeded()
        self._last_error, self._stopped_line = None, False
        self._publication.inherited = {}
        self._limit = min(self._config.batch_size, self._limit * 2)

    def _housekeep(self, now: float, *, idle: bool) -> None:
        if now >= self._housekeeping.due_at:
            # In an outage nobody knows what PostgreSQL has, and whether it will need the history.
            unknown = self._last_error is not None or self._reconciler.waiting
            self._housekeeping.run(now, idle=idle, prune=not unknown)

    def _probe(self, now: float) -> None:
        """When idle, ask the target now and then whether it still has everything: a batch would tell by itself."""
        if self._caught_up and (self._probe_wanted or now >= self._next_probe):
            with _foreseen():
                fine = self._reconciler.probe()
            self._probe_wanted, self._next_probe = False, now + _PROBE_S
            if fine and self._last_error is not None:
                # What failed has been settled or discarded meanwhile, and no batch will tell that delivery works.
                self._recover()

    def _confirm_withdrawn(self, now: float) -> None:
        """Where nothing else is to be done: what was discarded may have been sent before."""
        if not self._caught_up or self._asked == self._scan.releases or now < self._ask_at:
            return
        self._ask_at = now + HURRY_S
        try:
            with _foreseen():
                self._reconciler.confirm_withdrawn()
        except (TargetUnavailable, TargetMisconfigured) as exc:
            # The next batch says so where that is true of deliveries, too.
            _log.debug("could not ask whether anything discarded was applied: %(error)s", error=exc)
        else:
            self._asked = self._scan.releases

    def _publish(self, now: float, *, force: bool = False) -> None:
        """Tell other processes how it goes: at once when something changed, else every second."""
        error = self._last_error or self._scan.trouble
        state: dict[str, object] = {
            "breaker": self._breaker.state,
            "stopped": self._stopped_line,
            "last_error": error and error[:_SAID_CHARS],
            "died": self.died and self.died[:_SAID_CHARS],
            **self._scan.what_waits(),
        }
        moving: dict[str, object] = {
            "moved_at": self._moved_at,
            "last_applied_at": self._last_applied_at,
            "pace": self._pace.published(),
        }
        self._publication.tell(state, moving, now, force=force)

    def _take_role(self) -> None:
        if self._role is None:
            role = RoleLock(self._box.path, Role.RELAY)
            try:
                self._in_delivery = InDelivery(self._box.path)
            except BaseException:
                role.release(clean=True)
                raise
            self._role = role
            self._pace.inherit(self._publication.take_up())
            self._reconciler.resume()

    def _leave_role(self) -> None:
        if self._role is not None:
            if self._in_delivery is not None:
                self._in_delivery.close()
                self._in_delivery = None
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
        _log.error("target failed unexpectedly: %(error)s", error=f"{type(exc).__name__}: {exc}", trace=True)
        raise TargetMisconfigured(f"unexpected {type(exc).__name__}: {exc}") from exc
