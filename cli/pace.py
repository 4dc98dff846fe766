"""The speed at which a backlog shrinks, and the time that is left."""

from __future__ import annotations

from collections import deque

# Batches come in bursts; over so long they even out.
_WINDOW_S = 3.0
# Less is no measurement.
_SHORTEST_S = 0.4


class DrainPace:
    """Gets the backlog repeatedly, and gives the speed of the last seconds.  Not thread-safe."""

    def __init__(self) -> None:
        # (seconds, settled, pending), oldest first.
        self._looks: deque[tuple[float, int, int]] = deque()

    def look(self, at_s: float, settled: int, pending: int) -> None:
        """Note how many entries were settled since the store was made and how many are pending, at a monotonic time."""
        self._looks.append((at_s, settled, pending))
        while len(self._looks) > 2 and self._looks[1][0] <= at_s - _WINDOW_S:
            self._looks.popleft()

    def sentence(self) -> str:
        """`1,200/s, 4 s left`; without the time where the backlog does not shrink; empty where nothing is settled."""
        if not self._looks:
            return ""
        (began_s, settled_then, pending_then), (at_s, settled, pending) = self._looks[0], self._looks[-1]
        took_s = at_s - began_s
        if took_s < _SHORTEST_S or settled <= settled_then:
            return ""
        speed = f"{(settled - settled_then) / took_s:,.0f}/s"
        shrinks = (pending_then - pending) / took_s
        if shrinks <= 0 or not pending:
            return speed
        left_s = pending / shrinks
        return f"{speed}, {left_s:.0f} s left" if left_s < 120 else f"{speed}, {left_s / 60:.0f} min left"
