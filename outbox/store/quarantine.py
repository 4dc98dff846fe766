"""Quarantine: damaged pending records, set aside with their raw bytes until an operator has answered them.

Each function is the body of one transaction of `Store`, as in `ledger`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from .. import codec
from ..entry import EntryStatus
from . import ledger
from .envelope import QUARANTINED, Counters, Record, discarded, is_sealed, is_seq, key_seq, pack, seal, seq_key, unseal
from .environment import Environment
from .key_row import place_of, unpack_row

PREFIX = b"outbox:quarantine:"
# The operation of what stands in the ledger for a damaged entry that was given up.
OPERATION = "outbox.damaged"


def put(environment: Environment, txn: Any, counters: Counters, damaged: Sequence[tuple[int, bytes, str]]) -> None:
    """Set damaged pending records aside."""
    for seq, raw, _ in damaged:
        if txn.delete(seq_key(seq), db=environment.pending):
            keep(txn, seq, raw)
            counters.quarantined += 1


def keep(txn: Any, seq: int, raw: bytes) -> None:
    """Keep the raw bytes of entry `seq`."""
    txn.put(PREFIX + seq_key(seq), seal(QUARANTINED, seq_key(seq), raw))


def raw_of(key: bytes, value: bytes) -> bytes:
    """The raw bytes that are kept for the entry under `key`.  Raises `StoreCorrupt`.

    An older version kept them without a frame.
    """
    if not is_sealed(QUARANTINED, value):
        return value
    return unseal(QUARANTINED, key, value, f"what is left of entry {key_seq(key)}")


def holds(txn: Any, seq: int) -> bool:
    """Whether entry `seq` is in quarantine."""
    return is_seq(seq) and txn.get(PREFIX + seq_key(seq)) is not None


def owner(environment: Environment, txn: Any, seq: int) -> tuple[bytes, bytes] | None:
    """The idempotency key that entry `seq` holds, and its payload hash.  Reads all keys: the record is unreadable."""
    wanted = seq_key(seq)
    with txn.cursor(db=environment.idempotency) as cursor:
        for key, value in cursor.iternext():
            if place_of(value) == wanted:
                return bytes(key), unpack_row(bytes(key), bytes(value))[1]
    return None


def discard(
    environment: Environment,
    txn: Any,
    counters: Counters,
    seq: int,
    reason: str,
    audit: Record,
    now_us: int,
    *,
    known_as: tuple[bytes, bytes] | None,
    free_key: bool,
) -> Record:
    """Give up quarantined entry `seq`: its raw bytes move into the ledger, with the reason.

    `known_as` is what `owner` found.
    """
    raw = raw_of(seq_key(seq), bytes(txn.get(PREFIX + seq_key(seq))))
    plain, types = codec.encode({"raw": raw})
    key, hashed = known_as or (audit.id, audit.payload_hash)
    stands_for = replace(
        audit,
        seq=seq,
        key=key,
        operation=OPERATION,
        payload_hash=hashed,
        args=plain,
        types=types,
        status=EntryStatus.FAILED,
        error=discarded(reason, "damaged on the disk"),
        settled_us=now_us,
    )
    txn.delete(PREFIX + seq_key(seq))
    txn.put(seq_key(seq), pack(stands_for), db=environment.ledger)
    if free_key and known_as is not None:
        txn.delete(key, db=environment.idempotency)
    counters.quarantined -= 1
    counters.discarded += 1
    counters.releases += 1
    ledger.note(environment, txn, counters, audit, now_us)
    return stands_for
