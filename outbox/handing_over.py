"""Handing over: gives a caller the outcome of an entry that the writer has not stored yet."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from .entry import Entry
from .errors import ConfigError

if TYPE_CHECKING:
    import asyncio

_here = threading.local()


class Awaited:
    """One entry that a coroutine waits for.  All that end together wake their event loop once."""

    def __init__(self) -> None:
        """In a coroutine.  Raises `ConfigError` in one of another library's loop."""
        import asyncio  # here only: it costs a program without coroutines, such as `atb outbox status`, 0.05 s

        try:
            self._loop = asyncio.get_running_loop()
        except RuntimeError as exc:
            raise ConfigError(
                "enqueue_async needs a running event loop of asyncio; nothing was enqueued",
                hint="elsewhere call enqueue in a thread, as by trio.to_thread.run_sync",
            ) from exc
        self._ended = _ended_of(self._loop)
        self.future: asyncio.Future[Iterator[Entry]] = self._loop.create_future()
        self._entries: Iterator[Entry] | None = None
        self._error: BaseException | None = None

    def end(self, entries: Iterator[Entry] | None, error: BaseException | None) -> None:
        """Let the coroutine go on; from the writer's thread."""
        self._entries, self._error = entries, error
        if self._ended.add(self):
            with suppress(RuntimeError):  # the loop was closed, so no coroutine waits any more
                self._loop.call_soon_threadsafe(self._ended.wake)

    def go_on(self) -> None:
        """In the event loop: give the outcome to the coroutine."""
        if self.future.done():  # cancelled meanwhile
            return
        if self._error is not None:
            self.future.set_exception(self._error)
        else:
            self.future.set_result(self._entries or iter(()))


class _Ended:
    """What has ended for one event loop.  The writer waits for no lock here: a signal handler may wait for it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = weakref.ref(loop)
        self._waiting: deque[Awaited] = deque()
        # Taken while the loop is about to wake.
        self._scheduled = threading.Lock()

    def add(self, awaited: Awaited) -> bool:
        """Whether the loop must be woken for it; else it is about to wake already."""
        self._waiting.append(awaited)
        return self._scheduled.acquire(blocking=False)

    def wake(self) -> None:
        """In the event loop."""
        # First: what is added from now on wakes it again.
        self._scheduled.release()
        while self._waiting:
            self._waiting.popleft().go_on()


def _ended_of(loop: asyncio.AbstractEventLoop) -> _Ended:
    """That of the loop which runs in this thread."""
    ended: _Ended | None = getattr(_here, "ended", None)
    if ended is None or ended.loop() is not loop:
        ended = _here.ended = _Ended(loop)
    return ended


def in_doubt(exc: BaseException, keys: Sequence[str | None]) -> None:
    """Tell with an exception that interrupted an enqueue which keys to retry with."""
    named = tuple(key for key in keys if key is not None)
    with suppress(Exception):  # it may have slots
        exc.outbox_keys = named  # type: ignore[attr-defined]
    told = f" under the key {', '.join(named)}" if named else ""
    exc.add_note(f"an enqueue was interrupted; its entry may be stored or not: repeat it{told} to be sure")
