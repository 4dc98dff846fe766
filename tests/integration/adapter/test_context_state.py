"""A replay finds the context variables that its call has read, in the relay's thread and after a restart."""

from __future__ import annotations

import contextvars
import threading
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from outbox.integrations.state.context_state import noted

from .small import SmallManager, Trade, scene

tenant: ContextVar[str] = ContextVar("tenant")
user: ContextVar[str] = ContextVar("user", default="nobody")


def user_of_the_request() -> str:
    return user.get()


class Audited(SmallManager):
    def log_trade(self, symbol: str, note: Any = None, session_id: int | None = None) -> Any:
        with self.session_factory.begin() as session:
            trade = Trade(symbol=symbol, note=f"{tenant.get()} {user_of_the_request()}")
            session.add(trade)
            session.flush()
            return trade.id


def request(manager: Any, of_tenant: str, by: str, symbol: str) -> None:
    def serve() -> None:
        tenant.set(of_tenant)
        user.set(by)
        manager.log_trade(symbol)

    contextvars.copy_context().run(serve)


@pytest.mark.parametrize("write_behind", [False, True])
def test_context_variable_is_that_of_the_call(write_behind: bool, postgres_url: str, tmp_path: Path) -> None:
    with scene(postgres_url, tmp_path / "outbox", Audited, write_behind=write_behind) as made:
        if not write_behind:
            made.relay.start()
        made.manager.create_trading_session("s", 1000)
        request(made.manager, "first", "ann", "A")
        request(made.manager, "second", "ben", "B")
        with pytest.raises(LookupError):
            made.manager.log_trade("C")
        assert made.drain()
        assert made.rows("SELECT note FROM trades ORDER BY id") == [("first ann",), ("second ben",)]


def test_context_variable_of_a_call_outlives_a_restart(postgres_url: str, tmp_path: Path) -> None:
    with scene(postgres_url, tmp_path / "outbox", Audited, write_behind=True) as made:
        made.manager.create_trading_session("s", 1000)
        request(made.manager, "first", "ann", "A")
    with scene(postgres_url, tmp_path / "outbox", Audited, write_behind=True) as made:
        assert made.drain()
        assert made.rows("SELECT note FROM trades") == [("first ann",)]
        assert user.get() == "nobody"


@dataclass
class Person:
    name: str


@dataclass
class Account:
    name: str
    password: str


class Connected:
    """Holds what cannot be stored."""

    def __init__(self, name: str) -> None:
        self.name, self.lock = name, threading.Lock()


current: ContextVar[Any] = ContextVar("current", default=None)


class ByObject(SmallManager):
    def log_trade(self, symbol: str, note: Any = None, session_id: int | None = None) -> Any:
        by = current.get()
        with self.session_factory.begin() as session:
            trade = Trade(symbol=symbol, note="nobody" if by is None else by.name)
            session.add(trade)
            session.flush()
            return trade.id


USERS = [Person("ann"), Account("ann", "s3cret"), Connected("ann")]


@pytest.mark.parametrize("by", USERS, ids=["plain", "with a secret", "with a lock"])
@pytest.mark.parametrize("write_behind", [False, True])
def test_object_in_a_context_variable_is_that_of_the_call(
    by: Any, write_behind: bool, postgres_url: str, tmp_path: Path
) -> None:
    """The relay's thread found the default, and wrote that."""
    with scene(postgres_url, tmp_path / "outbox", ByObject, write_behind=write_behind) as made:
        if not write_behind:
            made.relay.start()
        token = current.set(by)
        made.manager.log_trade("A")
        current.reset(token)
        made.manager.log_trade("B")
        assert made.drain()
        assert made.rows("SELECT note FROM trades ORDER BY id") == [("ann",), ("nobody",)]


@pytest.mark.parametrize("by", USERS, ids=["plain", "with a secret", "with a lock"])
def test_object_in_a_context_variable_is_missed_after_a_restart(by: Any, postgres_url: str, tmp_path: Path) -> None:
    is_stored = isinstance(by, Person)
    with scene(postgres_url, tmp_path / "outbox", ByObject, write_behind=True) as made:
        token = current.set(by)
        made.manager.log_trade("A")
        current.reset(token)
    files = [one.read_bytes() for one in (tmp_path / "outbox").rglob("*") if one.is_file()]
    assert not any(b"s3cret" in one for one in files)
    with scene(postgres_url, tmp_path / "outbox", ByObject, write_behind=True) as made:
        assert made.drain()
        assert made.rows("SELECT note FROM trades") == [("ann" if is_stored else "nobody",)]
        assert made.box.alarms.sounds("lost-context-log_trade") is not is_stored


def test_values_of_delivered_calls_are_let_go(postgres_url: str, tmp_path: Path) -> None:
    with scene(postgres_url, tmp_path / "outbox", ByObject, write_behind=True) as made:
        token = current.set(Connected("ann"))
        contexts = made.manager._adapter.replayer.contexts
        for _ in range(3):
            for number in range(100):
                made.manager.log_trade(f"A{number}")
            assert made.drain()
        current.reset(token)
        assert len(contexts._held) < 300


class OfThread(threading.local):
    user = "nobody"


acting = OfThread()


class Acting(SmallManager):
    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._local = threading.local()

    def act_as(self, by: str) -> None:
        acting.user = by
        self._local.tenant, self._local.token = f"tenant of {by}", "s3cret"

    def log_trade(self, symbol: str, note: Any = None, session_id: int | None = None) -> Any:
        with self.session_factory.begin() as session:
            trade = Trade(symbol=symbol, note=f"{acting.user} {getattr(self._local, 'tenant', 'none')}")
            session.add(trade)
            session.flush()
            return trade.id


def act(manager: Any, by: str, symbol: str) -> None:
    def run() -> None:
        manager.act_as(by)
        manager.log_trade(symbol)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()


@pytest.mark.parametrize("write_behind", [False, True])
def test_thread_local_value_is_that_of_the_call(write_behind: bool, postgres_url: str, tmp_path: Path) -> None:
    with scene(postgres_url, tmp_path / "outbox", Acting, write_behind=write_behind) as made:
        if not write_behind:
            made.relay.start()
        made.manager.create_trading_session("s", 1000)
        act(made.manager, "ann", "A")
        act(made.manager, "ben", "B")
        made.manager.log_trade("C")
        assert made.drain()
        found = [("ann tenant of ann",), ("ben tenant of ben",), ("nobody none",)]
        assert made.rows("SELECT note FROM trades ORDER BY id") == found
        assert acting.user == "nobody"


def test_thread_local_value_of_a_call_outlives_a_restart(postgres_url: str, tmp_path: Path) -> None:
    with scene(postgres_url, tmp_path / "outbox", Acting, write_behind=True) as made:
        made.manager.create_trading_session("s", 1000)
        act(made.manager, "ann", "A")
    files = [one.read_bytes() for one in (tmp_path / "outbox").rglob("*") if one.is_file()]
    assert not any(b"s3cret" in one for one in files)
    with scene(postgres_url, tmp_path / "outbox", Acting, write_behind=True) as made:
        assert made.drain()
        assert made.rows("SELECT note FROM trades") == [("ann tenant of ann",)]


def test_thread_local_value_that_no_code_names_is_not_kept() -> None:
    manager = Acting.__new__(Acting)
    manager._local = threading.local()
    manager._local.tenant, manager._local.client = "ann", threading.Lock()
    found = noted(Acting, "log_trade", vars(manager), lambda _: False)
    assert (found.stored, found.held) == ({"self._local.tenant": "ann"}, {})


def test_call_that_is_not_recorded_keeps_no_value(postgres_url: str, tmp_path: Path) -> None:
    with scene(postgres_url, tmp_path / "outbox", ByObject, write_behind=True) as made:
        made.manager.create_trading_session("s", 1000)
        assert made.drain()
        made.manager.get_current_balance()
        token = current.set(Connected("ann"))
        with pytest.raises(ZeroDivisionError), made.manager.atomic_balance_update(1, "r"):
            made.manager.log_trade("A")
            raise ZeroDivisionError
        current.reset(token)
        assert made.manager._adapter.replayer.contexts._held == {}
