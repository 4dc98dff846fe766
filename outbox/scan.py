"""Scan: which pending entries may be delivered now.  The memory of the relay's walk through `pending`.

Behind its cursor lies only what must wait: entries behind a dead letter of the same ordering key, and entries that
were rejected for a passing reason, with what comes behind those.  So a step never walks over the whole backlog, and
each waiting entry is looked at once per release.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from .envelope import Record
from .errors import StoreCorrupt
from .ledger import Settlement
from .reading import MANY_DAMAGED, Peeked
from .store import Store
from .target import Unit, ordering_keys, units

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


@dataclass(frozen=True, slots=True)
class Retry:
    """When a rejected entry is due again (monotonic seconds), and whether its ordering key waits for it."""

    at: float
    holds: bool


class Scan:
    """Belongs to one relay's step; not thread-safe."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._cursor = 0
        self._releases = -1
        # By ordering key: the sequence number behind which everything waits for an operator.
        self._dead: dict[str, int] = {}
        # Ordering keys behind an entry that waits for its retry.
        self._waiting_keys: set[str] = set()
        self._retries: dict[int, Retry] = {}
        # Units that took too long in PostgreSQL although they were alone, by their first entry: how often.
        self._slow: dict[int, int] = {}
        # What comes behind a sequence number, read beforehand with a limit.
        self._ahead: tuple[int, int, Peeked] | None = None
        # Entries behind dead letters, of those up to the cursor.
        self.held = 0

    @property
    def next_retry(self) -> float | None:
        """When the first rejected entry is due again (monotonic seconds), or None when none waits."""
        return min((retry.at for retry in self._retries.values()), default=None)

    def next_batch(self, now: float, limit: int) -> Batch:
        """The oldest entries that need not wait, about `limit` of them; groups whole.

        Damaged entries met on the way are quarantined.  Raises `DurabilityError` or `StoreCorrupt`.
        """
        due = [seq for seq, retry in self._retries.items() if retry.at <= now]
        if due:
            for seq in due:
                del self._retries[seq]
            self.restart()
        peeked, fresh = self._peek(limit)
        if peeked.releases != self._releases:
            self._releases = peeked.releases
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
        # What was read beforehand does not know of what has come since.
        exhausted = fresh and (end or peeked.last_seq >= peeked.newest_seq)
        batch = Batch(peeked.last_seq, peeked.newest_seq, exhausted)
        plain = not (self._dead or self._waiting_keys or self._retries or self._slow)
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

    def restart(self) -> None:
        """Look again from the oldest entry on: something may have become deliverable."""
        self._cursor = self.held = 0
        self._ahead = None
        self._dead = {}
        for seq, key in self._store.dead():
            if key is not None:
                self._dead.setdefault(key, seq)
        self._waiting_keys = set()

    def distrust(self) -> None:
        """Forget what was assumed of a batch that could not be settled: the next one starts from the oldest entry."""
        self._releases, self._ahead = -1, None

    def refused(self, settlement: Settlement, retries: dict[int, Retry]) -> None:
        """Note what was rejected: dead letters, and entries to try again with their `retries` by sequence number."""
        self._retries |= retries
        for record, _ in settlement.dead:
            self._block([record])
        for record, _ in settlement.retried:
            if retries[record.seq].holds and record.order_by is not None:
                self._waiting_keys.add(record.order_by)

    def stalled(self, unit: Unit, now: float, pause_s: float) -> None:
        """Note a unit that took too long although it was alone: the next time others go first.

        It is tried again at once, then after `pause_s`, then after twice that, up to ten times that.
        """
        times = self._slow[unit[0].seq] = self._slow.get(unit[0].seq, 0) + 1
        if times > 1:
            retry = Retry(now + pause_s * min(10, 2 ** (times - 2)), holds=True)
            self._retries |= {record.seq: retry for record in unit}

    @property
    def slow(self) -> int | None:
        """The oldest entry that took too long more than once, and still waits; None when there is none."""
        return min((seq for seq, times in self._slow.items() if times > 1), default=None)

    def passed(self, batch: Batch, settled: set[int]) -> None:
        """Move behind a batch that was tried to its end.  What the target left out of it waits, with its keys."""
        for unit in units(record for record in batch.records if record.seq not in settled):
            self._must_wait(unit, batch)
        for seq in settled & self._slow.keys():
            del self._slow[seq]
        self._cursor = max(self._cursor, batch.last_seq)
        self.held += batch.held

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
        if keys & self._waiting_keys or any(retry.holds for retry in retries):
            self._waiting_keys |= keys
            return True
        return bool(retries)
