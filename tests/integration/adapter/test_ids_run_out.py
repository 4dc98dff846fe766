"""A reserve of ids that is used up halts new entries and lets every exit go out, recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from outbox import DurabilityError, Outbox, OutboxConfig, PostgresTarget, Relay
from outbox.integrations.durable import DurableDatabaseManager
from outbox.testing import PostgresServer
from tests.unit.fakes.waiting import LONG

from .small import Order, SmallManager


class Journal(SmallManager):
    def create_order_journal_entry(
        self, client_order_id: str, order_type: str = "entry", position_id: Any = None
    ) -> int:
        return super().create_order_journal_entry(client_order_id, order_type)


def test_exit_goes_out_and_is_recorded_when_no_id_is_left(own_postgres: PostgresServer, outbox_dir: Path) -> None:
    url, halted = own_postgres.url(), list[str]()
    with Outbox.open(outbox_dir, OutboxConfig(id_reserve=10, min_free_mb=0, backoff_cap=0.2)) as box:
        manager: Any = DurableDatabaseManager(Journal(url), box, on_halt=halted.append)
        with Relay(box, PostgresTarget(url, manager.outbox_operations)) as relay:
            assert manager.create_order_journal_entry("first") == 1
            own_postgres.kill()
            told = []
            with pytest.raises(DurabilityError, match="no id is left"):
                for number in range(20):
                    told.append(manager.create_order_journal_entry(f"entry-{number}"))  # noqa: PERF401
            assert halted
            halted.clear()
            assert manager.create_order_journal_entry("exit", "stop_loss") is None
            assert len(halted) == 1
            assert manager.create_order_journal_entry("close", "market", position_id=7) is None
            own_postgres.start()
            assert relay.drain(timeout=LONG)
        manager._host.built.engine.dispose()
        with manager.session_factory() as session:
            rows = dict(session.execute(select(Order.client_order_id, Order.id)).all())
        assert [rows[f"entry-{number}"] for number in range(len(told))] == told
        assert {"exit", "close"} <= rows.keys()
        assert box.status().dead_letters == 0
        assert box.status().alarms == {}
        manager.detach_outbox()
        manager._host.built.engine.dispose()
