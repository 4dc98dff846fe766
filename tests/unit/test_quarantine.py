"""A damaged entry is answered once and for all, and what is left of it is kept; so is a missing ledger copy."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from outbox import AlreadyRejected, EntryNotFound, EntryStatus, Health, IdempotencyConflict, Outbox
from outbox.store.envelope import seq_key
from outbox.store.key_row import place_of
from outbox.store.ledger import Settlement

RAW = b"OX\x01 what is left of it"


@pytest.fixture
def box(outbox_dir: Path) -> Iterator[Outbox]:
    """Entry 2, enqueued with key `k`, is damaged and in quarantine."""
    with Outbox.open(outbox_dir) as opened:
        for number, key in enumerate(("a", "k", "b")):
            opened.enqueue("log", {"number": number}, key=key)
        with opened.store._write("damage") as (environment, txn):
            txn.put(seq_key(2), RAW, db=environment.pending)
        opened.store.quarantine(opened.store.peek(0, 10).damaged)
        yield opened


def accounted(box: Outbox) -> bool:
    now = box.status()
    return now.acknowledged == now.pending + now.completed + now.dead_letters + now.discarded + now.quarantined


def test_discarded_quarantined_entry_keeps_its_raw_bytes_and_reason(box: Outbox) -> None:
    assert box.status().health is Health.NEEDS_OPERATOR
    (given_up,) = box.discard(2, "entered by hand")
    assert box.status().needs_operator == []
    assert (box.status().quarantined, box.status().discarded) == (0, 1)
    assert accounted(box)
    stands, audit = box.ledger()
    assert stands == given_up == box.entry(2)
    assert (stands.seq, stands.operation, stands.status) == (2, "outbox.damaged", EntryStatus.FAILED)
    assert stands.args == {"raw": RAW}
    assert stands.error == "discarded: entered by hand; was: damaged on the disk"
    assert (audit.operation, audit.args) == ("outbox.discard", {"seq": 2, "reason": "entered by hand"})
    with pytest.raises(EntryNotFound):
        box.discard(2, "again")


def test_key_of_a_discarded_quarantined_entry_stays_in_use(box: Outbox) -> None:
    box.discard(2, "entered by hand")
    with pytest.raises(AlreadyRejected, match="entered by hand") as caught:
        box.enqueue("log", {"number": 1}, key="k")
    assert (caught.value.seq, caught.value.entry.status) == (2, EntryStatus.FAILED)
    with pytest.raises(IdempotencyConflict):
        box.enqueue("log", {"number": 7}, key="k")


def test_key_of_a_quarantined_entry_can_be_freed(box: Outbox) -> None:
    box.discard(2, "never sent", free_key=True)
    assert box.enqueue("log", {"number": 1}, key="k").seq == 5
    assert accounted(box)


def test_quarantined_entry_is_not_called_absent(box: Outbox) -> None:
    with pytest.raises(EntryNotFound, match="entry 2 is damaged and quarantined .*`atb outbox show 2`"):
        box.entry(2)


def test_quarantined_entry_cannot_be_tried_again(box: Outbox) -> None:
    with pytest.raises(EntryNotFound, match="entry 2 is damaged and quarantined, it cannot be tried again"):
        box.requeue(2)


def test_quarantined_entry_without_a_key_can_be_discarded(box: Outbox) -> None:
    with box.store._write("damage") as (environment, txn):
        known = [(bytes(key), place_of(value)) for key, value in txn.cursor(db=environment.idempotency)]
        txn.delete(next(key for key, seq in known if seq == seq_key(2)), db=environment.idempotency)
    (given_up,) = box.discard(2, "nothing is left")
    assert given_up.args == {"raw": RAW}
    assert accounted(box)


def test_each_damaged_entry_is_counted_and_given_up_by_itself(box: Outbox) -> None:
    with box.store._write("damage") as (environment, txn):
        for seq in (1, 3):
            txn.put(seq_key(seq), RAW, db=environment.pending)
    box.store.quarantine(box.store.peek(0, 10).damaged)
    assert (box.status().quarantined, box.status().pending) == (3, 0)
    for given_up, seq in enumerate((1, 3, 2), 1):
        releases = box.store.peek(0, 1).releases
        (stands,) = box.discard(seq, "entered by hand")
        assert stands.seq == seq
        assert (box.status().quarantined, box.status().discarded) == (3 - given_up, given_up)
        assert box.store.peek(0, 1).releases > releases
        assert accounted(box)


def test_giving_it_up_is_dated(box: Outbox) -> None:
    (given_up,) = box.discard(2, "entered by hand")
    (_, audit) = box.ledger()
    assert given_up.settled_at is not None
    assert audit.settled_at is not None
    assert abs(given_up.settled_at - audit.settled_at) < timedelta(seconds=1)


@pytest.mark.parametrize("seq", [-1, 0, 4, 1 << 64, 1 << 65])
def test_numbers_that_no_entry_has_are_not_found(box: Outbox, seq: int) -> None:
    with pytest.raises(EntryNotFound, match=f"entry {seq} is not a dead letter"):
        box.discard(seq, "never heard of it")
    with pytest.raises(EntryNotFound, match=f"entry {seq} is not a dead letter"):
        box.requeue(seq)


def test_discarded_quarantined_entry_is_pruned_after_its_retention(box: Outbox) -> None:
    box.discard(2, "entered by hand")
    assert box.compact(timedelta(0)) == 2
    assert list(box.ledger()) == []
    assert box.enqueue("log", {"number": 1}, key="k").seq == 5


def test_entries_without_a_ledger_copy_are_shown_until_acknowledged(box: Outbox) -> None:
    assert not box.acknowledge("unledgered")
    box.store._settle(
        Settlement(completed=[(record, b"") for record in box.store.records("pending")]), keep_ledger=False
    )
    assert box.status().degraded == [
        "2 entries were completed without a ledger copy (`atb outbox acknowledge unledgered`)"
    ]
    assert box.acknowledge("unledgered")
    assert (box.status().unledgered, box.status().degraded) == (0, [])
    (audit,) = box.ledger()
    assert (audit.operation, audit.args) == ("outbox.acknowledge", {"name": "unledgered", "entries": 2})
    # What is left of them still keeps a repeated call from being a second one.
    assert box.enqueue("log", {"number": 0}, key="a").status is EntryStatus.COMPLETED
    assert accounted(box)


def test_other_alarms_are_acknowledged_by_name(box: Outbox) -> None:
    box.alarms.sound("disk", "it smells")
    assert box.acknowledge("disk")
    assert not box.acknowledge("disk")
