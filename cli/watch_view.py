"""What `atb outbox status --watch` shows on a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from outbox import Health, OutboxStatus
from outbox.words import duration, rate

from .common import readable
from .history import History, sparkline
from .status import HEALTH_WORDS, rows

_STYLES = {Health.HEALTHY: "green", Health.DEGRADED: "yellow", Health.NEEDS_OPERATOR: "bold red"}
# The lines and the figures say more.
_LEFT_OUT = ("pending", "rates", "completed", "watermark", "file")
_BREAKER_STYLES = {"closed": "green", "half-open": "yellow", "open": "red"}


@dataclass(frozen=True, slots=True)
class WatchLook:
    """The newest status that could be read, when that was, and why the last look found none, or None."""

    found: OutboxStatus
    found_at: datetime
    at: datetime
    unreadable: str | None = None

    @classmethod
    def seen(cls, found: OutboxStatus, at: datetime) -> WatchLook:
        """One that has read `found`."""
        return cls(found, at, at)


class WatchView:
    """One look.  Drawn for the width that the terminal has when it is drawn."""

    def __init__(self, look: WatchLook, history: History) -> None:
        self._look, self._found, self._history = look, look.found, history

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        del console
        width = options.max_width
        yield Text(f"outbox {self._found.path}", overflow="fold")
        yield self._headline()
        yield self._lines(self._found, width, ascii_only=options.ascii_only)
        # Above the figures: the end of what does not fit a terminal is cut.
        yield from _sentences(self._found)
        yield self._figures(self._found, self._history.lane_rates())

    def _headline(self) -> RenderableType:
        look = self._look
        if look.unreadable is not None:
            return Text(
                f"cannot be read since {look.found_at:%H:%M:%S} UTC: {look.unreadable}",
                style="bold red",
                overflow="fold",
            )
        line = Table.grid(expand=True)
        line.add_column()
        line.add_column(justify="right", no_wrap=True)
        health = Text(HEALTH_WORDS[look.found.health], style=_STYLES[look.found.health])
        line.add_row(health, Text(f"{look.at:%H:%M:%S} UTC", style="dim"))
        return line

    def _lines(self, found: OutboxStatus, width: int, *, ascii_only: bool) -> RenderableType:
        rates = self._history.rates()
        enqueued, delivered = ("-", "-") if rates is None else (rate(rates[0]), rate(rates[1]))
        figures = [f"{found.pending:,}", enqueued, delivered]
        room = max(1, width - len("delivered") - max(map(len, figures)) - 2)
        history = self._history
        drawn: list[Sequence[float | None]] = [
            history.pending(room),
            history.enqueued_per_s(room),
            history.delivered_per_s(room),
        ]
        lines = Table.grid(padding=(0, 1))
        for name, values, style, figure in zip(
            ("pending", "enqueued", "delivered"), drawn, ("yellow", "cyan", "green"), figures, strict=True
        ):
            line = Text(sparkline(values, ascii_only=ascii_only), style=style, no_wrap=True)
            lines.add_row(name, line, Text(figure, justify="right", no_wrap=True))
        lines.add_row("", Text(f"the last {duration(round(room * history.column_s(room)))}", style="dim"), "")
        return lines

    @staticmethod
    def _figures(found: OutboxStatus, lane_rates: list[float] | None) -> RenderableType:
        figures = Table.grid(padding=(0, 1))
        figures.add_column(no_wrap=True)
        figures.add_column(overflow="fold")
        drained = found.rates.drained_in_s
        drained_in = "" if drained is None or drained < 1 else f", drained in about {duration(drained)}"
        figures.add_row("lag", f"{duration(found.lag_s)}{drained_in}")
        for name, value in rows(found):
            if name == "lanes" and lane_rates is not None:
                value = ", ".join(f"{number}: {rate(one)}" for number, one in enumerate(lane_rates, start=1))
            if name not in _LEFT_OUT:
                style = _BREAKER_STYLES.get(value, "") if name == "breaker" else ""
                figures.add_row(name, Text(readable(value), style=style))
        return figures


def _sentences(found: OutboxStatus) -> Iterator[Text]:
    for sentence in found.needs_operator:
        yield Text(readable(f"!! {sentence}"), style="red", overflow="fold")
    for sentence in found.degraded:
        yield Text(readable(f"!  {sentence}"), style="yellow", overflow="fold")
