"""Submissions that share one commit keep their own groups, numbers and fates."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from outbox import IdempotencyConflict, Outbox, StoreCorrupt
from outbox.store.appending import Append
from outbox.store.envelope import Record, pack, seq_key
from tests.unit.fakes.rig import FakeClock


@pytest.fixture
def box(outbox_dir: Path) -> Iterator[Outbox]:
    with Outbox.open(outbox_dir, clock=FakeClock()) as box:
        yield box


def record(key: str, *, payload: bytes = b"p", captured_us: int = 5) -> Record:
    return Record(
        0, key.encode().ljust(16), key.encode().ljust(16), "log", None, payload * 16, b"s" * 8, b"{}", b"",
        captured_us=captured_us,
    )  # fmt: skip


def places(append: Append) -> list[tuple[int, int, int]]:
    return [(stored.seq, stored.group, stored.members) for stored in append.stored]


def test_only_what_was_submitted_together_is_a_group(box: Outbox) -> None:
    one, three, other = Append([record("a")]), Append([record("b"), record("c"), record("d")]), Append([record("e")])
    box.store.append([one, three, other])
    assert places(one) == [(1, 0, 0)]
    assert places(three) == [(2, 2, 3), (3, 2, 3), (4, 2, 3)]
    assert places(other) == [(5, 0, 0)]
    assert list(box.store.records("pending")) == [*one.stored, *three.stored, *other.stored]
    assert (box.status().acknowledged, box.status().last_seq) == (5, 5)


def test_each_has_a_stamp_of_its_own_and_none_is_before_the_last(box: Outbox) -> None:
    appends = [Append([record("a", captured_us=7)]), Append([record("b", captured_us=7)]), Append([record("c")])]
    box.store.append(appends)
    later = [Append([record("d", captured_us=20)]), Append([record("e", captured_us=3)])]
    box.store.append(later)
    assert [append.stored[0].captured_us for append in (*appends, *later)] == [7, 8, 9, 20, 21]


def test_a_key_that_was_used_before_changes_nothing_for_the_others(box: Outbox) -> None:
    first = Append([record("a")])
    box.store.append([first])
    again, conflict, new = Append([record("a")]), Append([record("a", payload=b"q")]), Append([record("b")])
    box.store.append([again, conflict, new])
    assert again.stored == first.stored
    assert isinstance(conflict.error, IdempotencyConflict)
    assert conflict.stored == []
    assert places(new) == [(2, 0, 0)]
    assert [again.error, new.error] == [None, None]
    assert box.status().acknowledged == 2


def test_two_submissions_of_one_key_are_one_entry(box: Outbox) -> None:
    one, same = Append([record("a")]), Append([record("a")])
    box.store.append([one, same])
    assert places(one) == places(same) == [(1, 0, 0)]
    assert box.status().pending == 1


def test_outcomes_of_an_earlier_try_are_forgotten(box: Outbox) -> None:
    tried = [Append([record(key)], error=IdempotencyConflict("before", hint="")) for key in "ab"]
    box.store.append(tried)
    assert [append.error for append in tried] == [None, None]


@pytest.mark.parametrize("count", [1, 2])
def test_sequence_number_not_above_the_last_is_corruption(box: Outbox, count: int) -> None:
    with box.store._write("damage") as (environment, txn):
        txn.put(seq_key(9), pack(record("z").numbered(9, 1, 0, 0)), db=environment.pending)
    before = box.store.figures()
    with pytest.raises(StoreCorrupt, match="sequence number 1 is already behind the last pending one"):
        box.store.append([Append([record(str(number))]) for number in range(count)])
    after = box.store.figures()
    assert (after.pending, after.idempotency, after.counters.acknowledged) == (before.pending, before.idempotency, 0)
