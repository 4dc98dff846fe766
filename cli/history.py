"""The backlog over the last minutes: samples of the status, and the lines drawn from them."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from outbox import OutboxStatus

_WINDOW_S = 300.0
# Rates are those of so many seconds: over less the share of one batch is too large.
_RATE_S = 5.0
# A look that comes later than by this share of the interval is missing.
_LATE = 1.5

_BLOCKS = "▁▂▃▄▅▆▇█"
_ASCII = "_.:-=+*#"


@dataclass(frozen=True, slots=True)
class _Look:
    at_s: float
    pending: int
    enqueued: int
    delivered: int
    lanes: tuple[int, ...]


class History:
    """Is shown a status every `interval_s`; knows the last minutes.  Not thread-safe."""

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self._looks: deque[_Look] = deque()
        self._store_id: str | None = None

    def look(self, at_s: float, found: OutboxStatus) -> None:
        """Note a status at a monotonic time.  One of another store begins a new history."""
        look = _Look(at_s, found.pending, found.acknowledged, found.completed, tuple(found.relay.lanes))
        went_back = self._looks and look.enqueued < self._looks[-1].enqueued
        if found.store_id != self._store_id or went_back:
            self._looks.clear()
            self._store_id = found.store_id
        self._looks.append(look)
        # As far back as the widest line reaches.
        oldest_s = at_s - max(_WINDOW_S, 1000 * self._interval_s)
        while self._looks[0].at_s < oldest_s:
            self._looks.popleft()

    def column_s(self, width: int) -> float:
        """The seconds that each of `width` columns stands for."""
        return max(_WINDOW_S / max(1, width), self._interval_s)

    def pending(self, width: int) -> list[float | None]:
        """The largest backlog in each column, oldest first; None where there was no reading."""
        column_s, columns = self.column_s(width), list[float | None]()
        times, counts = [look.at_s for look in self._looks], [look.pending for look in self._looks]
        for end_s in self._ends(width):
            first, last = bisect_left(times, end_s - column_s), bisect_left(times, end_s)
            # The interval may be that of a column, so that some column falls between two looks.
            if first == last and first and end_s - column_s - times[first - 1] < _LATE * self._interval_s:
                first -= 1
            columns.append(float(max(counts[first:last])) if first < last else None)
        return columns

    def enqueued_per_s(self, width: int) -> list[float | None]:
        """How fast entries came in each column, oldest first; None where that is not known."""
        return self._rates([look.enqueued for look in self._looks], width)

    def delivered_per_s(self, width: int) -> list[float | None]:
        """How fast entries were delivered in each column, oldest first; None where that is not known."""
        return self._rates([look.delivered for look in self._looks], width)

    def rates(self) -> tuple[float, float] | None:
        """Entries enqueued and delivered per second of late; None before the second look."""
        if len(self._looks) < 2:
            return None
        first, last = self._first_of_late(), self._looks[-1]
        seconds = last.at_s - first.at_s
        return (
            (last.enqueued - first.enqueued) / seconds,
            # What a reconciliation puts back is not undelivered.
            max(0, last.delivered - first.delivered) / seconds,
        )

    def lane_rates(self) -> list[float] | None:
        """Entries that each lane delivered per second of late; None before the second look at so many lanes."""
        if len(self._looks) < 2:
            return None
        first, last = self._first_of_late(), self._looks[-1]
        counts = [look.lanes for look in self._looks if look.at_s >= first.at_s]
        if any(len(lanes) != len(last.lanes) for lanes in counts):
            return None
        # A relay that begins anew counts from 0.
        delivered = [
            sum(now - before if now >= before else now for before, now in pairwise(of_lane))
            for of_lane in zip(*counts, strict=True)
        ]
        return [count / (last.at_s - first.at_s) for count in delivered]

    def _first_of_late(self) -> _Look:
        last = self._looks[-1]
        return next(look for look in reversed(self._looks) if look is not last and self._tells(look, last))

    def _tells(self, look: _Look, last: _Look) -> bool:
        return last.at_s - look.at_s >= _RATE_S or look is self._looks[0]

    def _ends(self, width: int) -> list[float]:
        """The ends of the columns, which stay where they are while time goes on; the last one holds the last look."""
        if not self._looks:
            return []
        column_s = self.column_s(width)
        newest = self._looks[-1].at_s // column_s
        return [(newest + 1 - back) * column_s for back in reversed(range(width))]

    def _rates(self, counts: list[int], width: int) -> list[float | None]:
        column_s, columns = self.column_s(width), list[float | None]()
        times = [look.at_s for look in self._looks]
        for column_end_s in self._ends(width):
            end_s = min(column_end_s, times[-1])
            begin_s = max(end_s - column_s, times[0])
            if end_s <= begin_s:
                columns.append(None)
                continue
            more = _between(times, counts, end_s) - _between(times, counts, begin_s)
            columns.append(max(0.0, more / (end_s - begin_s)))
        return columns


def _between(times: Sequence[float], counts: Sequence[int], at_s: float) -> float:
    """The count at a time between the first look and the last one."""
    after = bisect_right(times, at_s)
    if after == len(times):
        return float(counts[-1])
    share = (at_s - times[after - 1]) / (times[after] - times[after - 1])
    return counts[after - 1] + share * (counts[after] - counts[after - 1])


def sparkline(values: Sequence[float | None], *, ascii_only: bool = False) -> str:
    """A character for each value: the lowest for 0 alone, the highest for the largest, a blank for None."""
    characters = _ASCII if ascii_only else _BLOCKS
    largest = max((value for value in values if value is not None), default=0.0)
    line = ""
    for value in values:
        if value is None:
            line += " "
        elif value <= 0:
            line += characters[0]
        else:
            line += characters[max(1, min(7, round(7 * value / largest)))]
    return line
