"""Durable group commit: threads that submit together share one commit.

Leader and followers: the first thread to arrive leads, takes everything that has queued up, commits it once and
releases the others, each blocked on a lock of its own; then the head of the next list leads.  With one thread there
is no hand-over at all.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from typing import Generic, TypeVar

T = TypeVar("T")


class _Waiter(Generic[T]):
    __slots__ = ("error", "item", "leads", "wake")

    def __init__(self, item: T) -> None:
        self.item = item
        self.wake = Lock()
        self.wake.acquire()
        self.leads = False
        # Set before it is woken, unless it then leads.
        self.error: BaseException | None


class GroupCommit(Generic[T]):
    """`submit` returns when its item has been committed.  Thread-safe.

    `commit(items)` must make all items durable in one go, or raise.  It is called by one thread at a time, and must
    tolerate an item that it was given before: after a leader was interrupted (Ctrl-C) its followers' items are
    committed again by the next leader.
    """

    def __init__(self, commit: Callable[[list[T]], None]) -> None:
        self._commit = commit
        self._mutex = Lock()
        self._queue: list[_Waiter[T]] = []
        self._led = False

    def submit(self, item: T) -> None:
        """Commit `item`.  Raises what the shared commit raised."""
        waiter = _Waiter(item)
        try:
            with self._mutex:
                self._queue.append(waiter)
                waiter.leads = not self._led
                self._led = True
            if not waiter.leads:
                waiter.wake.acquire()
            if waiter.leads:
                self._lead(waiter)
            elif waiter.error is not None:
                raise waiter.error
        except BaseException:
            # Interrupted at any point: leave the queue, and never take leadership to the grave.
            with self._mutex:
                if waiter in self._queue:
                    self._queue.remove(waiter)
                self._hand_over(waiter)
            raise

    def _lead(self, own: _Waiter[T]) -> None:
        batch: list[_Waiter[T]] = []
        finished = False
        error: BaseException | None = None
        try:
            with self._mutex:
                batch, self._queue = self._queue, []
            self._commit([waiter.item for waiter in batch])
            finished = True
        except Exception as exc:
            finished, error = True, exc
            raise
        finally:
            followers = [waiter for waiter in batch if waiter is not own]
            try:
                with self._mutex:
                    if not finished:
                        self._queue[:0] = followers
                    self._hand_over(own)
            finally:
                # Also where this thread was interrupted as it waited for the mutex: `submit` hands over then.
                if finished:
                    for waiter in followers:
                        waiter.error = error
                        waiter.wake.release()

    def _hand_over(self, own: _Waiter[T]) -> None:
        """If `own` leads, let the head of the queue lead, or note that nobody does.  Assumes the mutex."""
        if not own.leads:
            return
        own.leads = False
        self._led = bool(self._queue)
        if self._led:
            self._queue[0].leads = True
            self._queue[0].wake.release()
