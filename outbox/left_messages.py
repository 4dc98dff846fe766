"""Left messages: what a thread that callers wait for has to log, given to the handlers by a thread of its own.

A handler of `logging` has a lock.  A caller may hold it while it waits for the store's writer: a handler may write into
the outbox, and a signal handler may interrupt one.  A writer that logged by itself would wait for that lock, and the
caller for the writer.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from queue import SimpleQueue

# A caller waits so long for its message to be logged; it may hold the lock that the message needs.
_PATIENCE_S = 1.0

_here = threading.local()


@contextmanager
def leaving_messages() -> Iterator[None]:
    """Within the block this thread leaves what it has to log to another one."""
    _here.leaves = True
    try:
        yield
    finally:
        _here.leaves = False


def leaves_messages() -> bool:
    """Whether this thread leaves what it has to log to another one."""
    return getattr(_here, "leaves", False)


class _LeftMessages:
    """Its thread begins with the first message and is a daemon.  Thread-safe; waits for no lock of anybody's."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """In a forked child: thread and messages are its parent's."""
        self._queue: SimpleQueue[Callable[[], object]] = SimpleQueue()
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None
        # Whether a message may be in the queue, or on its way to the handlers.
        self._busy = False

    def leave(self, say: Callable[[], object]) -> None:
        """Let `say`, which must not raise, be called by the other thread."""
        self._queue.put(say)
        self._busy = True
        if self._thread is None and self._starting.acquire(blocking=False):
            try:
                thread = threading.Thread(target=self._run, name="outbox-log", daemon=True)
                with suppress(RuntimeError):  # no room for a thread: the next message tries again
                    thread.start()
                    self._thread = thread
            finally:
                self._starting.release()

    def await_said(self) -> None:
        """Wait until what was left so far is logged, for at most a second."""
        thread = self._thread
        if not self._busy or thread is None or thread is threading.current_thread() or leaves_messages():
            return
        said = threading.Event()
        self._queue.put(said.set)
        said.wait(_PATIENCE_S)

    def _run(self) -> None:
        while True:
            say = self._queue.get()
            say()
            # Before the look: a message that comes behind it says so itself.
            self._busy = False
            if not self._queue.empty():
                self._busy = True


_left = _LeftMessages()
leave_message = _left.leave
await_left_messages = _left.await_said

os.register_at_fork(after_in_child=_left.forget)
# Before that of `logging`, which was registered earlier and closes the handlers.
atexit.register(_left.await_said)
