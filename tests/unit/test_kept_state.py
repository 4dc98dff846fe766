"""A manager's own state leaves a call as the plain manager's would, once, whichever copies of it ran."""

from __future__ import annotations

import copy
import threading
from collections import Counter, deque
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import pytest

from outbox import ConfigError
from outbox.codec import decode, encode
from outbox.integrations.state.kept_state import Changes, KeptState


@dataclass
class Day:
    pnl: Decimal = Decimal(0)
    symbols: list[str] = field(default_factory=list)


class Manager:
    def __init__(self) -> None:
        self.engine = object()
        self.lock = threading.Lock()
        self.count = 0
        self.pnl = 0.1
        self.recent: deque[int] = deque(maxlen=3)
        self.seen: set[str] = set()
        self.by_symbol: dict[str, list[int]] = {}
        self.counter: Counter[str] = Counter()
        self.day = Day()

    def call(self, number: int) -> None:
        self.count += 1
        self.pnl += 0.7
        self.recent.append(number)
        self.seen.add(f"s{number}")
        self.by_symbol.setdefault("IBM", []).append(number)
        self.counter["IBM"] += 1
        self.day.pnl += number
        self.day.symbols.append(f"s{number}")
        self.last = number


def state(manager: Manager) -> dict[str, Any]:
    return {name: value for name, value in vars(manager).items() if name not in ("engine", "lock")}


def run(manager: Manager, number: int, noted: Any = None, earlier: tuple[Changes, ...] = ()) -> Changes:
    replica = copy.copy(manager)
    kept = KeptState(replica)
    for changes in earlier:
        kept.follow(changes)
    if noted is not None:
        kept.restore(noted)
    replica.call(number)
    return kept.changes()


def test_call_on_a_copy_leaves_the_manager_alone() -> None:
    manager, untouched = Manager(), Manager()
    changes = run(manager, 1)
    assert state(manager) == state(untouched)
    assert set(changes.by_name) == set(state(manager)) | {"last"}


def test_applied_changes_equal_plain_calls() -> None:
    manager, plain = Manager(), Manager()
    day = manager.day
    for number in range(5):
        run(manager, number).apply(manager)
        plain.call(number)
        assert state(manager) == state(plain)
    assert manager.day is day


def test_replay_with_noted_values_starts_as_the_call_did() -> None:
    manager = Manager()
    for number in range(2):
        run(manager, number).apply(manager)
    changes = run(manager, 2)
    noted = decode(*encode(changes.noted("call")))
    changes.apply(manager)
    expected = copy.deepcopy(state(manager))
    run(manager, 3).apply(manager)
    again = run(manager, 2, noted)
    assert {name: change.after for name, change in again.by_name.items()} == expected


def test_replay_has_later_changes_only_after_its_contact() -> None:
    manager = Manager()
    noted = run(manager, 1).noted("call")
    replica = copy.copy(manager)
    kept = KeptState(replica)
    kept.restore(noted)
    replica.call(1)
    assert kept.later_changes().by_name == {}
    kept.contact()
    assert kept.later_changes().by_name == {}
    replica.last = 9
    kept.contact()
    assert set(kept.later_changes().by_name) == {"last"}


def test_attribute_that_a_call_creates_is_absent_in_its_replay() -> None:
    manager = Manager()
    changes = run(manager, 1)
    assert changes.noted("call")["absent"] == ["last"]
    changes.apply(manager)
    again = run(manager, 1, changes.noted("call"))
    assert again.by_name["last"].after == 1


def test_replays_of_one_batch_follow_each_other() -> None:
    manager, plain = Manager(), Manager()
    earlier: tuple[Changes, ...] = ()
    for number in range(3):
        earlier = (*earlier, run(manager, number, earlier=earlier))
        plain.call(number)
    for changes in earlier:
        changes.apply(manager)
    assert state(manager) == state(plain)


def test_change_of_the_manager_meanwhile_is_kept() -> None:
    manager = Manager()
    changes = run(manager, 1)
    manager.count += 10
    manager.by_symbol["MSFT"] = [7]
    manager.seen.add("other")
    manager.day.symbols.append("other")
    changes.apply(manager)
    assert manager.count == 11
    assert manager.by_symbol == {"MSFT": [7], "IBM": [1]}
    assert manager.seen == {"other", "s1"}
    assert manager.day.symbols == ["other", "s1"]


def test_change_that_cannot_be_stored_names_the_attribute() -> None:
    class Odd:
        def __init__(self) -> None:
            self.trail: list[Any] = []

    manager = Odd()
    replica = copy.copy(manager)
    kept = KeptState(replica)
    replica.trail = [threading.Lock()]
    changes = kept.changes()
    assert changes.noted("log_trade") == {"absent": [], "values": {"trail": []}}
    changes.apply(manager)
    kept = KeptState(again := copy.copy(manager))
    again.trail = []
    with pytest.raises(ConfigError, match="log_trade changes self.trail"):
        kept.changes().noted("log_trade")


def test_change_inside_a_shared_object_is_noticed() -> None:
    class Metrics:
        def __init__(self) -> None:
            self.idle, self.sent = threading.Event(), 0

    manager: Any = Manager()
    manager.metrics = Metrics()
    replica = copy.copy(manager)
    kept = KeptState(replica)
    assert kept.shared_changes() == []
    replica.metrics.sent += 1
    assert kept.shared_changes() == ["metrics.sent"]


def test_large_cache_is_shared_and_costs_nothing() -> None:
    manager: Any = Manager()
    manager.cache = {number: number for number in range(100_001)}
    manager.seen = {number: [number] for number in range(100_000)}
    replica = copy.copy(manager)
    KeptState(replica)
    assert replica.cache is manager.cache
    assert replica.seen is not manager.seen
    assert replica.seen[7] is manager.seen[7]


class Locked:
    everywhere = threading.Lock()

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.again = threading.RLock()
        self.arrived = threading.Condition(self.lock)
        self.few = threading.BoundedSemaphore(1)

    def locks(self) -> list[Any]:
        return [self.everywhere, self.lock, self.again, self.few]


def test_copy_never_waits_for_locks_of_the_manager_nor_keeps_them() -> None:
    manager = Locked()
    for lock in manager.locks():
        lock.acquire()
    replica = copy.copy(manager)
    kept = KeptState(replica)
    for lock in replica.locks():
        assert lock.acquire(blocking=False)
    # A condition keeps the lock that it shares with an attribute.
    replica.arrived.notify()
    assert not kept.changes()
    assert kept.shared_changes() == []
    for lock in manager.locks():
        lock.release()
    with manager.lock, manager.again, manager.few, manager.everywhere:
        manager.arrived.notify()
