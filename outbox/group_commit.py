"""Durable group commit: threads that submit together share one commit.

Leader and followers: the first thread to arrive leads, takes everything that has queued up and commits it once; then
the head of the next list leads.  With one thread there is no hand-over at all.

Followers whose commit has ended are woken by the next leader while it waits for the disk.  Woken at once they would
take the interpreter from it, and the disk would be idle until they all wait again: measured with 32 threads on two
processors, that costs a quarter of the throughput.  Where the next leader has to wait for something else, as for a
writer of another process, they wake up by themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from typing import Generic, TypeVar

T = TypeVar("T")

# After so many seconds asleep a follower looks whether its commit has ended, or whether it leads.
_LOOK_S = 0.005


class _Waiter(Generic[T]):
    __slots__ = ("batch", "ended", "error", "item", "wake")

    def __init__(self, item: T) -> None:
        self.item = item
        self.wake = Lock()
        self.wake.acquire()
        # What it commits while it leads.
        self.batch: list[_Waiter[T]] = []
        # Whether the commit of its item has ended, well or with `error`.
        self.ended = False
        self.error: Exception | None = None


class GroupCommit(Generic[T]):
    """`submit` returns when its item has been committed.  Thread-safe.

    `commit(items, waits)` must make all items durable in one go, or raise; it calls `waits` when nothing is left but to
    wait for the disk.  It is called by one thread at a time, and must tolerate an item that it was given before: after
    a leader was interrupted (Ctrl-C) its followers' items are committed again by the next leader.
    """

    def __init__(self, commit: Callable[[list[T], Callable[[], None]], None]) -> None:
        self._commit = commit
        self._mutex = Lock()
        self._queue: list[_Waiter[T]] = []
        # Changes in one assignment, so that an interruption can neither lose leadership nor double it.  Who is not
        # woken looks by itself.
        self._leader: _Waiter[T] | None = None
        # Followers whose commit has ended, and who may still be asleep.  Belongs to whoever leads.
        self._settled: list[_Waiter[T]] = []

    def submit(self, item: T) -> None:
        """Commit `item`.  Raises what the shared commit raised."""
        waiter = _Waiter(item)
        try:
            with self._mutex:
                self._queue.append(waiter)
                if self._leader is None:
                    self._leader = waiter
            while self._leader is not waiter and not waiter.ended:
                waiter.wake.acquire(timeout=_LOOK_S)
            if not waiter.ended:
                self._lead(waiter)
        except BaseException:
            # Interrupted at any point: leave the queue, and never take leadership to the grave.
            with self._mutex:
                if waiter in self._queue:
                    self._queue.remove(waiter)
                self._step_down(waiter)
            raise
        if waiter.error is not None:
            raise waiter.error

    def _lead(self, own: _Waiter[T]) -> None:
        with self._mutex:
            own.batch, self._queue = self._queue, []
        try:
            self._commit([waiter.item for waiter in own.batch], self._wake_settled)
            own.ended = True
        except Exception as exc:  # noqa: BLE001 - `submit` raises it, here and in every thread of the batch
            own.error = exc
            own.ended = True
        with self._mutex:
            self._step_down(own)

    def _step_down(self, own: _Waiter[T]) -> None:
        """If `own` leads, let the head of the queue lead, or nobody.  Assumes the mutex.

        What an interruption leaves undone is done at the second call.
        """
        if self._leader is not own:
            return
        followers = [waiter for waiter in own.batch if waiter is not own]
        if own.ended:
            for waiter in followers:
                waiter.error = own.error
                waiter.ended = True
            self._settled += followers
        else:
            self._queue[:0] = followers
        own.batch = []
        self._leader = self._queue[0] if self._queue else None
        if self._leader is not None:
            _wake(self._leader)
        else:
            self._wake_settled()

    def _wake_settled(self) -> None:
        while self._settled:
            _wake(self._settled[0])
            del self._settled[0]


def _wake(waiter: _Waiter[T]) -> None:
    try:
        waiter.wake.release()
    except RuntimeError:
        # It was woken before: an interruption came right behind that.
        return
