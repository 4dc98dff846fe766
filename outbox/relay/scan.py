"""Scan: which pending entries may be delivered now, and which wait.  The relay's walk through `pending`.

Behind its cursor lies only what must wait: entries behind a dead letter of the same ordering key, what `Waits` holds,
and what comes behind those.  So a step never walks over the whole backlog, and each waiting entry is looked at once per
release.  An entry waits after a passing refusal or a try that took too long.  An operation waits, with all its entries,
while the cause lies with it: it is parked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, field, replace

from ..errors import StoreCorrupt
from ..fate import Failed
from ..monitoring.held_back import HeldBack
from ..store.envelope import Record
from ..store.ledger import Settlement
from ..store.reads import MANY_DAMAGED, Peeked
from ..store.store import Store
from ..target import Target, Unit, is_best_effort, ordering_keys, units

# So often an entry may fail by conflicts with other transactions before an operator is called.
_CONFLICTS = 10


@dataclass(frozen=True, slots=True)
class Retry:
    """When an entry that waits is tried again (monotonic seconds), and whether its ordering key waits for it."""

    at: float
    holds: bool
    # When it was to be tried again before a caller hurried it; None where none has.
    due: float | None = None
    # Whether a caller may hurry it: not where each try takes long.
    hurries: bool = True


@dataclass(frozen=True, slots=True)
class Parked:
    """An operation whose entries wait: why, how often it was tried, when it is due, and whether their keys wait too."""

    reason: str
    times: int
    at: float
    holds: bool
    # Its oldest entry.
    first: int


class Waits:
    """Belongs to one relay's step; not thread-safe."""

    def __init__(self, target: Target) -> None:
        """`target` has the operations."""
        self._target = target
        # By entry.
        self._retries: dict[int, Retry] = {}
        # Entries that are tried before they are due, by sequence number: when they are due.
        self._early: dict[int, float] = {}
        # Of units that took too long in PostgreSQL although they were alone, by their first entry: how often, whether
        # they need an operator, and what the last try failed with.
        self._slow: dict[int, tuple[int, bool, str]] = {}
        # Of units that wait though nothing is wrong with their data, by their first entry: how often, and why.
        self._blameless: dict[int, tuple[int, str]] = {}
        # Operations whose entries wait, and those of them that are being tried again.
        self._parked: dict[str, Parked] = {}
        self._tried: dict[str, Parked] = {}

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits, and nothing must be delivered alone."""
        return not (self._retries or self._slow or self._parked)

    def of(self, unit: Unit) -> tuple[bool, bool]:
        """Whether a unit must wait for itself or its operations, and whether its ordering keys wait with it."""
        retries = [self._retries[record.seq] for record in unit if record.seq in self._retries]
        parked = {record.operation for record in unit if record.operation in self._parked}
        critical = bool(parked) and not self._is_best_effort(unit)
        if critical:
            # A group holds back others also if one of its operations alone would not.
            self._parked |= {name: replace(self._parked[name], holds=True) for name in parked}
        return bool(retries or parked), critical or any(retry.holds for retry in retries)

    def is_slow(self, unit: Unit) -> bool:
        """Whether a unit must be alone: whatever shared its transaction would wait as long, each time."""
        return unit[0].seq in self._slow

    def take_due(self, now: float) -> tuple[bool, bool]:
        """Let what is due into the next batch; whether there are entries, and entries of parked operations."""
        due = [seq for seq, retry in self._retries.items() if retry.at <= now]
        for seq in due:
            retry = self._retries.pop(seq)
            if retry.due is not None and retry.due > now:
                self._early[seq] = retry.due
        operations = {name: parked for name, parked in self._parked.items() if parked.at <= now}
        self._tried |= operations
        for name in operations:
            del self._parked[name]
        return bool(due), bool(operations)

    def take_early(self, seq: int, now: float) -> float | None:
        """When an entry is due that was tried earlier for a caller; None where it was due."""
        due = self._early.pop(seq, None)
        return due if due is not None and due > now else None

    def forget_discarded(self, is_pending: Callable[[int], bool]) -> None:
        """Of what waits, some may have been discarded."""
        for waiting in (self._retries, self._early, self._slow, self._blameless):
            for seq in [seq for seq in waiting if not is_pending(seq)]:
                del waiting[seq]

    def passed(self, settled: Set[int], operations: Set[str], *, end: bool) -> bool:
        """Forget what is settled.  `operations` have settled entries; `end`: nothing lies behind the batch.

        Returns whether what is being tried again still fails, as far as is known.
        """
        for waiting in (self._early, self._slow, self._blameless):
            for seq in settled & waiting.keys():
                del waiting[seq]
        works = operations & self._tried.keys()
        if end:
            self._tried = {}
            # Of the others nothing is left: they were discarded.
            self._blameless = {seq: why for seq, why in self._blameless.items() if seq in self._retries}
        elif works:
            self._tried = {name: parked for name, parked in self._tried.items() if name not in works}
        return not (end or works)

    @property
    def is_trying(self) -> bool:
        """Whether an operation that was parked is being tried again."""
        return bool(self._tried)

    def retry(self, retries: dict[int, Retry]) -> None:
        """Try rejected entries again, by sequence number."""
        self._retries |= retries

    def park(self, operation: str, reason: str, first: int, due: Callable[[int], float]) -> None:
        """Let the entries of `operation` wait, of which `first` is the oldest.

        `due(n)` is when to try it again after the n-th failure.
        """
        before = self._tried.pop(operation, None) or self._parked.get(operation)
        times = before.times + 1 if before is not None else 1
        declared = self._target.operations.get(operation)
        holds = declared is None or not declared.best_effort or (before is not None and before.holds)
        self._parked[operation] = Parked(reason, times, due(times), holds, first)

    def wait(self, unit: Unit, reason: str, due: Callable[[int], float]) -> None:
        """Let a unit wait that failed though its data is not the cause; see `park`."""
        times = self._blameless.get(unit[0].seq, (0, ""))[0] + 1
        self._blameless[unit[0].seq] = (times, reason)
        self._retry_unit(unit, due(times))

    def waits_alone(self, unit: Unit) -> bool:
        """Whether this unit has been waiting while others of its operation were applied."""
        return unit[0].seq in self._blameless

    def stalled(self, unit: Unit, why: str, now: float, pause_s: float, *, conflict: bool = False) -> None:
        """Note a unit that took too long although it was alone: the next time others go first.

        It is tried again at once, then after `pause_s`, then after twice that, up to ten times that.
        A `conflict` with another transaction needs an operator only if it happens again and again.
        """
        times, stuck, _ = self._slow.get(unit[0].seq, (0, False, ""))
        times += 1
        self._slow[unit[0].seq] = times, stuck or times > (_CONFLICTS if conflict else 1), why
        if times > 1:
            self._retry_unit(unit, now + pause_s * min(10, 2 ** (times - 2)), hurries=False)

    def hurry(self, at: float) -> None:
        """Bring what waits forward to at most `at`: a caller is waiting for it."""
        for name, parked in self._parked.items():
            self._parked[name] = replace(parked, at=min(parked.at, at))
        for seq, retry in self._retries.items():
            if retry.at > at and retry.hurries:
                self._retries[seq] = replace(retry, at=at, due=retry.at if retry.due is None else retry.due)

    def _retry_unit(self, unit: Unit, at: float, *, hurries: bool = True) -> None:
        retry = Retry(at, holds=not self._is_best_effort(unit), hurries=hurries)
        self._retries |= {record.seq: retry for record in unit}

    def _is_best_effort(self, unit: Unit) -> bool:
        return is_best_effort(unit, self._target.operations)

    @property
    def next_retry(self) -> float | None:
        """When the first entry or operation that waits is due again (monotonic seconds), or None when none waits."""
        times = [retry.at for retry in self._retries.values()]
        return min(times + [parked.at for parked in self._parked.values()], default=None)

    @property
    def awaits(self) -> bool:
        """Whether something is left that will be tried again, and that others have to wait for."""
        return bool(self._retries or self._tried) or any(parked.holds for parked in self._parked.values())

    def waits_before(self, seq: int) -> bool:
        """Whether an entry older than `seq` may still be applied before it."""
        parked = [one.first for one in self.parked.values() if one.holds]
        return any(other < seq for other in (*self._retries, *parked))

    @property
    def parked(self) -> dict[str, Parked]:
        """Parked operations, those that are being tried again included."""
        return {**self._tried, **self._parked}

    @property
    def slow(self) -> tuple[int | None, str | None]:
        """The oldest entry that took too long more than once, and still waits, and why; None when there is none."""
        return min(((seq, why) for seq, (_, stuck, why) in self._slow.items() if stuck), default=(None, None))

    @property
    def reasons(self) -> dict[str, str]:
        """Why units wait though nothing is wrong with their data, by their first entry."""
        return {str(seq): why for seq, (_, why) in sorted(self._blameless.items())}


_BATCH_BYTES = 8 << 20


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

    @property
    def held_back(self) -> int:
        """How many entries are behind dead letters, of those that the walk has met."""
        return self._walk.held

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
