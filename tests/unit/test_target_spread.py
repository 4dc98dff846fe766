"""Which units of a batch may be applied side by side."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from outbox.store.envelope import Record
from outbox.target import Unit, ordering_keys, spread


def record(seq: int, order_by: str | None, group: int = 0) -> Record:
    return Record(seq, b"", b"", "write", order_by, b"", b"", b"{}", b"", group=group)


def batch(*units: list[str | None]) -> list[Unit]:
    """Units with one record for each ordering key, numbered in order."""
    made: list[Unit] = []
    seq = 1
    for keys in units:
        made.append([record(seq + at, key, seq if len(keys) > 1 else 0) for at, key in enumerate(keys)])
        seq += len(keys)
    return made


def never(unit: Unit) -> bool:
    return False


def seqs(parts: list[list[Unit]]) -> list[list[int]]:
    return [[unit[0].seq for unit in part] for part in parts]


units_of_keys = st.lists(
    st.lists(st.sampled_from(["a", "b", "c", "d", "e", None]), min_size=1, max_size=3), max_size=20
)


@given(units_of_keys, st.integers(1, 5), st.sets(st.integers(1, 60)))
def test_no_key_is_in_two_parts_and_each_part_keeps_its_order(
    keys: list[list[str | None]], lanes: int, pinned: set[int]
) -> None:
    units = batch(*keys)
    parts = spread(units, lanes, lambda unit: unit[0].seq in pinned)
    assert len(parts) == lanes
    assert sorted(seq for part in seqs(parts) for seq in part) == [unit[0].seq for unit in units]
    assert all(part == sorted(part) for part in seqs(parts))
    places: dict[str, set[int]] = {}
    for number, part in enumerate(parts):
        for unit in part:
            assert number == 0 or unit[0].seq not in pinned
            for key in ordering_keys(unit):
                places.setdefault(key, set()).add(number)
    assert all(len(numbers) == 1 for numbers in places.values())


def test_one_lane_gets_everything() -> None:
    units = batch(["a"], ["b"], [None])
    assert spread(units, 1, never) == [units]


def test_the_work_is_shared_evenly() -> None:
    keys: list[list[str | None]] = [[f"k{number % 4}"] for number in range(40)]
    parts = spread(batch(*keys), 2, never)
    assert [len(part) for part in parts] == [20, 20]


def test_unit_without_a_key_fills_the_lane_with_less_to_do() -> None:
    parts = spread(batch(["a"], ["a"], ["a"], [None], [None]), 2, never)
    assert seqs(parts) == [[1, 2, 3], [4, 5]]


def test_keys_of_one_transaction_stay_together() -> None:
    parts = spread(batch(["a"], ["b"], ["a", "b"], ["c"]), 2, never)
    assert seqs(parts) == [[1, 2, 3], [5]]


def test_pinned_unit_is_in_the_first_part_with_all_of_its_keys() -> None:
    parts = spread(batch(["a"], ["b"], ["b"], ["b"], [None]), 2, lambda unit: unit[0].seq in (1, 5))
    assert seqs(parts) == [[1, 5], [2, 3, 4]]


def test_the_largest_families_are_placed_first() -> None:
    parts = spread(batch(["a"], ["b"], ["c"], ["c"]), 2, never)
    assert sorted(seqs(parts)) == [[1, 2], [3, 4]]


def test_units_without_a_key_are_shared_evenly() -> None:
    keyless: list[list[str | None]] = [[None]] * 6
    assert [len(part) for part in spread(batch(*keyless), 2, never)] == [3, 3]
    assert [len(part) for part in spread(batch(*keyless), 3, never)] == [2, 2, 2]


def test_a_lane_is_as_full_as_the_entries_that_it_has() -> None:
    # Four entries against three, so the last one goes to the three.
    parts = spread(batch(["d"], ["d"], ["d"], ["d"], ["a"], ["b"], ["c"], [None]), 2, never)
    assert seqs(parts) == [[1, 2, 3, 4], [5, 6, 7, 8]]


def test_a_family_is_as_large_as_all_that_joined_it() -> None:
    joined: list[list[str | None]] = [["a"], ["a"], ["a"], ["b"], ["b"], ["b"], ["a", "b"]]
    other: list[list[str | None]] = [["c"], ["c"], ["c"], ["c"], [None], [None], [None]]
    parts = spread(batch(*joined, *other), 2, never)
    assert [len(part) for part in parts] == [7, 7]
    # A transaction counts its entries, and not its keys besides.
    assert seqs(spread(batch(["a", "b"], ["c"], ["c"], [None]), 2, never)) == [[1, 5], [3, 4]]
