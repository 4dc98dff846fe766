"""History: the ledger is checked in the background after an unclean end, beside the engine, in a child process.

What enqueueing and delivering stand on is verified before a store is opened.  The ledger and its keys may be a thousand
times larger, so that an engine does not wait for them; what is found there is reported.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from ..errors import OutboxError, StoreCorrupt
from ..log import Log
from ..store.own_files import as_owner, open_own
from . import verify

_log = Log("outbox.history")

# Is there as long as the history has not been checked since the last unclean end.
UNCHECKED_FILE = "ledger.unchecked"
_PATIENCE_S = 10.0


def require_check(directory: Path) -> None:
    """Note that the next engine must check the history.  Raises OSError."""
    os.close(open_own(directory / UNCHECKED_FILE, os.O_WRONLY | os.O_CREAT))


class HistoryCheck:
    """The check of one store, in a thread that waits for a child process.  Not restarted in a forked copy."""

    def __init__(self, directory: Path, python: str | None) -> None:
        """Make it before this process opens the store: a child that is forked later could not read it.

        Raises `StoreUnavailable`.
        """
        self._directory, self._python = directory, python
        self._mutex = threading.Lock()
        self._child: verify.Child | None = None
        self._report: Callable[[str], object] = str
        self._stopped = False
        self._thread: threading.Thread | None = None
        if self._required() and not verify.interpreter(python):
            self._child = verify.Child(directory, verify.HISTORY)

    def _required(self) -> bool:
        return (self._directory / UNCHECKED_FILE).exists()

    def start(self, report: Callable[[str], object]) -> None:
        """Begin, if it is required.  `report(damage)` is called from a thread; it may raise OutboxError."""
        self._report = report
        self.resume()

    def resume(self) -> None:
        """Begin again after `stop`, if it is required and can be done."""
        if self._required() and (self._child is not None or verify.interpreter(self._python)):
            self._stopped = False
            thread = threading.Thread(target=self._run, name="outbox-history", daemon=True)
            thread.start()
            self._thread = thread

    def stop(self) -> None:
        """End it, so that only this process has the store open; may be called twice."""
        with self._mutex:
            self._stopped = True
            if self._child is not None:
                self._child.kill()
        self.wait(_PATIENCE_S)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for its end; whether it has come."""
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout)
            return not thread.is_alive()
        return True

    def _run(self) -> None:
        try:
            with self._mutex:
                if self._stopped:
                    return
                child = self._child or verify.Child(self._directory, verify.HISTORY, python=self._python)
                self._child = child
            child.raise_unless_sound()
        except StoreCorrupt as exc:
            self._tell(exc.message)
        except (OutboxError, OSError) as exc:
            if not self._stopped:
                _log.warning("the ledger of %(path)s could not be checked: %(error)s", path=self._directory, error=exc)
        else:
            self._done()
        finally:
            self._child = None

    def _tell(self, what: str) -> None:
        _log.critical("the ledger of %(path)s is damaged: %(what)s", path=self._directory, what=what)
        try:
            self._report(what)
        except OutboxError as exc:
            _log.error(
                "damage of the ledger of %(path)s could not be noted: %(error)s", path=self._directory, error=exc
            )
        else:
            self._done()

    def _done(self) -> None:
        # Where it stays, the next engine checks once more.
        with suppress(OSError), as_owner(self._directory):
            (self._directory / UNCHECKED_FILE).unlink(missing_ok=True)
