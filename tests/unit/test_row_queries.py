"""Row queries: the order and the number of rows for which the code of a read asks."""

from __future__ import annotations

from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import desc, text

from outbox.integrations.code.row_queries import RowQuery, row_query
from outbox.integrations.view.explanations import Unknown
from outbox.integrations.view.row_forms import RowForms
from outbox.integrations.view.rows import RowOrders
from outbox.results import decode_result, encode_result

MOST = 50
SETTINGS = SimpleNamespace(most=40)


class Reads:
    """ORDER BY nothing LIMIT 7."""

    HALF = 15
    select: Any
    session: Any
    execute: Any
    ask: Any
    most: int
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

    def by_slice(self) -> Any:
        rows = self.session.scalars(self.select(self.Lot)).all()
        return [row.symbol[:3] for row in rows[: 2 * self.HALF]]

    def by_window(self) -> Any:
        return text("SELECT *, row_number() OVER (ORDER BY price) FROM lots WHERE id IN (SELECT id FROM top LIMIT 5)")

    def by_parts(self, newest: bool = True) -> Any:
        return text("SELECT * FROM lots ORDER BY price" + (" DESC" if newest else "") + f" LIMIT {self.HALF}")

    def by_parameter(self) -> Any:
        return self.execute(text("SELECT * FROM lots ORDER BY id LIMIT :most"), {"most": MOST})

    def by_setting(self) -> Any:
        return self.select(self.Lot).limit(SETTINGS.most)

    def by_attribute(self) -> Any:
        return self.select(self.Lot).limit(self.most)

    def by_keyword(self, *, most: int | None = None) -> Any:
        return self.select(self.Lot).limit(most)

    def by_place(self) -> Any:
        return self.execute("SELECT * FROM lots LIMIT %s", (self.ask(),))

    def newest(self) -> Any:
        return self.select(self.Lot).order_by(self.Lot.id.desc()).limit(1)

    def numbered(self) -> Any:
        return [(number, row) for number, row in enumerate(self.unordered())]

    def turned(self) -> Any:
        return self.session.scalars(self.by_name()).all()[::-1]

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
        ("by_expression", RowQuery((), is_limited=True)),
        ("by_slice", RowQuery(None, 30)),
        ("by_window", RowQuery(is_limited=True)),
        ("numbered", RowQuery(is_limited=True)),
        ("by_parts", RowQuery((), 15)),
        ("by_parameter", RowQuery((("id", False),), 50)),
        ("by_setting", RowQuery(None, 40)),
        ("by_attribute", RowQuery(None, 60)),
        ("by_keyword", RowQuery()),
        ("by_place", RowQuery(is_limited=True)),
        ("newest", RowQuery((("id", True),), is_limited=True)),
        ("turned", RowQuery((), 50)),
        ("in_two_ways", RowQuery((), 20)),
        ("sorted_here", RowQuery(())),
    ],
)
def test_query_is_read_from_the_code(method: str, found: RowQuery) -> None:
    assert row_query(Reads, method, {"most": 60}) == found


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


def test_more_rows_than_were_shown_at_once_may_be_cut_off() -> None:
    """The code limits them to a number that it does not show."""
    forms, rows = RowForms(), [{"id": 1}, {"id": 2}, {"id": 3}]
    forms.limited = frozenset({"positions"})
    assert forms.answer("positions", rows[:1]) == rows[:1]
    with pytest.raises(Unknown, match="never seen to show 2"):
        forms.answer("positions", rows[:2])
    forms.tables_of(rows[:2])
    again = RowForms()
    again.load(decode_result(encode_result(forms.dump())))
    again.limited = forms.limited
    assert again.answer("positions", rows[:2]) == rows[:2]
    with pytest.raises(Unknown, match="never seen to show 3"):
        again.answer("positions", rows)


SOONER, LATER = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=UTC)


@pytest.mark.parametrize(
    ("key", "values", "expected"),
    [
        ("entry_price", (2, 1), [2, 1]),
        # The caller gave it.
        ("entry_time", (LATER, SOONER), [2, 1]),
        ("entry_time", (SOONER, SOONER), [1, 2]),
        ("created_at", ("as text", "and not"), [1, 2]),
    ],
)
def test_order_by_what_callers_give_is_that_of_the_values(key: str, values: Any, expected: list[int]) -> None:
    orders = RowOrders()
    orders.named = {"lots": ((key, False),)}
    assert ids(orders, *({"id": number, key: value} for number, value in enumerate(values, 1))) == expected
