"""`atb outbox status --watch`: repeats the status, in place on a terminal, elsewhere as one block after the other."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from threading import Event
from types import FrameType

import click
from rich.console import Console
from rich.live import Live

from outbox import Clock, Outbox, OutboxConfig, OutboxError, OutboxStatus, SystemClock

from .common import redacted, say, without_password
from .history import History
from .screen import screen
from .status import show
from .watch_view import WatchLook, WatchView

# A terminal that was resized is drawn anew after so many seconds.
_RESIZED_S = 0.5


def look_at(config: OutboxConfig) -> OutboxStatus:
    """One status.  The store is not kept open: that would keep a vacuum out, and show a file that was replaced."""
    with Outbox.attach(config=config, readonly=True) as box:
        return box.status()


def watch(
    look: Callable[[], OutboxStatus],
    interval_s: float,
    *,
    as_json: bool = False,
    clock: Clock | None = None,
    wait: Callable[[float], object] | None = None,
) -> OutboxStatus | None:
    """Look every `interval_s` and show it, until Ctrl-C, SIGTERM or SIGHUP; returns the last status.

    None where the last look could not read it.  Raises what the first look raises.
    """
    clock, wait = clock or SystemClock(), wait or Event().wait
    last, history = WatchLook.seen(look(), clock.now()), History(interval_s)
    history.look(clock.monotonic(), last.found)
    terminal = None if as_json else screen()
    shown = _Json(wait) if as_json else _Blocks(wait) if terminal is None else _InPlace(terminal, history, wait)
    with _until_a_signal(), shown.shown():
        due_s = clock.monotonic()
        while True:
            shown.show(last)
            due_s = max(due_s + interval_s, clock.monotonic())
            shown.wait(due_s - clock.monotonic())
            try:
                last = WatchLook.seen(look(), clock.now())
                history.look(clock.monotonic(), last.found)
            except (OutboxError, OSError) as exc:
                # A vacuum is at work, or the store was moved away: the next look may find it again.
                last = WatchLook(last.found, last.found_at, clock.now(), without_password(str(exc)))
    if terminal is not None:
        # The terminal shows again what it showed before: the exit code's reason stays.
        _Blocks(wait).show(last)
    return last.found if last.unreadable is None else None


class _Blocks:
    """For pipes, files and dumb terminals: the time, the table of `status`, an empty line."""

    def __init__(self, wait: Callable[[float], object]) -> None:
        self.wait = wait

    def shown(self) -> AbstractContextManager[object]:
        return nullcontext()

    def show(self, look: WatchLook) -> None:
        click.echo(f"{look.at:%Y-%m-%d %H:%M:%S} UTC")
        if look.unreadable is None:
            show(look.found)
        else:
            say(f"cannot be read: {look.unreadable}")
        click.echo()


class _Json(_Blocks):
    """For programs: one JSON object a line, only of what could be read; the rest goes to stderr."""

    def show(self, look: WatchLook) -> None:
        if look.unreadable is None:
            click.echo(json.dumps(redacted(look.found.as_dict())))
        else:
            say(f"cannot be read: {look.unreadable}", err=True)


class _InPlace(_Blocks):
    """For people: the whole terminal, drawn anew at each look and when it was resized."""

    def __init__(self, terminal: Console, history: History, wait: Callable[[float], object]) -> None:
        super().__init__(wait)
        self._terminal, self._history, self._wait = terminal, history, wait
        self._live = Live(console=terminal, screen=True, auto_refresh=False)
        self.wait = self._wait_and_redraw

    def shown(self) -> AbstractContextManager[object]:
        return self._live

    def show(self, look: WatchLook) -> None:
        self._live.update(WatchView(look, self._history), refresh=True)

    def _wait_and_redraw(self, seconds: float) -> None:
        while seconds > 0:
            size = self._terminal.size
            self._wait(min(seconds, _RESIZED_S))
            seconds -= _RESIZED_S
            if self._terminal.size != size:
                self._terminal.clear()
                self._live.refresh()


@contextmanager
def _until_a_signal() -> Iterator[None]:
    """The end of the block is Ctrl-C, SIGTERM, or SIGHUP unless that is ignored, as under nohup."""

    def end(signum: int, frame: FrameType | None) -> None:
        del signum, frame
        for number in before:
            signal.signal(number, signal.SIG_IGN)  # once is enough: the terminal must be put in order
        raise KeyboardInterrupt

    numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
    before = {number: signal.getsignal(number) for number in numbers if signal.getsignal(number) is not signal.SIG_IGN}
    for number in before:
        signal.signal(number, end)
    try:
        yield
    except KeyboardInterrupt:
        pass
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
