"""A manager that replaces its engine while it runs, or lets go of it in an outage, is watched and served as before."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text, update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import sessionmaker

from outbox.integrations.durable import TRADING_OPERATIONS, ManagerRead, NotCaughtUp
from outbox.testing import PostgresServer

from .small import Scene, SmallManager, Trade, scene


class Reconnecting(SmallManager):
    """Makes another engine when it is told to, and lets go of its own where PostgreSQL does not answer."""

    def reconnect(self) -> None:
        old = self.engine
        self.engine = create_engine(old.url)
        self.session_factory = sessionmaker(bind=self.engine)
        old.dispose()

    def check(self) -> bool:
        url = self.url
        try:
            engine: Any = create_engine(url)
            with engine.connect() as connection:
                connection.execute(text("SELECT 1"))
            factory: Any = sessionmaker(bind=engine)
        except SQLAlchemyError:
            engine = factory = None
        self.engine, self.session_factory = engine, factory
        return engine is not None

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.url = self.engine.url

    def log_trade(self, symbol: str, note: Any = None, session_id: int | None = None) -> Any:
        return None if self.session_factory is None else super().log_trade(symbol, note, session_id)

    def count_trades(self) -> int:
        return 0 if self.session_factory is None else super().count_trades()

    def close_all(self) -> int:
        with self.session_factory.begin() as session:
            done = session.execute(update(Trade).values(symbol="closed"))
            return int(done.rowcount)  # type: ignore[attr-defined]


READS = (*TRADING_OPERATIONS, ManagerRead("count_trades", keep_last=True))


@contextmanager
def traded(url: str, directory: Path, operations: Any = TRADING_OPERATIONS) -> Iterator[Scene]:
    with scene(url, directory, Reconnecting, operations, write_behind=True, wait_s=0.2) as made:
        made.manager.create_trading_session("s", 1000)
        made.manager.log_trade("A")
        assert made.drain()
        yield made


@pytest.mark.parametrize("by", ["durable", "plain"])
def test_write_by_a_new_engine_does_not_overtake(by: str, postgres_url: str, tmp_path: Path) -> None:
    """`plain`: a thread that the manager began in its constructor reconnects, and knows of no durable manager."""
    with traded(postgres_url, tmp_path / "outbox") as made:
        manager = made.manager if by == "durable" else made.manager._host.built
        manager.reconnect()
        made.manager.log_trade("B")
        with pytest.raises(NotCaughtUp):
            made.manager.count_trades()
        with pytest.raises(NotCaughtUp):
            manager.close_all()
        assert made.drain()
        assert made.manager.close_all() == 2


def test_engines_of_many_reconnects_are_let_go(postgres_url: str, tmp_path: Path) -> None:
    with traded(postgres_url, tmp_path / "outbox") as made:
        made.manager.reconnect()
        assert made.manager.count_trades() == 1
        old = weakref.ref(made.manager.engine)
        made.manager.reconnect()
        made.manager.log_trade("B")
        assert made.drain()
        assert made.manager.count_trades() == 2
        gc.collect()
        assert old() is None


def test_calls_of_a_manager_that_let_go_are_recorded(own_postgres: PostgresServer, tmp_path: Path) -> None:
    with traded(own_postgres.url(), tmp_path / "outbox") as made:
        own_postgres.kill()
        made.relay.step(0.0)
        assert not made.manager.check()
        assert made.manager.session_factory is None
        assert made.manager.log_trade("B") == 2
        own_postgres.start()
        # It has not looked since.
        assert made.drain()
        assert made.manager.check()
        assert made.manager.log_trade("C") == 3
        assert made.drain()
        assert made.rows("SELECT symbol FROM trades ORDER BY id") == [("A",), ("B",), ("C",)]


def test_answer_of_a_manager_that_let_go_is_not_kept(own_postgres: PostgresServer, tmp_path: Path) -> None:
    with traded(own_postgres.url(), tmp_path / "outbox", READS) as made:
        assert made.manager.count_trades() == 1
        own_postgres.kill()
        made.relay.step(0.0)
        assert not made.manager.check()
        assert made.manager.count_trades() == 1
        assert made.manager.get_current_balance() == 1000
        own_postgres.start()
        assert made.manager.check()
