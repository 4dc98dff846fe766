"""Appending: new entries in `pending` and their idempotency keys, inside a transaction of the writer.

One submission is stored or refused completely, and does not affect the others.  Many are stored by three calls of LMDB,
unless a key was used before.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from ..entry import EntryStatus
from ..errors import AlreadyRejected, IdempotencyConflict, OutboxError, StoreCorrupt, StoreFull
from . import quarantine
from .envelope import OVERHEAD, Counters, Record, key_seq, pack, seq_key, unpack
from .environment import Environment
from .key_row import pack_row, unpack_row
from .ledger import is_dead


@dataclass(slots=True)
class Append:
    """One submission to `Store.append`: several records become one group, and are stored or refused together.

    After the commit either `error` is set, or `stored` holds the records in the order given: new ones, or for a key
    that was used before the first one.
    """

    records: list[Record]
    stored: list[Record] = field(default_factory=list)
    error: OutboxError | None = None


def sizes(submissions: list[Append]) -> list[int]:
    """How many bytes each takes."""
    return [sum([OVERHEAD + len(r.args) + len(r.types) for r in submission.records]) for submission in submissions]


def admitted(submissions: list[Append], refusals: list[StoreFull | None]) -> list[Append]:
    """Those that are not refused; the others get their error."""
    fitting = []
    for submission, refusal in zip(submissions, refusals, strict=True):
        if refusal is None:
            fitting.append(submission)
        else:
            submission.error = refusal
    return fitting


def append_fresh(environment: Environment, txn: Any, counters: Counters, submissions: list[Append]) -> bool:
    """Store everything, if no key was used before; else nothing, and return False.

    Three calls of LMDB, however many entries: with each call another thread may take the interpreter, and all who
    enqueue wait for this one.
    """
    keys = [record.key for submission in submissions for record in submission.records]
    if len(keys) < 2:
        return len(keys) == len(submissions) == 1 and _append_single(environment, txn, counters, submissions[0])
    with txn.cursor(db=environment.idempotency) as cursor:
        if len({*keys}) < len(keys) or cursor.getmulti(keys):
            return False
        seq, last_us = counters.next_seq, counters.last_us
        numbered: list[list[Record]] = []
        for submission in submissions:
            group, members = (seq, len(submission.records)) if len(submission.records) > 1 else (0, 0)
            fresh: list[Record] = []
            for record in submission.records:
                last_us = max(last_us + 1, record.captured_us)
                fresh.append(record.numbered(seq, last_us, group, members))
                seq += 1
            numbered.append(fresh)
        rows = [(seq_key(record.seq), record) for fresh in numbered for record in fresh]
        cursor.putmulti([(record.key, pack_row(record.key, key, record.payload_hash)) for key, record in rows])
    with txn.cursor(db=environment.pending) as cursor:
        _, added = cursor.putmulti([(key, pack(record)) for key, record in rows], append=True)
    if added != len(rows):
        number = rows[added][1].seq
        raise StoreCorrupt(f"{environment.directory}: sequence number {number} is already behind the last pending one")
    for submission, submission.stored in zip(submissions, numbered, strict=True):
        submission.error = None
    counters.next_seq, counters.last_us = seq, last_us
    counters.acknowledged += len(rows)
    return True


def _append_single(environment: Environment, txn: Any, counters: Counters, submission: Append) -> bool:
    """`append_fresh` of one record: its key is looked for and stored in one descent."""
    (record,) = submission.records
    last_us = max(counters.last_us + 1, record.captured_us)
    new = record.numbered(counters.next_seq, last_us, 0, 0)
    key = seq_key(new.seq)
    row = pack_row(new.key, key, new.payload_hash)
    if not txn.put(new.key, row, db=environment.idempotency, overwrite=False):
        return False
    _put_last(environment, txn, key, new)
    submission.stored, submission.error = [new], None
    counters.next_seq += 1
    counters.last_us = last_us
    counters.acknowledged += 1
    return True


def _put_last(environment: Environment, txn: Any, key: bytes, record: Record) -> None:
    if not txn.put(key, pack(record), db=environment.pending, append=True):
        raise StoreCorrupt(
            f"{environment.directory}: sequence number {record.seq} is already behind the last pending one"
        )


def append_one(environment: Environment, txn: Any, counters: Counters, submission: Append) -> bool:
    """Store one submission, whose keys may have been used before; whether anything was stored.

    Why it is refused as a whole is left in it.
    """
    first: dict[bytes, Record] = {}
    fresh: list[Record] = []
    submission.stored, submission.error = [], None
    for record in submission.records:
        try:
            known = first.get(record.key) or _by_key(environment, txn, record)
        except StoreCorrupt as exc:
            submission.error = exc
            return False
        if known is not None and known.payload_hash != record.payload_hash:
            submission.error = IdempotencyConflict(
                f"key {record.key.hex()} of operation {record.operation!r} is used by entry {known.seq or 'above'} "
                "with other arguments",
                hint="one intent, one key: use another key for another write",
            )
            return False
        if known is not None and known.status is EntryStatus.FAILED:
            submission.error = _already_rejected(txn, known)
            return False
        if known is None:
            fresh.append(record)
        first.setdefault(record.key, known or record)
    group, members = (counters.next_seq, len(fresh)) if len(fresh) > 1 else (0, 0)
    for record in fresh:
        counters.last_us = max(counters.last_us + 1, record.captured_us)
        new = record.numbered(counters.next_seq, counters.last_us, group, members)
        key = seq_key(new.seq)
        _put_last(environment, txn, key, new)
        txn.put(new.key, pack_row(new.key, key, new.payload_hash), db=environment.idempotency)
        counters.next_seq += 1
        counters.acknowledged += 1
        first[new.key] = new
    submission.stored = [first[record.key] for record in submission.records]
    return bool(fresh)


def _by_key(environment: Environment, txn: Any, record: Record) -> Record | None:
    """The first record stored under `record`'s key, or None."""
    value = txn.get(record.key, db=environment.idempotency)
    if value is None:
        return None
    place, hashed = unpack_row(record.key, bytes(value))
    seq = key_seq(place)
    for handle in (environment.pending, environment.ledger):
        data = txn.get(place, db=handle)
        if data is not None:
            return unpack(seq, data)
    if txn.get(quarantine.PREFIX + place) is not None:
        lost = "its record is damaged and quarantined"
        return replace(record, seq=seq, payload_hash=hashed, status=EntryStatus.FAILED, error=lost)
    # Settled without a ledger copy: all that is left of it is that it was completed.
    return replace(record, seq=seq, payload_hash=hashed, status=EntryStatus.COMPLETED)


def _already_rejected(txn: Any, record: Record) -> AlreadyRejected:
    """The error for a call under the key of `record`, a dead letter or an entry that was given up."""
    error = record.error or "the reason is unknown"
    given_up = record.is_discarded
    hint = ""
    if is_dead(txn, record.seq):
        hint = f"see `atb outbox show {record.seq}`, then `retry` or `discard` it; or "
    elif quarantine.holds(txn, record.seq):
        hint = f"see `atb outbox show {record.seq}`, then `discard` it; or "
    return AlreadyRejected(
        f"entry {record.seq} of operation {record.operation!r} has this key and was "
        f"{error if given_up else f'rejected: {error}'}",
        entry=record.entry(strict=False),
        hint=f"{hint}enqueue it with another key if it is still wanted",
    )
