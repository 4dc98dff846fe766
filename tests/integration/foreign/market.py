"""Prices that are the same in every run, and an exchange that knows what became of an order."""

from __future__ import annotations

import random
from datetime import datetime, timedelta

BEGIN = datetime(2024, 1, 2, 9, 30)  # noqa: DTZ001 - the engines keep naive UTC


def prices(bars: int, seed: int = 7) -> list[float]:
    """A random walk of closes with the decimals that a float has."""
    walk = random.Random(seed)
    price = 100.0
    closes = []
    for _ in range(bars):
        price *= 1 + walk.gauss(0, 0.01)
        closes.append(price)
    return closes


def bar_time(bar: int) -> datetime:
    return BEGIN + timedelta(minutes=15 * bar)


def is_lost(bar: int) -> bool:
    """Whether the exchange's answer to an order of this bar never came back to the engine."""
    return bar % 5 == 3


def exchange_status(client_order_id: str) -> str:
    """What the exchange says of an order: some are filled, some it never saw."""
    bar = int(client_order_id.split("-")[1])
    return "NOT_FOUND" if bar // 20 % 2 else "FILLED"
