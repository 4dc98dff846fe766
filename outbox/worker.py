"""Worker: a helper thread that does one thing at a time for its owner."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Generic, TypeVar

from .own_threads import waited_for

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
