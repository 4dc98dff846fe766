"""Breaker: when to try PostgreSQL again.  A pure state machine; time and randomness are arguments.

Kept here rather than taken from a library because the relay's step is a function of `now`: the breakers at hand read
the wall clock themselves, so an outage of hours could not be simulated in milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable

CLOSED, OPEN, HALF_OPEN = "closed", "open", "half-open"
THRESHOLD = 3
_MAX_EXPONENT = 32


class Breaker:
    """Opens after three failures in a row; between tries there is exponential backoff with full jitter.

    After the n-th failure the wait is uniform in [0, min(cap, base * 2**(n-1))]: see "Exponential Backoff And Jitter",
    AWS Architecture Blog, for why full jitter.  Not thread-safe: it belongs to the relay's step.
    """

    def __init__(self, base_s: float, cap_s: float, random: Callable[[], float]) -> None:
        self._base_s, self._cap_s, self._random = base_s, cap_s, random
        self._failures = 0
        self._next_at = 0.0
        self.state = CLOSED

    def wait(self, now: float) -> float:
        """Seconds until the next try is due; at 0 an open breaker becomes half-open and the try is its probe."""
        left = self._next_at - now if self._failures else 0.0
        if left > 0:
            return left
        if self.state == OPEN:
            self.state = HALF_OPEN
        return 0.0

    def failed(self, now: float) -> float:
        """Note a failure; returns the seconds to wait."""
        self._failures += 1
        delay = self.backoff(self._failures)
        self._next_at = now + delay
        if self._failures >= THRESHOLD:
            self.state = OPEN
        return delay

    def succeeded(self) -> None:
        """Note a success: closed again."""
        self._failures = 0
        self.state = CLOSED

    def backoff(self, failures: int) -> float:
        """A jittered delay in seconds for the n-th failure in a row."""
        ceiling = min(self._cap_s, self._base_s * 2.0 ** min(failures - 1, _MAX_EXPONENT))
        return self._random() * ceiling

    def hurry(self, now: float, most_s: float) -> None:
        """Bring the next try forward to at most `most_s` from now: a caller is waiting for it."""
        self._next_at = min(self._next_at, now + most_s)
