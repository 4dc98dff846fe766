"""The host: a manager that is built when it can be, and what is known of it before that and after a restart."""

from __future__ import annotations

import functools
import inspect
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from outbox import ConfigError, Outbox, registered
from outbox.clock import SystemClock
from outbox.integrations.code.signatures import invoke, signature_of
from outbox.integrations.manager.host import Host, ManagerUnavailable, class_made_by
from outbox.integrations.operations import ManagerOperation
from outbox.integrations.replay.rehearsal import Rehearsal, rehearse
from outbox.integrations.state.kept_state import KeptState


class Manager:
    """Connects, as far as it can."""

    session_factory = None
    LIMITS: dict[str, int] = {}  # noqa: RUF012 - as seen

    def __init__(self, url: str = "") -> None:
        self._current_session_id: int | None = None
        self.cache: dict[str, int] = {}
        self.url = url

    def plain(self, a: int, b: int = 2, *, c: int = 3) -> tuple[Any, ...]:
        return a, b, c

    def unnamed(self, a: int, /, *rest: int, c: int = 3, **more: int) -> tuple[Any, ...]:
        return a, rest, c, more

    @staticmethod
    def static(a: int) -> int:
        return a

    @classmethod
    def by_class(cls, a: int) -> int:
        return a

    def remember(self, name: str) -> bool:
        self.cache[name] = 1
        return True


class Flaky:
    """A factory that fails while it is told to, and counts its calls."""

    def __init__(self) -> None:
        self.away, self.calls = True, 0

    def __call__(self) -> Manager:
        self.calls += 1
        if self.away:
            raise OperationalError("SELECT 1", {}, Exception("away"))
        return Manager("built")


class FrozenClock(SystemClock):
    def __init__(self) -> None:
        self.at = 100.0

    def monotonic(self) -> float:
        return self.at


@pytest.mark.parametrize(
    "factory", [Manager, functools.partial(Manager, "x"), functools.partial(functools.partial(Manager))]
)
def test_the_class_that_a_factory_makes_is_seen_without_calling_it(factory: Any) -> None:
    assert class_made_by(factory) is Manager
    assert class_made_by(lambda: factory) is None


@pytest.mark.parametrize("nothing", [None, 5, "url"])
def test_neither_a_manager_nor_a_factory_is_refused(nothing: Any) -> None:
    with pytest.raises(ConfigError, match="a manager is needed, and .* was given"):
        Host(nothing, SystemClock())


def test_a_manager_that_cannot_be_built_is_not_tried_again_at_once() -> None:
    factory, clock = Flaky(), FrozenClock()

    def slow() -> Manager:
        clock.at += 1.0
        return factory()

    host = Host(slow, clock)
    for _ in range(3):
        with pytest.raises(OperationalError):
            host.manager()
    assert factory.calls == 1
    clock.at += 5.0
    with pytest.raises(OperationalError):
        host.manager()
    assert factory.calls == 2
    factory.away = False
    with pytest.raises(OperationalError):
        host.manager()
    host.forget_failure()
    assert host.manager() is host.manager()
    assert factory.calls == 3


def test_refusal_at_once_asks_again_at_the_next_call() -> None:
    """A server that is back serves the next call; no caller gets an error of the time before."""
    factory = Flaky()
    host = Host(factory, FrozenClock())
    with pytest.raises(OperationalError):
        host.manager()
    factory.away = False
    assert host.manager().url == "built"


def test_attribute_set_before_the_manager_exists_is_set_on_it() -> None:
    factory = Flaky()
    host = Host(factory, SystemClock())
    heard: list[Any] = []
    host.when_built(heard.append)
    host.set("_current_session_id", 7)
    assert host.get("_current_session_id") == 7
    assert host.get("other", "default") == "default"
    factory.away = False
    manager = host.manager()
    assert manager._current_session_id == 7
    assert heard == [manager]
    host.when_built(heard.append)
    host.set("other", 8)
    assert (manager.other, host.get("other")) == (8, 8)
    assert heard == [manager, manager]


def test_signatures_are_those_of_an_object_of_the_class() -> None:
    for name in ("plain", "unnamed", "static", "by_class"):
        assert signature_of(Manager, name) == inspect.signature(getattr(Manager(), name))


def test_signatures_survive_a_restart_where_a_factory_hides_its_class(outbox_dir: Path) -> None:
    names = ("plain", "unnamed", "static", "missing")
    with Outbox.open(outbox_dir) as box:
        Host(Manager, SystemClock()).remember(box, names)
    with Outbox.open(outbox_dir) as box:
        host = Host(lambda: Manager(), SystemClock())
        with pytest.raises(ManagerUnavailable, match="'plain'"):
            host.signature("plain")
        with pytest.raises(ManagerUnavailable):
            host.replica(session_id=1)
        assert not host.has("plain")
        host.recall(box)
        assert [host.has(name) for name in names] == [True, True, True, False]
        assert host.signature("plain").bind(1, c=5).arguments == {"a": 1, "c": 5}
        bound = host.signature("unnamed").bind(1, 2, 3, d=4).arguments
        assert bound == {"a": 1, "rest": (2, 3), "more": {"d": 4}}
        for wrong in ({}, {"a": 1, "d": 2}):
            with pytest.raises(TypeError):
                host.signature("plain").bind(**wrong)
        # Nothing is forgotten by a process that knows less.
        host.remember(box, names)
        assert box.store.get_meta("manager:signatures")
        # What the class says counts, once it is known.
        host.manager()
        assert host.signature("plain") == inspect.signature(Manager().plain)


@dataclass(frozen=True, slots=True)
class Slotted:
    """Python makes it of another class of its name, which may live on."""

    number: int


def test_slotted_dataclass_outlives_the_process(outbox_dir: Path) -> None:
    first = type("Slotted", (), {"__module__": __name__, "__dataclass_fields__": {}})
    with Outbox.open(outbox_dir) as box:
        assert Host(Manager, SystemClock()).classes.learn(box, [Slotted(1)])
    # As in a process that has met none of them.
    del registered.records[registered.class_name(Slotted)]
    with Outbox.open(outbox_dir) as box:
        Host(Manager, SystemClock()).recall(box)
        assert box.enqueue("x", {"held": Slotted(2)}).args == {"held": Slotted(2)}
    assert registered.records[registered.class_name(first)] is Slotted


def test_classes_of_arguments_outlive_the_process(outbox_dir: Path) -> None:
    class Seen(Enum):
        A = 1

    @dataclass(frozen=True)
    class Held:
        side: Seen

    with Outbox.open(outbox_dir) as box:
        host = Host(Manager, SystemClock())
        assert host.classes.learn(box, [{"deep": [(Held(Seen.A),)]}])
        assert not host.classes.learn(box, ["none", 5])
    # As in a process that has met none of them.
    del registered.enums[registered.class_name(Seen)], registered.records[registered.class_name(Held)]
    with Outbox.open(outbox_dir) as box:
        host = Host(Manager, SystemClock())
        host.recall(box)
        assert box.enqueue("x", {"held": Held(Seen.A)}).args == {"held": Held(Seen.A)}


def test_arguments_without_a_name_find_their_places() -> None:
    manager = Manager()
    assert invoke(manager.plain, {"c": 5, "a": 1}) == (1, 2, 5)
    assert invoke(manager.unnamed, {"a": 1, "rest": (2, 3), "d": 4}) == (1, (2, 3), 3, {"d": 4})
    assert invoke(manager.unnamed, {"a": 1, "c": 9}) == (1, (), 9, {})
    assert invoke(manager.unnamed, {"a": 1, "more": {"d": 4}}) == (1, (), 3, {"more": {"d": 4}})
    with pytest.raises(TypeError, match="gone"):
        invoke(manager.plain, {"a": 1, "gone": 2})


def test_rehearsal_of_a_copy_leaves_the_manager_alone() -> None:
    manager = Manager()
    replica = Host(manager, SystemClock()).replica(session_id=3)
    assert replica._current_session_id == 3
    assert manager._current_session_id is None
    rehearsal = Rehearsal(KeptState(replica))
    assert rehearse(rehearsal, replica, "remember", {"name": "a"}, context=False).answer is True
    assert manager.cache == {}
    assert set(rehearsal.changes.by_name) == {"cache"}


def test_before_there_is_a_manager_a_copy_is_an_object_of_its_class() -> None:
    replica = Host(functools.partial(Manager, "x"), SystemClock()).replica(session_id=3)
    assert type(replica) is Manager
    assert replica._current_session_id == 3
    assert not hasattr(replica, "url")


def test_optional_operation_does_without_an_identity_that_is_missing() -> None:
    operation = ManagerOperation("plain", identity=(("nothing",), ("a",)), optional=True)
    assert operation.identity_of({"a": 5}) == [["a"], [5]]
    assert operation.identity_of({"a": None}) is None
    assert operation.identity_of({"nothing": 1, "a": 5}) == [["nothing"], [1]]
