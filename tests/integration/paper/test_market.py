"""The shipped prices and the strategy that trades on them."""

from __future__ import annotations

from datetime import date
from decimal import Decimal

import pytest

from outbox.integrations.paper import MovingAverageCrossover, Signal, load
from outbox.integrations.paper.market import parse


def test_shipped_prices_are_thousands_of_ordered_days() -> None:
    bars = load()
    assert len(bars) == 3270
    assert (bars[0].date, bars[0].close) == (date(2000, 3, 1), Decimal("100.25"))
    assert (bars[-1].date, bars[-1].close) == (date(2013, 3, 1), Decimal("202.91"))
    assert [bar.index for bar in bars] == list(range(3270))


def test_unknown_symbol_is_refused() -> None:
    with pytest.raises(ValueError, match="symbol must be one of IBM, not 'XYZ'"):
        load("XYZ")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("2024-01-02,10,11,9,10", "line 3: .* is not a day's prices"),
        ("2024-01-02,10,11,9,ten,5", "line 3: .* is not a day's prices"),
        ("2024-01-02,10,11,9,12,5", "line 3: open and close must lie between low and high"),
        ("2024-01-01,10,11,9,10,5", "line 3: 2024-01-01 is not after 2024-01-01"),
    ],
)
def test_malformed_prices_name_their_line(line: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse("X", f"date,open,high,low,close,volume\n2024-01-01,10,11,9,10,5\n{line}\n")


def test_prices_without_the_header_are_refused() -> None:
    with pytest.raises(ValueError, match="the first line must be date,open"):
        parse("X", "2024-01-01,10,11,9,10,5\n")


def test_strategy_signals_at_the_crossing_only() -> None:
    strategy = MovingAverageCrossover(1, 2)
    closes = [Decimal(price) for price in (10, 10, 12, 13, 11, 11)]
    signals = [strategy.signal(closes[: n + 1]) for n in range(len(closes))]
    assert signals == [Signal.HOLD, Signal.HOLD, Signal.BUY, Signal.HOLD, Signal.SELL, Signal.HOLD]


@pytest.mark.parametrize(("fast", "slow"), [(0, 2), (3, 3), (5, 2)])
def test_strategy_refuses_impossible_windows(fast: int, slow: int) -> None:
    with pytest.raises(ValueError, match="1 <= fast < slow"):
        MovingAverageCrossover(fast, slow)
