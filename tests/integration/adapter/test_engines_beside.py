"""Engines with a store each in one database: each finds its own session again in an outage."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from outbox import OutboxConfig
from outbox.integrations.durable import DurableDatabaseManager
from outbox.integrations.paper import DatabaseManager
from outbox.integrations.trading_engine import wire
from outbox.testing import PostgresServer
from tests.unit.fakes.waiting import LONG


class Engine:
    def __init__(self, url: str) -> None:
        self.db_manager: Any = DurableDatabaseManager.of(DatabaseManager)(url)

    def enter_close_only(self, reason: str) -> None:
        raise AssertionError(reason)


@contextmanager
def running(url: str, store: Path) -> Iterator[Any]:
    engine = Engine(url)
    config = OutboxConfig(dir=str(store), database_url=url, connect_timeout=1, backoff_cap=0.1)
    with wire(engine, config=config, drain_s=0) as wiring:
        yield engine.db_manager
        if wiring.outbox is not None and wiring.outbox.progress.delivering is not False:
            assert wiring.relay is not None
            assert wiring.relay.drain(timeout=LONG)


def test_each_engine_finds_its_own_session_in_an_outage(own_postgres: PostgresServer, tmp_path: Path) -> None:
    url, own = own_postgres.url(), dict[str, int]()
    for name in ("fast", "slow"):
        with running(url, tmp_path / name) as manager:
            own[name] = manager.create_trading_session(name, "IBM", "1d", "paper", 1000)
    for name, session in own.items():
        with running(url, tmp_path / name) as manager:
            assert manager.get_last_session_id(24, name) == session
    own_postgres.stop()
    for name, session in own.items():
        with running(url, tmp_path / name) as manager:
            assert manager.get_last_session_id(24, strategy_name=name) == session
            assert manager.get_last_session_id(24, name, "IBM") == session
            assert manager.get_last_session_id(24, name, "X") is None
