"""Quarantine: damaged pending records, set aside with their raw bytes until an operator has answered them.

Each function is the body of one transaction of `Store`, as in `ledger`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from . import codec, ledger
from .counters import Counters
from .entry import EntryStatus
from .envelope import Record, pack, seq_key
from .environment import Environment
from .exchange import DISCARDED

PREFIX = b"outbox:quarantine:"
# The operation of what stands in the ledger for a damaged entry that was given up.
OPERATION = "outbox.damaged"


def put(environment: Environment, txn: Any, counters: Counters, damaged: Sequence[tuple[int, bytes, str]]) -> None:
    """Set damaged pending records aside."""
    for seq, raw, _ in damaged:
        if txn.delete(seq_key(seq), db=environment.pending):
            txn.put(PREFIX + seq_key(seq), raw)
            counters.quarantined += 1


def holds(txn: Any, seq: int) -> bool:
    """Whether entry `seq` is in quarantine."""
    return 0 < seq < 1 << 64 and txn.get(PREFIX + seq_key(seq)) is not None


def owner(environment: Environment, txn: Any, seq: int) -> tuple[bytes, bytes] | None:
    """The idempotency key that entry `seq` holds, and its payload hash.  Reads all keys: the record is unreadable."""
    wanted = seq_key(seq)
    with txn.cursor(db=environment.idempotency) as cursor:
        for key, value in cursor.iternext():
            if value[:8] == wanted:
                return bytes(key), bytes(value[8:])
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
    plain, types = codec.encode({"raw": bytes(txn.get(PREFIX + seq_key(seq)))})
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
        error=f"{DISCARDED}{reason}; was: damaged on the disk",
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
