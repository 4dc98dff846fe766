"""A picture of an outage: what is acknowledged, what is in PostgreSQL, and what is pending, of a real short run.

    python -m benchmarks.outage docs/how-to/outage.svg

A program enqueues at an even pace; PostgreSQL is killed and comes back.  Takes about a minute.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread

from outbox import Operation, Outbox, OutboxConfig, PostgresTarget, Relay
from outbox.testing import PostgresServer

_WRITE = Operation("write", table="writes", order_by="account")
_LOOK_S = 0.25
_TICK_S = 0.01
# A backlog that was enqueued in so many seconds is none.
_FEW_S = 0.5

_WIDTH, _HEIGHT = 720, 400
_LEFT, _RIGHT, _TOP, _BOTTOM, _GAP = 64, 16, 24, 44, 36
_ACKNOWLEDGED, _APPLIED, _PENDING, _OUTAGE = "#1f77b4", "#2ca02c", "#d98200", "#f6dcdc"


@dataclass(frozen=True, slots=True)
class Look:
    """The figures at one moment, in seconds since the beginning."""

    at_s: float
    acknowledged: int
    applied: int
    pending: int


@dataclass(frozen=True, slots=True)
class Run:
    """What was seen, and from when to when PostgreSQL was away."""

    looks: list[Look]
    away_s: tuple[float, float]


def run(folder: Path, *, seconds: float = 50.0, away: tuple[float, float] = (12.0, 30.0), per_s: float = 100.0) -> Run:
    """Enqueue `per_s` entries a second for so long, with PostgreSQL killed from `away[0]` to `away[1]`.

    On a loaded machine it goes on until the backlog of the outage is gone, at most ten times as long.
    """
    looks: list[Look] = []
    with PostgresServer() as server:
        server.execute("CREATE TABLE writes (account int, number int)")
        config = OutboxConfig(min_free_mb=0, backoff_cap=2)
        with (
            Outbox.open(folder / "outbox", config, [_WRITE]) as box,
            Relay(box, PostgresTarget(server.url(), [_WRITE], config=config)),
        ):
            began, number, killed, back = time.monotonic(), 0, 0.0, 0.0
            # In a thread: the program does not wait for PostgreSQL.
            start = Thread(target=server.start)

            def goes_on(now: float) -> bool:
                return now < seconds or (looks[-1].pending > _FEW_S * per_s and now < 10 * seconds)

            while goes_on(now := time.monotonic() - began):
                if not killed and now >= away[0]:
                    server.kill()
                    killed = now
                if not back and now >= away[1]:
                    if start.ident is None:
                        start.start()
                    elif not start.is_alive():
                        back = now
                if not looks or now - looks[-1].at_s >= _LOOK_S:
                    found = box.status()
                    looks.append(Look(now, found.acknowledged, found.completed, found.pending))
                if number < per_s * now:
                    number += 1
                    box.enqueue("write", {"account": number % 7, "number": number})
                else:
                    Event().wait(_TICK_S)
            start.join()
    return Run(looks, (killed, back))


def draw(done: Run) -> str:
    """The picture as SVG: two panels above one another, PostgreSQL's absence shaded."""
    looks, bottom = done.looks, _HEIGHT - _BOTTOM
    middle = _TOP + (bottom - _TOP - _GAP) * 0.55
    until_s = looks[-1].at_s
    left, right = (_x(at_s, until_s) for at_s in done.away_s)
    counts, waiting = _Panel(looks, _TOP, middle, looks[-1].acknowledged), _Panel(looks, middle + _GAP, bottom, 0)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-size="12" fill="#333">',
        "<style>text { font-family: sans-serif }</style>",
        "<title>Acknowledged, delivered and pending entries over an outage</title>",
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#fff"/>',
        f'<rect x="{left:.1f}" y="{_TOP}" width="{right - left:.1f}" height="{bottom - _TOP}" fill="{_OUTAGE}"/>',
        f'<text x="{(left + right) / 2:.1f}" y="{_TOP + 16}" text-anchor="middle">PostgreSQL is away</text>',
        *counts.frame("entries"),
        counts.line([look.applied for look in looks], _APPLIED),
        counts.line([look.acknowledged for look in looks], _ACKNOWLEDGED),
        f'<text x="{_LEFT + 8}" y="{_TOP + 36}" fill="{_ACKNOWLEDGED}">acknowledged</text>',
        f'<text x="{_LEFT + 8}" y="{_TOP + 52}" fill="{_APPLIED}">in PostgreSQL</text>',
        *waiting.frame("pending"),
        waiting.line([look.pending for look in looks], _PENDING),
    ]
    for at_s in range(0, int(until_s) + 1, 10):
        label = f"{at_s} s"
        parts.append(f'<text x="{_x(at_s, until_s):.1f}" y="{bottom + 20}" text-anchor="middle">{label}</text>')
    return "\n".join([*parts, "</svg>", ""])


class _Panel:
    def __init__(self, looks: Sequence[Look], top: float, bottom: float, largest: int) -> None:
        self._top, self._bottom = top, bottom
        self._times = [look.at_s for look in looks]
        self._largest = max(1, largest, *(look.pending for look in looks))

    def frame(self, name: str) -> list[str]:
        """The axes, with 0 and the largest value."""
        right = _WIDTH - _RIGHT
        return [
            f'<path d="M{_LEFT} {self._top:.1f}V{self._bottom:.1f}H{right}" fill="none" stroke="#999"/>',
            f'<text x="{_LEFT - 6}" y="{self._bottom:.1f}" text-anchor="end">0</text>',
            f'<text x="{_LEFT - 6}" y="{self._top + 10:.1f}" text-anchor="end">{self._largest:,}</text>',
            f'<text x="{_LEFT - 6}" y="{(self._top + self._bottom) / 2:.1f}" text-anchor="end">{name}</text>',
        ]

    def line(self, values: Sequence[int], colour: str) -> str:
        """The values over time."""
        scale = (self._bottom - self._top) / self._largest
        points = " ".join(
            f"{_x(at_s, self._times[-1]):.1f},{self._bottom - scale * value:.1f}"
            for at_s, value in zip(self._times, values, strict=True)
        )
        return f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>'


def _x(at_s: float, until_s: float) -> float:
    return _LEFT + (_WIDTH - _RIGHT - _LEFT) * at_s / until_s


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        Path(sys.argv[1]).write_text(draw(run(Path(name))), encoding="utf-8")
