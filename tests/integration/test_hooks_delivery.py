"""Hooks beside deliveries into a real PostgreSQL."""

from __future__ import annotations

import threading
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from outbox import Entry, Health, Hooks, Operation, Outbox, OutboxConfig, OutboxStatus, PostgresTarget, Relay
from outbox.integrations.durable import DurableDatabaseManager
from outbox.integrations.trading_engine import wire
from outbox.testing import PostgresServer
from tests.integration.adapter.scripted import Engine, Manager, config
from tests.unit.fakes.audit import query
from tests.unit.fakes.waiting import LONG, until

OPERATIONS = (Operation("note", table="notes", order_by="who"),)


@pytest.fixture
def url(postgres_url: str) -> str:
    query(postgres_url, "CREATE TABLE notes (who text, size int CHECK (size < 100))")
    return postgres_url


def note(box: Outbox, size: int) -> int:
    return box.enqueue("note", {"who": f"w{size}", "size": size}).seq


def test_hooks_are_called_after_postgresql_has_the_effects(url: str, outbox_dir: Path) -> None:
    rows: list[tuple[int, int]] = []
    dead: list[Entry] = []

    def delivered(entry: Entry) -> None:
        found = query(url, f"SELECT count(*) FROM notes WHERE size = {entry.args['size']}")
        rows.append((entry.seq, int(found[0][0])))

    hooks = Hooks(on_delivered=delivered, on_dead_letter=dead.append)
    with Outbox.open(outbox_dir, operations=OPERATIONS, hooks=hooks) as box:
        for size in (1, 200, 3):
            note(box, size)
        assert Relay(box, PostgresTarget(url, OPERATIONS)).drain(LONG)
        until(lambda: len(rows) + len(dead) == 3)
    assert rows == [(1, 1), (3, 1)]
    assert [(entry.seq, entry.args["size"]) for entry in dead] == [(2, 200)]
    assert dead[0].error is not None
    assert dead[0].error.startswith("23514")


def test_a_hook_that_blocks_keeps_no_transaction_open(url: str, outbox_dir: Path) -> None:
    gate, entered = threading.Event(), threading.Event()

    def block(_: Entry) -> None:
        entered.set()
        assert gate.wait(LONG)

    with Outbox.open(outbox_dir, operations=OPERATIONS, hooks=Hooks(on_delivered=block)) as box:
        with Relay(box, PostgresTarget(url, OPERATIONS)) as relay:
            note(box, 1)
            assert entered.wait(LONG)
            for size in range(2, 20):
                note(box, size)
            assert relay.drain(LONG)
            open_now = (
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state LIKE '%in tr%'"
            )
            assert query(url, open_now) == [(0,)]
            assert query(url, "SELECT count(*) FROM notes") == [(19,)]
        gate.set()


def test_an_outage_and_its_end_are_handed_over(own_postgres: PostgresServer, outbox_dir: Path) -> None:
    seen: list[OutboxStatus] = []
    url = own_postgres.url()
    query(url, "CREATE TABLE notes (who text, size int)")
    settings = OutboxConfig(backoff_cap=0.2)
    with (
        Outbox.open(outbox_dir, settings, OPERATIONS, hooks=Hooks(on_state=seen.append)) as box,
        Relay(box, PostgresTarget(url, OPERATIONS)) as relay,
    ):
        note(box, 1)
        assert relay.drain(LONG)
        until(lambda: bool(seen) and seen[-1].health is Health.HEALTHY and seen[-1].relay.alive)
        own_postgres.kill()
        note(box, 2)
        until(lambda: seen[-1].health is Health.DEGRADED)
        own_postgres.start()
        assert relay.drain(LONG)
        until(lambda: seen[-1].health is Health.HEALTHY)


def test_a_wired_engine_takes_hooks(postgres_url: str, outbox_dir: Path) -> None:
    delivered: list[str] = []
    engine: Any = Engine(DurableDatabaseManager(Manager(postgres_url)))
    hooks = Hooks(on_delivered=lambda entry: delivered.append(entry.operation))
    with wire(engine, config=config(outbox_dir, postgres_url), hooks=hooks):
        engine.db_manager.create_trading_session("s", "I", "1d", "paper", Decimal(1))
    until(lambda: "create_trading_session" in delivered)
