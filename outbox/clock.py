"""The only place where the library reads clocks or draws random numbers.

Everything above receives a `Clock` and never reaches for time itself, so that thousands of simulated outages
run in seconds without sleeping.  Durations come from `monotonic`, stamps from `now`.
"""

from __future__ import annotations

import random
import time
import uuid
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """Time and randomness, injected.  Implementations must be safe to call from several threads."""

    def monotonic(self) -> float:
        """Seconds of a clock that never goes back; comparable between processes of one boot."""
        ...

    def now(self) -> datetime:
        """The current time, aware, in UTC."""
        ...

    def random(self) -> float:
        """A number in [0, 1), for jitter only."""
        ...

    def new_id(self) -> uuid.UUID:
        """A fresh unique id."""
        ...


class SystemClock:
    """The real clock and the operating system's randomness."""

    def monotonic(self) -> float:
        return time.monotonic()

    def now(self) -> datetime:
        return datetime.now(UTC)

    def random(self) -> float:
        return random.random()

    def new_id(self) -> uuid.UUID:
        return uuid.uuid4()
