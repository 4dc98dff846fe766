"""Rows that calls of a balance block have made past the ORM: a read behind them shows the ids that the caller got."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert, select, text

from .small import Order, SmallManager, scene

_orders: Any = Order.__table__


class ByText(SmallManager):
    def create_order_journal_entry(self, client_order_id: str, order_type: str = "entry") -> int:
        made = text("INSERT INTO orders (client_order_id, status) VALUES (:ref, 'pending_submit') RETURNING id")
        with self.session_factory.begin() as session:
            return int(session.execute(made, {"ref": client_order_id}).scalar_one())

    def get_unresolved_orders(self, session_id: int | None = None) -> list[dict[str, Any]]:
        with self.session_factory() as session:
            rows = session.scalars(select(Order).order_by(Order.id))
            return [{"id": row.id, "client_order_id": row.client_order_id} for row in rows]


class ByCore(ByText):
    def create_order_journal_entry(self, client_order_id: str, order_type: str = "entry") -> int:
        with self.session_factory.begin() as session:
            made = insert(_orders).values(client_order_id=client_order_id, status="pending_submit")
            return int(session.execute(made.returning(_orders.c.id)).scalar_one())


@pytest.mark.parametrize("kind", [ByText, ByCore])
def test_order_that_a_block_made_is_shown_with_its_id(postgres_url: str, tmp_path: Path, kind: Any) -> None:
    with scene(postgres_url, tmp_path / "outbox", kind) as made:
        made.relay.start()
        manager = made.manager
        manager.create_trading_session("s", 100)
        manager.create_order_journal_entry("o-0")
        with manager.atomic_balance_update(1, "fee"):
            ids = [manager.create_order_journal_entry(f"o-{number}") for number in (1, 2)]
            inside = manager.get_unresolved_orders()
        assert [row["id"] for row in inside[1:]] == ids
        assert manager.get_unresolved_orders() == inside
