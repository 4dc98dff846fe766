"""Gathers from a real outbox and a real PostgreSQL what the invariants are checked on."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping

from outbox import Entry, EntryStatus, Outbox
from tests.unit.fakes.database import query

from .invariants import Applied, Place, Stored

Key = Callable[[Entry], Hashable]


def number_of(entry: Entry) -> Hashable:
    """The number of a trade names its intent."""
    return int(entry.args["number"])


def contents(box: Outbox, key: Key = number_of) -> list[Stored]:
    """Every entry in the store, the operator's audit records excepted."""
    dead = {entry.seq for entry in box.dead_letters()}
    found = [Stored(seq=entry.seq, key=key(entry), place=Place.PENDING) for entry in box.pending()]
    for entry in box.ledger():
        if entry.operation.startswith("outbox."):
            continue
        settled = Place.COMPLETED if entry.status is EntryStatus.COMPLETED else Place.DISCARDED
        place = Place.DEAD if entry.seq in dead else settled
        found.append(Stored(seq=entry.seq, key=key(entry), place=place, reason=entry.error))
    return found


def counters(box: Outbox) -> dict[str, int]:
    """The store's own numbers, by place."""
    status = box.status()
    return {
        "acknowledged": status.acknowledged,
        Place.PENDING.value: status.pending,
        Place.COMPLETED.value: status.completed,
        Place.DEAD.value: status.dead_letters,
        Place.DISCARDED.value: status.discarded,
        Place.QUARANTINED.value: status.quarantined,
    }


def effects(url: str) -> list[Applied]:
    """The rows of `trades`, in the order in which they took effect."""
    rows = query(url, "SELECT number, account FROM trades ORDER BY id")
    return [Applied(key=number, order_by=account) for number, account in rows]


def receipts(url: str, store_id: str, intents: Mapping[str, tuple[Hashable, int | None]]) -> list[Hashable]:
    """The intents that have a receipt of this store.

    `intents` has the name and, where it is known, the sequence number for each idempotency key.  A receipt that is
    nobody's is named by its key.
    """
    [(there,)] = query(url, "SELECT to_regclass('outbox_receipts') IS NOT NULL")
    if not there:
        return []
    sql = "SELECT idempotency_key::text, seq FROM outbox_receipts WHERE store_id = %s ORDER BY seq"
    found: list[Hashable] = []
    for key, seq in query(url, sql, [store_id]):
        name, known = intents.get(key.replace("-", ""), (None, None))
        found.append(key if name is None or known not in (None, seq) else name)
    return found
