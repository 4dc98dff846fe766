"""What a method changes of its object, by the code of its class."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

from outbox.integrations.code.class_code import ClassCode

_current: ContextVar[Any] = ContextVar("session")


class Journal:
    def __init__(self) -> None:
        self._limits: dict[str, int] = {}
        self.seen: set[str] = set()

    @property
    def session(self) -> Any:
        return _current.get()

    @property
    def limits(self) -> dict[str, int]:
        return self._of("a")

    def _of(self, name: str) -> dict[str, int]:
        return self._limits

    def add(self, row: str) -> None:
        self.session.add(row)
        self.seen.add(row)

    def limit(self, name: str) -> None:
        self.limits[name] = 1


def test_row_added_to_the_session_of_a_property_changes_no_attribute() -> None:
    assert ClassCode(Journal).changed_by("add") == {"seen"}


def test_value_put_into_a_property_changes_what_the_property_reads() -> None:
    assert ClassCode(Journal).changed_by("limit") == {"_limits"}
