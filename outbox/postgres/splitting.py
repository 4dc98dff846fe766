"""Splitting: which units of a batch are tried, and how a batch that failed is split to find out which unit it was."""

from __future__ import annotations

from collections.abc import Callable

from ..target import Unit, ordering_keys


def free_of(
    part: list[Unit], blocked: set[str], given_up: set[str], is_lenient: Callable[[Unit], bool]
) -> tuple[list[int], set[str]]:
    """Where in `part` are units that are not behind a refused one, and what is blocked for what comes after `part`.

    A unit that has to wait blocks its other keys too, but only for what comes behind it.  So does one of an operation
    that was given up.
    """
    free, behind = [], set(blocked)
    for index, unit in enumerate(part):
        keys = ordering_keys(unit)
        if keys & behind:
            behind |= keys
        elif given_up and any(item.operation in given_up for item in unit):
            behind |= set() if is_lenient(unit) else keys
        else:
            free.append(index)
    return free, behind


def split(part: list[Unit], free: list[int], position: int | None) -> list[list[Unit]]:
    """Halves, or what lies before, at and behind the culprit, which is the unit at `free[position]`."""
    if position is None:
        middle = free[len(free) // 2]
        return [part[:middle], part[middle:]]
    at = free[position]
    return [part[:at], part[at : at + 1], part[at + 1 :]]
