"""After an outage a session is compared with PostgreSQL, but for one that a delivery has just put in doubt."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tests.unit.fakes.database import query
from tests.unit.fakes.waiting import until

from .small import scene
from .test_netting import Netting


@pytest.mark.parametrize("is_doubted", [False, True])
def test_session_put_in_doubt_meanwhile_is_not_compared(
    postgres_url: str, outbox_dir: Path, is_doubted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with scene(postgres_url, outbox_dir, Netting) as here:
        here.relay.start()
        session = here.manager.create_trading_session("s", Decimal(100))
        assert here.drain()
        keeper = here.manager._adapter.keeper
        until(lambda: here.manager._adapter.view.is_sure(session) and session not in keeper._doubtful)
        here.relay.stop()
        query(postgres_url, "INSERT INTO account_balances (session_id, total) VALUES (%s, 7)", (session,))
        shown = keeper._shown

        def doubting(session_id: int) -> Any:
            look = shown(session_id)
            keeper._doubtful |= {session_id} if is_doubted else set()
            return look

        monkeypatch.setattr(keeper, "_shown", doubting)
        assert keeper.compare(session)
        assert list(here.box.status().alarms) == ([] if is_doubted else [f"diverged-session-{session}"])
