"""Patience: a wait ends when nothing has moved for a while, however long the whole takes.

Everything in which a person or a test waits for deliveries asks it.  It stands beside the line: time is passed in.
"""

from __future__ import annotations

from collections.abc import Callable

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
