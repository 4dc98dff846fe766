"""The only place where the library reads clocks or draws random numbers.

Everything above receives a `Clock` and never reaches for time itself, so that thousands of simulated outages
run in seconds without sleeping.  Durations come from `monotonic`, stamps from `now`.
"""

from __future__ import annotations

import os
import random
import time
import uuid
from collections.abc import Callable
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


# Bytes of the operating system for ids to come.  `os.urandom` lets other threads take the interpreter: of many threads
# each paid for an id with two more changes of threads, a sixth of its enqueue.
_drawn: list[bytes] = []
_DRAWN_IDS = 256


def _draw() -> bytes:
    """16 random bytes that no other thread and no forked process gets."""
    while True:
        try:
            return _drawn.pop()
        except IndexError:
            drawn = os.urandom(16 * _DRAWN_IDS)
            _drawn.extend([drawn[at : at + 16] for at in range(0, len(drawn), 16)])


# A forked child would give its entries the ids of its parent's, and PostgreSQL would take them for repeated ones.
os.register_at_fork(after_in_child=_drawn.clear)


class SystemClock:
    """The real clock and the operating system's randomness."""

    monotonic = staticmethod(time.monotonic)

    def now(self) -> datetime:
        return datetime.now(UTC)

    def random(self) -> float:
        return random.random()

    def new_id(self) -> uuid.UUID:
        return uuid.UUID(bytes=_draw(), version=4)


# A pause between two looks counts as no more than this.  A waiter that was paused itself (Ctrl-Z, a loaded machine) has
# not seen whether anything moved.
_LONGEST_LOOK_S = 5.0


class Patience:
    """Is lost when what it is shown has not changed for `limit_s` seconds.  Not thread-safe."""

    def __init__(self, limit_s: float, monotonic: Callable[[], float]) -> None:
        self.limit_s = limit_s
        self._monotonic = monotonic
        self._looked_at = monotonic()
        self._still_s = 0.0
        self._seen: object = None

    def is_lost(self, progress: object = None) -> bool:
        """Look at `progress`, any value that changes when something moves; whether it has stood still too long.

        The first look begins to count.  Look at least every 5 seconds.
        """
        now = self._monotonic()
        self._still_s += min(now - self._looked_at, _LONGEST_LOOK_S)
        self._looked_at = now
        if progress != self._seen:
            self._seen, self._still_s = progress, 0.0
        return self.lost

    @property
    def lost(self) -> bool:
        """Whether the last look lost it."""
        return self._still_s >= self.limit_s
