"""Calls that have nothing to do, such as a sweep of expired orders, are no failures."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from sqlalchemy import String, delete, text, update
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.orm import Mapped, mapped_column

from outbox.integrations.durable import TRADING_OPERATIONS, ManagerOperation
from tests.unit.fakes.audit import query

from .small import Base, Order, SmallManager, scene


class Tag(Base):
    __tablename__ = "labels"
    name: Mapped[str] = mapped_column(String, primary_key=True)


class Sweeping(SmallManager):
    def sweep(self, status: str) -> None:
        with self.session_factory.begin() as session:
            session.execute(delete(Order).where(Order.status == status))

    def tag(self, name: str) -> None:
        """Twice is as good as once."""
        with self.session_factory() as session:
            session.add(Tag(name=name))
            try:
                session.commit()
            except IntegrityError:
                session.rollback()

    def sweep_quietly(self, status: str) -> None:
        try:
            with self.session_factory.begin() as session:
                session.execute(text("SELECT 1"))
                raise KeyError(status)
        except Exception:
            logging.getLogger(__name__).exception("not swept")


NAMES = ("sweep", "tag", "sweep_quietly")
OPERATIONS = (*TRADING_OPERATIONS, *(ManagerOperation(name) for name in NAMES))


def test_calls_with_nothing_to_do_hold_nothing_back(postgres_url: str, outbox_dir: Path) -> None:
    """In a trading session a dead letter would hold back all that follows."""
    with scene(postgres_url, outbox_dir, Sweeping, OPERATIONS) as here:
        session = here.manager.create_trading_session("ma", 1000)
        for name in ("a", "a"):
            here.manager.tag(name)
            here.manager.sweep("expired")
        here.manager.update_balance(900, "fee", session)
        assert here.drain()
        assert list(here.box.dead_letters()) == []
        assert here.rows("SELECT count(*) FROM account_balances") == [(2,)]
        assert here.rows("SELECT name FROM labels") == [("a",)]


def test_method_that_hides_its_errors_has_no_no_ops(postgres_url: str, outbox_dir: Path) -> None:
    with scene(postgres_url, outbox_dir, Sweeping, OPERATIONS) as here:
        here.manager.sweep_quietly("expired")
        assert here.drain()
        assert [entry.operation for entry in here.box.dead_letters()] == ["sweep_quietly"]


@pytest.mark.parametrize("name", ["sweep", "tag"])
def test_waiting_caller_gets_none_and_no_warning(
    name: str, postgres_url: str, outbox_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with scene(postgres_url, outbox_dir, Sweeping, OPERATIONS) as here:
        here.relay.start()
        for _ in range(2):
            assert getattr(here.manager, name)("a") is None
        assert here.drain()
    assert "refused" not in caplog.text


class Cancelling(SmallManager):
    """Its callers learn by the answer whether an order was open, or new."""

    def cancel(self, client_order_id: str) -> bool:
        with self.session_factory.begin() as session:
            found = update(Order).where(Order.client_order_id == client_order_id, Order.status == "open")
            return bool(session.execute(found.values(status="cancelled")).rowcount)  # type: ignore[attr-defined]

    def tag(self, name: str) -> bool:
        try:
            with self.session_factory.begin() as session:
                session.add(Tag(name=name))
        except IntegrityError:
            return False
        return True

    def close(self, client_order_id: str) -> bool:
        with self.session_factory() as session:
            if session.get(Tag, client_order_id) is None:
                raise LookupError(f"{client_order_id} is not open")
        return True

    def stumble(self, client_order_id: str) -> bool:
        with self.session_factory() as session:
            return bool(session.execute(text("SELECT 1")).all()[1])

    def cancel_with_more_tries(self, client_order_id: str) -> bool:
        for _ in range(3):
            try:
                return self.cancel(client_order_id)
            except OperationalError:
                continue
        return False

    def cancel_quietly(self, client_order_id: str) -> bool:
        try:
            return self.cancel(client_order_id)
        except Exception:  # noqa: BLE001 - as managers do
            return False


@pytest.mark.parametrize(
    ("method", "holds_back"),
    [
        ("cancel", False),
        ("cancel_with_more_tries", False),
        ("tag", True),
        ("close", True),
        ("stumble", True),
        ("cancel_quietly", True),
    ],
)
def test_declined_call_waits_for_an_operator_alone(
    method: str, holds_back: bool, postgres_url: str, outbox_dir: Path
) -> None:
    """Its caller was told True.  A plain engine would have gone on, unless the answer hides an error."""
    operations = (*TRADING_OPERATIONS, ManagerOperation(method, returns=True))
    with scene(postgres_url, outbox_dir, Cancelling, operations) as here:
        session = here.manager.create_trading_session("ma", 1000)
        for _ in range(2):
            assert getattr(here.manager, method)("C-1") is True
        here.manager.update_balance(900, "fee", session)
        here.relay.drain(timeout=5)
        dead = [entry.operation for entry in here.box.dead_letters()]
        assert dead == [method] * (1 if holds_back else 2)
        assert here.rows("SELECT count(*) FROM account_balances") == [(1 if holds_back else 2,)]


class Choosing(SmallManager):
    def create_trading_session(self, strategy_name: str, initial_balance: object) -> int:
        with self.session_factory() as session:
            session.execute(text("SELECT 1"))
        return False


class Sparing(SmallManager):
    def update_balance(self, new_balance: object, update_reason: str, session_id: int | None = None) -> bool:
        if self.get_current_balance(session_id) < 100:
            return False
        return super().update_balance(new_balance, update_reason, session_id)


def test_declined_balance_holds_back_the_next(postgres_url: str, outbox_dir: Path) -> None:
    """The engine has reckoned with it since."""
    with scene(postgres_url, outbox_dir, Sparing) as here:
        here.relay.start()
        session = here.manager.create_trading_session("ma", 1000)
        assert here.drain()
        here.relay.stop()
        for balance in (900, 800):
            here.manager.update_balance(balance, "fee", session)
        query(postgres_url, f"INSERT INTO account_balances (session_id, total) VALUES ({session}, 50)")
        here.relay.drain(timeout=5)
        assert [entry.operation for entry in here.box.dead_letters()] == ["update_balance"]
        assert here.box.status().pending == 1


def test_declined_call_that_gave_an_id_holds_back_what_uses_it(postgres_url: str, outbox_dir: Path) -> None:
    """Balances were written for a session that was never begun."""
    with scene(postgres_url, outbox_dir, Choosing) as here:
        session = here.manager.create_trading_session("ma", 1000)
        here.manager.update_balance(900, "fee", session)
        here.relay.drain(timeout=5)
        assert [entry.operation for entry in here.box.dead_letters()] == ["create_trading_session"]
        assert here.rows("SELECT * FROM account_balances") == []
