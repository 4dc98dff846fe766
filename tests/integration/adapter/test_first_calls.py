"""The first calls of an engine with several sessions: made before the local view knows what such calls do."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

from .small import scene
from .test_netting import Netting


def test_row_that_was_just_opened_is_of_its_session(postgres_url: str, outbox_dir: Path) -> None:
    """A call that names it belonged to the current session, and came in that one's order."""
    with scene(postgres_url, outbox_dir, Netting) as s:
        session, current = (s.manager.create_trading_session("s", Decimal(1)) for _ in range(2))
        assert s.drain()
        held = s.manager.log_position("BTC", "long", Decimal(2), session)
        s.manager.close_position(held)
        entries = list(s.box.pending())
        assert [one.args["_outbox"]["session"] for one in entries] == [session, session]
        assert entries[0].order_by == entries[1].order_by
        assert s.manager._current_session_id == current


def test_call_that_was_noted_for_another_session_changes_its_own_row(postgres_url: str, outbox_dir: Path) -> None:
    """After a restart, when the view knows such calls: a closed position was answered as an open one."""
    with scene(postgres_url, outbox_dir, Netting) as s:
        session, current = (s.manager.create_trading_session("s", Decimal(1)) for _ in range(2))
        assert s.drain()
        held = s.manager.log_position("BTC", "long", Decimal(2), session)
    with scene(postgres_url, outbox_dir, Netting) as s:
        s.manager._current_session_id = current
        s.manager.close_position(held)
        assert list(s.box.pending())[-1].args["_outbox"]["session"] == current
        assert s.drain()
        for size in (3, 4):
            other = s.manager.log_position("ETH", "long", Decimal(size), session)
            assert s.drain()
            s.manager.close_position(other)
            assert s.drain()
        s.manager._adapter.keeper.kept._renew()
        s.manager.update_balance(Decimal(2), "waits", session)
        assert s.manager.get_active_positions(session) == []
