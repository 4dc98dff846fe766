"""A manager that is built when PostgreSQL is back counts the calls that were made before it, and those behind them."""

from __future__ import annotations

import functools
import threading
from collections import Counter, defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select, text
from sqlalchemy.exc import OperationalError

from outbox import Outbox, OutboxConfig, PostgresTarget, Relay
from outbox.integrations.durable import TRADING_OPERATIONS, DurableDatabaseManager, ManagerOperation, ManagerRead
from outbox.integrations.view.local_view import UnknownLocally
from tests.unit.fakes.waiting import LONG

from .small import Scene, Trade
from .test_state import Counting


class Absent(Counting):
    """Cannot be made while PostgreSQL is away."""

    away = False

    def __init__(self, url: str) -> None:
        if type(self).away:
            raise OperationalError("connect", {}, Exception("refused"))
        super().__init__(url)


class InBranch(Absent):
    """Nothing is certain of what the call changes before its write."""

    def log_trade(self, symbol: str, note: Any = None, session_id: int | None = None) -> int:
        if symbol:
            self.number += 1
        with self.session_factory.begin() as session:
            session.add(Trade(symbol=symbol, number=self.number))
        return 1


class Limited(Absent):
    """Refuses under a lock what is too much."""

    def __init__(self, url: str) -> None:
        self._lock = threading.RLock()
        super().__init__(url)

    def log_trade(self, symbol: str, note: Any = None, session_id: int | None = None) -> int:
        with self._lock:
            if symbol == "too much":
                raise ValueError(symbol)
            return super().log_trade(symbol, note, session_id)


@contextmanager
def started(
    url: str, directory: Path, manager_class: Any, operations: Any = TRADING_OPERATIONS, *, batch_size: int = 2
) -> Iterator[Scene]:
    config = OutboxConfig(batch_size=batch_size, busy_batch_size=batch_size)
    with Outbox.open(directory, config) as box:
        factory = functools.partial(manager_class, url)
        manager: Any = DurableDatabaseManager(factory, box, operations, write_behind=True)
        relay = Relay(box, PostgresTarget(url, manager.outbox_operations, config=config))
        try:
            yield Scene(manager, box, relay, url)
        finally:
            relay.stop()
            manager.detach_outbox()
            if manager._host.built is not None:
                manager._host.built.engine.dispose()


def numbers(here: Scene) -> list[int]:
    return [number for (number,) in here.rows("SELECT number FROM trades ORDER BY id")]


@pytest.mark.parametrize("kind", [Absent, InBranch])
@pytest.mark.parametrize("delivered", [0, 2, 4, 7])
def test_calls_behind_those_of_the_outage_are_counted_after_them(
    kind: type[Absent], delivered: int, postgres_url: str, outbox_dir: Path
) -> None:
    class Manager(kind):  # type: ignore[misc, valid-type]
        pass

    with started(postgres_url, outbox_dir, Manager) as here:
        here.manager.log_trade("before")
        assert here.relay.drain(timeout=LONG)
    Manager.away = True
    with started(postgres_url, outbox_dir, Manager) as here:
        for name in range(7):
            here.manager.log_trade(f"outage {name}")
        Manager.away = False
        at = 0.0
        while here.box.status().completed < 1 + delivered:
            here.relay.step(at)
            at += 1.0
        here.manager._host.forget_failure()
        assert here.manager._host.manager() is not None
        for name in range(3):
            here.manager.log_trade(f"behind {name}")
        assert here.relay.drain(timeout=LONG)
        assert numbers(here) == [1, *range(1, 11)]
        assert here.manager.number == 10
        here.manager.log_trade("later")
        assert here.manager.number == 11
        assert here.relay.drain(timeout=LONG)
        assert numbers(here)[-1] == 11


class ByDay(Absent):
    """Numbers its trades behind its first statement, in a dict."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.of_day: dict[str, int] = {}

    def log_trade(self, symbol: str, note: Any = None, session_id: int | None = None) -> int:
        with self.session_factory.begin() as session:
            session.execute(text("SELECT 1"))
            session.add(Trade(symbol=symbol, number=self.next()))
        return 1

    def next(self) -> int:
        self.of_day["today"] = self.of_day.get("today", 0) + 1
        return self.of_day["today"]


class ByDefault(ByDay):
    """Counts in a dict of another type."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.of_day = defaultdict(int)


class ByCounter(ByDay):
    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.of_day = Counter()


class ByQueue(ByDay):
    """Numbers a trade by the latest ones."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.latest: deque[int] = deque([0], maxlen=2)

    def next(self) -> int:
        self.latest.append(self.latest[-1] + 1)
        return self.latest[-1]


class Lazily(ByDay):
    """Makes its counters at the first call, and one for each day."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.of_day: Any = None
        self.days = 0

    def next(self) -> int:
        if self.of_day is None:
            self.of_day = self.made()
        self.of_day[f"day {len(self.of_day)}"] += 1
        number: int = len(self.of_day)
        return number

    def made(self) -> Any:
        return defaultdict(int)


class LazyCounter(Lazily):
    def made(self) -> Any:
        return Counter()


class LazyQueues(ByDay):
    """A new queue for each symbol, in a dict of another type, changed before the first statement."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.latest: Any = None

    def log_trade(self, symbol: str, note: Any = None, session_id: int | None = None) -> int:
        if self.latest is None:
            self.latest = defaultdict(deque, {"all": deque([0], maxlen=2)})
        self.latest["all"].appendleft(self.latest["all"][0] + 1)
        self.latest[symbol].appendleft(1)
        with self.session_factory.begin() as session:
            session.add(Trade(symbol=symbol, number=self.latest["all"][0]))
        return 1


class LazyQueue(ByDay):
    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.latest: Any = None

    def next(self) -> int:
        if self.latest is None:
            self.latest = deque([0], maxlen=2)
        number: int = self.latest[0] + 1
        self.latest.appendleft(number)
        return number


@pytest.mark.parametrize("kind", [Absent, InBranch, ByDay, ByDefault, ByCounter, ByQueue])
@pytest.mark.parametrize("batch_size", [1, 100])
@pytest.mark.parametrize("away", [True, False])
def test_calls_of_an_earlier_process_are_counted_after_a_restart(
    kind: type[Absent], batch_size: int, away: bool, postgres_url: str, outbox_dir: Path
) -> None:
    """Each process of a plain manager begins anew, and counts its own calls."""

    class Manager(kind):  # type: ignore[misc, valid-type]
        pass

    with started(postgres_url, outbox_dir, Manager) as here:
        here.manager.log_trade("before")
        assert here.relay.drain(timeout=LONG)
    Manager.away = away
    for made in (3, 2):
        with started(postgres_url, outbox_dir, Manager) as here:
            for name in range(made):
                here.manager.log_trade(f"outage {name}")
    with started(postgres_url, outbox_dir, Manager, batch_size=batch_size) as here:
        here.manager.log_trade("last")
        Manager.away = False
        assert here.relay.drain(timeout=LONG)
        assert numbers(here) == [1, 1, 2, 3, 1, 2, 1]
        here.manager.log_trade("later")
        assert here.relay.drain(timeout=LONG)
        assert numbers(here)[-1] == 2


@pytest.mark.parametrize("kind", [ByDay, ByDefault, ByCounter, ByQueue, Lazily, LazyCounter, LazyQueue, LazyQueues])
def test_count_in_a_collection_outlives_a_restart(kind: type[Absent], postgres_url: str, outbox_dir: Path) -> None:
    with started(postgres_url, outbox_dir, kind) as here:
        here.manager.log_trade("delivered")
        assert here.relay.drain(timeout=LONG)
        here.manager.log_trade("waiting")
        here.manager.log_trade("waiting too")
    with started(postgres_url, outbox_dir, kind) as here:
        assert here.relay.drain(timeout=LONG)
        assert numbers(here) == [1, 2, 3]


def test_collection_that_cannot_be_rebuilt_refuses_no_call(postgres_url: str, outbox_dir: Path) -> None:
    """Nothing of a function is stored, so that such a counter begins anew behind a restart."""

    class ByFunction(Lazily):
        def made(self) -> Any:
            return defaultdict(lambda: 0)

    with started(postgres_url, outbox_dir, ByFunction) as here:
        here.manager.log_trade("delivered")
        assert here.relay.drain(timeout=LONG)
        here.manager.log_trade("waiting")
        here.manager.log_trade("waiting too")
    with started(postgres_url, outbox_dir, ByFunction) as here:
        assert here.relay.drain(timeout=LONG)
        assert len(numbers(here)) == 3


def test_migration_that_fails_after_an_outage_needs_an_operator(postgres_url: str, outbox_dir: Path) -> None:
    """The new version migrates in its constructor; what PostgreSQL refuses then was shown as an outage."""

    class Manager(Absent):
        migrates = False

        def __init__(self, url: str) -> None:
            super().__init__(url)
            if type(self).migrates:
                with self.engine.begin() as connection:
                    connection.execute(text("ALTER TABLE trades RENAME COLUMN venue TO exchange"))

    with started(postgres_url, outbox_dir, Manager) as here:
        here.manager.log_trade("before")
        assert here.relay.drain(timeout=LONG)
    Manager.away = Manager.migrates = True
    with started(postgres_url, outbox_dir, Manager) as here:
        here.manager.log_trade("outage")
        Manager.away = False
        here.relay.step(0.0)
        (reason,) = here.box.status().needs_operator
        assert "the manager cannot be built" in reason
        assert 'column "venue" does not exist' in reason
        Manager.migrates = False
        assert here.relay.drain(timeout=LONG)
        assert numbers(here) == [1, 1]


def test_refusal_under_a_lock_is_the_managers_before_it_is_built(postgres_url: str, outbox_dir: Path) -> None:
    class Manager(Limited):
        pass

    with started(postgres_url, outbox_dir, Manager) as here:
        here.manager.log_trade("before")
        assert here.relay.drain(timeout=LONG)
    Manager.away = True
    with started(postgres_url, outbox_dir, Manager) as here:
        with pytest.raises(ValueError, match="too much"):
            here.manager.log_trade("too much")
        here.manager.log_trade("enough")
        assert here.box.status().pending == 1


def test_answer_is_not_made_up_by_a_manager_that_is_not_built(postgres_url: str, outbox_dir: Path) -> None:
    """It swallows that it cannot be built, and a kill switch would read as not tripped."""

    class Manager(Absent):
        def count(self) -> int:
            try:
                with self.session_factory() as session:
                    return int(session.scalar(select(func.count()).select_from(Trade)) or 0)
            except Exception:  # noqa: BLE001 - as seen
                return 0

    operations = (*TRADING_OPERATIONS, ManagerRead("count", keep_last=True))
    with started(postgres_url, outbox_dir, Manager, operations) as here:
        here.manager.log_trade("before")
        assert here.relay.drain(timeout=LONG)
        assert here.manager.count() == 1
    Manager.away = True
    with started(postgres_url, outbox_dir, Manager, operations) as here:
        assert here.manager.count() == 1
        here.manager.log_trade("outage")
        with pytest.raises(UnknownLocally):
            here.manager.count()


class Observed(Absent):
    """Tells observers of its trades, and makes their list when it is connected."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._observers: list[Any] = []
        self._told = 0

    def subscribe(self, observer: Any, *, first: bool = False) -> None:
        self._observers.insert(0 if first else len(self._observers), observer)

    def observers(self) -> int:
        return len(self._observers)

    def log_trade(self, symbol: str, note: Any = None, session_id: int | None = None) -> int:
        made = super().log_trade(symbol, note, session_id)
        for observer in self._observers:
            observer(symbol)
        return made


@pytest.fixture
def observed() -> type[Observed]:
    class Manager(Observed):
        pass

    return Manager


def test_observer_of_an_unbuilt_manager_is_told_later(
    postgres_url: str, outbox_dir: Path, observed: type[Observed]
) -> None:
    """The engine's constructor ended with the error of the connection, so that it did not start in the outage."""
    told: list[str] = []
    with started(postgres_url, outbox_dir, observed) as here:
        here.manager.log_trade("before")
        assert here.relay.drain(timeout=LONG)
    observed.away = True
    with started(postgres_url, outbox_dir, observed) as here:
        here.manager.subscribe(lambda symbol: told.append(f"a {symbol}"))
        here.manager.subscribe(lambda symbol: told.append(f"b {symbol}"), first=True)
        with pytest.raises(TypeError):
            here.manager.subscribe()
        with pytest.raises(OperationalError):
            here.manager.observers()
        here.manager.log_trade("outage")
        observed.away = False
        assert here.relay.drain(timeout=LONG)
        assert told == ["b outage", "a outage"]
        assert here.manager.observers() == 2


def test_observer_may_come_before_the_outbox(postgres_url: str, outbox_dir: Path, observed: type[Observed]) -> None:
    observed.away = True
    manager: Any = DurableDatabaseManager.of(observed)(postgres_url)
    manager.subscribe(print)
    observed.away = False
    manager._host.forget_failure()
    assert manager.observers() == 1
    manager._host.built.engine.dispose()


class Stamping(Absent):
    """Shows in its answer when the call was made, and counts what it has of its class until then."""

    stamps = 0

    def stamp(self, reason: str) -> dict[str, Any]:
        self.stamps += 1
        now = datetime.now(UTC)
        with self.session_factory.begin() as session:
            session.add(Trade(symbol=reason, number=self.stamps))
        return {"reason": reason, "made_at": now}


def test_answer_of_an_outage_shows_when_its_call_was_made(postgres_url: str, tmp_path: Path) -> None:
    class Here(Stamping):
        """Of this test."""

    operations = (*TRADING_OPERATIONS, ManagerOperation("stamp"))
    with started(postgres_url, tmp_path / "outbox", Here, operations) as first:
        for number in range(5):
            first.manager.stamp(f"seen {number}")
            assert first.drain()
    Here.away = True
    with started(postgres_url, tmp_path / "outbox", Here, operations) as second:
        before = datetime.now(UTC)
        told = second.manager.stamp("away")
        assert before <= told["made_at"] <= datetime.now(UTC)
        assert told["reason"] == "away"
        Here.away = False
        assert second.drain()
