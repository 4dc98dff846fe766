"""A replay finds the attributes that its call has read as they were then, whoever has set them since."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import pytest

from outbox.testing import PostgresServer

from .small import SmallManager, Trade, scene


class Mode(Enum):
    PAPER = "paper"
    LIVE = "live"


class Tagged(SmallManager):
    """Writes what the engine has set, with each trade."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.run = "none"
        self.mode = Mode.PAPER
        self.venue = {"name": "none"}
        self.ready = True
        # What cannot be stored refuses no call.
        self.signal, self.limits, self.api_token = float("nan"), object(), "s3cret"

    def begin_run(self, run: str) -> None:
        self.run = run
        self.venue["name"] = run

    def log_trade(self, symbol: str, note: Any = None, session_id: int | None = None) -> Any:
        if not self.ready:
            return None
        note = f"{self.run} {self.mode.value} {self.venue['name']} {self.signal} {self.limits is None} {self._login()}"
        with self.session_factory.begin() as session:
            trade = Trade(symbol=symbol, note=note)
            session.add(trade)
            session.flush()
            return trade.id

    def _login(self) -> int:
        return len(self.api_token)


TAIL = "nan False 6"


def test_attribute_set_between_calls_is_that_of_each_call(postgres_url: str, tmp_path: Path) -> None:
    with scene(postgres_url, tmp_path / "outbox", Tagged, write_behind=True) as made:
        manager = made.manager
        manager.create_trading_session("s", 1000)
        manager.begin_run("first")
        manager.log_trade("A")
        manager.begin_run("second")
        manager.mode = Mode.LIVE
        manager.log_trade("B")
        manager.run = "third"
        assert made.drain()
        found = [(f"first paper first {TAIL}",), (f"second live second {TAIL}",)]
        assert made.rows("SELECT note FROM trades ORDER BY id") == found
        assert (manager.run, manager.mode, manager.venue) == ("third", Mode.LIVE, {"name": "second"})


def test_attribute_of_a_call_outlives_a_restart(postgres_url: str, tmp_path: Path) -> None:
    with scene(postgres_url, tmp_path / "outbox", Tagged, write_behind=True) as made:
        made.manager.create_trading_session("s", 1000)
        made.manager.begin_run("first")
        made.manager.log_trade("A")
    with scene(postgres_url, tmp_path / "outbox", Tagged, write_behind=True) as made:
        assert made.drain()
        assert made.rows("SELECT note FROM trades") == [(f"first paper first {TAIL}",)]
        assert made.manager.run == "none"


def test_secret_that_a_call_reads_is_not_stored(postgres_url: str, tmp_path: Path) -> None:
    with scene(postgres_url, tmp_path / "outbox", Tagged, write_behind=True) as made:
        made.manager.create_trading_session("s", 1000)
        made.manager.log_trade("A")
    files = [one.read_bytes() for one in (tmp_path / "outbox").rglob("*") if one.is_file()]
    assert any(b"paper" in one for one in files)
    assert not any(b"s3cret" in one for one in files)


def test_switch_that_an_outage_turns_later_refuses_no_replay(own_postgres: PostgresServer, tmp_path: Path) -> None:
    with scene(own_postgres.url(), tmp_path / "outbox", Tagged, write_behind=True) as made:
        made.manager.create_trading_session("s", 1000)
        assert made.drain()
        own_postgres.kill()
        made.manager.log_trade("A")
        made.manager.ready = False
        own_postgres.start()
        assert made.drain()
        assert made.rows("SELECT symbol FROM trades") == [("A",)]
        assert made.box.status().dead_letters == 0


@pytest.mark.parametrize("name", ["run", "mode"])
def test_deleted_attribute_is_there_in_the_replay(name: str, postgres_url: str, tmp_path: Path) -> None:
    with scene(postgres_url, tmp_path / "outbox", Tagged, write_behind=True) as made:
        made.manager.create_trading_session("s", 1000)
        made.manager.log_trade("A")
        delattr(made.manager, name)
        assert made.drain()
        assert made.rows("SELECT note FROM trades") == [(f"none paper none {TAIL}",)]


@dataclass
class Run:
    name: str
    mode: Mode = Mode.PAPER
    api_token: str = "s3cret"

    @property
    def label(self) -> str:
        return f"{self.name}/{self.mode.value}"


class Account:
    __slots__ = ("currency", "fills")

    def __init__(self, currency: str) -> None:
        self.currency, self.fills = currency, 0

    def filled(self) -> int:
        self.fills += 1
        return self.fills


class Holding(SmallManager):
    """Writes what objects hold that the engine has given it."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.run: Any = None
        self.account = Account("USD")
        self.counted = Account("none")

    def log_trade(self, symbol: str, note: Any = None, session_id: int | None = None) -> Any:
        with self.session_factory.begin() as session:
            trade = Trade(symbol=symbol, note=f"{self.run.name} {self.account.currency}")
            session.add(trade)
            session.flush()
            trade.number = self.counted.filled()
            return trade.id

    def log_event(self, message: str) -> None:
        with self.session_factory.begin() as session:
            session.add(Trade(symbol=self.run.label, note=message))


def test_object_set_between_calls_is_that_of_each_call(postgres_url: str, tmp_path: Path) -> None:
    with scene(postgres_url, tmp_path / "outbox", Holding, write_behind=True) as made:
        manager = made.manager
        manager.create_trading_session("s", 1000)
        manager.run = Run("first")
        manager.log_trade("A")
        manager.log_event("event")
        manager.run.name, manager.run.mode, manager.account.currency = "second", Mode.LIVE, "EUR"
        manager.log_trade("B")
        manager.run = Run("third")
        assert made.drain()
        found = [("A", "first USD", 1), ("B", "second EUR", 2), ("first/paper", "event", None)]
        assert made.rows("SELECT symbol, note, number FROM trades ORDER BY symbol") == found
        assert (manager.run, manager.account.currency, manager.counted.fills) == (Run("third"), "EUR", 2)


def test_object_of_a_call_outlives_a_restart(postgres_url: str, tmp_path: Path) -> None:
    with scene(postgres_url, tmp_path / "outbox", Holding, write_behind=True) as made:
        made.manager.create_trading_session("s", 1000)
        made.manager.run, made.manager.account.currency = Run("first"), "EUR"
        made.manager.log_trade("A")
    files = [one.read_bytes() for one in (tmp_path / "outbox").rglob("*") if one.is_file()]
    assert not any(b"s3cret" in one for one in files)
    with scene(postgres_url, tmp_path / "outbox", Holding, write_behind=True) as made:
        assert made.drain()
        assert made.rows("SELECT note FROM trades") == [("first EUR",)]
        assert (made.manager.run, made.manager.account.currency) == (None, "USD")


class Positive:
    """Keeps its value in the object, under a name that it makes."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.slot = f"_kept_{name}"

    def __get__(self, owner: Any, cls: Any = None) -> Any:
        return getattr(owner, self.slot, 1)

    def __set__(self, owner: Any, value: Any) -> None:
        setattr(owner, self.slot, value)


class Limited(SmallManager):
    limit = Positive()

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.limit = 2

    def log_trade(self, symbol: str, note: Any = None, session_id: int | None = None) -> Any:
        with self.session_factory.begin() as session:
            session.add(Trade(symbol=symbol, note=f"up to {self.limit}"))
        return 1


def test_value_of_a_descriptor_is_that_of_each_call(postgres_url: str, tmp_path: Path) -> None:
    with scene(postgres_url, tmp_path / "outbox", Limited, write_behind=True) as made:
        made.manager.log_trade("A")
        made.manager.limit = 3
        made.manager.log_trade("B")
        made.manager.limit = 4
        assert made.drain()
        assert made.rows("SELECT note FROM trades ORDER BY id") == [("up to 2",), ("up to 3",)]
        made.manager.log_trade("C")
    with scene(postgres_url, tmp_path / "outbox", Limited, write_behind=True) as made:
        assert made.drain()
        assert made.rows("SELECT note FROM trades ORDER BY id")[2:] == [("up to 4",)]
