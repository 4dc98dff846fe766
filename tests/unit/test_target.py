"""What must be applied together: a group, or a record of its own."""

from __future__ import annotations

from uuid import UUID

from outbox import EntryRejected, TargetUnavailable
from outbox.errors import HistoryRewound
from outbox.fate import Failed, Fate
from outbox.store.continuity import Mark
from outbox.store.envelope import Record
from outbox.target import Outcome, ordering_keys, units


def record(seq: int, group: int = 0, order_by: str | None = None) -> Record:
    return Record(seq, b"k" * 16, b"i" * 16, "log", order_by, b"p" * 16, b"s" * 8, b"{}", b"", group=group)


def test_records_are_split_into_groups_and_single_ones_in_their_order() -> None:
    records = [record(1), record(2), record(3, 3), record(4, 3), record(5, 5), record(6)]
    assert [[one.seq for one in unit] for unit in units(records)] == [[1], [2], [3, 4], [5], [6]]


def test_a_single_record_is_never_taken_for_a_member_of_a_group() -> None:
    assert [len(unit) for unit in units([record(5), record(6, 5)])] == [1, 1]


def test_a_unit_touches_the_ordering_keys_of_all_its_members() -> None:
    assert ordering_keys([record(1, 1, "a"), record(2, 1), record(3, 1, "b"), record(4, 1, "a")]) == {"a", "b"}


def test_refused_entry_that_holds_nothing_back_does_so_in_a_group() -> None:
    """The group was rolled back as a whole, and later entries may need what the others in it would have done."""
    declined = EntryRejected("declined", permanent=True, holds_back=False)
    assert not Failed([record(1, order_by="a")], declined, Fate.DEAD).holds_back
    assert Failed([record(1, 1, "a"), record(2, 1, "a")], declined, Fate.DEAD).holds_back
    assert Failed([record(1, order_by="a")], EntryRejected("refused", permanent=True), Fate.DEAD).holds_back
    assert Failed([record(1, order_by="a")], TargetUnavailable("away"), Fate.WAITS).holds_back


def test_the_outcome_of_a_batch_is_that_of_all_its_parts_in_order() -> None:
    refused = EntryRejected("refused", permanent=True)
    marks = [Mark(UUID(int=1), UUID(int=2), number) for number in (7, 8)]
    whole = Outcome([(record(1), b"")], [Failed([record(2)], refused, Fate.DEAD)], marks=marks[:1])
    whole.merge(Outcome([(record(3), b"")], [Failed([record(4)], refused, Fate.DEAD)], marks=marks[1:]))
    assert [one.seq for one, _ in whole.completed] == [1, 3]
    assert [one.seq for one, _ in whole.rejected] == [2, 4]
    assert whole.marks == marks
    assert whole.interruption is None


def test_the_unit_that_took_too_long_is_known_from_any_part() -> None:
    slow, other = [record(1)], [record(2)]
    for first, second in [(slow, []), ([], slow), (slow, other)]:
        whole = Outcome(stalled=first)
        whole.merge(Outcome(stalled=second))
        assert whole.stalled == slow


def test_merged_outcome_keeps_the_first_interruption_or_the_loss() -> None:
    away, gone = TargetUnavailable("away"), TargetUnavailable("gone")
    loss = HistoryRewound("it lacks something", settled_seq=1, same_database=True)
    for first, second, told in [
        (None, away, away),
        (away, None, away),
        (away, gone, away),
        (away, loss, loss),
        (loss, away, loss),
    ]:
        whole = Outcome(interruption=first)
        whole.merge(Outcome(interruption=second))
        assert whole.interruption is told
