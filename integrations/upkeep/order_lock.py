"""Order lock: calls become durable and are folded into the view in one order."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from ... import OutboxError

# Where gevent has patched it, another class than that of C.
_RLock: Any = type(threading.RLock())


class SessionBusy(OutboxError):
    """Another thread stays in a balance block of this session for longer than a caller waits; nothing was recorded."""


class OrderLock(_RLock):  # type: ignore[misc]
    """Held while calls become durable and are folded, so that both have one order.  Reentrant; waits have a limit.

    An exception of a signal handler may come at any point, but within no function of C: `__exit__` is one, so that the
    lock is always released.
    """

    def __init__(self, mend: Callable[[], None] = lambda: None, *, limit_s: float = 60.0) -> None:
        """`mend` is called by the next holder after an `interrupted` one, before anything else."""
        super().__init__()
        self._mend, self._limit_s = mend, limit_s
        self.interrupted = False
        self._holder = ""

    def __enter__(self) -> bool:
        nested, called = self._is_owned(), False
        try:
            called = True
            if not self.acquire(timeout=self._limit_s):
                called = False
                raise SessionBusy(
                    f"thread {self._holder!r} has been recording a call for more than {self._limit_s:.0f} s",
                    hint="look at the disk: a write to it does not end",
                )
            self._holder = threading.current_thread().name
            if self.interrupted:
                self._mend()
                self.interrupted = False
        except BaseException:
            # A nested call of `acquire` does not wait, so that it has succeeded.
            if called and (nested or self._is_owned()):
                self.release()
            raise
        return True
