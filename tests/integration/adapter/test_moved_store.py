"""A wired engine goes on from an import of its exported store, also in an outage."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

from outbox import Outbox, OutboxConfig
from outbox.integrations.durable import DurableDatabaseManager
from outbox.integrations.trading_engine import wire
from outbox.testing import PostgresServer
from tests import atb as command_line
from tests.unit.fakes.waiting import LONG

from .scripted import Engine, Manager

Durable = DurableDatabaseManager.of(Manager)


def test_engine_goes_on_from_an_imported_store(own_postgres: PostgresServer, outbox_dir: Path, tmp_path: Path) -> None:
    url = own_postgres.url()

    def settings(folder: Path) -> OutboxConfig:
        return OutboxConfig(dir=str(folder), database_url=url, connect_timeout=1, backoff_cap=0.1)

    engine: Any = Engine(Durable(url))
    with wire(engine, config=settings(outbox_dir), drain_s=0) as wiring:
        session = engine.db_manager.create_trading_session("s", "I", "1d", "paper", Decimal(5))
        engine.db_manager.update_balance(Decimal(7), "x", session_id=session)
        assert wiring.relay is not None
        assert wiring.relay.drain(timeout=LONG)
        own_postgres.stop()
        engine.db_manager.update_balance(Decimal(9), "x", session_id=session)
    file, moved = tmp_path / "store.jsonl", tmp_path / "moved"
    assert command_line.run("export", str(file), "--dir", str(outbox_dir)).returncode == 0
    imported = command_line.run("import", str(file), "--dir", str(moved))
    assert imported.returncode == 0, imported.stderr
    engine = Engine(Durable(url))
    with wire(engine, config=settings(moved)) as wiring:
        assert engine.db_manager.get_current_balance(session) == 9.0
        engine.db_manager.update_balance(Decimal(11), "x", session_id=session)
        own_postgres.start()
        assert wiring.relay is not None
        assert wiring.relay.drain(timeout=LONG)
        assert engine.db_manager.get_current_balance(session) == 11.0
    with Outbox.attach(moved) as box:
        assert (box.status().dead_letters, box.status().alarms) == (0, {})
