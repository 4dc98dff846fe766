"""The moves between `pending` and `ledger`: what happens inside the store's write transactions after delivery.

Each function is the body of one transaction of `Store`, which opens it, guards it with the halt latch and writes the
counters back.  Assumes that the caller holds the transaction.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby, islice
from operator import itemgetter
from typing import Any, NamedTuple

from .. import codec
from ..entry import EntryStatus
from ..errors import EntryNotFound, StoreCorrupt
from ..operation import payload_hash, shape_hash
from .continuity import Mark, forget_late, keep_late
from .envelope import (
    DEAD,
    Counters,
    Record,
    discarded,
    is_seq,
    key_seq,
    pack,
    pack_completed,
    seal,
    seq_key,
    unpack,
    unseal,
)
from .environment import Environment
from .key_row import place_of

DEAD_PREFIX = b"outbox:dead:"
# What PostgreSQL last acknowledged, by lane.
MARK_PREFIX = b"outbox:mark:"
REQUEUE, DISCARD, RECONCILE = "outbox.requeue", "outbox.discard", "outbox.reconcile"
ACKNOWLEDGE = "outbox.acknowledge"
# A copy of the store has used numbers of entries: `lowest` is the first of them.
COPIED = "outbox.copied"


@dataclass(slots=True)
class Settlement:
    """What a relay's step found out about a batch; settled in one commit."""

    # With what the handler returned, encoded.
    completed: list[tuple[Record, bytes]] = field(default_factory=list)
    # Rejected for good, with the reason: dead letters.
    dead: list[tuple[Record, str]] = field(default_factory=list)
    # Rejected best-effort entries: kept in the ledger, no operator needed.
    dropped: list[tuple[Record, str]] = field(default_factory=list)
    # Rejected for a reason that may pass: one attempt more, still pending.
    retried: list[tuple[Record, str]] = field(default_factory=list)
    # The transactions that PostgreSQL acknowledged last, one for each lane.
    marks: list[Mark] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.completed or self.dead or self.dropped or self.retried)

    def parts(self, rows: int) -> list[Settlement]:
        """Itself in parts of about `rows` rows, to be recorded one after the other; no group is divided.

        Each has the marks: if the rest is never recorded, a loss of what was must be noticed all the same.
        """
        parts = [Settlement(marks=self.marks)]
        for _, unit in groupby(self.completed, key=lambda item: item[0].group or -item[0].seq):
            if len(parts[-1].completed) >= rows:
                parts.append(Settlement(marks=self.marks))
            parts[-1].completed += unit
        parts[-1].dead, parts[-1].dropped, parts[-1].retried = self.dead, self.dropped, self.retried
        return parts


class Moved(NamedTuple):
    """What a settlement took out of `pending`."""

    at_us: int
    # By key: the pending record, and what the handler returned, encoded.
    completed: list[tuple[bytes, Record, bytes]]
    # As the ledger has them.
    dead: list[Record]


def settle(
    environment: Environment, txn: Any, counters: Counters, settlement: Settlement, now_us: int, *, keep_ledger: bool
) -> Moved:
    """Move a batch out of `pending`.  Entries that are no longer there are left alone: they were settled before."""
    last = _last_key(txn, environment.ledger)
    dead: list[Record] = []

    def move(record: Record, settled: Record) -> bool:
        nonlocal last
        key = seq_key(record.seq)
        if not txn.delete(key, db=environment.pending):
            return False
        if keep_ledger:
            # Appending keeps pages full.
            txn.put(key, pack(settled), db=environment.ledger, append=key > last)
            last = max(key, last)
        return True

    for mark in settlement.marks:
        remember(txn, mark)
    moved = [
        (seq_key(record.seq), record, result)
        for record, result in settlement.completed
        if txn.delete(seq_key(record.seq), db=environment.pending)
    ]
    counters.completed += len(moved)
    if keep_ledger and moved:
        moved.sort(key=itemgetter(0))
        with txn.cursor(db=environment.ledger) as cursor:
            rows = [(key, pack_completed(record, now_us, result)) for key, record, result in moved]
            cursor.putmulti(rows, append=moved[0][0] > last)
        last = max(last, moved[-1][0])
    counters.unledgered += 0 if keep_ledger else len(moved)
    for record, error in settlement.dead:
        settled = record.settled(EntryStatus.FAILED, now_us, error=error, attempts=record.attempts + 1)
        if move(record, settled):
            counters.dead += 1
            list_dead(txn, record)
            dead.append(settled)
    for record, error in settlement.dropped:
        if move(record, record.settled(EntryStatus.FAILED, now_us, error=error, attempts=record.attempts + 1)):
            counters.discarded += 1
    for record, error in settlement.retried:
        if txn.get(seq_key(record.seq), db=environment.pending) is not None:
            again = replace(record, attempts=record.attempts + 1, error=error)
            txn.put(seq_key(record.seq), pack(again), db=environment.pending)
    return Moved(now_us, moved, dead)


def requeue(
    environment: Environment, txn: Any, counters: Counters, seq: int, audit: Record, now_us: int
) -> list[Record]:
    """Put dead letter `seq` and its group back at their old places in `pending`.  Raises `EntryNotFound`."""
    released = [
        replace(record, status=EntryStatus.PENDING, settled_us=0, attempts=0) for record in _dead(txn, environment, seq)
    ]
    for record in released:
        txn.delete(seq_key(record.seq), db=environment.ledger)
        txn.put(seq_key(record.seq), pack(record), db=environment.pending)
    _release(environment, txn, counters, released, audit, now_us)
    return released


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
    """Give up dead letter `seq` and its group; they stay in the ledger with the reason.  Raises `EntryNotFound`."""
    released = [
        replace(record, error=discarded(reason, str(record.error)))
        for record in _dead(txn, environment, seq, "a dead letter, and not pending")
    ]
    for record in released:
        txn.put(seq_key(record.seq), pack(record), db=environment.ledger)
        if free_key:
            txn.delete(record.key, db=environment.idempotency)
    counters.discarded += len(released)
    _release(environment, txn, counters, released, audit, now_us)
    return released


def remember(txn: Any, mark: Mark) -> None:
    """Keep what PostgreSQL last acknowledged on a lane."""
    txn.put(MARK_PREFIX + bytes((mark.lane,)), mark.pack())


def put_back(environment: Environment, txn: Any, counters: Counters, records: Sequence[Record]) -> int:
    """Put completed entries back at their old places in `pending`; returns how many were still in the ledger."""
    moved = 0
    for record in records:
        if txn.delete(seq_key(record.seq), db=environment.ledger):
            again = replace(record, status=EntryStatus.PENDING, settled_us=0, result=b"")
            txn.put(seq_key(record.seq), pack(again), db=environment.pending)
            moved += 1
    counters.completed -= moved
    counters.releases += 1
    if moved:
        keep_late(txn, min(record.seq for record in records), counters.next_seq - 1)
    return moved


def rebase(environment: Environment, txn: Any, counters: Counters, mark: Mark, audit: Record, now_us: int) -> None:
    """From now on PostgreSQL is compared with `mark` only; `audit` becomes a ledger record of its own.

    It must note what `late` knows, which is forgotten.
    """
    with txn.cursor() as cursor:
        found = cursor.set_range(MARK_PREFIX)
        while found and bytes(cursor.key()).startswith(MARK_PREFIX):
            found = cursor.delete()
    remember(txn, mark)
    forget_late(txn)
    note(environment, txn, counters, audit, now_us)


def answer(name: str, args: dict[str, Any], id_: bytes) -> Record:
    """The record of an operator's or a relay's own doing: no entry, and it never has a receipt."""
    plain, types = codec.encode(args)
    return Record(
        seq=0,
        key=id_,
        id=id_,
        operation=name,
        order_by=None,
        payload_hash=payload_hash(name, plain, types),
        shape=shape_hash(args),
        args=plain,
        types=types,
    )


def is_answer(record: Record) -> bool:
    """Whether this ledger record is one of `answer` and no entry: a key that is a plain id belongs to no intent."""
    return record.key == record.id


def acknowledged(rows: Iterable[tuple[bytes, bytes]]) -> list[Record]:
    """The completed entries among `rows` of the ledger, newest first, whose receipts PostgreSQL must have."""
    found: list[Record] = []
    for key, value in rows:
        try:
            record = unpack(key_seq(key), value)
        except StoreCorrupt:  # it proves nothing, and the next walk over the ledger reports it
            continue
        if is_answer(record):
            if record.operation == RECONCILE and not _has_all_receipts(record):
                break
        elif record.status is EntryStatus.COMPLETED:
            found.append(record)
    return found


def _has_all_receipts(reconciled: Record) -> bool:
    """Whether a reconciliation left no completed entry without a receipt: it was not accepted, and nothing was gone."""
    try:
        said = codec.from_json(reconciled.args)
        return said["accepted"] is None and not said["gone"]
    except codec.MALFORMED:
        return False


def list_dead(txn: Any, record: Record) -> None:
    """Add an entry to the index of dead letters, with its ordering key."""
    key = seq_key(record.seq)
    txn.put(DEAD_PREFIX + key, seal(DEAD, key, codec.to_json(record.order_by)))


def is_dead(txn: Any, seq: int) -> bool:
    """Whether entry `seq` is in the index of dead letters."""
    return is_seq(seq) and txn.get(DEAD_PREFIX + seq_key(seq)) is not None


def dead_order(key: bytes, value: bytes) -> bytes:
    """The ordering key of a dead letter in the index, as JSON; `key` is its entry's.  Raises `StoreCorrupt`.

    An older version wrote it without a frame.
    """
    if value[:1] in (b'"', b"n"):
        return value
    return unseal(DEAD, key, value, f"the index of dead letters at entry {key_seq(key)}")


def _release(
    environment: Environment, txn: Any, counters: Counters, released: list[Record], audit: Record, now_us: int
) -> None:
    """Forget the dead letters, and keep `audit` as a ledger record of its own."""
    for record in released:
        txn.delete(DEAD_PREFIX + seq_key(record.seq))
    counters.dead -= len(released)
    counters.releases += 1
    note(environment, txn, counters, audit, now_us)


def note(environment: Environment, txn: Any, counters: Counters, audit: Record, now_us: int) -> None:
    """Keep `audit` in the ledger under a sequence number of its own."""
    counters.last_us = max(counters.last_us + 1, now_us)
    settled = audit.settled(EntryStatus.COMPLETED, counters.last_us)
    kept = replace(settled, seq=counters.next_seq, captured_us=counters.last_us)
    counters.next_seq += 1
    txn.put(seq_key(kept.seq), pack(kept), db=environment.ledger)


def prune(
    environment: Environment, txn: Any, first: int, rows: int, before_us: int, now_us: int
) -> tuple[int, int | None]:
    """Delete records settled by `before_us` among `rows` ledger rows from `first` on, with their idempotency keys.

    Returns how many, and where to go on, or None at the end of what can be expired.  Dead letters stay.
    """
    with txn.cursor(db=environment.ledger) as cursor:
        found = list(islice(cursor.iternext(), rows)) if cursor.set_range(seq_key(first)) else []
    pruned = 0
    for key, value in found:
        record = unpack(key_seq(key), value)
        if record.captured_us > before_us and before_us < record.settled_us <= now_us:
            # Nothing later can have been settled earlier, unless the clock was ahead and the stamps still are.
            return pruned, None
        if record.settled_us <= before_us and txn.get(DEAD_PREFIX + key) is None:
            txn.delete(key, db=environment.ledger)
            owner = txn.get(record.key, db=environment.idempotency)
            if owner is not None and place_of(owner) == key:
                txn.delete(record.key, db=environment.idempotency)
            pruned += 1
    return pruned, key_seq(found[-1][0]) + 1 if len(found) == rows else None


def _last_key(txn: Any, handle: Any) -> bytes:
    with txn.cursor(db=handle) as cursor:
        return bytes(cursor.key()) if cursor.last() else b""


def _dead(txn: Any, environment: Environment, seq: int, wanted: str = "a dead letter") -> list[Record]:
    """Dead letter `seq` and the dead letters of its group; `wanted`: what it would have to be, for people."""
    if not is_dead(txn, seq):
        raise EntryNotFound(f"entry {seq} is not {wanted}", hint=f"`atb outbox show {seq}` shows what became of it")
    record = unpack(seq, txn.get(seq_key(seq), db=environment.ledger))
    if not record.group:
        return [record]
    members = []
    with txn.cursor(db=environment.ledger) as cursor:
        cursor.set_range(seq_key(record.group))
        for key, value in cursor.iternext():
            member = unpack(key_seq(key), value)
            # Audit records and other entries may lie in between only behind the group, which is contiguous.
            if member.group != record.group:
                break
            if txn.get(DEAD_PREFIX + key) is not None:
                members.append(member)
    return members
