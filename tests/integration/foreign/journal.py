"""The engine's own record of its calls: when each was made, and what it was told."""

from __future__ import annotations

import enum
import json
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

# An exception inside a call, as it stands in the journal.
RAISED = "raised"


def spelled(value: Any) -> Any:
    """`value` with its types, as JSON: two answers are equal and of equal types if their spellings are equal."""
    if value is None or type(value) in (bool, int, str):
        return value
    if isinstance(value, dict):
        return {str(name): spelled(value[name]) for name in sorted(value, key=str)}
    if isinstance(value, (list, tuple)):
        return [type(value).__name__, *map(spelled, value)]
    if isinstance(value, enum.Enum):
        return f"{type(value).__name__}.{value.name}"
    if isinstance(value, (float, Decimal, uuid.UUID)):
        return f"{type(value).__name__} {value}"
    if isinstance(value, datetime):
        return {"time": value.isoformat()}
    if isinstance(value, date):
        return f"date {value}"
    return f"{type(value).__module__}.{type(value).__qualname__}"


def refusal(error: Exception) -> dict[str, str]:
    """An exception; the text of one that the interpreter or the database made is its own affair."""
    why = "" if isinstance(error, (TypeError, SQLAlchemyError)) else str(error)
    return {RAISED: type(error).__name__, "why": why}


class Journal:
    """Appends a line for each call; goes on where an earlier process of the same engine stopped."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __call__(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Make one call and record what it answered."""
        return self.record(method.__name__, lambda: method(*args, **kwargs))

    def record(self, name: str, call: Callable[[], Any]) -> Any:
        began = time.time()
        try:
            answer = call()
        except Exception as error:
            self._write(name, began, refusal(error))
            raise
        self._write(name, began, {"answer": spelled(answer)})
        return answer

    def tried(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Make a call that may be refused; the refusal is in the journal, the answer is then None."""
        with suppress(Exception):
            return self(method, *args, **kwargs)
        return None

    def known(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Make a read that may say that it does not know; this is no answer, and so none to compare."""
        began = time.time()
        try:
            answer = method(*args, **kwargs)
        except LookupError as error:
            self._write(method.__name__, began, {"answer": "free", "unknown": str(error)})
            return None
        self._write(method.__name__, began, {"answer": spelled(answer)})
        return answer

    def mark(self, section: str) -> None:
        """Begin a section, whose answers are compared by themselves."""
        self._write(section, time.time(), {"section": section})

    def free(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Make a call whose answer may be old or missing in an outage; it is not compared."""
        try:
            return method(*args, **kwargs)
        finally:
            self._write(method.__name__, time.time(), {"answer": "free"})

    @contextmanager
    def block(self, method: Callable[..., AbstractContextManager[Any]], *args: Any, **kwargs: Any) -> Iterator[Any]:
        """Enter a context manager of the manager's; its line covers the whole block."""
        began = time.time()
        told: Any = None
        try:
            with method(*args, **kwargs) as told:
                yield told
        except Exception as error:
            self._write(method.__name__, began, refusal(error))
            raise
        self._write(method.__name__, began, {"answer": spelled(told)})

    def _write(self, name: str, began: float, outcome: dict[str, Any]) -> None:
        line = {"name": name, "from": began, "to": time.time(), **outcome}
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")


def lines(path: Path) -> list[dict[str, Any]]:
    """All lines of a journal; none where the engine did not come to its first call."""
    if not path.exists():
        return []
    with path.open() as file:
        return [json.loads(line) for line in file]
