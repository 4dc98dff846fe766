"""The example for asyncio programs in docs/how-to/asyncio.md: the event loop goes on, and nothing is lost."""

from __future__ import annotations

import asyncio
import functools
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from sqlalchemy import text

from outbox import Outbox, OutboxConfig, PostgresTarget, Relay
from outbox.integrations.durable import DurableDatabaseManager
from outbox.integrations.paper import DatabaseManager
from outbox.testing import PostgresServer
from tests.unit.fakes.waiting import LONG

from .test_live_docs import ASYNCIO

NOON = datetime(2024, 1, 2, 12, tzinfo=UTC)
CONFIG = OutboxConfig(backoff_base=0.05, backoff_cap=0.3)


def trade(number: int) -> dict[str, Any]:
    return {
        "symbol": f"T{number}", "side": "long", "entry_price": 1, "exit_price": 2, "size": 1, "pnl": 1,
        "entry_time": NOON, "exit_time": NOON, "exit_reason": "test", "strategy_name": "s",
    }  # fmt: skip


async def fills(names: dict[str, Any], manager: Any, sessions: list[int], numbers: range) -> tuple[list[int], int]:
    """Run the page's `on_fill` many times at once; what it returned, and how often the loop ran meanwhile."""
    turns = 0

    async def heartbeat() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    beating = asyncio.create_task(heartbeat())
    calls = (names["on_fill"](manager, sessions[number % 2], Decimal(1), trade(number)) for number in numbers)
    ids = await asyncio.gather(*calls)
    beating.cancel()
    return ids, turns


def test_coroutines_trade_through_an_outage_as_the_page_says(own_postgres: PostgresServer, outbox_dir: Path) -> None:
    url = own_postgres.url()
    names: dict[str, Any] = {}
    exec(ASYNCIO, names)  # noqa: S102 - the code of our own page
    with Outbox.open(outbox_dir, CONFIG) as box:
        durable: Any = DurableDatabaseManager(functools.partial(DatabaseManager, url), box)
        with Relay(box, PostgresTarget(url, durable.outbox_operations, config=CONFIG)) as relay:
            sessions = [durable.create_trading_session("s", name, "1d", "paper", 100) for name in ("A", "B")]
            up, turns = asyncio.run(fills(names, durable, sessions, range(20)))
            assert turns > 20
            position = durable.log_position("A", "long", 1, 1, "s", "e1", session_id=sessions[0])
            own_postgres.kill()
            away, turns = asyncio.run(fills(names, durable, sessions, range(20, 40)))
            assert turns > 20
            assert asyncio.run(names["on_stop"](durable, position, Decimal("0.5"))) is True
            own_postgres.start()
            assert relay.drain(timeout=LONG)
            with durable._host.manager().engine.connect() as connection:
                rows = connection.execute(text("SELECT id, symbol FROM trades ORDER BY symbol")).all()
                stop = connection.execute(text("SELECT stop_loss FROM positions")).scalar()
            told = sorted((f"T{number}", id_) for number, id_ in enumerate([*up, *away]))
            assert [(symbol, id_) for id_, symbol in rows] == told
            assert stop == Decimal("0.5")
            assert [durable.get_current_balance(session) for session in sessions] == [120.0, 120.0]
            assert box.status().alarms == {}
        durable.detach_outbox()
        durable.close()
