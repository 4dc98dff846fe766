"""Row order: in which order a manager shows the rows of a table, learned from its answers with several rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any

from .conversions import Unknown

# A key of the rows, and whether they descend by it.
Order = list[Any]

_BY_ID: Order = ["id", False]


class RowOrders:
    """The order of rows by table.  Not thread-safe: the view's lock is held."""

    def __init__(self) -> None:
        # table -> all orders that fit every answer so far.
        self._fitting: dict[str, list[Order]] = {}

    def observe(self, table: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Take in rows as the manager showed them."""
        found = list(rows)
        if len(found) < 2:
            return
        orders = self._fitting.get(table)
        if orders is None:
            # "" is no key of the manager's.
            orders = [[key, descending] for key in found[0] if key for descending in (False, True)]
        self._fitting[table] = [order for order in orders if _fits(order, found)]

    def sorted(self, table: str, rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        """Rows as the manager shows them: by id while that fits.  Raises `Unknown` where other orders differ."""
        found = list(rows)
        if len(found) < 2:
            return found
        orders = self._fitting.get(table) or [_BY_ID]
        if _BY_ID in orders:
            # Ids that are no numbers have no order of their own: the view has the oldest first.
            return _by(_BY_ID, found) if all(isinstance(row["id"], int) for row in found) else found
        # An order that leaves rows equal shows nothing about them.
        answers = [_by(order, found) for order in orders if _fits(order, found, either=True)]
        if not answers or any(one != answers[0] for one in answers[1:]):
            keys = " or ".join(sorted({repr(order[0]) for order in orders}))
            raise Unknown(f"whether rows of {table} are ordered by {keys} was not seen")
        return answers[0]

    def dump(self) -> dict[str, list[Order]]:
        """The state, to be stored."""
        return self._fitting

    def load(self, state: Mapping[str, list[Order]]) -> None:
        """Take over what `dump` gave."""
        self._fitting = dict(state)


def _by(order: Order, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    key, descending = order
    return sorted(rows, key=lambda row: row[key], reverse=descending)


def _fits(order: Order, rows: list[Any], *, either: bool = False) -> bool:
    """Whether rows are in that order; `either`: whether the order tells all of them apart."""
    key, descending = order
    try:
        if either:
            values = sorted(row[key] for row in rows)
            return all(one < other for one, other in pairwise(values))
        values = [row[key] for row in rows]
        return all(one >= other if descending else one <= other for one, other in pairwise(values))
    except (KeyError, TypeError):
        return False
