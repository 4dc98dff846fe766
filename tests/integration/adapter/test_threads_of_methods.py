"""What a method leaves to another thread is part of its call, or is refused: a replay would lose it in silence."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from outbox import ConfigError
from tests.unit.fakes.waiting import LONG, until

from .small import Order, Scene, SmallManager, Trade, scene


class Pooled(SmallManager):
    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.pool = ThreadPoolExecutor(2)
        self.left: list[Future[Any]] = []

    def _trade(self, symbol: str) -> int:
        with self.session_factory.begin() as session:
            trade = Trade(symbol=symbol)
            session.add(trade)
            session.flush()
            return trade.id

    def _order(self, symbol: str) -> None:
        with self.session_factory.begin() as session:
            session.add(Order(client_order_id=symbol, status="side"))


class Leaving(Pooled):
    def log_trade(self, symbol: str, note: Any = None, session_id: int | None = None) -> int:
        made = self._trade(symbol)
        self.pool.submit(self._order, symbol)
        return made


class LeavingAThread(Pooled):
    def log_trade(self, symbol: str, note: Any = None, session_id: int | None = None) -> int:
        threading.Thread(target=lambda: self._order(symbol)).start()
        return self._trade(symbol)


@pytest.mark.parametrize("manager_class", [Leaving, LeavingAThread])
def test_write_left_to_another_thread_is_refused_at_wiring(
    manager_class: Any, postgres_url: str, tmp_path: Path
) -> None:
    refused = pytest.raises(ConfigError, match="leaves self._order to another thread")
    with refused, scene(postgres_url, tmp_path / "outbox", manager_class):
        pass


class Waiting(Pooled):
    """A time limit for the write, as seen."""

    def log_trade(self, symbol: str, note: Any = None, session_id: int | None = None) -> int:
        made: int = self.pool.submit(self._trade, symbol).result(timeout=LONG)
        self.pool.submit(self._order, symbol).result(timeout=LONG)
        return made


def test_write_of_a_thread_that_is_waited_for_is_delivered(postgres_url: str, tmp_path: Path) -> None:
    with scene(postgres_url, tmp_path / "outbox", Waiting) as made:
        made.relay.start()
        assert [made.manager.log_trade(symbol) for symbol in "ABC"] == [1, 2, 3]
        assert made.rows("SELECT symbol FROM trades ORDER BY id") == [("A",), ("B",), ("C",)]
        assert made.rows("SELECT client_order_id FROM orders ORDER BY id") == [("A",), ("B",), ("C",)]


class Hiding(Pooled):
    """The check cannot see what it leaves to which thread."""

    def log_trade(self, symbol: str, note: Any = None, session_id: int | None = None) -> int:
        made = self._trade(symbol)
        self.left.append(hand_over(self.pool, self, symbol))
        return made

    def _order(self, symbol: str) -> None:
        # Behind the end of the replay.
        threading.Event().wait(0.2)
        super()._order(symbol)


def hand_over(pool: ThreadPoolExecutor, manager: Any, symbol: str) -> Future[Any]:
    return pool.submit(manager._order, symbol)


class AtOnce(Pooled):
    def log_trade(self, symbol: str, note: Any = None, session_id: int | None = None) -> int:
        with self.session_factory.begin() as session:
            session.add(Trade(symbol=symbol))
            session.flush()
            self.pool.submit(self._order, symbol).result(timeout=LONG)
            return 0


def parked(made: Scene) -> str:
    relay = made.box.status().relay
    return str(relay.parked)


def test_write_behind_the_end_of_a_replay_parks_the_operation(postgres_url: str, tmp_path: Path) -> None:
    with scene(postgres_url, tmp_path / "outbox", Hiding, wait_s=1.0, write_behind=True) as made:
        made.relay.start()
        made.manager.log_trade("A")
        until(lambda: made.box.alarms.sounds("lost-thread-log_trade"))
        made.manager.log_trade("B")
        until(lambda: "log_trade" in parked(made))
        assert made.rows("SELECT symbol FROM trades") == [("A",)]


def test_writes_in_two_threads_at_once_park_the_operation(postgres_url: str, tmp_path: Path) -> None:
    with scene(postgres_url, tmp_path / "outbox", AtOnce, wait_s=1.0, write_behind=True) as made:
        made.relay.start()
        made.manager.log_trade("A")
        until(lambda: "log_trade" in parked(made))
        assert made.rows("SELECT symbol FROM trades") == []
