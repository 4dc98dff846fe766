"""Target: the protocol between the relay and a database."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable
from uuid import UUID

from .errors import EntryRejected, HistoryRewound, OutboxError
from .fate import Failed
from .operation import Operation
from .store.continuity import Mark, Memory
from .store.envelope import Record
from .store.envelope import Unit as Unit
from .store.envelope import ordering_keys as ordering_keys
from .store.envelope import units as units


@dataclass(slots=True)
class Outcome:
    """What became of a batch.  Records that are in no list were not tried: they are behind one that failed."""

    completed: list[tuple[Record, bytes]] = field(default_factory=list)
    failed: list[Failed] = field(default_factory=list)
    # Operations none of whose entries can be applied now, and why.
    parked: dict[str, OutboxError] = field(default_factory=dict)
    # `TargetUnavailable` or `TargetMisconfigured` that ended the batch early; what is completed stays completed.
    interruption: OutboxError | None = None
    # The unit that took too long although it was tried alone, on a connection that lived on.
    stalled: Unit = field(default_factory=list)
    # The newest transactions that were acknowledged, one for each lane, of a target that keeps watermarks.
    marks: list[Mark] = field(default_factory=list)
    # How many entries each lane completed; empty for a target with one lane.
    by_lane: list[int] = field(default_factory=list)

    @property
    def rejected(self) -> list[tuple[Record, EntryRejected]]:
        """The records that were refused, and why."""
        refused = [(one.unit, one.error) for one in self.failed if not one.fate.waits]
        return [(record, error) for unit, error in refused if isinstance(error, EntryRejected) for record in unit]

    @property
    def waiting(self) -> list[Failed]:
        """The units that wait though their data is not the cause."""
        return [one for one in self.failed if one.fate.waits]

    def merge(self, other: Outcome) -> None:
        """Add what became of the other part of the batch.  Of two interruptions a loss is the one to know of."""
        self.completed += other.completed
        self.failed += other.failed
        self.stalled = self.stalled or other.stalled
        self.marks += other.marks
        if self.interruption is None or isinstance(other.interruption, HistoryRewound):
            self.interruption = other.interruption


class Comparison(Protocol):
    """A target's memory of a store, compared with the store's; all of it on one connection.

    Its methods raise `TargetUnavailable` or `TargetMisconfigured`.
    """

    @property
    def failover(self) -> bool:
        """Whether another server taking over is part of the plan."""
        ...

    @property
    def places(self) -> frozenset[str]:
        """The databases that its address names; empty where that is not known."""
        ...

    @property
    def loss(self) -> HistoryRewound | None:
        """What the target lost, or None."""
        ...

    def missing(self, records: Sequence[Record]) -> list[Record]:
        """Those that it never applied, or lost."""
        ...

    def seen(self) -> int:
        """The highest sequence number of the store, or of a copy of it, that it has seen."""
        ...

    def never_applied(self, records: Sequence[Record]) -> list[Record]:
        """Those that it has not applied, and that no transaction still running applies."""
        ...

    def accept(self) -> Mark:
        """Take it as it is from now on; returns what to compare it with later."""
        ...


class Target(Protocol):
    """Applies entries once per idempotency key.  Used by one thread at a time, but for `interrupt`."""

    @property
    def operations(self) -> Mapping[str, Operation]:
        """What it can apply, by name."""
        ...

    @property
    def lanes(self) -> int:
        """How many transactions of the size of a batch `apply` runs side by side at most."""
        ...

    def apply(self, store_id: UUID, records: Sequence[Record]) -> Outcome:
        """Apply `records`, those of an ordering key in order.  A group is applied completely or not at all.

        Never raises for the database's state.
        """
        ...

    def interrupt(self) -> None:
        """Make a running `apply` fail soon; from any thread."""
        ...

    def close(self) -> None:
        """Let go of connections; may be called twice, and `apply` may be called again."""
        ...


@runtime_checkable
class Reachable(Protocol):
    """What a target offers besides if a look without a login shows whether its servers are there."""

    def accepting(self) -> frozenset[str]:
        """The servers that accept connections; none where it would take long to know.  Never raises."""
        ...


@runtime_checkable
class Forgetful(Protocol):
    """What a target offers besides that can lose what it acknowledged, as a database can."""

    def follow(self, memory: Memory) -> None:
        """From now on apply nothing to a database that lacks what `memory` knows to be acknowledged."""
        ...

    def compare(self, store_id: UUID) -> Comparison:
        """Compare with what the store remembers.  Raises `TargetUnavailable` or `TargetMisconfigured`."""
        ...


def is_best_effort(unit: Unit, operations: Mapping[str, Operation]) -> bool:
    """Whether a unit may be given up without an operator, and nothing waits for it: all of it is best effort."""
    return all(item.operation in operations and operations[item.operation].best_effort for item in unit)


def free_of(
    part: list[Unit], blocked: set[str], given_up: set[str], operations: Mapping[str, Operation]
) -> tuple[list[int], set[str]]:
    """Where in `part` are units that are not behind a refused one, and what is blocked for what comes after `part`.

    A unit that has to wait blocks its other keys too, but only for what comes behind it.  So does one of an operation
    that was given up.
    """
    free, behind = [], set(blocked)
    for index, unit in enumerate(part):
        keys = ordering_keys(unit)
        if keys & behind:
            behind |= keys
        elif given_up and any(item.operation in given_up for item in unit):
            behind |= set() if is_best_effort(unit, operations) else keys
        else:
            free.append(index)
    return free, behind


def split(part: list[Unit], free: list[int], position: int | None) -> list[list[Unit]]:
    """Halves, or what lies before, at and behind the culprit, which is the unit at `free[position]`."""
    if position is None:
        middle = free[len(free) // 2]
        return [part[:middle], part[middle:]]
    at = free[position]
    return [part[:at], part[at : at + 1], part[at + 1 :]]


def spread(batch: list[Unit], lanes: int, pinned: Callable[[Unit], bool]) -> list[list[Unit]]:
    """Split a batch into parts, at most one for each lane, that may be applied side by side; each keeps its order.

    No ordering key is in two parts.  Units that are `pinned` are all in the first.
    """
    if lanes == 1:
        return [batch]
    family = _Families()
    keys = [ordering_keys(unit) | ({_PIN} if pinned(unit) else set()) for unit in batch]
    for unit, own in zip(batch, keys, strict=True):
        family.join(own, len(unit))
    load = [family.sizes.pop(family.of(_PIN), 0)] + [0] * (lanes - 1)
    lane_of = {family.of(_PIN): 0}
    for head, size in sorted(family.sizes.items(), key=lambda item: -item[1]):
        lane_of[head] = lane = load.index(min(load))
        load[lane] += size
    parts: list[list[Unit]] = [[] for _ in load]
    for unit, own in zip(batch, keys, strict=True):
        if own:
            lane = lane_of[family.of(next(iter(own)))]
        else:
            lane = load.index(min(load))
            load[lane] += len(unit)
        parts[lane].append(unit)
    return parts


# An ordering key that no entry can have.
_PIN = "\0"


class _Families:
    """Ordering keys that must stay together, because a unit touches them all."""

    def __init__(self) -> None:
        self._parent: dict[str, str] = {}
        # Entries by the key that stands for its family.
        self.sizes: dict[str, int] = {}

    def of(self, key: str) -> str:
        """The key that stands for the family of `key`."""
        while (parent := self._parent.get(key, key)) != key:
            key = parent
        return key

    def join(self, keys: set[str], entries: int) -> None:
        """Make one family of `keys`; nothing for a unit without any."""
        if not keys:
            return
        head, *others = {self.of(key) for key in keys}
        self.sizes[head] = self.sizes.get(head, 0) + entries
        for other in others:
            self._parent[other] = head
            self.sizes[head] += self.sizes.pop(other, 0)
