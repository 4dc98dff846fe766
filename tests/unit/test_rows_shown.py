"""Shown rows: a row that a read would leave out, or show otherwise, is not answered before it was seen."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import text

from outbox.integrations.code.row_tests import row_tests
from outbox.integrations.view.explanations import Unknown
from outbox.integrations.view.row_forms import RowForms

LEAST = 2


class Reads:
    select: Any
    Lot: Any
    rows: Any
    size: Any

    def plain(self) -> Any:
        """Compares what no row is, or with what is not known before the call."""
        wanted = self.size > 5 and self.Lot.session_id == self.size
        return self.select(self.Lot) if wanted else None

    def by_query(self) -> Any:
        lot = self.Lot
        return self.select(lot).where(LEAST <= lot.size, lot.filled < lot.size, lot.id == lot.session_id)  # noqa: SIM300 - as seen

    def by_code(self) -> Any:
        return [row for row in self.rows if float(row["size"]) >= 1.5]

    def by_text(self) -> Any:
        return text("SELECT * FROM lots l WHERE l.size > 0.5 AND side <> 'short' AND l.id = l.session_id")

    def one_each(self) -> Any:
        return {row.symbol: row for row in self.rows}

    def one_each_by_text(self) -> Any:
        return text("SELECT DISTINCT ON (l.symbol) * FROM lots l")

    def one_each_by_query(self) -> Any:
        lot = self.Lot
        return self.select(lot).distinct(lot.symbol)


@pytest.mark.parametrize(
    ("method", "tests", "united"),
    [
        ("plain", [], []),
        ("by_query", ["filled < size", "size >= 2"], []),
        ("by_code", ["size >= 1.5"], []),
        ("by_text", ["side != short", "size > 0.5"], []),
        ("one_each", [], ["symbol"]),
        ("one_each_by_text", [], ["symbol"]),
        ("one_each_by_query", [], ["symbol"]),
    ],
)
def test_tests_of_rows_are_found_in_the_code(method: str, tests: list[str], united: list[str]) -> None:
    found = row_tests(Reads, method)
    assert (sorted(map(str, found[0])), sorted(found[1])) == (tests, united)


def _forms(method: str, state: Any = None) -> RowForms:
    forms = RowForms()
    if state is not None:
        forms.load(state)
    forms.shown_rows.tests = {"positions": row_tests(Reads, method)}
    return forms


def test_row_that_the_read_may_leave_out_is_not_answered() -> None:
    forms = _forms("by_code")
    large, small = {"id": 1, "size": Decimal(2)}, {"id": 2, "size": Decimal(1)}
    forms.tables_of([large])
    assert forms.answer("positions", [large]) == [large]
    with pytest.raises(Unknown, match="no row was shown for which `size >= 1.5` is False"):
        forms.answer("positions", [large, small])
    # It was shown, and the comparison leaves nothing out.
    forms.tables_of([small])
    again = _forms("by_code", forms.dump())
    assert again.answer("positions", [large, small]) == [large, small]


def test_rows_of_which_the_read_may_show_one_are_not_answered() -> None:
    forms = _forms("one_each")
    rows = [{"id": 1, "symbol": "A"}, {"id": 2, "symbol": "B"}, {"id": 3, "symbol": "A"}]
    forms.tables_of(rows[:2])
    assert forms.answer("positions", rows[:2]) == rows[:2]
    with pytest.raises(Unknown, match="two rows with one symbol were never shown"):
        forms.answer("positions", rows)
    forms.tables_of(rows)
    assert forms.answer("positions", rows) == rows


def test_value_that_cannot_be_compared_decides_nothing() -> None:
    forms = _forms("by_code")
    rows: list[dict[str, Any]] = [{"id": 1, "size": None}, {"id": 2, "size": "large"}, {"id": 3}]
    assert forms.answer("positions", rows) == rows
