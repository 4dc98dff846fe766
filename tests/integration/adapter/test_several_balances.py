"""A manager that keeps several balances and shows one of them: no payment in another is taken for one in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, text

from outbox.integrations.view.local_view import UnknownLocally
from tests.unit.fakes.waiting import until

from .small import Balance, SmallManager, scene


class CurrencyManager(SmallManager):
    """The currency of a balance is a column; dollars are shown."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        with self.engine.begin() as connection:
            connection.execute(
                text("ALTER TABLE account_balances ADD COLUMN IF NOT EXISTS currency text DEFAULT 'USD'")
            )

    def _balance(self, session: Any, session_id: int | None, currency: str = "USD") -> Decimal:
        of = (Balance.session_id == session_id) & (text("currency = :currency").bindparams(currency=currency))
        found = session.scalar(select(Balance.total).where(of).order_by(Balance.id.desc()).limit(1))
        return Decimal(0) if found is None else found

    @contextmanager
    def atomic_balance_update(  # type: ignore[override]
        self, balance_change: Any, reason: str, session_id: int | None = None, currency: str = "USD"
    ) -> Iterator[dict[str, Any]]:
        session_id = session_id or self._current_session_id
        with self.session_factory() as session:
            old = self._balance(session, session_id, currency)
            session.add(row := Balance(session_id=session_id, total=old + balance_change))
            session.flush()
            session.execute(
                text("UPDATE account_balances SET currency = :to WHERE id = :id"), {"to": currency, "id": row.id}
            )
            yield {"old_balance": old, "new_balance": old + balance_change}
            session.commit()


def test_payment_in_another_currency_is_no_change_of_the_balance(postgres_url: str, outbox_dir: Path) -> None:
    with scene(postgres_url, outbox_dir, CurrencyManager, write_behind=True, wait_s=0.02) as book:
        manager = book.manager

        def pay(amount: int, currency: str = "USD") -> Any:
            with manager.atomic_balance_update(Decimal(amount), "pay", currency=currency) as told:
                return told

        manager.create_trading_session("desk", Decimal(100))
        # Euros are paid when payments are sure to be understood.
        for currency in ["USD"] * 5 + ["EUR"] + ["USD"] * 5:
            pay(10, currency)
            assert book.drain()
        until(lambda: manager._adapter.view.is_sure(manager._adapter.sessions.current))
        assert pay(1) == {"old_balance": Decimal(200), "new_balance": Decimal(201)}
        assert manager.get_current_balance() == 201
        with pytest.raises(UnknownLocally):
            pay(7, "EUR")["new_balance"]
        with pytest.raises(UnknownLocally):
            manager.get_current_balance()
        assert book.drain()
        assert manager.get_current_balance() == 201
        assert not book.box.status().alarms
