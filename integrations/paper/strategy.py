"""Moving-average crossover: pure arithmetic on closing prices, the same answer every time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum


class Signal(StrEnum):
    """What a strategy wants after a bar."""

    BUY = "buy"
    SELL = "sell"
    HOLD = "hold"


@dataclass(frozen=True, slots=True)
class MovingAverageCrossover:
    """Buys when the average of the last `fast` closes crosses above that of the last `slow`, sells when below.

    Raises `ValueError` unless 1 <= fast < slow.
    """

    fast: int
    slow: int

    def __post_init__(self) -> None:
        if not 1 <= self.fast < self.slow:
            raise ValueError(f"fast and slow must satisfy 1 <= fast < slow, not fast={self.fast}, slow={self.slow}")

    @property
    def name(self) -> str:
        """Short and unique among windows; part of client order ids."""
        return f"ma{self.fast}x{self.slow}"

    @property
    def lookback(self) -> int:
        """How many closes `signal` needs."""
        return self.slow + 1

    def signal(self, closes: Sequence[Decimal]) -> Signal:
        """The signal after the last of `closes` (oldest first); HOLD while there are fewer than `lookback`."""
        if len(closes) < self.lookback:
            return Signal.HOLD
        before, now = self._gap(closes[-self.lookback : -1]), self._gap(closes[-self.slow :])
        if before <= 0 < now:
            return Signal.BUY
        if before >= 0 > now:
            return Signal.SELL
        return Signal.HOLD

    def _gap(self, window: Sequence[Decimal]) -> Decimal:
        """Positive when the fast average is above the slow one.

        Sums are weighted instead of divided, so that equality is exact.
        """
        return sum(window[-self.fast :], Decimal(0)) * self.slow - sum(window, Decimal(0)) * self.fast


DEFAULT_STRATEGIES = (
    MovingAverageCrossover(2, 5),
    MovingAverageCrossover(3, 8),
    MovingAverageCrossover(5, 13),
)
"""Windows short enough to give many trades on a few thousand bars."""
