"""Log: messages whose facts are in the text and in fields, without passwords.

A host that only calls `logging.basicConfig()` sees the text; one that collects records as JSON reads the fields.

A thread that callers wait for leaves its messages to a thread of their own.  A handler of `logging` has a lock.  A
caller may hold it while it waits for the store's writer: a handler may write into the outbox, and a signal handler may
interrupt one.  A writer that logged by itself would wait for that lock, and the caller for the writer.
"""

from __future__ import annotations

import atexit
import logging
import os
import re
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from queue import SimpleQueue
from typing import Any

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


# Of a web address with a port, an @ behind the path belongs to no password.
_IN_URL = re.compile(
    r"((?<!http)(?<!https)(?<!ws)(?<!wss)://[^:/@\s]*|://[^:/@\s]*(?=:(?!\d{1,5}[/?#]))):\S*@",
)
_AS_PARAMETER = re.compile(r"(?i)(\bpassword=)('[^']*'|[^&\s'\"]+)")
# Of the stack: the method below and `log`.
_CALLER = 3

# The messages that a thread is logging.
_logging = threading.local()


class Log:
    """The logger `name`.  Each placeholder `%(fact)s` of a message is a field of the record, and the reverse."""

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    @property
    def is_detailed(self) -> bool:
        """Whether DEBUG is logged: costly facts are gathered only then."""
        return self._logger.isEnabledFor(logging.DEBUG)

    @property
    def is_disabled(self) -> bool:
        """Whether a configuration of `logging` that came later has turned it off (`disable_existing_loggers`)."""
        return self._logger.disabled

    def debug(self, message: str, **facts: Any) -> None:
        self._log(logging.DEBUG, message, facts)

    def info(self, message: str, **facts: Any) -> None:
        self._log(logging.INFO, message, facts)

    def warning(self, message: str, *, trace: bool = False, **facts: Any) -> None:
        """With `trace` the exception that is being handled follows with its traceback."""
        self._log(logging.WARNING, message, facts, trace)

    def error(self, message: str, *, trace: bool = False, **facts: Any) -> None:
        """See `warning`."""
        self._log(logging.ERROR, message, facts, trace)

    def critical(self, message: str, *, trace: bool = False, **facts: Any) -> None:
        """See `warning`."""
        self._log(logging.CRITICAL, message, facts, trace)

    def _log(self, level: int, message: str, facts: dict[str, Any], trace: bool = False) -> None:
        left = leaves_messages()
        # A thread that leaves its messages does not even ask: `logging` has a lock for that, too.
        if not left and not self._logger.isEnabledFor(level):
            return
        around: frozenset[str] = getattr(_logging, "messages", frozenset())
        if message in around:
            return  # a host's handler writes by the manager, which fails, and logs the same as before
        try:
            _logging.messages = around | {message}
            fields = {name: _fact(value) for name, value in facts.items()}
            arguments = (fields,) if fields else ()
            if left:
                leave_message(self._later(level, message, arguments, fields, trace))
            else:
                self._logger.log(level, message, *arguments, extra=fields, exc_info=trace, stacklevel=_CALLER)
        except Exception:  # noqa: BLE001 - a host's handler may raise, and must end neither a write nor the relay
            _show_defect()
        finally:
            _logging.messages = around

    def _later(
        self, level: int, message: str, arguments: tuple[Any, ...], fields: dict[str, Any], trace: bool
    ) -> Callable[[], None]:
        """What logs the message in another thread, as of now and here.  It never raises."""
        file, line, function, _ = self._logger.findCaller(stacklevel=_CALLER + 1)
        error = sys.exc_info() if trace else None
        record = self._logger.makeRecord(
            self._logger.name, level, file, line, message, arguments, error, function, fields
        )

        def say() -> None:
            try:
                if self._logger.isEnabledFor(level):
                    self._logger.handle(record)
            except BaseException:  # noqa: BLE001 - as above, and the other thread must go on
                _show_defect()

        return say


class Repeated:
    """The warnings of one component that were logged and are not over.  Thread-safe."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._warned: set[str] = set()
        self._failed: set[str] = set()

    def warn(self, subject: str, message: str, **facts: Any) -> None:
        """Log a warning about `subject`; at DEBUG if one was logged already."""
        if subject in self._warned:
            self._log.debug(message, **facts)
        else:
            self._warned.add(subject)
            self._log.warning(message, **facts)

    def error(self, subject: str, message: str) -> None:
        """Log the exception that is being handled, with its traceback; at DEBUG, and without, if one was logged.

        A warning about the subject is no such exception: that of an outage would hide a defect behind it.
        """
        if subject in self._failed:
            self._log.debug(message)
        else:
            self._failed.add(subject)
            self._log.error(message, trace=True)

    def over(self, subject: str) -> None:
        """End the warning about `subject`: the next one is logged as the first."""
        self._warned.discard(subject)
        self._failed.discard(subject)


def _show_defect() -> None:
    """Print the traceback of what a host's handler has raised, as `logging` does."""
    with suppress(Exception):
        if logging.raiseExceptions and sys.stderr is not None:
            traceback.print_exc()


def without_password(text: str) -> str:
    """`text` with the password of any URL or connection string in it redacted."""
    # With functions: a template would import something, which an interpreter that ends does not do any more.
    text = _IN_URL.sub(lambda found: f"{found[1]}:***@", text)
    return _AS_PARAMETER.sub(lambda found: f"{found[1]}***", text)


def redacted(value: Any) -> Any:
    """A value of JSON whose texts are without passwords.

    One by one: over the text of a whole document, a quote in one field would hide those behind it.
    """
    if isinstance(value, str):
        return without_password(value)
    if isinstance(value, dict):
        return {redacted(name): redacted(one) for name, one in value.items()}
    return [redacted(one) for one in value] if isinstance(value, list | tuple) else value


def _fact(value: Any) -> Any:
    """Numbers as they are; everything else as text, which may come from anywhere."""
    if value is None or isinstance(value, int | float):
        return value
    # A handler that writes a file loses a message with a lone surrogate.
    return without_password(str(value)).encode(errors="backslashreplace").decode()
