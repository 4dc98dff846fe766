"""History: the entries behind one that the local view has taken in, and which of them are missing."""

from __future__ import annotations

from collections.abc import Iterator

from ... import Outbox
from ...store.envelope import Record


def entries_since(outbox: Outbox, seq: int) -> Iterator[Record | range]:
    """Records behind `seq`, settled or pending, in their order; a range of sequence numbers for those that are missing.

    Missing are entries that were pruned or are damaged, and those that a full disk has left without a ledger copy.
    """
    awaited, last = seq + 1, outbox.store.last_seq()
    # In one order: an entry that is held back may be older than one that is settled.
    for record in outbox.store.records("ledger", "pending", first=awaited, on_damage=lambda *_: None):
        if record.seq > awaited:
            yield range(awaited, record.seq)
        awaited = record.seq + 1
        yield record
    if awaited <= last:
        yield range(awaited, last + 1)


def is_whole_since(outbox: Outbox, seq: int) -> bool:
    """Whether the first entry behind `seq` is still there: pruning takes the oldest first."""
    return not isinstance(next(entries_since(outbox, seq), None), range)
