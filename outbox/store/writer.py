"""Writer: the one thread that owns every write transaction of a store.

Callers hand over finished work and wait for its end; the writer takes all waiting appends into one commit, then one
settlement, then one piece of maintenance, and looks for appends again.  Python runs signal handlers in the main thread
only, so no handler can interrupt a commit, and an exception in one caller reaches no other.
"""

from __future__ import annotations

import sys
import threading
from _thread import allocate_lock
from collections import deque
from collections.abc import Callable
from enum import IntEnum
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

from ..errors import DurabilityError, StoreClosed, StoreUnavailable
from ..log import Log, await_left_messages, leaving_messages
from ..worker import waited_for

T = TypeVar("T")
Item = TypeVar("Item")

_log = Log("outbox.store")

# Seconds after which a caller that waits looks by itself whether its commit has ended: the writer may wait for another
# process's commit before it wakes anybody.
_LOOK_S = 0.02
# So many looks later an interrupted caller leaves a commit that does not end.
_IN_DOUBT_LOOKS = 250
# Seconds after which a caller that waits for other work looks whether the interpreter ends: then no thread goes on.
_END_S = 1.0


class Rank(IntEnum):
    """Which work goes first: the lower number."""

    SETTLE = 0
    MAINTAIN = 1


class _Handed(Generic[Item]):
    """An item that was handed over; `outcome` holds what its commit raised, or None, once it has ended."""

    __slots__ = ("item", "outcome", "then")

    def __init__(self, item: Item, then: Callable[[BaseException | None], object] | None) -> None:
        self.item, self.then = item, then
        self.outcome: tuple[BaseException | None] | None = None


class _Waiter(_Handed[Item]):
    """An item whose caller waits on a lock of its own."""

    __slots__ = ("lock",)

    def __init__(self, item: Item) -> None:
        super().__init__(item, None)
        self.lock = allocate_lock()
        self.lock.acquire()


class _Task:
    __slots__ = ("ended", "error", "lock", "rank", "result", "work")

    def __init__(self, rank: Rank, work: Callable[[], Any]) -> None:
        self.rank, self.work = rank, work
        self.lock = allocate_lock()
        self.lock.acquire()
        self.result: Any = None
        self.error: BaseException | None = None
        self.ended = False

    def run(self) -> None:
        try:
            self.result = self.work()
        except BaseException as exc:  # noqa: BLE001 - raised in the thread that waits
            self.error = exc
        self.end()

    def end(self) -> None:
        """Wake the thread that waits; an exception may reach it at any point, so the lock alone is not enough."""
        self.ended = True
        self.lock.release()


class Writer(Generic[Item]):
    """Runs `commit(items)` and other work, one at a time, in a thread of its own.  Thread-safe and signal-safe.

    `SimpleQueue.put` may be called by a signal handler that has interrupted another call of it, and a raw lock per
    caller is all that a caller waits for: so a handler can call anything here.
    """

    def __init__(
        self,
        name: str,
        commit: Callable[[list[Item], Callable[[], None]], None],
        committed: Callable[[], None],
        died: Callable[[BaseException], object] = lambda _: None,
    ) -> None:
        """`commit` makes all items durable in one go, or raises; `committed` is called after each that did not raise.

        `died` is called where the thread ends by an exception, as without memory; it must not raise.

        Raises `StoreUnavailable` where no thread can be started.
        """
        self._commit, self._committed, self._died = commit, committed, died
        # What the thread has died of.
        self._death: DurabilityError | None = None
        # What was taken from the queue, and what of it is at work.
        self._appends: list[_Handed[Item]] = []
        self._batch: list[_Handed[Item]] = []
        # Callers whose commit has ended and who are not woken yet.
        self._asleep: list[_Waiter[Item]] = []
        self._queue: SimpleQueue[_Handed[Item] | _Task | None] = SimpleQueue()
        self._stopped = False
        # Grows when a piece of work begins and when it ends: odd while one is at work, most often with the disk.
        self.moves = 0
        self._tasks: tuple[deque[_Task], ...] = tuple(deque() for _ in Rank)
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        try:
            self._thread.start()
        except RuntimeError as exc:
            raise StoreUnavailable(f"the thread {name} cannot be started: {exc}", hint="allow more threads") from exc

    # -- for callers

    def submit(self, item: Item) -> None:
        """Commit `item` together with those of other threads.  Raises what the commit raised.

        An exception of a signal handler is raised when the commit has ended; where it does not end, after five seconds,
        and the item is then in doubt.
        """
        waiter = _Waiter(item)
        interruption: BaseException | None = None
        if threading.current_thread() is self._thread:
            self._put(waiter)
        else:
            try:
                # A function of C: an exception comes behind it.
                self._queue.put(waiter)
            except BaseException as exc:  # noqa: BLE001 - raised below
                interruption = exc
            if self._stopped:
                self._refuse_rest()
        looks = 0
        while waiter.outcome is None and looks < _IN_DOUBT_LOOKS:
            refuse_at_the_end()
            try:
                waiter.lock.acquire(timeout=_LOOK_S)
            except BaseException as exc:  # noqa: BLE001 - raised below
                interruption = exc
            looks += interruption is not None
        await_left_messages()
        if interruption is not None:
            raise interruption
        assert waiter.outcome is not None
        (error,) = waiter.outcome
        if error is not None:
            raise error

    def hand_over(self, item: Item, then: Callable[[BaseException | None], object]) -> None:
        """Let `item` be committed; the writer then calls `then` with what the commit raised, or None.

        `then` must neither block nor raise.
        """
        if sys.is_finalizing():
            then(_ended())
        else:
            self._put(_Handed(item, then))

    def _put(self, handed: _Handed[Item]) -> None:
        if threading.current_thread() is self._thread:
            self._append([handed])
            self._wake()
            return
        self._queue.put(handed)
        if self._stopped:
            self._refuse_rest()

    def run(self, rank: Rank, work: Callable[[], T]) -> T:
        """Run `work` in the writer's thread; what it returned or raised.

        It is always waited for: an exception of a signal handler is raised at the end of the work.
        """
        if threading.current_thread() is self._thread:
            return work()
        task = _Task(rank, work)
        self._queue.put(task)
        if self._stopped:
            self._refuse_rest()
        interruption: BaseException | None = None
        while not task.ended:
            refuse_at_the_end()
            try:
                task.lock.acquire(timeout=_END_S)
            except BaseException as exc:  # noqa: BLE001 - raised below
                interruption = exc
        await_left_messages()
        if interruption is not None:
            raise interruption
        if task.error is not None:
            raise task.error
        result: T = task.result
        return result

    def stop(self) -> None:
        """End the thread when all that was handed over before is done; may be called twice."""
        self._queue.put(None)
        # An interpreter that ends has stopped the thread for good.
        if threading.current_thread() is not self._thread and not sys.is_finalizing():
            self._thread.join()
            await_left_messages()

    # -- the thread

    def _serve(self) -> None:
        with waited_for(), leaving_messages():
            try:
                self._work()
            except BaseException as exc:  # noqa: BLE001 - all who wait must learn of it
                self._die(exc)

    def _work(self) -> None:
        going = True
        while going or self._appends or any(self._tasks):
            idle = going and not self._appends and not any(self._tasks)
            going = self._take(wait=idle) and going
            if self._appends:
                self._batch, self._appends = self._appends, []
                self.moves += 1
                self._append(self._batch)
                self.moves += 1
                self._batch = []
            for tasks in self._tasks:
                if tasks:
                    self._wake()
                    self.moves += 1
                    tasks.popleft().run()
                    self.moves += 1
                    break
        self._wake()
        self._stopped = True
        self._refuse_rest()

    def _die(self, exc: BaseException) -> None:
        """End all that was handed over, in doubt."""
        self._death = DurabilityError(
            f"the thread that writes has died: {type(exc).__name__}: {exc}", hint="restart the program"
        )
        self._stopped = True
        for handed in (*self._batch, *self._appends):
            if handed.outcome is None:
                self._end(handed, self._death)
        self._wake()
        for task in (task for tasks in self._tasks for task in tasks):
            task.error = self._death
            task.end()
        self._refuse_rest()
        self._died(exc)

    def _take(self, *, wait: bool) -> bool:
        """Move everything from the queue to where it belongs; False at the order to stop."""
        going = True
        while wait or not self._queue.empty():  # this thread alone takes something out
            found = self._queue.get()
            wait = False
            if found is None:
                going = False
            elif isinstance(found, _Handed):
                self._appends.append(found)
            else:
                self._tasks[found.rank].append(found)
        return going

    def _append(self, batch: list[_Handed[Item]]) -> None:
        error: BaseException | None = None
        try:
            self._commit([handed.item for handed in batch], self._wake)
        except BaseException as exc:  # noqa: BLE001 - raised in each thread that waits
            error = exc
        self._wake()
        for handed in batch:
            self._end(handed, error)
        if self._queue.empty():
            self._wake()
        if error is None:
            try:
                self._committed()
            except BaseException:  # noqa: BLE001 - what is stored is stored, and the writer goes on
                _log.error("a listener of enqueues failed; no entry is affected", trace=True)

    def _end(self, handed: _Handed[Item], error: BaseException | None) -> None:
        handed.outcome = (error,)
        if isinstance(handed, _Waiter):
            self._asleep.append(handed)
        elif handed.then is not None:
            try:
                handed.then(error)
            except BaseException:  # noqa: BLE001 - a host's callback must not end the writer, SystemExit included
                _log.error("a callback of an enqueue failed; its entry is not affected", trace=True)

    def _wake(self) -> None:
        """Wake the callers whose commit has ended.

        Where more appends wait, this happens while the next commit waits for the disk: woken before, they would take
        the interpreter from the writer, and the disk would be idle until they all wait again.
        """
        asleep, self._asleep = self._asleep, []
        for waiter in asleep:
            waiter.lock.release()

    def _refuse_rest(self) -> None:
        """End what was handed over too late.  Called by any thread that finds the writer stopped."""
        closed = self._death or StoreClosed("the outbox is closed", hint="open it again")
        while True:
            try:
                found = self._queue.get_nowait()
            except Empty:
                return
            if isinstance(found, _Waiter):
                found.outcome = (closed,)
                found.lock.release()
            elif isinstance(found, _Handed):
                self._end(found, closed)
            elif found is not None:
                found.error = closed
                found.end()


def refuse_at_the_end() -> None:
    """Raise `DurabilityError` at the end of the interpreter, as in `__del__`: the writer has stopped for good."""
    if sys.is_finalizing():
        raise _ended()


def _ended() -> DurabilityError:
    return DurabilityError("the interpreter ends and stores nothing more", hint="close the outbox before, or in atexit")
