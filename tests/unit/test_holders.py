"""Holders: whatever an engine holds the plain manager in gets the durable one, or is named."""

from __future__ import annotations

import functools
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pytest

from outbox import ConfigError
from outbox.integrations.manager.holders import others_holding, replace_held


class Manager:
    def log_trade(self, symbol: str) -> str:
        return f"{type(self).__name__}: {symbol}"


class Durable(Manager):
    """Stands for the manager."""


class Thing:
    def __init__(self, **attributes: Any) -> None:
        vars(self).update(attributes)


class Slots:
    __slots__ = ("db", "empty")

    def __init__(self, db: Any) -> None:
        self.db = db


class Pair(NamedTuple):
    name: str
    db: Any


@dataclass
class Component:
    db: Any
    others: list[Any] = field(default_factory=list)


@dataclass(frozen=True)
class Frozen:
    db: Any


class Shared:
    db: Any = None


def replaced(engine: Any, manager: Manager) -> tuple[Durable, list[Callable[[], object]]]:
    durable = Durable()
    return durable, list(replace_held(engine, manager, durable, "Engine"))


def closure(manager: Manager) -> Callable[[], str]:
    return lambda: manager.log_trade("x")


HELD: dict[str, tuple[Callable[[Manager], Any], Callable[[Any], Any]]] = {
    "attribute": (lambda m: Component(m), lambda held: held.db),
    "levels deep": (lambda m: Component(1, [Component(2, [Component(m)])]), lambda held: held.others[0].others[0].db),
    "list": (lambda m: [1, m], lambda held: held[1]),
    "dict": (lambda m: {"a": {"b": m}}, lambda held: held["a"]["b"]),
    "deque": (lambda m: deque([m]), lambda held: held[0]),
    "set": (lambda m: {m}, lambda held: next(iter(held))),
    "slots": (lambda m: Slots(m), lambda held: held.db),
    "tuple": (lambda m: Thing(pair=(1, m)), lambda held: held.pair[1]),
    "named tuple": (lambda m: [Pair("a", m)], lambda held: held[0].db),
    "object in a tuple": (lambda m: (1, Component(m)), lambda held: held[1].db),
    "bound method": (lambda m: Thing(log=m.log_trade), lambda held: held.log.__self__),
    "partial": (lambda m: Thing(log=functools.partial(m.log_trade, "x")), lambda held: held.log.func.__self__),
    "argument of a partial": (lambda m: [functools.partial(print, db=m)], lambda held: held[0].keywords["db"]),
    "method of a component": (lambda m: [Component(m).__repr__], lambda held: held[0].__self__.db),
    "closure": (closure, lambda held: held.__closure__[0].cell_contents),
    "weak reference": (lambda m: Thing(db=weakref.ref(m)), lambda held: held.db()),
}  # fmt: skip


@pytest.mark.parametrize("kind", HELD)
def test_holder_of_every_kind_gets_the_durable_one_and_back(kind: str) -> None:
    make, read = HELD[kind]
    manager = Manager()
    engine: Any = Thing(part=make(manager), itself=None)
    engine.itself = engine
    assert read(engine.part) is manager
    durable, undo = replaced(engine, manager)
    assert read(engine.part) is durable
    for step in reversed(undo):
        step()
    assert read(engine.part) is manager


def test_default_of_a_function_and_attribute_of_a_class_are_holders() -> None:
    manager = Manager()

    def callback(symbol: str, db: Any = manager, *, other: Any = manager) -> tuple[Any, Any]:
        return db, other

    Shared.db = manager
    durable, undo = replaced(Thing(callback=callback, shared=Shared()), manager)
    assert callback("x") == (durable, durable)
    assert Shared.db is durable
    for step in reversed(undo):
        step()
    assert callback("x") == (manager, manager)
    assert Shared.db is manager
    Shared.db = None


def running(manager: Manager) -> Iterator[str]:
    yield manager.log_trade("x")


@pytest.mark.parametrize(
    ("part", "name"),
    [
        (lambda m: Frozen(m), "Engine.part.db"),
        (lambda m: {m: 1}, "a key of Engine.part"),
        (lambda m: running(m), "'manager' of the running running"),
    ],
)
def test_holder_that_cannot_be_changed_is_named(part: Callable[[Manager], Any], name: str) -> None:
    manager = Manager()
    with pytest.raises(ConfigError, match=r"DurableDatabaseManager\.of") as refused:
        replaced(Thing(part=part(manager)), manager)
    assert str(refused.value).startswith(name)


def test_objects_that_hold_no_manager_stay_as_they_are() -> None:
    """Nothing is called, and nothing compared: components may refuse both."""

    class Touchy:
        def __eq__(self, other: object) -> bool:
            raise RuntimeError("compared")

        __hash__ = None  # type: ignore[assignment]

        @property
        def db(self) -> Any:
            raise RuntimeError("read")

    class Proxy:
        """Has neither a class nor attributes outside of a request."""

        @property  # type: ignore[misc]
        def __class__(self) -> Any:
            raise RuntimeError("no request")

        @property
        def __dict__(self) -> Any:  # type: ignore[override]
            raise RuntimeError("no request")

    def empty(*, bind: bool) -> Callable[[], Any]:
        """Return a function with a cell that is empty unless `bind`."""
        if bind:
            late = 1
        return lambda: late

    engine = Thing(
        part=Touchy(), slots=Slots(Touchy()), empty=empty(bind=False), items=[Touchy()], types=[Touchy], text="x"
    )
    before = dict(vars(engine))
    _, undo = replaced(engine, Manager())
    assert undo == []
    assert vars(engine).keys() == before.keys()


def test_large_collections_are_searched_only_for_objects() -> None:
    manager = Manager()
    engine: Any = Thing(
        prices=[1.0] * 3_000_000, bars=dict.fromkeys(range(300000), 1.0), parts=[Component(None)] * 2000, last=None
    )
    engine.parts.append(Component(manager))
    durable, _ = replaced(engine, manager)
    assert engine.parts[-1].db is durable


def test_holders_beside_the_engine_are_found() -> None:
    manager = Manager()
    engine, logger = Thing(db=manager), Component(manager)
    assert others_holding(manager, {id(engine)}, ()) == ["Component"]
    logger.db = None
    assert others_holding(manager, {id(engine)}, ()) == []
