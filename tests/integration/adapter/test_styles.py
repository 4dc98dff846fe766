"""Sound managers of uncommon styles are served as common ones are."""

from __future__ import annotations

import functools
import threading
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import sessionmaker

from outbox import Outbox, PostgresTarget, Relay
from outbox.integrations.durable import TRADING_OPERATIONS, DurableDatabaseManager, ManagerOperation, ManagerRead
from outbox.testing import PostgresServer

from .small import SmallManager, Trade, scene


class Single(SmallManager):
    """Makes one object of itself, with a lock in a slot."""

    __slots__ = ("__lock",)
    _only: Any = None

    def __new__(cls, *_: Any) -> Single:
        if cls._only is None:
            cls._only = super().__new__(cls)
        made: Single = cls._only
        return made

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.__lock = threading.Lock()

    def log_trade(self, symbol: str, note: Any = None, session_id: int | None = None) -> int:
        with self.__lock:
            return super().log_trade(symbol, note)


class Lazy(SmallManager):
    """Makes its session factory when it is asked for."""

    def __init__(self, url: str) -> None:
        self._sessions: Any = None
        super().__init__(url)
        self._sessions = None

    @property
    def session_factory(self) -> Any:
        if self._sessions is None:
            self._sessions = sessionmaker(bind=self.engine)
        return self._sessions

    @session_factory.setter
    def session_factory(self, value: Any) -> None:
        self._sessions = value


@pytest.mark.parametrize("manager_class", [Single, Lazy])
def test_manager_of_an_uncommon_style_is_served(manager_class: Any, postgres_url: str, tmp_path: Path) -> None:
    with scene(postgres_url, tmp_path / "outbox", manager_class) as here:
        here.manager.create_trading_session("ma", 100)
        here.manager.log_trade("queued")
        assert here.drain()
        here.relay.start()
        here.manager.log_trade("answered")
        assert here.rows("SELECT symbol FROM trades ORDER BY id") == [("queued",), ("answered",)]
        assert here.manager.count_trades() == 2


class Closing(SmallManager):
    """Closes a position by a method of the name with which others end themselves."""

    def close(self, note: str) -> bool:
        with self.session_factory.begin() as session:
            session.add(Trade(symbol="closed", note=note))
        return True


def test_declared_method_named_close_is_recorded(postgres_url: str, tmp_path: Path) -> None:
    operations = (*TRADING_OPERATIONS, ManagerOperation("close", returns=True))
    with scene(postgres_url, tmp_path / "outbox", Closing, operations) as here:
        assert here.manager.close("a") is True
        assert [entry.operation for entry in here.box.pending()] == ["close"]
        assert here.drain()
        assert here.rows("SELECT symbol, note FROM trades") == [("closed", "a")]


class Cached:
    """A decorator that is an object."""

    def __init__(self, function: Any) -> None:
        functools.update_wrapper(self, function)
        self.function = function

    def __get__(self, manager: Any, _: Any = None) -> Any:
        return self if manager is None else functools.partial(self.function, manager)

    def __call__(self, *args: Any) -> Any:
        return self.function(*args)


class Caching(SmallManager):
    """Has objects in the place of methods."""

    get_current_balance = Cached(SmallManager.get_current_balance)
    symbol_of = functools.lru_cache(lambda self, id_: self.symbol(id_))

    def symbol(self, id_: int) -> Any:
        with self.session_factory() as session:
            return session.scalar(select(Trade.symbol).where(Trade.id == id_))


def test_reads_that_are_no_functions_are_answered_in_an_outage(own_postgres: PostgresServer, tmp_path: Path) -> None:
    url = own_postgres.url()
    operations: tuple[Any, ...] = (*TRADING_OPERATIONS, ManagerRead("symbol_of", keep_last=True))
    factory: Any = functools.partial(Caching, url)
    with scene(url, tmp_path / "outbox", Caching, operations) as here:
        here.relay.start()
        session = here.manager.create_trading_session("ma", 100)
        trade = here.manager.log_trade("A")
        assert here.drain()
        assert here.manager.symbol_of(trade) == "A"
        here.manager.update_balance(Decimal(90), "x")
        assert here.drain()
        assert here.manager.get_current_balance(session) == 90
    own_postgres.kill()
    with Outbox.open(tmp_path / "outbox") as box:
        manager: Any = DurableDatabaseManager(factory, box, operations)
        with Relay(box, PostgresTarget(url, manager.outbox_operations)):
            assert manager.symbol_of(trade) == "A"
            assert manager.get_current_balance(session) == 90
        manager.detach_outbox()


class Partial(SmallManager):
    """Has methods that give another one some of its arguments."""

    def _put(self, symbol: str, note: str) -> None:
        with self.session_factory.begin() as session:
            session.add(Trade(symbol=symbol, note=note))

    put_fee = functools.partialmethod(_put, "fee")
    _put_fill = functools.partialmethod(_put, "fill")


@pytest.mark.parametrize("name", ["put_fee", "_put_fill"])
def test_declared_partial_method_is_recorded(postgres_url: str, tmp_path: Path, name: str) -> None:
    with scene(postgres_url, tmp_path / "outbox", Partial, (*TRADING_OPERATIONS, ManagerOperation(name))) as here:
        getattr(here.manager, name)("a")
        assert [entry.operation for entry in here.box.pending()] == [name]
        assert here.drain()
        assert here.rows("SELECT symbol, note FROM trades") == [(name.rpartition("_")[2], "a")]
