"""Scan: which pending entries may be delivered now, and how many at once.  The relay's walk through `pending`.

Behind its cursor lies only what must wait: entries behind a dead letter of the same ordering key, what `Waits` holds,
and what comes behind those.  So a step never walks over the whole backlog, and each waiting entry is looked at once per
release.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ..config import OutboxConfig
from ..errors import StoreCorrupt
from ..fate import Failed
from ..monitoring.held_back import HeldBack
from ..store.envelope import Record
from ..store.ledger import Settlement
from ..store.reads import MANY_DAMAGED, Peeked
from ..store.store import Store
from ..target import Target, Unit, ordering_keys, units
from .waits import Retry, Waits

_BATCH_BYTES = 8 << 20
# So long after an entry came the program counts as enqueueing: as long as a trading loop may pause.
_BUSY_S = 60.0
# A batch is to take about so long, and at most this part of the time after which it is given up: as often is committed,
# seen by others and unlocked what it has delivered.
_BATCH_S = 1.0
_PART_OF_STALL = 0.1
# Entries of the first batch, when it is not known how long one takes.
_FIRST = 50


@dataclass(slots=True)
class Batch:
    """What one step works on."""

    # Highest sequence number looked at, and the newest of the store at that moment.
    last_seq: int
    newest_seq: int
    # Whether nothing lies behind `last_seq`.
    exhausted: bool
    # To be applied.
    records: list[Record] = field(default_factory=list)
    # Members of groups of which another one is damaged: never to be applied.
    broken: list[Record] = field(default_factory=list)
    # How many are passed over because they are behind dead letters.
    held: int = 0
    # Whether nothing is passed over: all that is pending up to `last_seq`, from the first of `records` on, is in them.
    whole: bool = True


@dataclass(slots=True)
class _Walk:
    """How far a walk has come that began with the oldest entry, and what it has met."""

    cursor: int = 0
    # Entries behind dead letters, of those up to the cursor.
    held: int = 0
    # What waits for an operator.
    dead: HeldBack = field(default_factory=HeldBack)
    # Ordering keys behind an entry that waits.
    waiting_keys: set[str] = field(default_factory=set)


class Scan:
    """Belongs to one relay's step; not thread-safe."""

    def __init__(self, store: Store, target: Target) -> None:
        """`target` has the operations."""
        self._store = store
        self.waits = Waits(target)
        self._walk = _Walk()
        # How far the walk had come when a parked operation was tried again: it goes on there if that still fails.
        self._before_try: _Walk | None = None
        # As of which release of the store the walk knows what is pending.
        self.releases = -1
        # What comes behind a sequence number, read beforehand with a limit.
        self._ahead: tuple[int, int, Peeked] | None = None

    def published(self) -> tuple[str | None, dict[str, object]]:
        """See `Waits.published`."""
        reason, waiting = self.waits.published()
        return reason, {"held_back": self._walk.held, **waiting}

    def next_batch(self, now: float, limit: int) -> Batch:
        """The oldest entries that need not wait, about `limit` of them; groups undivided.

        Damaged entries met on the way are quarantined.  Raises `DurabilityError` or `StoreCorrupt`.
        """
        entries_due, operations_due = self.waits.take_due(now)
        if entries_due:
            self._restart()
        came_to = self._before_try or self._walk
        if operations_due:
            self._restart()
            self._before_try = came_to
        peeked, fresh = self._peek(limit)
        if peeked.releases != self.releases:
            self.releases = peeked.releases
            self.waits.forget_discarded(self._store.is_pending)
            self._restart()
            peeked, fresh = self._peek(limit)
        if len(peeked.damaged) >= MANY_DAMAGED and not peeked.records:
            raise StoreCorrupt(
                f"the oldest {len(peeked.damaged)} pending entries are all damaged, first: {peeked.damaged[0][2]}",
                hint="nothing was changed; restore a backup, or use the version that wrote them",
            )
        if peeked.damaged:
            self._store.quarantine(peeked.damaged)
        end = not peeked.records and not peeked.damaged
        # A batch that was read ahead lacks the entries that have come since.
        exhausted = fresh and (end or peeked.last_seq >= peeked.newest_seq)
        batch = Batch(peeked.last_seq, peeked.newest_seq, exhausted)
        if self._may_all_go(peeked.records):
            batch.records = peeked.records
        else:
            self._choose(peeked.records, batch)
        return batch

    def _may_all_go(self, records: list[Record]) -> bool:
        """Whether no entry needs a closer look, which is so nearly always."""
        if self._walk.dead.behind or self._walk.waiting_keys or not self.waits.is_empty:
            return False
        return not any(record.group for record in records)

    def _choose(self, records: list[Record], batch: Batch) -> None:
        """Put into `batch` what may be delivered now."""
        for unit in units(records):
            if self._must_wait(unit, batch):
                batch.whole = False
            elif unit[0].group and len(unit) != unit[0].members:
                batch.broken += unit
                batch.whole = False
                self._walk.dead.block(unit)
            elif self.waits.is_slow(unit):
                if not batch.records:
                    batch.records += unit
                batch.last_seq, batch.exhausted = batch.records[-1].seq, False
                return
            else:
                batch.records += unit

    def is_current(self) -> bool:
        """Whether nothing was requeued or discarded since the batch was read."""
        return self._store.releases() == self.releases

    def look_ahead(self, batch: Batch, limit: int) -> None:
        """Read what comes behind `batch` already now; may run in another thread, if nothing else is called meanwhile.

        What is read is still pending when its turn comes: nobody but the relay settles, and it has not come so far.
        """
        self._ahead = (batch.last_seq, limit, self._store.peek(batch.last_seq, limit, max_bytes=_BATCH_BYTES))

    def _peek(self, limit: int) -> tuple[Peeked, bool]:
        """What lies behind the cursor, and whether it was read just now."""
        ahead, self._ahead = self._ahead, None
        cursor = self._walk.cursor
        if ahead is not None and ahead[0] == cursor and ahead[1] >= limit and ahead[2].records:
            return ahead[2], False
        return self._store.peek(cursor, limit, max_bytes=_BATCH_BYTES), True

    def _restart(self) -> None:
        """Look again from the oldest entry on: something may have become deliverable."""
        self._walk = _Walk(dead=HeldBack(self._store.dead()))
        self._before_try = self._ahead = None

    def distrust(self) -> None:
        """Forget what was assumed of a batch that could not be settled: the next one starts from the oldest entry."""
        self.releases, self._ahead = -1, None

    def refused(self, settlement: Settlement, failed: Sequence[Failed], retries: dict[int, Retry]) -> None:
        """Note what became of the `failed`: dead letters, and entries to try again, by sequence number."""
        self.waits.retry(retries)
        for record, _ in settlement.dead:
            self._walk.dead.block([record])
        for one in failed:
            if one.seq in retries and retries[one.seq].holds:
                self._walk.waiting_keys |= ordering_keys(one.unit)

    def passed(self, batch: Batch, settled: set[int]) -> None:
        """Move behind a batch that was tried to its end.  What the target left out of it waits, with its keys."""
        if left := [record for record in batch.records if record.seq not in settled]:
            for unit in units(left):
                self._must_wait(unit, batch)
        self._walk.cursor = max(self._walk.cursor, batch.last_seq)
        self._walk.held += batch.held
        operations = {record.operation for record in batch.records if record.seq in settled}
        if not self.waits.passed(settled, operations, end=batch.exhausted):
            # An operation that works again has entries up to there too, and at the end there is nothing to go back to.
            self._before_try = None
        elif self._before_try is not None and not self.waits.is_trying:
            self._go_back(self._before_try)

    def _go_back(self, before: _Walk) -> None:
        """Go on where the walk was: what was tried again still fails."""
        self._before_try = None
        self._walk.cursor = max(self._walk.cursor, before.cursor)
        self._walk.held = max(self._walk.held, before.held)
        self._walk.waiting_keys |= before.waiting_keys

    def _must_wait(self, unit: Unit, batch: Batch) -> bool:
        """Whether a unit must wait; whatever comes behind it in any of its keys must wait too."""
        if self._walk.dead.holds(unit):
            batch.held += len(unit)
            return True
        keys = ordering_keys(unit)
        waits, holds = self.waits.of(unit)
        if holds or keys & self._walk.waiting_keys:
            self._walk.waiting_keys |= keys
            return True
        return waits


class BatchSize:
    """How many entries a step takes, by the program's activity and the target's speed.  Belongs to one relay's step."""

    def __init__(self, config: OutboxConfig, target: Target) -> None:
        self._config, self._target = config, target
        self._batch_s = min(_BATCH_S, config.stall_timeout * _PART_OF_STALL)
        self._limit = min(config.batch_size, _FIRST)
        # The newest entry of the last look, and until when the program counts as enqueueing.
        self._newest_seq: int | None = None
        self._busy_until = 0.0
        # Whether to go easy on disk and interpreter, since the program enqueues and waits for both.  Then batches
        # are small, one step after the other: see `docs/explanation/decisions/011-busy-batches.md`.
        self.busy = False

    def entries(self, now: float) -> int:
        """How many entries to take at once; a single one where that is to show which one takes too long."""
        self.busy = now < self._busy_until and self._config.busy_batch_size < self._config.batch_size
        limit = min(self._limit, self._config.busy_batch_size) if self.busy else self._limit
        return limit * self._target.lanes if self._limit > 1 else 1

    def look(self, newest_seq: int, now: float) -> None:
        """Note the newest entry of the store: a later one than before was enqueued meanwhile."""
        if self._newest_seq is not None and newest_seq > self._newest_seq:
            self._busy_until = now + _BUSY_S
            self.busy = self._config.busy_batch_size < self._config.batch_size
        self._newest_seq = newest_seq

    def shrink(self) -> None:
        """A batch took too long."""
        self._limit = max(1, self._limit // 2)

    def measured(self, entries: int, took_s: float) -> None:
        """A batch was delivered: the next one has as many entries as fit its time, if that is not far from the last."""
        fit = int(entries * self._batch_s / took_s) // self._target.lanes if took_s else self._config.batch_size
        self._limit = min(self._config.batch_size, max(min(fit, self._limit * 2), self._limit // 2, 2))
