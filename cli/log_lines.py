"""The log of a command that runs for long: lines of text, or of JSON with each record's fields, on stderr."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from outbox.log import without_password

LEVELS = ("debug", "info", "warning", "error", "critical")
FORMATS = ("text", "json")

# What every record has; everything else is a field that the message was given.
_OF_EVERY_RECORD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


class TextLines(logging.Formatter):
    """Lines without passwords, the traceback of an error included."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        return without_password(super().format(record))


class JsonLines(logging.Formatter):
    """One object a line: time, level, logger, message, the record's fields, and a traceback where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        fields = {name: value for name, value in record.__dict__.items() if name not in _OF_EVERY_RECORD}
        line |= {name: value for name, value in fields.items() if name not in line}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps({name: _redacted(value) for name, value in line.items()})


def _redacted(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    return without_password(str(value))


@contextmanager
def logging_to_stderr(form: str = "text", level: str = "info") -> Iterator[None]:
    """Within the block records go to stderr: ours from `level` on, those of other libraries from WARNING on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if form == "json" else TextLines())
    root, ours = logging.getLogger(), logging.getLogger("outbox")
    before = ours.level
    root.addHandler(handler)
    ours.setLevel(level.upper())
    if form == "json":
        # What Python itself would write between the lines.
        logging.captureWarnings(capture=True)
    try:
        yield
    finally:
        if form == "json":
            logging.captureWarnings(capture=False)
        root.removeHandler(handler)
        ours.setLevel(before)
