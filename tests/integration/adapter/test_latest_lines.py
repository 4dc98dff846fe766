"""A balance is the latest line of a table that stamps its lines itself, by a default that reads the clock."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

from sqlalchemy import text

from .small import SmallManager, scene


class Ledger(SmallManager):
    def __init__(self, url: str) -> None:
        super().__init__(url)
        with self.engine.begin() as connection:
            connection.execute(
                text("CREATE TABLE IF NOT EXISTS ledger (session_id int, total numeric, at timestamptz DEFAULT now())")
            )

    def create_trading_session(self, strategy_name: str, initial_balance: Any) -> int:
        made = super().create_trading_session(strategy_name, initial_balance)
        self.update_balance(initial_balance, "start", made)
        return made

    def get_current_balance(self, session_id: int | None = None) -> Decimal:
        latest = text("SELECT total FROM ledger WHERE session_id = :id ORDER BY at DESC LIMIT 1")
        with self.session_factory() as session:
            found: Decimal = session.execute(latest, {"id": session_id or self._current_session_id}).scalar_one()
        return found

    def update_balance(self, new_balance: Any, update_reason: str, session_id: int | None = None) -> bool:
        line = text("INSERT INTO ledger (session_id, total) VALUES (:id, :total)")
        with self.session_factory.begin() as session:
            session.execute(line, {"id": session_id or self._current_session_id, "total": new_balance})
        return True


def test_latest_line_in_a_block_is_that_of_its_last_call(postgres_url: str, tmp_path: Path) -> None:
    with scene(postgres_url, tmp_path / "outbox", Ledger) as made:
        made.relay.start()
        made.manager.create_trading_session("s", 100)
        with made.manager.atomic_balance_update(1, "fee"):
            for total in range(110, 115):
                made.manager.update_balance(total, "set")
                assert made.manager.get_current_balance() == total


def test_latest_line_of_a_batch_is_that_of_the_last_call(postgres_url: str, tmp_path: Path) -> None:
    """All lines of one batch had the time of its transaction."""
    with scene(postgres_url, tmp_path / "outbox", Ledger, write_behind=True) as made:
        made.manager.create_trading_session("s", 100)
        for total in range(110, 120):
            made.manager.update_balance(total, "set")
        assert made.drain()
        assert made.manager.get_current_balance() == 119
        assert made.rows("SELECT total FROM ledger ORDER BY at DESC LIMIT 1") == [(119,)]
        assert made.box.status().alarms == {}
