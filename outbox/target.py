"""Target: where the relay delivers to, as the relay sees it.  The border between our words and a database's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Protocol
from uuid import UUID

from .envelope import Record
from .errors import EntryRejected, OutboxError
from .operation import Operation


@dataclass(slots=True)
class Outcome:
    """What became of a batch.  Records that are in no list were not tried: they are behind a rejected one."""

    completed: list[tuple[Record, bytes]] = field(default_factory=list)
    rejected: list[tuple[Record, EntryRejected]] = field(default_factory=list)
    # `TargetUnavailable` or `TargetMisconfigured` that ended the batch early; what is completed stays completed.
    interruption: OutboxError | None = None


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


Unit = list[Record]


def units(records: Iterable[Record]) -> Iterator[Unit]:
    """Split records into what must be applied together: a group, or a record of its own."""
    for group, members in groupby(records, key=lambda record: record.group or -record.seq):
        del group
        yield list(members)


def ordering_keys(unit: Unit) -> set[str]:
    """The ordering keys that a unit touches."""
    return {record.order_by for record in unit if record.order_by is not None}
