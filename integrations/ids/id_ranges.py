"""Ranges of free ids: ascending numbers, kept as few ranges with a step, so that their record stays small.

A sequence with `INCREMENT BY 2`, as two writers of one table use, or one that other sessions use meanwhile, does not
give numbers in a row.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any


def joined(ranges: Sequence[range], numbers: Iterable[int]) -> list[range]:
    """`ranges` and behind them `numbers`, which are ascending and higher."""
    free = list(ranges)
    for number in numbers:
        if free and (extended := _extended(free[-1], number)) is not None:
            free[-1] = extended
        else:
            free.append(range(number, number + 1))
    return free


def _extended(last: range, number: int) -> range | None:
    """`last` with `number` at its end, or None where that is not a step behind it."""
    step = number - last[-1]
    return range(last[0], number + 1, step) if len(last) == 1 or step == last.step else None


def split(ranges: Sequence[range], count: int) -> tuple[list[int], list[range]]:
    """The `count` lowest numbers, or all where there are fewer, and the ranges of the others."""
    taken: list[int] = []
    free = list(ranges)
    while free and len(taken) < count:
        missing = count - len(taken)
        taken += free[0][:missing]
        free[:1] = [rest] if (rest := free[0][missing:]) else []
    return taken, free


def above(ranges: Iterable[range], used: int) -> list[range]:
    """The numbers that are higher than `used`."""
    left = (one[max(0, (used - one[0]) // one.step + 1) :] for one in ranges)
    return [one for one in left if one]


def to_state(ranges: Iterable[range]) -> dict[str, list[list[int]]]:
    """The fields of a record.  A version that knows no steps reads `ranges` and gives the others up."""
    state: dict[str, list[list[int]]] = {"ranges": []}
    for one in ranges:
        if one.step == 1 or len(one) == 1:
            state["ranges"].append([one[0], one[-1]])
        else:
            state.setdefault("stepped", []).append([one[0], one[-1], one.step])
    return state


def from_state(state: dict[str, Any]) -> list[range]:
    """The ranges of a record, lowest first."""
    plain = (range(first, last + 1) for first, last in state.get("ranges", []))
    stepped = (range(first, last + 1, step) for first, last, step in state.get("stepped", []))
    return sorted([*plain, *stepped], key=lambda one: one[0])
