"""Log: messages whose facts are in the text and in fields, without passwords.

A host that only calls `logging.basicConfig()` sees the text; one that collects records as JSON reads the fields.
"""

from __future__ import annotations

import logging
import re
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from .left_messages import leave_message, leaves_messages

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
