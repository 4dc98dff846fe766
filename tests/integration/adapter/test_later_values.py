"""A call that is delivered with other values than it had sounds an alarm, whatever its method reads them from."""

from __future__ import annotations

import itertools
import os
import random
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, insert, text
from sqlalchemy.exc import OperationalError

from outbox import Outbox, PostgresTarget, Relay
from outbox.integrations.durable import DurableDatabaseManager
from outbox.integrations.manager.manager_connection import engine_of
from tests.unit.fakes.waiting import LONG, until

from .small import Scene, SmallManager, Trade, scene

ALARM = "diverged-values-log_trade"


class Settings:
    """What the engine's process is set to: nothing of a manager."""

    mode = "calm"


def _of_environment() -> str:
    return os.environ["ENGINE_MODE"]


def _closure() -> tuple[Callable[[], str], Callable[[str], None]]:
    mode = "calm"

    def get() -> str:
        return mode

    def put(value: str) -> None:
        nonlocal mode
        mode = value

    return get, put


CLOSED, close = _closure()
SOURCES: dict[str, Callable[[], str]] = {
    "environment": _of_environment,
    "class": lambda: Settings.mode,
    "closure": CLOSED,
}


def turn(mode: str) -> None:
    """The engine changes its mode."""
    os.environ["ENGINE_MODE"] = Settings.mode = mode
    close(mode)


class ByRow(SmallManager):
    """Reads what no attribute of it holds."""

    source = staticmethod(_of_environment)

    def log_trade(self, symbol: str, note: Any = None, session_id: int | None = None) -> int:
        with self.session_factory.begin() as session:
            trade = Trade(symbol=symbol, note=self.source())
            session.add(trade)
            session.flush()
            return trade.id


class ByInsert(ByRow):
    def log_trade(self, symbol: str, note: Any = None, session_id: int | None = None) -> int:
        with self.session_factory.begin() as session:
            made = session.execute(insert(Trade).values(symbol=symbol, note=self.source()).returning(Trade.id))
            return int(made.scalar_one())


class ByText(ByRow):
    def log_trade(self, symbol: str, note: Any = None, session_id: int | None = None) -> None:  # type: ignore[override]
        with self.session_factory.begin() as session:
            statement = text("INSERT INTO trades (symbol, note) VALUES (:symbol, :note)")
            session.execute(statement, {"symbol": symbol, "note": self.source()})


@pytest.fixture(autouse=True)
def calm(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("ENGINE_MODE", "calm")
    turn("calm")
    yield
    turn("calm")


def known(made: Scene) -> None:
    """Let deliveries that follow at once show which values are equal."""
    for number in range(25):
        made.manager.log_trade(f"known {number}")
        assert made.drain()
    assert made.box.status().alarms == {}


@pytest.mark.parametrize("kind", [ByRow, ByInsert, ByText])
@pytest.mark.parametrize("source", SOURCES)
def test_value_changed_before_the_delivery_is_reported(
    postgres_url: str, tmp_path: Path, kind: type[ByRow], source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kind, "source", staticmethod(SOURCES[source]))
    with scene(postgres_url, tmp_path / "outbox", kind, write_behind=True) as made:
        known(made)
        made.manager.log_trade("late")
    turn("wild")
    with scene(postgres_url, tmp_path / "outbox", kind, write_behind=True) as made:
        assert made.drain()
        assert list(made.box.status().alarms) == [ALARM]
        assert f"another {'trades.note' if kind is not ByText else ':note'} " in made.box.status().alarms[ALARM]


class Sound(SmallManager):
    """Its values are those of the call, or made anew by each run."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.count = 0
        self.mode = "calm"

    def log_trade(self, symbol: str, note: Any = None, session_id: int | None = None) -> int:
        self.count += 1
        with self.session_factory.begin() as session:
            trade = Trade(symbol=self.value(symbol, note), note=self.mode, number=self.count)
            session.add(trade)
            session.flush()
            self.took(trade.id)
            return trade.id

    def value(self, symbol: str, note: Any) -> str:
        return symbol

    def took(self, trade: int) -> None:
        """The row has its id."""


class Random(Sound):
    def value(self, symbol: str, note: Any) -> str:
        return f"{uuid.uuid4()} {random.random()}"


class Times(Sound):
    def value(self, symbol: str, note: Any) -> str:
        return f"{datetime.now(UTC)} {int(time.time())} {datetime.now(UTC).replace(microsecond=0)}"


class Arguments(Sound):
    def value(self, symbol: str, note: Any) -> str:
        return f"{symbol} {note['b']} {list(note)} {note['at']:%H:%M}"


class Kinds(Sound):
    def value(self, symbol: str, note: Any) -> str:
        return f"{type(self).__name__} {self.__class__.__qualname__} {isinstance(self, SmallManager)}"


class LastId(Sound):
    """Each row shows the id of the row before it, which an outage knows only when that is delivered."""

    last = 0

    def value(self, symbol: str, note: Any) -> str:
        return str(self.last)

    def took(self, trade: int) -> None:
        self.last = trade


class Tags(Sound):
    """A set has no order, and has another one when it comes out of the store."""

    def value(self, symbol: str, note: Any) -> str:
        return f"{','.join(note['tags'])} {set(note['tags'])}"


class Stamped(Sound):
    """Has a listener that runs in a delivery only: a rehearsal sends nothing."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        event.listen(self.session_factory, "before_flush", _stamp)


def _stamp(session: Any, *_: Any) -> None:
    for row in session.new:
        row.symbol = "stamped"


class Locking(Sound):
    """Turns to the database by a method that sends nothing, and goes on with its row, as the next one."""

    def log_trade(self, symbol: str, note: Any = None, session_id: int | None = None) -> int:
        with self.session_factory.begin() as session:
            trade = Trade(symbol="pending")
            session.add(trade)
            connection = session.connection()
            trade.symbol = symbol
            connection.execute(text("SELECT pg_advisory_xact_lock(7)"))
            session.flush()
            return trade.id


class Counting(Sound):
    def log_trade(self, symbol: str, note: Any = None, session_id: int | None = None) -> int:
        with self.session_factory.begin() as session:
            trade = Trade(symbol="pending")
            session.add(trade)
            earlier = session.query(Trade)
            trade.symbol = symbol
            earlier.count()
            return trade.id


@pytest.mark.parametrize("kind", [Random, Times, Arguments, Kinds, LastId, Tags, Stamped, Locking, Counting])
def test_sound_values_raise_no_alarm_behind_an_outage(postgres_url: str, tmp_path: Path, kind: type[Sound]) -> None:
    tags = {"alpha", "beta", "gamma", "delta", "x", "y", "zz"}
    note = {"b": 1.5, "a": [1, 2], "at": datetime(2026, 1, 2, 3, 4, tzinfo=UTC), "tags": tags}
    with scene(postgres_url, tmp_path / "outbox", kind, write_behind=True) as made:
        for _ in range(25):
            made.manager.log_trade("known", note)
            assert made.drain()
        for number in range(10):
            made.manager.mode = f"mode {number}"
            made.manager.log_trade(f"late {number}", note)
    with scene(postgres_url, tmp_path / "outbox", kind, write_behind=True) as made:
        made.manager.log_trade("new", note)
        assert made.drain()
        assert made.box.status().alarms == {}


class Labelled(SmallManager):
    label = "none"
    reaches = True

    def __init__(self, url: str) -> None:
        if not self.reaches:
            raise OperationalError("connect", None, Exception("refused"))
        super().__init__(url)
        self.label = "main"

    def log_trade(self, symbol: str, note: Any = None, session_id: int | None = None) -> None:  # type: ignore[override]
        with self.session_factory.begin() as session:
            session.add(Trade(symbol=symbol, note=self.label))


def test_attribute_of_a_manager_built_later_is_no_other_value(
    postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with scene(postgres_url, tmp_path / "outbox", Labelled, write_behind=True) as made:
        known(made)
    with Outbox.open(tmp_path / "outbox") as box:
        monkeypatch.setattr(Labelled, "reaches", False)
        manager: Any = DurableDatabaseManager(partial(Labelled, postgres_url), box, write_behind=True)
        try:
            manager.log_trade("late")
            monkeypatch.setattr(Labelled, "reaches", True)
            relay = Relay(box, PostgresTarget(postgres_url, manager.outbox_operations))
            monkeypatch.setattr("outbox.integrations.replay.replay.AT_ONCE", timedelta(0))
            assert relay.drain(timeout=LONG)
            relay.stop()
            assert box.status().alarms == {}
        finally:
            manager.detach_outbox()
            engine_of(manager._host.built).dispose()


class OfThread(Sound):
    def value(self, symbol: str, note: Any) -> str:
        return threading.current_thread().name


def test_value_of_the_delivering_thread_is_reported_once(postgres_url: str, tmp_path: Path) -> None:
    with scene(postgres_url, tmp_path / "outbox", OfThread, write_behind=True) as made:
        made.relay.start()
        for number in itertools.count():
            made.manager.log_trade(f"trade {number}")
            if made.box.alarms.sounds(ALARM):
                break
            assert number < 1000
        until(lambda: not made.box.status().pending)
        assert "another trades.symbol" in made.box.status().alarms[ALARM]
        made.box.alarms.acknowledge(ALARM)
        for number in range(30):
            made.manager.log_trade(f"later {number}")
        until(lambda: not made.box.status().pending)
        assert made.box.status().alarms == {}
        assert {row[0] for row in made.rows("SELECT symbol FROM trades")} != {"MainThread"}
