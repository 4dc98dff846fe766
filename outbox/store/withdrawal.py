"""Withdrawal: an operator discards an entry that is still pending.

The rule: an entry is either in a relay's batch or being discarded, never both.  A relay locks the sequence numbers of
its batch in `relay.lock` before it hands the batch to PostgreSQL, and looks then whether anything was discarded since
it read the batch; an operator's process locks those that it discards.  The kernel drops the locks of a process that
ends.  What such a process had sent may have been applied, so the next relay asks PostgreSQL for the receipts of what
was discarded, and an entry that has one counts as completed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ..entry import EntryStatus
from ..errors import EntryNotFound
from . import ledger
from .envelope import Counters, Record, discarded, pack, seq_key, unpack
from .environment import Environment
from .kept_files import Range

# Entries that were discarded while pending, and whose receipts have not been looked up yet.
PREFIX = b"outbox:withdrawn:"


def members(record: Record) -> Range:
    """The sequence numbers of the transaction that `record` belongs to."""
    return (record.group, record.group + record.members - 1) if record.group else (record.seq, record.seq)


# -- bodies of transactions of `Store`, as in `ledger`


def discard(
    environment: Environment,
    txn: Any,
    counters: Counters,
    seq: int,
    reason: str,
    audit: Record,
    now_us: int,
    *,
    free_key: bool,
) -> list[Record]:
    """Move pending entry `seq`, and what is pending of its group, into the ledger.  Raises `EntryNotFound`."""
    data = txn.get(seq_key(seq), db=environment.pending)
    if data is None:
        raise EntryNotFound(f"entry {seq} is not pending any more", hint="look at it with `atb outbox show`")
    first, last = members(unpack(seq, data))
    released = []
    for number in range(first, last + 1):
        data = txn.get(seq_key(number), db=environment.pending)
        if data is None:
            continue
        record = unpack(number, data)
        error = discarded(reason, record.error or "pending")
        settled = record.settled(EntryStatus.FAILED, now_us, error=error)
        txn.delete(seq_key(number), db=environment.pending)
        txn.put(seq_key(number), pack(settled), db=environment.ledger)
        txn.put(PREFIX + seq_key(number), b"")
        if free_key:
            txn.delete(record.key, db=environment.idempotency)
        released.append(settled)
    counters.discarded += len(released)
    counters.releases += 1
    ledger.note(environment, txn, counters, audit, now_us)
    return released


def confirm(environment: Environment, txn: Any, counters: Counters, asked: Sequence[int], applied: set[int]) -> None:
    """Forget what was `asked` for; those `applied` count as completed."""
    for seq in asked:
        txn.delete(PREFIX + seq_key(seq))
        data = txn.get(seq_key(seq), db=environment.ledger) if seq in applied else None
        if data is None:
            continue
        record = unpack(seq, data)
        if record.status is EntryStatus.FAILED and record.is_discarded:
            done = replace(record, status=EntryStatus.COMPLETED, error=None, raw=b"")
            txn.put(seq_key(seq), pack(done), db=environment.ledger)
            counters.discarded -= 1
            counters.completed += 1
