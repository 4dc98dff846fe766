"""Ranges of free ids."""

from __future__ import annotations

from itertools import chain

import pytest

from outbox.integrations.ids.id_reserve import above, from_state, joined, split, to_state


@pytest.mark.parametrize("step", [1, 2, 10])
def test_numbers_in_steps_are_one_range(step: int) -> None:
    numbers = range(1, 2000, step)
    assert joined(joined([], numbers[:70]), numbers[70:]) == [numbers]


def test_numbers_with_gaps_are_all_kept() -> None:
    numbers = [1, 2, 3, 7, 9, 11, 12, 20]
    assert list(chain(*joined([], numbers))) == numbers


def test_chunk_is_taken_from_several_ranges() -> None:
    taken, left = split([range(1, 4), range(10, 20, 3), range(30, 40)], 5)
    assert taken == [1, 2, 3, 10, 13]
    assert left == [range(16, 20, 3), range(30, 40)]
    assert split(left, 100) == ([16, 19, *range(30, 40)], [])


@pytest.mark.parametrize(("used", "left"), [(0, [1, 3, 5, 8]), (1, [3, 5, 8]), (2, [3, 5, 8]), (5, [8]), (9, [])])
def test_numbers_up_to_a_used_one_are_given_up(used: int, left: list[int]) -> None:
    assert list(chain(*above([range(1, 6, 2), range(8, 9)], used))) == left


def test_record_of_ranges_is_read_again() -> None:
    ranges = joined([], [1, 2, 3, 10, 12, 14, 99])
    assert from_state(to_state(ranges)) == ranges


def test_record_without_steps_is_that_of_earlier_versions() -> None:
    assert to_state([range(1, 4), range(9, 10)]) == {"ranges": [[1, 3], [9, 9]]}
    assert from_state({"ranges": [[1, 3], [9, 9]]}) == [range(1, 4), range(9, 10)]
