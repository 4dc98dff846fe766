"""What the demo shows: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from dataclasses import dataclass

import click
from rich.console import RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from outbox import OutboxStatus

from .common import settled
from .pace import DrainPace
from .screen import screen

_PLAIN_EVERY_S = 2.0
# A smaller backlog is the ordinary distance of a relay from its engine.
_BACKLOG = 50
_GOOD, _BAD, _BUSY = "green", "bold white on red", "yellow"


@dataclass(frozen=True)
class DemoFigures:
    """How things stand: bars of the price series, and what is up."""

    bar: int
    bars: int
    status: OutboxStatus | None
    engine: bool
    postgres: bool

    @property
    def pending(self) -> int:
        return 0 if self.status is None else self.status.pending

    @property
    def applied(self) -> int:
        return 0 if self.status is None else self.status.completed


class View:
    """Use it in a `with` block; between its ends the bars stay at the bottom of the terminal."""

    def __init__(self) -> None:
        self._console = screen()
        self._live = None if self._console is None else Live(console=self._console, refresh_per_second=8)
        self._began_s = time.monotonic()
        self._plain_at_s = 0.0
        self._pace = DrainPace()
        self._most_pending = 1

    def __enter__(self) -> View:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def event(self, text: str, *, good: bool | None = None) -> None:
        """Something happened; it stays on the screen."""
        at = f"{time.monotonic() - self._began_s:5.1f} s"
        if self._console is None:
            click.echo(f"{at}  {text}")
            return
        line = Table.grid(padding=(0, 2))
        line.add_row(Text(at, style="dim"), Text(text, style={None: "", True: _GOOD, False: "red"}[good]))
        self._console.print(line)

    def figures(self, now: DemoFigures) -> None:
        """Show how things stand."""
        at_s = time.monotonic()
        if now.status is not None:
            self._pace.look(at_s, settled(now.status), now.pending)
        self._most_pending = max(self._most_pending, now.pending)
        if self._live is not None:
            self._live.update(self._panel(now))
        elif at_s >= self._plain_at_s:
            self._plain_at_s = at_s + _PLAIN_EVERY_S
            click.echo(f"{at_s - self._began_s:5.1f} s    {self._line(now)}")

    def _line(self, now: DemoFigures) -> str:
        speed = f"   {self._doing(now)}" if self._drains(now) else ""
        return (
            f"bar {now.bar}/{now.bars}   engine {_up(now.engine)}   PostgreSQL {_up(now.postgres)}   "
            f"pending {now.pending}   applied {now.applied}{speed}"
        )

    def _panel(self, now: DemoFigures) -> RenderableType:
        filling = "red" if not now.postgres else _BUSY
        bars = Table.grid(padding=(0, 1), expand=True)
        bars.add_column(no_wrap=True)
        bars.add_column(ratio=1)
        bars.add_column(no_wrap=True, justify="right")
        bars.add_row("traded", _bar(now.bar, now.bars, _GOOD), f"{now.bar:,} of {now.bars:,}")
        bars.add_row("backlog", _bar(now.pending, self._most_pending, filling), f"{now.pending:,} on disk")
        state = Text.assemble(
            "PostgreSQL ", _lamp(now.postgres), "  engine ", _lamp(now.engine), f"  {now.applied:,} applied"
        )
        whole = Table.grid(expand=True)
        for row in (bars, state, Text(self._doing(now), style="dim")):
            whole.add_row(row)
        return Panel(whole, title="lmdb-outbox")

    def _doing(self, now: DemoFigures) -> str:
        if not now.postgres:
            return "writes wait on disk, trading goes on" if now.engine else "writes wait on disk"
        if self._drains(now):
            speed = self._pace.sentence()
            return f"draining {speed}" if speed else "draining"
        return "delivering as it trades" if now.engine else "everything is delivered"

    def _drains(self, now: DemoFigures) -> bool:
        return now.postgres and now.pending > _BACKLOG


def _bar(done: int, total: int, style: str) -> ProgressBar:
    return ProgressBar(total=total, completed=done, complete_style=style, finished_style=style)


def _up(up: bool) -> str:
    return "up" if up else "DOWN"


def _lamp(up: bool) -> tuple[str, str]:
    return _up(up), _GOOD if up else _BAD
