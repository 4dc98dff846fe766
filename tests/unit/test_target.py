"""What must be applied together: a group, or a record of its own."""

from __future__ import annotations

from outbox.envelope import Record
from outbox.target import ordering_keys, units


def record(seq: int, group: int = 0, order_by: str | None = None) -> Record:
    return Record(seq, b"k" * 16, b"i" * 16, "log", order_by, b"p" * 16, b"s" * 8, b"{}", b"", group=group)


def test_records_are_split_into_groups_and_single_ones_in_their_order() -> None:
    records = [record(1), record(2), record(3, 3), record(4, 3), record(5, 5), record(6)]
    assert [[one.seq for one in unit] for unit in units(records)] == [[1], [2], [3, 4], [5], [6]]


def test_a_single_record_is_never_taken_for_a_member_of_a_group() -> None:
    assert [len(unit) for unit in units([record(5), record(6, 5)])] == [1, 1]


def test_a_unit_touches_the_ordering_keys_of_all_its_members() -> None:
    assert ordering_keys([record(1, 1, "a"), record(2, 1), record(3, 1, "b"), record(4, 1, "a")]) == {"a", "b"}
