"""A session that is begun in an outage is answered as those before it."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

from .small import scene
from .test_thresholds import BookManager


class GatheringManager(BookManager):
    """Shows positions in a tuple and orders in a dict, and those of the newest session only."""

    def get_active_positions(self, session_id: int | None = None) -> Any:
        return tuple(super().get_active_positions(session_id))

    def get_unresolved_orders(self, session_id: int | None = None) -> Any:
        return {row["client_order_id"]: row for row in super().get_unresolved_orders(session_id)}


def test_new_session_without_rows_is_shown_as_by_the_manager(postgres_url: str, outbox_dir: Path) -> None:
    with scene(postgres_url, outbox_dir, GatheringManager, write_behind=True, wait_s=0.02) as book:
        manager = book.manager
        for name in "ab":
            manager.create_trading_session()
            manager.log_position("A", Decimal(1))
            manager.create_order_journal_entry(name, Decimal(1))
            assert book.drain()
        manager.create_trading_session()
        assert (manager.get_active_positions(), manager.get_unresolved_orders()) == ((), {})
