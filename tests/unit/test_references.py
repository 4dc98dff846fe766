"""What an attribute refers to is, in a copy of the manager, what the copy has."""

from __future__ import annotations

import copy
import threading
import weakref
from functools import partial
from typing import Any

import pytest

from outbox.integrations.state.kept_state import KeptState


class Listener:
    def __init__(self) -> None:
        self.heard = 0

    def hear(self, by: int = 1) -> int:
        self.heard += by
        return self.heard


class Manager:
    def __init__(self) -> None:
        self.listener = Listener()
        self.total = 0

    def add(self, by: int = 1) -> int:
        self.total += by
        return self.total


def copied(manager: Any) -> Any:
    return KeptState(copy.copy(manager)).replica


@pytest.mark.parametrize(
    "made",
    [
        lambda one: one.add,
        lambda one: partial(one.add, 1),
        lambda one: partial(one.add, by=1),
        lambda one: [lambda: 0, one.add][1],
    ],
)
def test_method_in_an_attribute_is_that_of_the_copy(made: Any) -> None:
    manager: Any = Manager()
    manager.call = made(manager)
    replica = copied(manager)
    assert replica.call() == 1
    assert (manager.total, replica.total) == (0, 1)


def test_methods_in_a_table_are_those_of_the_copy() -> None:
    manager: Any = Manager()
    manager.table = {"kinds": {"add": (manager.add, [manager.listener.hear])}, "lock": threading.Lock()}
    replica = copied(manager)
    add, (hear,) = replica.table["kinds"]["add"]
    assert (add(), hear()) == (1, 1)
    assert (manager.total, manager.listener.heard) == (0, 0)
    assert (replica.total, replica.listener.heard) == (1, 1)
    assert replica.table["lock"] is manager.table["lock"]


def test_weak_references_are_to_what_the_copy_has() -> None:
    manager: Any = Manager()
    manager.one = weakref.ref(manager.listener)
    manager.several = weakref.WeakSet([manager.listener])
    manager.by_name = weakref.WeakValueDictionary(a=manager.listener)
    manager.method = weakref.WeakMethod(manager.listener.hear)
    replica = copied(manager)
    assert replica.one() is replica.listener
    assert [*replica.several] == [replica.listener]
    assert replica.by_name["a"] is replica.listener
    assert replica.method()() == replica.listener.heard == 1
    assert manager.listener.heard == 0
    assert manager.one() is manager.listener is not replica.listener


def test_reference_to_nothing_of_the_manager_is_left_as_it_is() -> None:
    manager, other = Manager(), Manager()
    elsewhere: Any = manager
    elsewhere.call, elsewhere.table, elsewhere.other = other.add, {"add": other.add}, weakref.ref(other)
    replica = copied(manager)
    assert replica.call is elsewhere.call
    assert replica.table is elsewhere.table
    assert replica.other is elsewhere.other


def test_references_are_no_change_of_the_manager() -> None:
    manager: Any = Manager()
    manager.call = manager.add
    kept = KeptState(copy.copy(manager))
    assert not kept.changes()
