"""Target: where the relay delivers to, as the relay sees it.  The border between our words and a database's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Protocol, runtime_checkable
from uuid import UUID

from .continuity import Mark, Memory
from .envelope import Record
from .errors import EntryRejected, HistoryRewound, OutboxError
from .operation import Operation


@dataclass(slots=True)
class Outcome:
    """What became of a batch.  Records that are in no list were not tried: they are behind a rejected one."""

    completed: list[tuple[Record, bytes]] = field(default_factory=list)
    rejected: list[tuple[Record, EntryRejected]] = field(default_factory=list)
    # `TargetUnavailable` or `TargetMisconfigured` that ended the batch early; what is completed stays completed.
    interruption: OutboxError | None = None
    # The newest transaction that was acknowledged, of a target that keeps a watermark.
    mark: Mark | None = None


class Comparison(Protocol):
    """A target's memory of a store, compared with the store's; all of it on one connection.

    Its methods raise `TargetUnavailable` or `TargetMisconfigured`.
    """

    @property
    def failover(self) -> bool:
        """Whether another server taking over is part of the plan."""
        ...

    @property
    def loss(self) -> HistoryRewound | None:
        """What the target has forgotten, or None."""
        ...

    def missing(self, records: Sequence[Record]) -> list[Record]:
        """Those that it never applied, or has forgotten."""
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

    def apply(self, store_id: UUID, records: Sequence[Record]) -> Outcome:
        """Apply `records` in order.  A group is applied whole or not at all.  Never raises for the database's state."""
        ...

    def interrupt(self) -> None:
        """Make a running `apply` fail soon; from any thread."""
        ...

    def close(self) -> None:
        """Let go of connections; may be called twice, and `apply` may be called again."""
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


Unit = list[Record]


def units(records: Iterable[Record]) -> Iterator[Unit]:
    """Split records into what must be applied together: a group, or a record of its own."""
    for group, members in groupby(records, key=lambda record: record.group or -record.seq):
        del group
        yield list(members)


def ordering_keys(unit: Unit) -> set[str]:
    """The ordering keys that a unit touches."""
    return {record.order_by for record in unit if record.order_by is not None}
