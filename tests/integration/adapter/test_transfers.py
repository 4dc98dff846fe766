"""A call that changes another session beside its own: the view answers neither by guess, and nothing is an alarm."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest
from sqlalchemy import update

from outbox.integrations.durable import TRADING_OPERATIONS, ManagerOperation
from outbox.integrations.roles import Balance as Role
from outbox.integrations.view.local_view import UnknownLocally

from .small import Balance, SmallManager, scene

OPERATIONS = (
    *TRADING_OPERATIONS,
    ManagerOperation("transfer", args={"to": "session_id"}, balance=Role.CHANGE, amount="amount"),
)


class TransferringManager(SmallManager):
    """Moves money between two sessions."""

    def transfer(self, to: int, amount: Decimal, *, source: int) -> None:
        with self.session_factory.begin() as session:
            for id_, change in ((source, -amount), (to, amount)):
                session.execute(update(Balance).where(Balance.session_id == id_).values(total=Balance.total + change))


def test_session_that_a_transfer_is_taken_from_is_not_guessed(postgres_url: str, outbox_dir: Path) -> None:
    with scene(postgres_url, outbox_dir, TransferringManager, OPERATIONS, write_behind=True, wait_s=0.02) as book:
        manager = book.manager
        first, second = (manager.create_trading_session("desk", Decimal(100)) for _ in range(2))
        assert book.drain()
        for _ in range(3):
            manager.transfer(second, Decimal(5), source=first)
            assert book.drain()
        manager._adapter.keeper._tend()
        assert [manager.get_current_balance(one) for one in (first, second)] == [85, 115]
        manager.transfer(second, Decimal(5), source=first)
        assert manager.get_current_balance(second) == 120
        with pytest.raises(UnknownLocally, match="transfer changes it beside its own session"):
            manager.get_current_balance(first)
        assert book.drain()
        manager._adapter.keeper._recovered()
        manager._adapter.keeper._tend()
        assert manager.get_current_balance(first) == 80
        assert not book.box.status().alarms
