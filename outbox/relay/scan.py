"""Scan: which pending entries may be delivered now.  The memory of the relay's walk through `pending`.

Behind its cursor lies only what must wait: entries behind a dead letter of the same ordering key, entries that were
rejected for a passing reason, and entries of parked operations, with what comes behind those.  So a step never walks
over the whole backlog, and each waiting entry is looked at once per release.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import islice

from ..errors import StoreCorrupt
from ..store.envelope import Record
from ..store.ledger import Settlement
from ..store.reads import MANY_DAMAGED, Peeked
from ..store.store import Store
from ..target import Unit, ordering_keys, units

_BATCH_BYTES = 8 << 20
# So often an entry may fail by conflicts with other transactions before an operator is called.
_CONFLICTS = 10
# Of a reason's text, and how many parked operations and waiting entries are published.
_REASON_CHARS = 300
_SHOWN = 8


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


@dataclass(frozen=True, slots=True)
class Retry:
    """When a rejected entry is due again (monotonic seconds), and whether its ordering key waits for it."""

    at: float
    holds: bool


@dataclass(frozen=True, slots=True)
class Parked:
    """An operation whose entries wait: why, how often it was tried, when it is due, and whether their keys wait too."""

    reason: str
    times: int
    at: float
    holds: bool
    # Its oldest entry.
    first: int


@dataclass(slots=True)
class _Place:
    """Where the walk was when an operation was tried again: there it goes on if the operation still fails."""

    cursor: int
    held: int
    waiting_keys: set[str]


class Scan:
    """Belongs to one relay's step; not thread-safe."""

    def __init__(self, store: Store, is_best_effort: Callable[[str], bool]) -> None:
        self._store, self._is_best_effort = store, is_best_effort
        self._cursor = 0
        # As of which release of the store the walk knows what is pending.
        self.releases = -1
        # By ordering key: the sequence number behind which everything waits for an operator.
        self._dead: dict[str, int] = {}
        # Ordering keys behind an entry that waits for its retry.
        self._waiting_keys: set[str] = set()
        self._retries: dict[int, Retry] = {}
        # Units that took too long in PostgreSQL although they were alone, by their first entry: how often, and whether
        # they need an operator.
        self._slow: dict[int, tuple[int, bool]] = {}
        # Operations whose entries wait, and those of them that are being tried again.
        self.parked: dict[str, Parked] = {}
        self._tried: dict[str, Parked] = {}
        self._place: _Place | None = None
        # Units that wait though nothing is wrong with their data, by their first entry: how often, and why.
        self._waiting: dict[int, tuple[int, str]] = {}
        # What comes behind a sequence number, read beforehand with a limit.
        self._ahead: tuple[int, int, Peeked] | None = None
        # Entries behind dead letters, of those up to the cursor.
        self.held = 0

    @property
    def next_retry(self) -> float | None:
        """When the first entry or operation that waits is due again (monotonic seconds), or None when none waits."""
        times = [retry.at for retry in self._retries.values()]
        return min(times + [parked.at for parked in self.parked.values()], default=None)

    @property
    def awaits(self) -> bool:
        """Whether something is left that will be tried again, and that others have to wait for."""
        return bool(self._retries or self._tried) or any(parked.holds for parked in self.parked.values())

    @property
    def all_parked(self) -> dict[str, Parked]:
        """Parked operations, those that are being tried again included."""
        return {**self._tried, **self.parked}

    @property
    def trouble(self) -> str | None:
        """Why something waits that needs an operator, or None."""
        parked = [parked.reason for parked in self.all_parked.values() if parked.holds]
        return next(iter([*parked, *self.waiting.values()]), None)

    @property
    def waiting(self) -> dict[str, str]:
        """Why entries wait that were tried and whose data is not the cause, by sequence number."""
        return {str(seq): why for seq, (_, why) in sorted(self._waiting.items())}

    def what_waits(self) -> dict[str, object]:
        """What waits, and why, to be published: it must fit its file."""
        parked = islice(sorted(self.all_parked.items()), _SHOWN)
        return {
            "held_back": self.held,
            "slow": self.slow,
            "parked": {
                name: {"reason": one.reason[:_REASON_CHARS], "best_effort": not one.holds} for name, one in parked
            },
            "waiting": {seq: why[:_REASON_CHARS] for seq, why in islice(self.waiting.items(), _SHOWN)},
        }

    def waits_before(self, seq: int) -> bool:
        """Whether an entry older than `seq` may still be applied before it."""
        parked = [one.first for one in self.all_parked.values() if one.holds]
        return any(other < seq for other in (*self._retries, *parked))

    def next_batch(self, now: float, limit: int) -> Batch:
        """The oldest entries that need not wait, about `limit` of them; groups undivided.

        Damaged entries met on the way are quarantined.  Raises `DurabilityError` or `StoreCorrupt`.
        """
        due = [seq for seq, retry in self._retries.items() if retry.at <= now]
        if due:
            for seq in due:
                del self._retries[seq]
            self.restart()
        self._try_again(now)
        peeked, fresh = self._peek(limit)
        if peeked.releases != self.releases:
            self.releases = peeked.releases
            self._forget_discarded()
            self.restart()
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
        plain = not (self._dead or self._waiting_keys or self._retries or self._slow or self.parked)
        if plain and not any(record.group for record in peeked.records):
            batch.records = peeked.records
            return batch
        for unit in units(peeked.records):
            if self._must_wait(unit, batch):
                batch.whole = False
                continue
            if unit[0].group and len(unit) != unit[0].members:
                batch.broken += unit
                batch.whole = False
                self._block(unit)
                continue
            if unit[0].seq in self._slow:
                # Alone: whatever shares its transaction would wait as long, each time.
                if not batch.records:
                    batch.records += unit
                batch.last_seq, batch.exhausted = batch.records[-1].seq, False
                break
            batch.records += unit
        return batch

    def is_current(self) -> bool:
        """Whether nothing was requeued or discarded since the batch was read."""
        return self._store.releases() == self.releases

    def _forget_discarded(self) -> None:
        """Of what waits, some may have been discarded."""
        for waiting in (self._retries, self._slow, self._waiting):
            for seq in [seq for seq in waiting if not self._store.is_pending(seq)]:
                del waiting[seq]

    def look_ahead(self, batch: Batch, limit: int) -> None:
        """Read what comes behind `batch` already now; may run in another thread, if nothing else is called meanwhile.

        What is read is still pending when its turn comes: nobody but the relay settles, and it has not come so far.
        """
        self._ahead = (batch.last_seq, limit, self._store.peek(batch.last_seq, limit, max_bytes=_BATCH_BYTES))

    def _peek(self, limit: int) -> tuple[Peeked, bool]:
        """What lies behind the cursor, and whether it was read just now."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead[0] == self._cursor and ahead[1] >= limit and ahead[2].records:
            return ahead[2], False
        return self._store.peek(self._cursor, limit, max_bytes=_BATCH_BYTES), True

    def _try_again(self, now: float) -> None:
        """Let entries of a parked operation that is due into the next batch, from the oldest on."""
        due = {name: parked for name, parked in self.parked.items() if parked.at <= now}
        if not due:
            return
        place = self._place or _Place(self._cursor, self.held, self._waiting_keys)
        for name, parked in due.items():
            self._tried[name] = parked
            del self.parked[name]
        self.restart()
        self._place = place

    def park(self, operation: str, reason: str, first: int, due: Callable[[int], float]) -> None:
        """Let the entries of `operation` wait, of which `first` is the oldest.

        `due(n)` is when to try it again after the n-th failure.
        """
        before = self._tried.pop(operation, None) or self.parked.get(operation)
        times = before.times + 1 if before is not None else 1
        holds = not self._is_best_effort(operation) or (before is not None and before.holds)
        self.parked[operation] = Parked(reason, times, due(times), holds, first)

    def waits_alone(self, unit: Unit) -> bool:
        """Whether this unit has been waiting while others of its operation were applied."""
        return unit[0].seq in self._waiting

    def wait(self, unit: Unit, reason: str, holds: bool, due: Callable[[int], float]) -> None:
        """Let a unit wait that failed though its data is not the cause; see `park`."""
        times = self._waiting.get(unit[0].seq, (0, ""))[0] + 1
        self._waiting[unit[0].seq] = (times, reason)
        retry = Retry(due(times), holds)
        self._retries |= {record.seq: retry for record in unit}

    def hurry(self, at: float) -> None:
        """Bring what waits forward to at most `at`: a caller is waiting for it."""
        for name, parked in self.parked.items():
            self.parked[name] = replace(parked, at=min(parked.at, at))

    def restart(self) -> None:
        """Look again from the oldest entry on: something may have become deliverable."""
        self._place = None
        self._cursor = self.held = 0
        self._ahead = None
        self._dead = {}
        for seq, key in self._store.dead():
            if key is not None:
                self._dead.setdefault(key, seq)
        self._waiting_keys = set()

    def distrust(self) -> None:
        """Forget what was assumed of a batch that could not be settled: the next one starts from the oldest entry."""
        self.releases, self._ahead = -1, None

    def refused(self, settlement: Settlement, retries: dict[int, Retry]) -> None:
        """Note what was rejected: dead letters, and entries to try again with their `retries` by sequence number."""
        self._retries |= retries
        for record, _ in settlement.dead:
            self._block([record])
        for record, _ in settlement.retried:
            if retries[record.seq].holds and record.order_by is not None:
                self._waiting_keys.add(record.order_by)

    def stalled(self, unit: Unit, now: float, pause_s: float, *, conflict: bool = False) -> None:
        """Note a unit that took too long although it was alone: the next time others go first.

        It is tried again at once, then after `pause_s`, then after twice that, up to ten times that.
        A `conflict` with another transaction needs an operator only if it happens again and again.
        """
        times, stuck = self._slow.get(unit[0].seq, (0, False))
        times += 1
        self._slow[unit[0].seq] = times, stuck or times > (_CONFLICTS if conflict else 1)
        if times > 1:
            holds = not all(self._is_best_effort(record.operation) for record in unit)
            retry = Retry(now + pause_s * min(10, 2 ** (times - 2)), holds)
            self._retries |= {record.seq: retry for record in unit}

    @property
    def slow(self) -> int | None:
        """The oldest entry that took too long more than once, and still waits; None when there is none."""
        return min((seq for seq, (_, stuck) in self._slow.items() if stuck), default=None)

    def passed(self, batch: Batch, settled: set[int]) -> None:
        """Move behind a batch that was tried to its end.  What the target left out of it waits, with its keys."""
        if left := [record for record in batch.records if record.seq not in settled]:
            for unit in units(left):
                self._must_wait(unit, batch)
        for seq in settled & self._slow.keys():
            del self._slow[seq]
        for seq in settled & self._waiting.keys():
            del self._waiting[seq]
        self._cursor = max(self._cursor, batch.last_seq)
        self.held += batch.held
        worked = {record.operation for record in batch.records if record.seq in settled} & self._tried.keys()
        if worked or batch.exhausted:
            # An operation that works again has entries behind the place; and at the end there is none to go back to.
            self._tried = {} if batch.exhausted else {n: p for n, p in self._tried.items() if n not in worked}
            self._place = None
        if batch.exhausted:
            # Of the others nothing is left: they were discarded.
            self._waiting = {seq: why for seq, why in self._waiting.items() if seq in self._retries}
        elif self._place is not None and not self._tried:
            self._go_back(self._place)

    def _go_back(self, place: _Place) -> None:
        """Go on where the walk was: what was tried again still fails."""
        self._place = None
        self._cursor = max(self._cursor, place.cursor)
        self.held = max(self.held, place.held)
        self._waiting_keys |= place.waiting_keys

    def _block(self, unit: Unit) -> None:
        """What comes behind `unit` in any of its keys must wait."""
        for key in ordering_keys(unit):
            self._dead[key] = min(self._dead.get(key, unit[0].seq), unit[0].seq)

    def _must_wait(self, unit: Unit, batch: Batch) -> bool:
        """Whether a unit must wait; whatever comes behind it in any of its keys must wait too."""
        keys = ordering_keys(unit)
        retries = [self._retries[record.seq] for record in unit if record.seq in self._retries]
        if any(self._dead.get(key, unit[0].seq) < unit[0].seq for key in keys):
            self._block(unit)
            batch.held += len(unit)
            return True
        parked = {record.operation for record in unit if record.operation in self.parked}
        critical = bool(parked) and not all(self._is_best_effort(record.operation) for record in unit)
        if critical:
            # A group holds back others also if one of its operations alone would not.
            self.parked |= {name: replace(self.parked[name], holds=True) for name in parked}
        if keys & self._waiting_keys or critical or any(retry.holds for retry in retries):
            self._waiting_keys |= keys
            return True
        return bool(retries or parked)
