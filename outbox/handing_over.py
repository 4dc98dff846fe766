"""Handing over: gives a caller the outcome of an entry that the writer has not stored yet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from threading import Lock
from typing import TYPE_CHECKING, ClassVar
from weakref import WeakKeyDictionary

from .entry import Entry

if TYPE_CHECKING:
    import asyncio


class Awaited:
    """One entry that a coroutine waits for.  All that end together wake their event loop once."""

    _ended: ClassVar[WeakKeyDictionary[asyncio.AbstractEventLoop, list[Awaited]]] = WeakKeyDictionary()
    _mutex = Lock()

    def __init__(self) -> None:
        """In a coroutine."""
        import asyncio  # here only: it costs a program without coroutines, such as `atb outbox status`, 0.05 s

        self._loop = asyncio.get_running_loop()
        self.future: asyncio.Future[Iterator[Entry]] = self._loop.create_future()
        self._entries: Iterator[Entry] | None = None
        self._error: BaseException | None = None

    def end(self, entries: Iterator[Entry] | None, error: BaseException | None) -> None:
        """Let the coroutine go on; from the writer's thread."""
        self._entries, self._error = entries, error
        with self._mutex:
            waiting = self._ended.setdefault(self._loop, [])
            waiting.append(self)
            first = len(waiting) == 1
        if first:
            with suppress(RuntimeError):  # the loop was closed, so no coroutine waits any more
                self._loop.call_soon_threadsafe(self._wake, self._loop)

    @classmethod
    def _wake(cls, loop: asyncio.AbstractEventLoop) -> None:
        with cls._mutex:
            ended = cls._ended.pop(loop, [])
        for one in ended:
            if one.future.done():  # cancelled meanwhile
                continue
            if one._error is not None:
                one.future.set_exception(one._error)
            else:
                one.future.set_result(one._entries or iter(()))


def in_doubt(exc: BaseException, keys: Sequence[str | None]) -> None:
    """Tell with an exception that interrupted an enqueue which keys to retry with."""
    named = tuple(key for key in keys if key is not None)
    with suppress(Exception):  # it may have slots
        exc.outbox_keys = named  # type: ignore[attr-defined]
    told = f" under the key {', '.join(named)}" if named else ""
    exc.add_note(f"an enqueue was interrupted; its entry may be stored or not: repeat it{told} to be sure")
