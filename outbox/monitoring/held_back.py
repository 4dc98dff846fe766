"""Held back: which pending entries wait for an operator, because they are behind a dead letter.

The relay, the status and the commands decide it here, so that a list agrees with the status.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from threading import Lock

from ..store.envelope import Record, Unit, ordering_keys, units
from ..store.reads import Figures
from ..store.store import Store

# Counting stops after so many pending records: it is a figure for people, and 10 million take minutes.
LOOKED_AT = 50_000


class HeldBack:
    """Ordering keys behind dead letters, along a walk from the oldest entry on."""

    def __init__(self, dead: Iterable[tuple[int, str | None]] = ()) -> None:
        """`dead`: sequence number and ordering key of every dead letter, oldest first."""
        # By ordering key: the sequence number behind which everything waits.
        self.behind: dict[str, int] = {}
        for seq, key in dead:
            if key is not None:
                self.behind.setdefault(key, seq)

    def block(self, unit: Unit) -> None:
        """What comes behind `unit` in any of its keys is held back."""
        for key in ordering_keys(unit):
            self.behind[key] = min(self.behind.get(key, unit[0].seq), unit[0].seq)

    def holds(self, unit: Unit) -> bool:
        """Whether the next unit of the walk is held back; whatever comes behind it in any of its keys is, too."""
        if any(self.behind.get(key, unit[0].seq) < unit[0].seq for key in ordering_keys(unit)):
            self.block(unit)
            return True
        return False


def held_back(records: Iterable[Record], dead: Iterable[tuple[int, str | None]]) -> Iterator[Record]:
    """Those of the pending `records`, which are all from the oldest on, that are held back."""
    held = HeldBack(dead)
    for unit in units(records) if held.behind else ():
        if held.holds(unit):
            yield from unit


class HeldBackCount:
    """Counts a store's held back entries where no relay does; goes on from its last count where that still holds."""

    def __init__(self) -> None:
        self._lock = Lock()
        # As of which dead letters, and how many entries had left `pending`.
        self._as_of: tuple[object, ...] = ()
        self._held = HeldBack()
        self._next_seq = self._looked_at = self._count = 0

    def of(self, store: Store, figures: Figures) -> int:
        """How many are held back among the first `LOOKED_AT` pending entries."""
        dead = store.dead()
        as_of = (dead, figures.first_pending, figures.counters.next_seq - figures.pending)
        with self._lock:
            if as_of != self._as_of:
                self._as_of, self._held = as_of, HeldBack(dead)
                self._next_seq = self._looked_at = self._count = 0
            most = LOOKED_AT - self._looked_at
            if most > 0 and self._held.behind:
                # What is damaged is the relay's to report.
                pending = store.records("pending", first=self._next_seq, on_damage=lambda *_: None)
                for unit in units(islice(pending, most)):
                    self._looked_at += len(unit)
                    self._next_seq = unit[-1].seq + 1
                    self._count += len(unit) if self._held.holds(unit) else 0
            return min(self._count, figures.pending)


def counts(records: Iterable[Record], dead: Iterable[tuple[int, str | None]]) -> Counter[int]:
    """By dead letter: how many of the pending `records` wait for it; one that waits for several is counted for each."""
    letters = [(seq, key) for seq, key in dead if key is not None]
    held, coming = HeldBack(letters), iter(letters)
    # The dead letters that each key waits for, and how often entries wait for the same ones.
    behind: dict[str, frozenset[int]] = {}
    waiting: Counter[frozenset[int]] = Counter()
    seq, key = next(coming, (None, ""))
    for unit in units(records) if held.behind else ():
        while seq is not None and seq < unit[0].seq:
            behind[key] = behind.get(key, frozenset()) | {seq}
            seq, key = next(coming, (None, ""))
        if held.holds(unit):
            keys = ordering_keys(unit)
            causes = frozenset().union(*(behind.get(one, ()) for one in keys))
            waiting[causes] += len(unit)
            behind.update(dict.fromkeys(keys, causes))
    found: Counter[int] = Counter()
    for causes, entries in waiting.items():
        found.update(dict.fromkeys(causes, entries))
    return found
