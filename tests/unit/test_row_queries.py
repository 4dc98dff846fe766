"""Row queries: the order and the number of rows for which the code of a read asks."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import desc, text

from outbox.integrations.code.row_queries import RowQuery, row_query
from outbox.integrations.view.explanations import Unknown
from outbox.integrations.view.row_forms import RowForms
from outbox.integrations.view.row_order import RowOrders

MOST = 50


class Reads:
    """ORDER BY nothing LIMIT 7."""

    select: Any
    Lot: Any

    def unordered(self) -> Any:
        """ORDER BY price LIMIT 7."""
        return self.select(self.Lot)

    def by_method(self) -> Any:
        return self.select(self.Lot).order_by(self.Lot.price.desc().nulls_last(), self.Lot.id).limit(5)

    def by_function(self, most: int = 20) -> Any:
        return self.select(self.Lot).order_by(desc(self.Lot.price)).limit(most)

    def by_text(self) -> Any:
        return text('SELECT * FROM lots ORDER BY l."price" DESC, id LIMIT 5')

    def by_name(self) -> Any:
        return self.select(self.Lot).order_by("price").limit(MOST)

    def by_expression(self) -> Any:
        return self.select(self.Lot).order_by(self.Lot.price * self.Lot.size).limit(1)

    def in_two_ways(self) -> Any:
        return self.by_name(), self.by_function()

    def sorted_here(self) -> Any:
        return sorted(self.unordered())


@pytest.mark.parametrize(
    ("method", "found"),
    [
        ("unordered", RowQuery()),
        ("by_method", RowQuery((("price", True), ("id", False)), 5)),
        ("by_function", RowQuery((("price", True),), 20)),
        ("by_text", RowQuery((("price", True), ("id", False)), 5)),
        ("by_name", RowQuery((("price", False),), 50)),
        ("by_expression", RowQuery(())),
        ("in_two_ways", RowQuery((), 20)),
        ("sorted_here", RowQuery(())),
    ],
)
def test_query_is_read_from_the_code(method: str, found: RowQuery) -> None:
    assert row_query(Reads, method) == found


def ids(orders: RowOrders, *rows: dict[str, Any]) -> list[int]:
    return [row["id"] for row in orders.sorted("lots", rows)]


ROWS = ({"id": 1, "price": 2.5, "symbol": "A"}, {"id": 2, "price": 3.5, "symbol": "B"})


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        ((("id", False),), [1, 2]),
        ((("id", True),), [2, 1]),
        ((("price", True), ("id", False)), [2, 1]),
        # The time of a call that makes a row is after that of the calls before.
        ((("entry_time", False),), [1, 2]),
    ],
)
def test_order_that_the_code_names_needs_no_answer(named: Any, expected: list[int]) -> None:
    orders = RowOrders()
    orders.named = {"lots": named}
    assert ids(orders, *ROWS) == expected


@pytest.mark.parametrize("named", [(), (("updated_at", False),), (("symbol", False),), (("entry_time", True),)])
def test_order_of_rows_never_seen_together_is_not_known(named: Any) -> None:
    orders = RowOrders()
    orders.named = {"lots": named}
    with pytest.raises(Unknown, match="was not seen"):
        orders.sorted("lots", ROWS)
    assert ids(orders, ROWS[0]) == [1]


def test_order_that_an_answer_contradicts_is_not_taken() -> None:
    """Such as the negative of a column."""
    orders = RowOrders()
    orders.named = {"lots": (("price", True),)}
    orders.observe("lots", ROWS)
    orders.observe("lots", [{"id": 3, "price": 1.5, "symbol": "B"}, {"id": 2, "price": 3.5, "symbol": "A"}])
    assert ids(orders, ROWS[1], ROWS[0]) == [1, 2]


def test_as_many_rows_as_the_read_shows_may_not_be_all() -> None:
    forms, rows = RowForms(), [{"id": 1}, {"id": 2}]
    forms.most = {"positions": 2}
    assert forms.tables_of(rows[:1])[0]["positions"] == {1: {"id": 1}}
    tables, unknown = forms.tables_of(rows)
    assert "positions" not in tables
    assert "may have more" in unknown["positions"]
    assert forms.answer("positions", rows) == rows
    with pytest.raises(Unknown, match="at most"):
        forms.answer("positions", [*rows, {"id": 3}])
