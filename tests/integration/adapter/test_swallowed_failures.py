"""What a manager answers after it has swallowed a failure of PostgreSQL is not taken for what PostgreSQL has."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from decimal import Decimal
from pathlib import Path
from typing import Any, ClassVar

import pytest
from sqlalchemy import create_engine, text, update
from sqlalchemy.exc import OperationalError, SQLAlchemyError
from sqlalchemy.orm import sessionmaker

from outbox import OutboxConfig
from outbox.integrations.durable import TRADING_OPERATIONS, ManagerOperation
from outbox.integrations.manager import away
from outbox.integrations.roles import Balance as Role
from outbox.testing import PostgresServer

from .locks import locked
from .small import Balance, Order, Scene, SmallManager, Trade, scene


class Quiet(SmallManager):
    """Its reads never raise and wait for no lock: they answer 0 and nothing."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        # Without a test of its connections, which would hide that one is lost.
        self.engine = create_engine("postgresql+psycopg2://" + url.partition("://")[2])
        self.session_factory = sessionmaker(bind=self.engine)

    def _found(self, session: Any, session_id: int | None) -> Decimal:
        try:
            with session.begin_nested():
                session.execute(text("SET LOCAL lock_timeout = '50ms'"))
                return self._balance(session, session_id or self._current_session_id)
        except SQLAlchemyError:
            return Decimal(0)

    def get_current_balance(self, session_id: int | None = None) -> Decimal:
        try:
            with self.session_factory() as session:
                return self._found(session, session_id)
        except SQLAlchemyError:
            return Decimal(0)

    def get_active_positions(self, session_id: int | None = None) -> list[Any]:
        self.get_current_balance(session_id)
        return []

    def change_balance(self, amount: Any, session_id: int | None = None) -> bool:
        with self.session_factory.begin() as session:
            old = self._found(session, session_id)
            if old + amount < 0:
                raise ValueError(f"{old} is too little")
            session.add(Balance(session_id=session_id or self._current_session_id, total=old + amount))
        return True

    @contextmanager
    def atomic_balance_update(
        self, balance_change: Any, reason: str, session_id: int | None = None, correlation_id: str | None = None
    ) -> Iterator[dict[str, Any]]:
        old = self.get_current_balance(session_id)
        if old + Decimal(balance_change) < 0:
            raise ValueError(f"{old} is too little")
        with self.session_factory.begin() as session:
            new = old + Decimal(balance_change)
            session.add(Balance(session_id=session_id or self._current_session_id, total=new))
            session.flush()
            yield {"old_balance": old, "new_balance": new}


def _traded(made: Scene) -> int:
    """A session whose balance is 950, all of it delivered and looked at."""
    session_id: int = made.manager.create_trading_session("s", 1000)
    made.manager.update_balance(Decimal(950), "trade")
    with made.manager.atomic_balance_update(Decimal(-1), "fee"):
        pass
    with made.manager.atomic_balance_update(Decimal(1), "refund"):
        pass
    assert made.drain()
    assert keeper(made).observe(session_id)
    assert balance(made) == 950
    return session_id


def keeper(made: Scene) -> Any:
    return made.manager._adapter.keeper


def balance(made: Scene) -> Any:
    return keeper(made).view.balance(made.manager._current_session_id)


def test_look_at_a_killed_server_leaves_the_balance(own_postgres: PostgresServer, tmp_path: Path) -> None:
    with scene(own_postgres.url(), tmp_path / "outbox", Quiet, write_behind=True) as made:
        session_id = _traded(made)
        # Its own look would meet the lost connection first.
        keeper(made).stop()
        own_postgres.kill()
        with pytest.raises(OperationalError, match="closed the connection"):
            keeper(made).observe(session_id)
        assert balance(made) == 950


def test_look_that_timed_out_leaves_the_balance(postgres_url: str, tmp_path: Path) -> None:
    with scene(postgres_url, tmp_path / "outbox", Quiet, write_behind=True) as made:
        session_id = _traded(made)
        with locked(postgres_url, "account_balances"), pytest.raises(OperationalError, match="lock timeout"):
            keeper(made).observe(session_id)
        assert balance(made) == 950


def test_block_is_not_told_a_balance_that_could_not_be_read(postgres_url: str, tmp_path: Path) -> None:
    with scene(postgres_url, tmp_path / "outbox", Quiet) as made:
        made.relay.start()
        _traded(made)
        lock = locked(postgres_url, "account_balances")
        with lock:
            block = made.manager.atomic_balance_update(Decimal(-3), "fee")
            told = block.__enter__()
        assert told == {"old_balance": Decimal(950), "new_balance": Decimal(947)}
        block.__exit__(None, None, None)
        assert made.manager.get_current_balance() == 947


def test_refusal_after_a_swallowed_failure_is_no_dead_letter(postgres_url: str, tmp_path: Path) -> None:
    changes = ManagerOperation("change_balance", balance=Role.CHANGE, amount="amount")
    with scene(postgres_url, tmp_path / "outbox", Quiet, (*TRADING_OPERATIONS, changes), write_behind=True) as made:
        _traded(made)
        made.manager.change_balance(Decimal(-50))
        with locked(postgres_url, "account_balances"):
            made.relay.step(0.0)
        assert made.box.status().dead_letters == 0
        assert made.drain()
        assert made.rows("SELECT total FROM account_balances ORDER BY id DESC LIMIT 1") == [(Decimal(900),)]


class Codes(SmallManager):
    """Its methods answer with a code or a dict, also for a failure, and raise nothing."""

    FAILED: ClassVar[Any] = -1

    def save_trade(self, symbol: str) -> Any:
        session = self.session_factory()
        try:
            session.execute(text("SET LOCAL lock_timeout = '50ms'"))
            session.add(Trade(symbol=symbol))
            session.commit()
        except SQLAlchemyError:
            session.rollback()
            return self.FAILED
        finally:
            session.close()
        return 0

    def fill_order(self, symbol: str) -> bool:
        """Write the trade, and then the order in a session of its own."""
        with self.session_factory.begin() as session:
            session.add(Trade(symbol=symbol))
        with suppress(SQLAlchemyError), self.session_factory.begin() as session:
            session.execute(text("SET LOCAL lock_timeout = '50ms'"))
            session.execute(update(Order).values(status="filled"))
        return True


class Texts(Codes):
    FAILED = "failed"


class Dicts(Codes):
    FAILED: ClassVar[Any] = {"ok": False}


CODES = (*TRADING_OPERATIONS, ManagerOperation("save_trade", returns=0), ManagerOperation("fill_order", returns=True))


@contextmanager
def restarted(
    url: str, directory: Path, manager_class: type, monkeypatch: pytest.MonkeyPatch, **settings: Any
) -> Iterator[Scene]:
    """A session, and a process in which PostgreSQL has answered no statement yet."""
    with scene(url, directory, manager_class, CODES, write_behind=True, **settings) as made:
        made.manager.create_trading_session("s", 1000)
        made.manager.create_order_journal_entry("c1")
        assert made.drain()
        monkeypatch.setattr(away, "_answered", set())
        yield made


@pytest.mark.parametrize("manager_class", [Codes, Dicts, Texts])
def test_code_for_a_timeout_is_no_success(
    manager_class: type, postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with restarted(postgres_url, tmp_path / "outbox", manager_class, monkeypatch) as made:
        made.manager.save_trade("BTC")
        with locked(postgres_url, "trades"):
            made.relay.step(0.0)
        assert made.box.status().pending == 1
        assert made.drain()
        assert made.rows("SELECT symbol FROM trades") == [("BTC",)]


@pytest.mark.parametrize("manager_class", [Codes, Dicts, Texts])
def test_code_for_a_missing_column_is_no_success(
    manager_class: type, postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with restarted(postgres_url, tmp_path / "outbox", manager_class, monkeypatch) as made:
        made.manager.save_trade("BTC")
        made.change("ALTER TABLE trades RENAME COLUMN symbol TO pair")
        made.relay.step(0.0)
        assert set(made.box.status().relay.parked) == {"save_trade"}
        made.change("ALTER TABLE trades RENAME COLUMN pair TO symbol")
        assert made.drain()
        assert made.rows("SELECT symbol FROM trades") == [("BTC",)]


def test_half_of_a_call_before_its_first_timeout_is_not_applied(
    postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with restarted(postgres_url, tmp_path / "outbox", Codes, monkeypatch) as made:
        made.manager.fill_order("BTC")
        with locked(postgres_url, "orders"):
            made.relay.step(0.0)
        assert made.rows("SELECT symbol FROM trades") == []
        assert made.drain()
        assert made.rows("SELECT symbol, status FROM trades, orders") == [("BTC", "filled")]


class Waiting(Codes):
    """A plain manager would wait for the lock."""

    LIMIT: ClassVar[str | None] = None

    def fill_order(self, symbol: str) -> bool:
        with self.session_factory.begin() as session:
            session.add(Trade(symbol=symbol))
        with suppress(SQLAlchemyError), self.session_factory.begin() as session:
            if self.LIMIT is not None:
                session.execute(text(f"SET LOCAL statement_timeout = '{self.LIMIT}'"))
            session.execute(update(Order).values(status="filled"))
        return True


class Limiting(Waiting):
    LIMIT = "50ms"


class LimitingAll(Waiting):
    def __init__(self, url: str) -> None:
        super().__init__(f"{url}?options=-cstatement_timeout%3D50")


def test_half_of_a_call_before_the_limit_of_the_relay_is_not_applied(
    postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The manager has no limit, and would have waited: it was taken for a statement that always takes too long."""
    config = OutboxConfig(stall_timeout=1.0)
    with restarted(postgres_url, tmp_path / "outbox", Waiting, monkeypatch, config=config) as made:
        made.manager.fill_order("BTC")
        with locked(postgres_url, "orders"):
            made.relay.step(0.0)
        assert made.rows("SELECT symbol FROM trades") == []
        assert made.drain()
        assert made.rows("SELECT symbol, status FROM trades, orders") == [("BTC", "filled")]


@pytest.mark.parametrize("manager_class", [Limiting, LimitingAll])
def test_statement_beyond_a_limit_of_the_manager_holds_nothing_up(
    manager_class: type, postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = OutboxConfig(stall_timeout=1.0)
    with restarted(postgres_url, tmp_path / "outbox", manager_class, monkeypatch, config=config) as made:
        made.manager.fill_order("BTC")
        with locked(postgres_url, "orders"):
            made.relay.step(0.0)
        assert made.box.status().pending == 0
        assert made.rows("SELECT symbol, status FROM trades, orders") == [("BTC", "pending_submit")]
