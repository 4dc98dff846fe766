"""What is read from the store, one method at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest

from outbox import Outbox, StoreCorrupt
from outbox.store import reads, small
from outbox.store.continuity import UNKNOWN, Mark
from outbox.store.envelope import Record, seq_key
from outbox.store.ledger import MARK_PREFIX, Settlement
from outbox.store.reads import CHUNK, MANY_DAMAGED, live_bytes
from tests.unit.fakes.rig import FakeClock


@pytest.fixture
def box(outbox_dir: Path) -> Iterator[Outbox]:
    with Outbox.open(outbox_dir, clock=FakeClock()) as box:
        yield box


def fill(box: Outbox, count: int, *, size: int = 1) -> list[Record]:
    first = box.status().last_seq
    for number in range(first, first + count):
        box.enqueue("log", {"text": "x" * size}, key=str(number))
    return list(box.store.records("pending"))[-count:]


def damage(box: Outbox, *seqs: int, name: str = "pending") -> None:
    with box.store._write("damage") as (environment, txn):
        for seq in seqs:
            txn.put(seq_key(seq), b"broken", db=getattr(environment, name))


def complete(box: Outbox, *records: Record, keep_ledger: bool = True) -> None:
    box.store._settle(Settlement(completed=[(record, b"") for record in records]), keep_ledger=keep_ledger)


def seqs(records: list[Record]) -> list[int]:
    return [record.seq for record in records]


def test_peek_begins_behind_a_sequence_number_and_says_what_there_is(box: Outbox) -> None:
    fill(box, 5)
    peeked = box.store.peek(0, 2)
    assert (seqs(peeked.records), peeked.last_seq, peeked.newest_seq, peeked.releases) == ([1, 2], 2, 5, 0)
    peeked = box.store.peek(3, 9)
    assert (seqs(peeked.records), peeked.last_seq, peeked.damaged) == ([4, 5], 5, [])
    peeked = box.store.peek(5, 9)
    assert (seqs(peeked.records), peeked.last_seq, peeked.newest_seq) == ([], 5, 5)


def test_peek_stops_behind_the_record_that_fills_its_bytes(box: Outbox) -> None:
    one, *_ = fill(box, 4, size=1000)
    assert one.raw
    assert seqs(box.store.peek(0, 9, max_bytes=2 * len(one.raw)).records) == [1, 2]
    assert seqs(box.store.peek(0, 9, max_bytes=2 * len(one.raw) + 1).records) == [1, 2, 3]


def test_peek_reports_what_is_damaged_and_goes_on_behind_it(box: Outbox) -> None:
    fill(box, 5)
    damage(box, 2, 5)
    peeked = box.store.peek(0, 9)
    assert seqs(peeked.records) == [1, 3, 4]
    assert [(seq, raw) for seq, raw, _ in peeked.damaged] == [(2, b"broken"), (5, b"broken")]
    assert "entry 2 is damaged" in peeked.damaged[0][2]
    assert peeked.last_seq == 5
    # What is behind a full batch is the next one's.
    peeked = box.store.peek(0, 1)
    assert (seqs(peeked.records), peeked.damaged, peeked.last_seq) == ([1], [], 1)


def test_peek_reports_a_bounded_number_of_damaged_ones(box: Outbox) -> None:
    fill(box, MANY_DAMAGED + 3)
    damage(box, *range(1, MANY_DAMAGED + 3))
    peeked = box.store.peek(0, 1)
    assert (len(peeked.damaged), peeked.records, peeked.last_seq) == (MANY_DAMAGED, [], MANY_DAMAGED)
    peeked = box.store.peek(0, MANY_DAMAGED + 1)
    assert (len(peeked.damaged), peeked.last_seq) == (MANY_DAMAGED + 1, MANY_DAMAGED + 1)


@pytest.mark.parametrize("count", [CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK])
def test_all_records_are_read_however_many(box: Outbox, count: int) -> None:
    with box.transaction() as tx:
        for _ in range(count):
            tx.enqueue("log", {})
    assert seqs(list(box.store.records("pending"))) == list(range(1, count + 1))
    assert seqs(list(box.store.records("pending", first=count))) == [count]
    assert list(box.store.records("pending", first=count + 1)) == []
    assert list(box.store.records("ledger")) == []


def test_a_damaged_record_is_told_or_raised(box: Outbox) -> None:
    fill(box, 3)
    damage(box, 2)
    told: list[tuple[int, str]] = []
    found = list(box.store.records("pending", on_damage=lambda seq, exc: told.append((seq, str(exc)))))
    assert seqs(found) == [1, 3]
    assert [seq for seq, _ in told] == [2]
    assert "entry 2 is damaged" in told[0][1]
    with pytest.raises(StoreCorrupt, match="entry 2 is damaged"):
        list(box.store.records("pending"))
    with pytest.raises(StoreCorrupt, match="entry 2 is damaged"):
        box.store.record("pending", 2)


def test_an_entry_is_found_wherever_it_is(box: Outbox) -> None:
    first, second, third = fill(box, 3)
    complete(box, first)
    complete(box, second, keep_ledger=False)
    assert [box.store.is_pending(seq) for seq in (1, 2, 3, 4)] == [False, False, True, False]
    found = [box.store.find(key) for key in (first.key, second.key, third.key, b"k" * 16)]
    assert [record and record.seq for record in found] == [1, None, 3, None]
    assert (box.store.record("ledger", 1), box.store.record("ledger", 3)) == (found[0], None)
    (bare,) = box.store.without_record()
    assert bare == Record(2, second.key, b"", "", None, second.payload_hash, b"", b"", b"")


def test_many_entries_without_a_ledger_copy_are_all_listed(box: Outbox) -> None:
    count = 2 * CHUNK
    with box.transaction() as tx:
        for _ in range(count):
            tx.enqueue("log", {})
    complete(box, *box.store.records("pending"), keep_ledger=False)
    assert sorted(seqs(list(box.store.without_record()))) == list(range(1, count + 1))


def test_a_quarantined_entry_is_not_one_without_a_ledger_copy(box: Outbox) -> None:
    fill(box, 1)
    damage(box, 1)
    box.store.quarantine(box.store.peek(0, 1).damaged)
    assert list(box.store.without_record()) == []
    assert box.store.quarantined() == [(1, b"broken")]


def test_the_watermark_is_below_the_oldest_pending_entry(box: Outbox) -> None:
    assert box.store.watermark() == 0
    first, second, third = fill(box, 3)
    assert box.store.watermark() == 0
    complete(box, second)
    assert box.store.watermark() == 0
    complete(box, first)
    assert box.store.watermark() == 2
    complete(box, third)
    assert box.store.watermark() == 3


def test_standing_has_the_releases_and_the_watermark(box: Outbox) -> None:
    first, second = fill(box, 2)
    assert box.store.standing() == (0, 0)
    complete(box, first)
    assert box.store.standing() == (0, 1)
    box.discard(second.seq, "not needed")
    assert box.store.standing() == (1, box.store.watermark())


def metas(box: Outbox, prefix: str) -> list[tuple[str, bytes]]:
    with box.store._read() as (_, txn):
        return reads._metas(txn, prefix)


def test_small_records_are_listed_by_the_beginning_of_their_names(box: Outbox) -> None:
    for name in ("b", "a:2", "a:1", "a", "c:1"):
        box.store.put_meta(name, name.upper().encode())
    assert metas(box, "a:") == [("a:1", b"A:1"), ("a:2", b"A:2")]
    assert [name for name, _ in metas(box, "")] == ["a", "a:1", "a:2", "b", "c:1", "namespace"]
    assert metas(box, "d") == []
    assert (box.store.get_meta("a"), box.store.get_meta("a:")) == (b"A", None)


def test_small_record_under_the_name_of_another_is_damaged(box: Outbox) -> None:
    box.store.put_meta("ids:orders", b"7")
    with box.store._write("damage") as (_, txn):
        txn.put(small.PREFIX + b"ids:rows", bytes(txn.get(small.PREFIX + b"ids:orders")))
    assert box.store.get_meta("ids:orders") == b"7"
    for use in (
        lambda: box.store.get_meta("ids:rows"),
        lambda: metas(box, "ids:"),
        lambda: box.store.put_meta("ids:rows", b"8"),
    ):
        with pytest.raises(StoreCorrupt, match="'ids:rows' is damaged: it says that it is 'ids:orders'"):
            use()


def test_a_damaged_mark_is_proved_by_no_database(box: Outbox) -> None:
    marks = [Mark(UUID(int=1), UUID(int=2), 7), Mark(UUID(int=1), UUID(int=3), 9, 4)]
    for mark in marks:
        box.store.settle(Settlement(marks=[mark]))
    assert box.store.marks() == marks
    with box.store._write("damage") as (_, txn):
        txn.put(MARK_PREFIX + bytes((4,)), b"broken")
    assert box.store.marks() == [marks[0], UNKNOWN]


def test_figures_count_what_is_there(box: Outbox) -> None:
    empty = box.store.figures()
    assert (empty.pending, empty.idempotency, empty.ledger, empty.first_pending, empty.oldest_us) == (
        0,
        0,
        0,
        None,
        None,
    )
    first, second, _ = fill(box, 3)
    complete(box, first)
    box.alarms.sound("disk", "it smells")
    figures = box.store.figures()
    assert (figures.pending, figures.idempotency, figures.ledger) == (2, 3, 1)
    assert (figures.first_pending, figures.oldest_us) == (2, second.captured_us)
    assert figures.alarms == {"disk": "it smells"}
    assert figures.map_bytes >= 1 << 30
    assert figures.file_bytes == (box.path / "data.mdb").stat().st_size
    assert figures.live_bytes > empty.live_bytes
    damage(box, 2)
    assert (box.store.figures().first_pending, box.store.figures().oldest_us) == (2, None)


def test_live_bytes_are_those_of_the_pages_in_use(box: Outbox) -> None:
    fill(box, 20, size=10_000)
    with box.store._read() as (environment, txn):
        stats = [txn.stat(handle) for handle in (environment.pending, environment.idempotency, environment.ledger)]
        pages = sum(stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"] for stat in stats)
        assert live_bytes(environment, txn) == pages * stats[0]["psize"]
    assert pages > 50


def test_the_free_disk_is_what_an_ordinary_user_may_use(box: Outbox) -> None:
    info = os.statvfs(box.path)
    assert abs(box.store.free_disk_bytes() - info.f_bavail * info.f_frsize) < 1 << 28
