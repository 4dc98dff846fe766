"""What a method reads of the objects in its attributes."""

from __future__ import annotations

from typing import Any

from outbox.integrations.code.class_code import ClassCode
from outbox.integrations.state.noted_state import changes_itself, parts_changed, parts_read


class Counter:
    def __init__(self) -> None:
        self.number = 0

    def next(self) -> int:
        self.number += 1
        return self.number

    def twice(self) -> int:
        return 2 * self.number


class Manager:
    run: Any
    whole: Any
    deep: Any
    items: Any
    read: Any

    def write(self) -> tuple[object, ...]:
        return self.run.name, self.run.mode.value, self._inner(), len(self.whole), self.whole.name

    def _inner(self) -> object:
        return self.run.venue

    def change(self) -> None:
        self.run.fills += 1
        self.deep.inner.value = 3
        del self.items[0].name
        self.own = self.read.value


CODE = ClassCode(Manager)


def test_parts_read_at_any_depth_are_found() -> None:
    parts = parts_read(CODE, "write")
    assert parts["run"] == frozenset({"name", "mode", "venue"})


def test_object_that_gets_into_other_hands_is_read_whole() -> None:
    assert parts_read(CODE, "write")["whole"] is None


def test_objects_that_a_method_changes_are_found() -> None:
    assert parts_changed(CODE, "change") == {"run", "deep", "items"}
    assert parts_changed(CODE, "write") == set()


def test_method_that_changes_its_object_is_told_from_others() -> None:
    assert changes_itself(Counter, frozenset({"next", "twice"}))
    assert not changes_itself(Counter, frozenset({"twice"}))
