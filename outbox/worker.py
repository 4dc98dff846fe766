"""Worker: the threads beside the callers: one that does one thing at a time for its owner, and how a nap of one ends.

A thread whose work callers wait for is marked, so that it waits for no delivery itself.  The host's code runs in such
threads too: a logging handler that writes by the manager, `__del__` of an object that is collected there, an
operation's handler.  Its calls are durable at once; a wait for their delivery could not end.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from queue import SimpleQueue
from typing import Generic, TypeVar

_here = threading.local()


@contextmanager
def waited_for() -> Iterator[None]:
    """Within the block this thread writes into the store, or delivers."""
    _here.depth = depth = getattr(_here, "depth", 0) + 1
    try:
        yield
    finally:
        _here.depth = depth - 1


def is_waited_for() -> bool:
    """Whether callers wait for the work of this thread."""
    return getattr(_here, "depth", 0) > 0


T = TypeVar("T")


class _Work(Generic[T]):
    def __init__(self, work: Callable[[], T]) -> None:
        self.work, self.done = work, threading.Event()
        self.answer: Callable[[], T] | None = None


class Worker(Generic[T]):
    """Its thread begins with the first piece of work and is a daemon.  Used by one thread at a time.

    Each of its methods may be interrupted (Ctrl-C) and called again.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._thread: threading.Thread | None = None
        self._tasks: SimpleQueue[_Work[T] | None] = SimpleQueue()
        self._task: _Work[T] | None = None
        # Whether something was begun and not asked for.
        self.busy = False

    def begin(self, work: Callable[[], T]) -> None:
        """Start `work`; what was begun before and not asked for is waited for and forgotten.

        Raises `RuntimeError` where no thread can be started.
        """
        self.wait()
        if self._thread is None:
            thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            thread.start()
            self._thread = thread
        task = _Work(work)
        self._tasks.put(task)
        self._task = task
        self.busy = True

    def wait(self) -> Callable[[], T] | None:
        """Wait until the work that was begun has ended; the answer returns its result, or raises what it raised.

        None where nothing was begun.
        """
        task = self._task
        if task is None:
            return None
        task.done.wait()
        self._task = None
        self.busy = False
        return task.answer

    def close(self) -> None:
        """Wait for the work at hand and end the thread; `begin` starts anew."""
        self.wait()
        if self._thread is not None:
            self._tasks.put(None)
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        with waited_for():
            while (task := self._tasks.get()) is not None:
                task.answer = _answer(task.work)
                task.done.set()


class Later(Generic[T]):
    """Has the interface of `Worker` and no thread: the work is done when it is waited for."""

    def __init__(self) -> None:
        self._work: Callable[[], T] | None = None
        self.busy = False

    def begin(self, work: Callable[[], T]) -> None:
        self._work, self.busy = work, True

    def wait(self) -> Callable[[], T] | None:
        work, self._work = self._work, None
        self.busy = False
        return None if work is None else _answer(work)

    def close(self) -> None:
        self.wait()


def _answer(work: Callable[[], T]) -> Callable[[], T]:
    try:
        result = work()
    except BaseException as exc:  # noqa: BLE001 - it is raised where the answer is used
        failure = exc

        def fail() -> T:
            raise failure

        return fail
    return lambda: result


class Wake:
    """Like an event for one thread that waits; a wait that ends by it clears it.  `set` is for any thread."""

    def __init__(self) -> None:
        # Locked while it is not set.
        self._lock = threading.Lock()
        self._lock.acquire()

    def set(self) -> None:
        """End the nap at hand, or the next one."""
        with suppress(RuntimeError):  # it is set already
            self._lock.release()

    def clear(self) -> None:
        """Forget what was set."""
        self._lock.acquire(blocking=False)

    def is_set(self) -> bool:
        """Whether the next nap would end at once."""
        return not self._lock.locked()

    def wait(self, timeout: float) -> bool:
        """Wait until it is set, for at most `timeout` seconds; whether it was."""
        return self._lock.acquire(timeout=timeout)
