"""Delivery: moves one batch of pending entries to the target at a time, in order, once per key.

`Delivery.step(now)` does one round: mend, peek, apply, settle, schedule.  It never sleeps, and decides by the time that
it is given; `relay.py` drives it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from ..box import Outbox
from ..errors import DurabilityError, OutboxError, ReceiptsGone, TargetMisconfigured, TargetUnavailable
from ..log import Log
from ..store.ledger import Settlement
from ..store.reads import PAUSE
from ..target import Outcome, Target
from .link import BatchSize, Breaker, Link, LinkState, Lookout, foreseen, unforeseen
from .reconcile import Reconciler
from .reconcile_orders import ORDER, ReconcileOrder, Reconciliation
from .scan import Batch, Retry, Scan
from .settling import Refusals, Settling
from .upkeep import Housekeeping, IdleChecks, Publication

_log = Log("outbox.relay")

# An operator's process holds an entry of the batch: the batch is read again after this time.
_CLAIM_S = 0.01
# The longest pause between two tries while a caller waits for the deliveries.
HURRY_S = 1.0
# While deliveries are paused: nothing is tried, so nothing is known.
_PAUSED = LinkState(works=False)


@dataclass(frozen=True, slots=True)
class Step:
    """What one step came to."""

    # Seconds until the next one is due, 0 for at once.
    wait_s: float = 0.0
    # Whether nothing was left that can be delivered, up to `seen_seq`.
    caught_up: bool = False
    seen_seq: int = -1
    # Whether an operator lets nothing be delivered now.
    paused: bool = False
    # Whether PostgreSQL answers.
    link: LinkState = field(default_factory=LinkState)
    # Up to which question it is known that PostgreSQL still has everything: see `IdleChecks.want`.
    answered: int = 0


class Delivery:
    """The deliveries of one outbox into one target.  Driven by one thread, which holds the relay's role."""

    def __init__(self, box: Outbox, target: Target) -> None:
        """`box` may be opened or attached.  Settings come from `box.config`, time and randomness from `box.clock`."""
        config = box.config
        self._box, self._target = box, target
        self._scan = Scan(box.store, target)
        self.link = Link(Breaker(config.backoff_base, config.backoff_cap, box.clock.random))
        self._lookout = Lookout(target, self.link)
        self._refusals = Refusals(self._scan.waits, target, self.link, config.max_retries)
        self._settling = Settling(box, self._scan)
        self._reconciler = Reconciler(box, target, self._settling.memory)
        self._housekeeping = Housekeeping(box.store, box.clock, config.retention_hours)
        self._size = BatchSize(config, target)
        self.idle = IdleChecks(self._reconciler)
        self.publication = Publication(box.path, box.clock)
        # How many callers wait for the deliveries right now.
        self.awaited = 0
        # When one of them last had a try of its own (monotonic seconds).
        self._hurried_at = -math.inf
        self._paused = self._caught_up = False
        self._seen_seq = -1

    def take_up(self) -> None:
        """Go on where the last holder of the role stopped.  Raises OSError."""
        self._settling.open()
        self._note_late()
        self.publication.take_up()
        self._reconciler.resume()

    def leave(self) -> None:
        """Let go of what the role is for; may be called twice."""
        self._settling.close()

    @contextmanager
    def beside_a_thread(self) -> Iterator[None]:
        """Within the block recording one batch and delivering the next go on at the same time."""
        with self._settling.beside_a_thread():
            try:
                yield
            finally:
                self.pay()

    def pay(self) -> None:
        """Record the batch that is owed, where no step follows; if that fails, its entries are delivered again."""
        try:
            self._settling.finish()
        except OutboxError as exc:
            self._fail(exc, self._box.clock.monotonic())
        finally:
            self._settling.unclaim()

    def publish(self, now: float, *, force: bool = False) -> None:
        """Tell other processes how it goes: at once when something changed, else every second."""
        self.publication.tell(self.link.state, self._scan, now, force=force)

    def reconcile(self, order: ReconcileOrder) -> Reconciliation | None:
        """See `Reconciler.mend`."""
        self._settling.finish()
        self._scan.distrust()
        done = self._reconciler.mend(order)
        # The database answers, and its tables are as they should be.
        if self.link.state.stopped:
            self.link.recovered()
        self.publication.line_works()
        self.publication.tell(self.link.state, self._scan, self._box.clock.monotonic(), force=True)
        return done

    # -- one step

    def step(self, now: float) -> Step:
        """Move one batch.  `now` is monotonic seconds.  Raises what reading the store raises."""
        if (writer := self._box.store.writer) is not None:
            self.publication.look_at_writer(writer.moves, now)
        # Orders of an operator, from any process.
        orders = self._box.store.existing_metas(PAUSE, ORDER)
        if self._is_paused(PAUSE in orders):
            return self._rest(now)
        if self.awaited:
            self._scan.waits.hurry(now + HURRY_S)
        pause = self._lookout.wait(now)
        if pause > 0:
            return self._came_to(pause)
        try:
            if self._reconciler.able and (self._reconciler.waiting or ORDER in orders):
                self._settling.finish()
                self._mend()
            batch = self._scan.next_batch(now, self._size.entries(now))
            if not self._settling.claim(batch):
                return self._came_to(_CLAIM_S)
            self._size.look(batch.newest_seq, now)
            if not self._size.busy and (self._settling.owes or not batch.exhausted):
                self._settling.begin(batch, self._size.entries(now))
            outcome = self._apply(batch)
            self._settling.finish()
            # Before it is recorded: a caller that waits for the effect need not wait for our disk too.
            self._box.progress.acknowledge(frozenset(record.seq for record, _ in outcome.completed))
            self._settle(batch, outcome, now)
            self._measure(batch, outcome, now)
            return self._schedule(batch, outcome, now)
        except (DurabilityError, TargetUnavailable, TargetMisconfigured) as exc:
            # The batch comes again, and its receipts keep the effects from being repeated.
            self._scan.distrust()
            self._caught_up = False
            self._fail(exc, now)
            self._housekeep(now, idle=False)
            self.publication.tell(self.link.state, self._scan, now)
            return self._came_to(self._lookout.wait(now))
        finally:
            self._settling.end_step()

    def _came_to(self, wait_s: float) -> Step:
        link = _PAUSED if self._paused else self.link.state
        return Step(wait_s, self._caught_up, self._seen_seq, self._paused, link, self.idle.answered)

    def _is_paused(self, ordered: bool) -> bool:
        """Whether an operator lets nothing be delivered now; `ordered`: there is a pause, which may have ended."""
        before, pause = self._paused, self._box.pauses.current(forget=True) if ordered else None
        self._paused = pause is not None
        if pause is not None and not before:
            _log.warning("%(pause)s", pause=pause.sentence())
            self.pay()
            self._target.close()
        elif pause is None and before:
            _log.info("the pause has ended, delivery goes on")
        return self._paused

    def _rest(self, now: float) -> Step:
        """What a step is while deliveries are paused: it is looked again soon."""
        self._caught_up = False
        # A pause is progress: the relay must not count as stuck.
        self.publication.moved_at = now
        self._housekeep(now, idle=True)
        self.publication.tell(self.link.state, self._scan, now)
        return self._came_to(HURRY_S)

    def _mend(self) -> None:
        """Put back entries that the target lost.  Raises while that waits for an operator, or fails."""
        with foreseen():
            mended = self._reconciler.mend()
        if mended is not None:
            # Entries that were put back come before those that were read earlier.
            self._scan.distrust()
            self._recover()

    def _apply(self, batch: Batch) -> Outcome:
        if not batch.records:
            return Outcome()
        try:
            outcome = self._target.apply(self._box.store.identity.store_id, batch.records)
        except (TargetUnavailable, TargetMisconfigured) as exc:
            outcome = Outcome(interruption=exc)
        except OutboxError:
            raise
        except Exception as exc:  # noqa: BLE001 - a defect of the target must not end the deliveries
            outcome = Outcome(interruption=unforeseen(exc))
        if outcome.interruption is not None:
            self._reconciler.note(outcome.interruption)
        return outcome

    def _settle(self, batch: Batch, outcome: Outcome, now: float) -> None:
        """Settle the batch now, or owe that to the next step; then note what waits, and move on.

        Nothing is noted of a batch that could not be settled: it comes again.  Raises `DurabilityError`.
        """
        settlement = Settlement(completed=outcome.completed, marks=outcome.marks)
        retries: dict[int, Retry] = {}
        if outcome.failed or batch.broken:
            retries = self._refusals.carry_out(batch, outcome, settlement, now)
        if self._may_owe(batch, outcome):
            self._settling.owe(settlement, batch)
        else:
            self._settling.settle(settlement)
        if retries or settlement.dead:
            self._scan.refused(settlement, outcome.failed, retries)
        if outcome.stalled:
            self._stalled(outcome, now)
        if settlement.dead:
            self._log_dead(settlement)
        if outcome.interruption is None:
            settled = {record.seq for record, _ in outcome.completed}
            for one in outcome.failed:
                settled |= set() if one.fate.waits else {record.seq for record in one.unit}
            self._scan.passed(batch, settled)

    def _may_owe(self, batch: Batch, outcome: Outcome) -> bool:
        """Whether the batch may be recorded beside the next one: all of it was applied, and more is to come at once."""
        applied = not (outcome.failed or batch.broken or outcome.interruption)
        more = not batch.exhausted and self._scan.waits.next_retry is None
        return applied and more and self._settling.may_owe and not self._size.busy

    def _stalled(self, outcome: Outcome, now: float) -> None:
        """Let others go on for as long as the try has taken; a connection that was lost is soon replaced."""
        ended = self._box.clock.monotonic()
        error, unit = outcome.interruption, outcome.stalled
        conflict = isinstance(error, TargetUnavailable) and error.conflict
        self._scan.waits.stalled(unit, str(error), ended, max(HURRY_S, ended - now), conflict=conflict)
        _log.warning(
            "entry %(seq)s of operation %(operation)r fails or takes too long by itself, and waits: %(error)s",
            seq=unit[0].seq,
            operation=unit[0].operation,
            error=error,
        )

    def _log_dead(self, settlement: Settlement) -> None:
        """Log new dead letters, except those that a waiting caller answers."""
        dead = [(record, why) for record, why in settlement.dead if not self._box.progress.is_claimed(record)]
        if not dead:
            return
        record, why = dead[0]
        _log.error(
            "entries became dead letters: %(entries)s, the first is %(seq)s of operation %(operation)r: %(why)s "
            "(see `atb outbox list`)",
            entries=len(dead),
            seq=record.seq,
            operation=record.operation,
            why=why,
        )

    def _measure(self, batch: Batch, outcome: Outcome, now: float) -> None:
        took_s = self._box.clock.monotonic() - now
        self.publication.measured(outcome, batch.newest_seq, took_s, now)
        if batch.records and outcome.interruption is None:
            self._size.measured(len(batch.records), took_s)
        if batch.records and _log.is_detailed:
            self._describe(batch, outcome, took_s)

    def _describe(self, batch: Batch, outcome: Outcome, took_s: float) -> None:
        """Log a line for the batch, at DEBUG."""
        _log.debug(
            "batch of %(claimed)s, from %(first)s to %(last)s: %(delivered)s delivered, %(rejected)s rejected, "
            "%(waiting)s waiting, settled %(settled)s, took %(took_ms)s ms",
            claimed=len(batch.records),
            first=batch.records[0].seq,
            last=batch.records[-1].seq,
            delivered=len(outcome.completed),
            rejected=len(outcome.rejected),
            waiting=sum(len(one.unit) for one in outcome.waiting),
            settled="with the next batch" if self._settling.owes else "now",
            took_ms=round(took_s * 1000, 1),
        )

    def _schedule(self, batch: Batch, outcome: Outcome, now: float) -> Step:
        """Note how the step went, and when the next one is due."""
        if outcome.completed or outcome.failed or batch.broken:
            self.publication.moved_at = now
        if outcome.interruption is not None:
            self._fail(outcome.interruption, now)
        elif batch.records:
            self._recover()
        if self.awaited:
            self._scan.waits.hurry(now + HURRY_S)
        next_retry = self._scan.waits.next_retry
        if outcome.interruption is None and batch.exhausted and next_retry is not None:
            # What is left waits for its next try, perhaps for longer than `stuck_after`.
            self.publication.moved_at = now
        self._caught_up = outcome.interruption is None and batch.exhausted and not self._scan.waits.awaits
        if self._caught_up:
            self._seen_seq = batch.newest_seq
            self.publication.moved_at = now
            self.publication.inherited.clear()
        self._housekeep(now, idle=self._caught_up)
        idle_s = self._check(now) if self._caught_up else math.inf
        self.publication.tell(self.link.state, self._scan, now)
        if outcome.interruption is not None:
            return self._came_to(self._lookout.wait(now))
        if not batch.exhausted or self._reconciler.waiting:
            return self._came_to(0.0)
        wait = min(self._box.config.sync_interval, idle_s)
        return self._came_to(wait if next_retry is None else max(0.0, min(wait, next_retry - now)))

    def _check(self, now: float) -> float:
        """Nothing is to be delivered: ask PostgreSQL what a batch would have shown; the longest wait after that.

        Raises `ReceiptsGone` or `DurabilityError`.
        """
        try:
            works = self.idle.probe(now)
        except ReceiptsGone:
            raise
        except (TargetUnavailable, TargetMisconfigured) as exc:
            # Nothing waits yet, so callers count as caught up; a wrong address or password is reported all the same.
            self.publication.inherited.clear()
            return self.link.failed_idle(exc)
        if works and self.link.state.last_error is not None:
            # No batch will show that delivery works.
            self._recover()
        self.idle.confirm_withdrawn(now, self._scan.releases)
        self._caught_up = not self._reconciler.waiting
        return math.inf

    def _fail(self, exc: OutboxError, now: float) -> None:
        self.publication.inherited.clear()
        self._settling.may_owe &= not isinstance(exc, DurabilityError)
        if isinstance(exc, TargetUnavailable) and (exc.stalled or exc.too_much):
            self._size.shrink()
        self.link.failed(exc, now)
        # A try that fails may have taken longer than `stuck_after`.
        self.publication.failed_at = self._box.clock.monotonic()
        self._note_late()
        if self.awaited:
            self._hurried_at = now
            self.link.breaker.hurry(now, HURRY_S)

    def _note_late(self) -> None:
        """What is enqueued already waits for the deliveries."""
        with suppress(OutboxError):  # it cannot be read just now, and what failed is known
            self.link.late_seq = self._box.store.last_seq()

    def try_soon(self, now: float) -> None:
        """Try at once for a new caller; for one that calls again and again, as it looks in between, once a second."""
        pause_s = max(0.0, self._hurried_at + HURRY_S - now)
        if not pause_s:
            self._hurried_at = now
        self.link.breaker.hurry(now, pause_s)

    def _recover(self) -> None:
        self.link.recovered()
        self._lookout.works()
        self.publication.inherited.clear()

    def _housekeep(self, now: float, *, idle: bool) -> None:
        if now >= self._housekeeping.due_at and not self.publication.writer_may_hang:
            # In an outage PostgreSQL's state is unknown, and the history may be needed to deliver lost entries again.
            unknown = self.link.state.last_error is not None or self._reconciler.waiting
            self._housekeeping.run(now, idle=idle, prune=not unknown)
