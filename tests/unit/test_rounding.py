"""Rounding: whether a method's own code rounds amounts."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import func, text

from outbox.integrations.code.rounding import places_kept


def cents(value: Any) -> Decimal:
    return Decimal(value).quantize(Decimal("0.01"))


STEP = Decimal("0.00000001")


def exact(value: Any) -> Decimal:
    return Decimal(value).quantize(STEP)


class Reads:
    total = Decimal("1.005")

    def plain(self) -> Any:
        """Rounds nothing: 1.005 is no round(1.005, 2)."""
        return self.total

    def by_round(self) -> Any:
        return round(self.total, 2)

    def by_helper(self) -> Any:
        return cents(self.total)

    def by_method(self) -> Any:
        return [self.by_round() for _ in range(2)]

    def by_format(self) -> Any:
        return f"{self.total:.2f}"

    def by_percent(self) -> Any:
        return "%.2f" % self.total  # noqa: UP031 - as seen

    def by_sql(self) -> Any:
        return text("SELECT round(total, 2) FROM balances")

    def by_function(self) -> Any:
        return func.round(self.total, 2)

    def by_split(self) -> Any:
        return [self.total for _ in (0,) if (lambda: round(self.total))()]


@pytest.mark.parametrize("method", sorted(name for name in vars(Reads) if name.startswith("by_")))
def test_rounding_is_found_in_the_code(method: str) -> None:
    assert places_kept(Reads, method) in (0, 2)


def test_code_without_rounding_has_none_found() -> None:
    assert places_kept(Reads, "plain") is None


@pytest.mark.parametrize(
    ("method", "places"),
    [("by_round", 2), ("by_helper", 2), ("by_method", 2), ("by_column", 8), ("by_both", 2), ("by_format", 0)],
)
def test_places_that_a_rounding_keeps_are_found(method: str, places: int) -> None:
    assert places_kept(Columns, method) == places


class Columns(Reads):
    def by_column(self) -> Any:
        return exact(self.total)

    def by_both(self) -> Any:
        return exact(self.total), cents(self.total)
