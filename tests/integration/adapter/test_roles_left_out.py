"""A declared method without a role may change what an outage answers all the same."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from outbox.integrations.durable import TRADING_OPERATIONS, ManagerOperation
from outbox.integrations.view.local_view import UnknownLocally

from .small import Balance, Scene, SmallManager, Trade, scene
from .test_thresholds import BookManager, Order

FEES = (*TRADING_OPERATIONS, *map(ManagerOperation, ("charge", "note", "audit")))
SWEEPS = (*TRADING_OPERATIONS, ManagerOperation("sweep"))


class FeeManager(SmallManager):
    def charge(self, fee: Any) -> None:
        with self.session_factory.begin() as session:
            left = self._balance(session, self._current_session_id) - fee
            session.add(Balance(session_id=self._current_session_id, total=left))

    def note(self, text: str) -> None:
        with self.session_factory.begin() as session:
            session.add(Trade(symbol="note", note=text))

    def audit(self) -> None:
        """Reads the balance only."""
        with self.session_factory.begin() as session:
            session.add(Trade(symbol=str(self._balance(session, self._current_session_id))))


class SweepManager(BookManager):
    def sweep(self) -> None:
        """Ends every order."""
        with self.session_factory.begin() as session:
            session.execute(update(Order).values(filled=Order.quantity))


@pytest.fixture
def fees(postgres_url: str, tmp_path: Path) -> Iterator[Scene]:
    with scene(postgres_url, tmp_path / "outbox", FeeManager, FEES, write_behind=True, wait_s=0.02) as made:
        made.manager.create_trading_session("s", Decimal(100))
        made.manager.update_balance(Decimal(90), "x")
        assert made.drain()
        assert made.manager.get_current_balance() == 90
        yield made


@pytest.mark.parametrize("was_seen", [False, True])
def test_balance_behind_a_fee_without_a_role_is_not_answered(fees: Scene, was_seen: bool) -> None:
    if was_seen:
        fees.manager.charge(Decimal(5))
        assert fees.drain()
        assert fees.manager.get_current_balance() == 85
    fees.manager.charge(Decimal(7))
    with pytest.raises(UnknownLocally, match="charge"):
        fees.manager.get_current_balance()
    assert fees.drain()
    assert fees.manager.get_current_balance() == (78 if was_seen else 83)


def test_balance_behind_writes_elsewhere_is_answered(fees: Scene) -> None:
    fees.manager.audit()
    assert fees.drain()
    fees.manager.note("another table")
    fees.manager.audit()
    assert fees.manager.get_current_balance() == 90


def test_orders_behind_a_sweep_without_a_role_are_not_answered(postgres_url: str, tmp_path: Path) -> None:
    with scene(postgres_url, tmp_path / "outbox", SweepManager, SWEEPS, write_behind=True, wait_s=0.02) as made:
        manager = made.manager
        session = manager.create_trading_session()
        for name in ("a", "b"):
            manager.create_order_journal_entry(name, Decimal(1))
            assert made.drain()
        assert len(manager.get_unresolved_orders(session)) == 2
        manager.sweep()
        assert made.drain()
        assert manager.get_unresolved_orders(session) == []
        manager.create_order_journal_entry("c", Decimal(1))
        assert made.drain()
        manager.sweep()
        with pytest.raises(UnknownLocally, match="sweep changes them"):
            manager.get_unresolved_orders(session)
        assert made.drain()
        assert manager.get_unresolved_orders(session) == []
        assert not made.box.status().alarms
