"""Rounding: whether a method's own code rounds amounts."""

from __future__ import annotations

import logging
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import func, text

from outbox.integrations.code.written_values import places_kept

_log = logging.getLogger(__name__)


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

    def by_builtin(self) -> Any:
        return format(self.total, ",.2f")

    def by_width(self) -> Any:
        return f"${self.total:>10.2f}"

    def by_places(self, places: int) -> Any:
        return f"{self.total:.{places}f}"

    def by_field(self) -> Any:
        return float("{:.2f}".format(self.total))  # noqa: UP032 - as seen

    def by_whole(self) -> Any:
        return Decimal(int(self.total * 100)) / 100

    def by_steps(self, step: Decimal) -> Any:
        steps = self.total // step
        return steps * step

    def by_rest(self, step: Decimal) -> Any:
        return self.total - self.total % step

    def by_percent(self) -> Any:
        return "%.2f" % self.total  # noqa: UP031 - as seen

    def by_sql(self) -> Any:
        return text("SELECT round(total, 2) FROM balances")

    def by_cast(self) -> Any:
        return text("SELECT total::numeric(10, 2) FROM balances")

    def by_function(self) -> Any:
        return func.round(self.total, 2)

    def by_split(self) -> Any:
        return [self.total for _ in (0,) if (lambda: round(self.total))()]


@pytest.mark.parametrize("method", sorted(name for name in vars(Reads) if name.startswith("by_")))
def test_rounding_is_found_in_the_code(method: str) -> None:
    assert places_kept(Reads, method) in (0, 2)


@pytest.mark.parametrize("method", ["plain", "logs", "raises", "counts", "notes"])
def test_code_without_rounding_has_none_found(method: str) -> None:
    assert places_kept(Plain, method) is None


class Plain(Reads):
    calls = 0

    def logs(self) -> Any:
        _log.info("%.2f of %s", self.total, f"{self.total:.2f}")
        return self.total

    def raises(self) -> Any:
        if self.total < 0:
            raise ValueError(f"{self.total:.2f}, or {round(self.total)}")
        return self.total

    def counts(self) -> Any:
        """A remainder that takes nothing off."""
        self.calls += 1
        return self.total if self.calls % 10 else None

    def notes(self) -> Any:
        """A text with words is no amount."""
        return self.total, f"sold at {self.total:.2f}", "%.2f USD" % self.total  # noqa: UP031 - as seen


@pytest.mark.parametrize(
    ("method", "places"),
    [("by_round", 2), ("by_helper", 2), ("by_method", 2), ("by_column", 8), ("by_both", 2), ("by_format", 2)],
)
def test_places_that_a_rounding_keeps_are_found(method: str, places: int) -> None:
    assert places_kept(Columns, method) == places


class Columns(Reads):
    def by_column(self) -> Any:
        return exact(self.total)

    def by_both(self) -> Any:
        return exact(self.total), cents(self.total)
