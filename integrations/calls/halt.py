"""Halt: calls the engine's halt method when calls cannot be recorded any more."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from ... import DurabilityError
from ...log import Log

_log = Log("outbox.integrations")


class Halt:
    """Calls the engine's halt method before a call raises, or returns that could not be numbered.  Thread-safe.

    Use it when no lock of the adapter is held: the method may wait for a thread of the engine that makes a call, and
    may make calls itself.
    """

    def __init__(self, method: Callable[[str], Any] | None) -> None:
        """`method(reason)`: called in the caller's thread."""
        self._method, self._here = method, threading.local()

    def after(self, error: BaseException) -> None:
        """Call the method if `error` is one of durability, but not for a call that the method makes itself.

        The caller gets `error` also where the method fails.
        """
        if self._method is None or not isinstance(error, DurabilityError) or getattr(self._here, "halting", False):
            return
        self._here.halting = True
        try:
            self._method(str(error))
        except Exception:  # noqa: BLE001 - of the engine; its call must still raise that nothing was recorded
            _log.critical("the halt method has failed: check that new positions are stopped", trace=True)
        finally:
            self._here.halting = False
