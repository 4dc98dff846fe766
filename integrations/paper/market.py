"""Real daily prices to trade on, shipped with the package."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from datetime import date
from decimal import Decimal, InvalidOperation
from importlib import resources

_HEADER = ["date", "open", "high", "low", "close", "volume"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One trading day.  `index` counts from 0 within the series; prices are in US dollars, `volume` in shares."""

    symbol: str
    index: int
    date: date
    open: Decimal
    high: Decimal
    low: Decimal
    close: Decimal
    volume: int


def load(symbol: str = "IBM") -> list[Bar]:
    """The shipped series of `symbol`, oldest day first.

    Raises `ValueError` when there is none, or when a line of it is not a day's prices.
    """
    folder = resources.files(__package__) / "data"
    available = sorted(item.name.removesuffix(".csv") for item in folder.iterdir() if item.name.endswith(".csv"))
    if symbol not in available:
        raise ValueError(f"symbol must be one of {', '.join(available)}, not {symbol!r}")
    return parse(symbol, (folder / f"{symbol}.csv").read_text(encoding="utf-8"))


def parse(symbol: str, text: str) -> list[Bar]:
    """Bars from the text of a CSV file with the columns date, open, high, low, close, volume.

    Raises `ValueError` naming the line that is malformed, inconsistent or out of order.
    """
    rows = list(csv.reader(text.splitlines()))
    if not rows or rows[0] != _HEADER:
        raise ValueError(f"{symbol}: the first line must be {','.join(_HEADER)}")
    bars: list[Bar] = []
    for index, row in enumerate(rows[1:]):
        bar = _bar(symbol, index, row)
        if bars and bar.date <= bars[-1].date:
            raise ValueError(f"{symbol}, line {index + 2}: {bar.date} is not after {bars[-1].date}")
        bars.append(bar)
    return bars


def _bar(symbol: str, index: int, row: list[str]) -> Bar:
    try:
        day, opening, high, low, close, volume = row
        bar = Bar(
            symbol=symbol,
            index=index,
            date=date.fromisoformat(day),
            open=Decimal(opening),
            high=Decimal(high),
            low=Decimal(low),
            close=Decimal(close),
            volume=int(volume),
        )
    except (ValueError, InvalidOperation) as exc:
        raise ValueError(f"{symbol}, line {index + 2}: {','.join(row)} is not a day's prices ({exc})") from exc
    if not 0 < bar.low <= min(bar.open, bar.close) <= max(bar.open, bar.close) <= bar.high:
        raise ValueError(f"{symbol}, line {index + 2}: open and close must lie between low and high")
    return bar
