"""Wake: ends the nap of a thread, of the relay or the adapter.  Setting it waits for no lock, unlike `threading.Event`.

The store's writer sets it after each commit.  A caller that sets it too may be interrupted there by a signal handler,
which may enqueue, wait for the writer, and set it once more.
"""

from __future__ import annotations

import threading
from contextlib import suppress


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
