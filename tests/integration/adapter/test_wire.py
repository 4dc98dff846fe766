"""`wire`: the relay follows the engine, trading halts without durability, exits go on, and everything is undone."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from outbox import ConfigError, DurabilityError, OutboxConfig, StoreLocked
from outbox.integrations.durable import TRADING_OPERATIONS, DurableDatabaseManager, ManagerOperation
from outbox.integrations.paper import DatabaseManager, PaperEngine, load
from outbox.integrations.trading_engine import wire
from outbox.testing import PostgresServer
from tests.unit.fakes.waiting import LONG, until

BARS = load()[:120]


def config(folder: Path, url: str | None, **settings: Any) -> OutboxConfig:
    return OutboxConfig(dir=str(folder), database_url=url, backoff_base=0.05, backoff_cap=0.3, **settings)


class Engine:
    """The least that an engine can be: no halt method, `stop` on the class."""

    def __init__(self, db_manager: Any) -> None:
        self.db_manager = db_manager
        self.stopped = 0

    def stop(self) -> int:
        self.stopped += 1
        return self.stopped


@pytest.fixture
def manager(postgres_url: str) -> Iterator[DatabaseManager]:
    manager = DatabaseManager(postgres_url)
    yield manager
    manager.close()


def test_the_relay_stops_after_the_engine_and_starts_with_it_again(manager: DatabaseManager, outbox_dir: Path) -> None:
    engine: Any = PaperEngine(manager)
    with wire(engine, config=config(outbox_dir, None), drain_s=LONG) as wiring:
        assert wiring.relay is not None
        engine.start()
        engine.run(BARS[:20])
        engine.stop()
        assert wiring._winding_down is not None
        wiring._winding_down.join(LONG)
        assert not wiring.relay.running
        assert engine.get_outbox_status().pending == 0
        engine.start()
        assert wiring.relay.running


def test_an_engine_without_start_and_halt_method_is_wired_too(manager: DatabaseManager, outbox_dir: Path) -> None:
    engine = Engine(manager)
    with wire(engine, config=config(outbox_dir, None)) as wiring:
        assert wiring.relay is not None
        assert wiring.relay.running
        assert engine.db_manager.create_trading_session("s", "I", "1d", "paper", 1) == 1
        assert engine.stop() == 1
    assert engine.stop() == 2


def test_closing_leaves_the_object_exactly_as_it_was(manager: DatabaseManager, outbox_dir: Path) -> None:
    engine = Engine(manager)
    own = lambda: "own"  # noqa: E731 - an attribute of the object, not of its class
    engine.start = own  # type: ignore[attr-defined]
    before = dict(vars(engine))
    wiring = wire(engine, config=config(outbox_dir, None))
    assert vars(engine).keys() == {*before, "stop", "get_outbox_status"}
    wiring.close()
    wiring.close()
    assert vars(engine) == before
    # `close` does not wait long for a thread that is at work with a slow PostgreSQL.
    until(lambda: "outbox-keeper" not in {thread.name for thread in threading.enumerate()})


def test_a_wiring_that_fails_leaves_the_engine_as_it_was(manager: DatabaseManager, outbox_dir: Path) -> None:
    first, second = Engine(manager), Engine(manager)
    before = dict(vars(second))
    with wire(first, config=config(outbox_dir, None)), pytest.raises(StoreLocked):
        wire(second, config=config(outbox_dir, None))
    assert vars(second) == before
    with pytest.raises(ConfigError, match="'storage'"):
        wire(second, config=config(outbox_dir, None), manager_attribute="storage")
    with pytest.raises(ConfigError, match="DATABASE_URL"):
        away = DurableDatabaseManager(lambda: DatabaseManager("postgresql://nobody@127.0.0.1:1/none"))
        wire(Engine(away), config=config(outbox_dir, None))


def halt(wiring: Any) -> None:
    wiring.outbox.store._latch("enqueue", OSError("the disk is gone"))


def test_without_durability_entries_halt_and_exits_go_on(
    postgres_url: str, outbox_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    factory: Any = DurableDatabaseManager.of(DatabaseManager)
    engine = PaperEngine(factory(postgres_url))
    with wire(engine, config=config(outbox_dir, postgres_url)) as wiring:
        engine.start()
        engine.run(BARS[:60])
        held = len(engine.positions)
        assert held
        halt(wiring)
        entries, exits = engine.stats.entries, engine.stats.exits
        engine.run(BARS, start=60)
        assert engine.close_only
        assert "disk is gone" in (engine.close_only_reason or "")
        assert engine.stats.entries == entries
        assert engine.stats.exits == exits + held
        assert "was not recorded: " in caplog.text
        manager: Any = engine.db_manager
        with pytest.raises(DurabilityError):
            manager.create_order_journal_entry(engine.session_id, "new", "IBM", "buy", "entry", 1, "s")
        assert manager.create_order_journal_entry(engine.session_id, "out", "IBM", "sell", "exit", 1, "s") is None
        assert manager.log_event("e", "never raises") is None
        status = wiring.get_outbox_status()
        assert status is not None
        assert status.halted
    # A reopening verifies the store, and trading goes on.
    engine = PaperEngine(factory(postgres_url))
    with wire(engine, config=config(outbox_dir, postgres_url)):
        engine.start()
        engine.run(BARS, start=60)
        assert not engine.close_only
    manager.close()
    engine.db_manager.close()


def test_disabled_by_the_environment_everything_passes_through(
    postgres_url: str, outbox_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OUTBOX_ENABLED", "false")
    monkeypatch.setenv("OUTBOX_DIR", str(outbox_dir))
    factory: Any = DurableDatabaseManager.of(DatabaseManager)
    engine = PaperEngine(factory(postgres_url))
    with wire(engine) as wiring:
        assert wiring.get_outbox_status() is None
        engine.start()
        engine.run(BARS[:20])
    assert not outbox_dir.exists()
    assert engine.db_manager.get_active_session_id() == engine.session_id
    engine.db_manager.close()


def test_durable_manager_before_wire_serves_as_the_plain_one(
    postgres_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    factory: Any = DurableDatabaseManager.of(DatabaseManager)
    with pytest.raises(TypeError):
        factory()
    durable = factory(postgres_url)
    session_id = durable.create_trading_session("s", "I", "1d", "paper", Decimal(7))
    assert durable.get_active_session_id() == session_id
    assert durable.get_current_balance(session_id) == 7.0
    assert "not durable" in caplog.text
    durable.close()


def test_opaque_factory_restarts_in_an_outage_from_the_store(own_postgres: PostgresServer, outbox_dir: Path) -> None:
    url = own_postgres.url()
    engine = Engine(DurableDatabaseManager(lambda: DatabaseManager(url)))
    with wire(engine, config=config(outbox_dir, url)):
        session_id = engine.db_manager.create_trading_session("s", "I", "1d", "paper", Decimal(7))
        assert engine.db_manager.update_balance(Decimal(7), "start")
        engine.db_manager.close()
    own_postgres.kill()
    engine = Engine(DurableDatabaseManager(lambda: DatabaseManager(url)))
    with wire(engine, config=config(outbox_dir, url)) as wiring:
        assert engine.db_manager.get_active_session_id() == session_id
        assert engine.db_manager.get_current_balance(session_id) == 7.0
        assert engine.db_manager.update_balance(Decimal(8), "x", session_id=session_id) is True
        with pytest.raises(TypeError, match="missing a required argument"):
            engine.db_manager.update_balance()
        assert engine.db_manager.get_current_balance(session_id) == 8.0
        own_postgres.start()
        assert wiring.relay is not None
        assert wiring.relay.drain(timeout=LONG)
        assert engine.db_manager.get_current_balance(session_id) == 8.0
        engine.db_manager.close()


def test_reserved_ids_go_on_behind_a_sequence_that_fell_back(manager: DatabaseManager, outbox_dir: Path) -> None:
    first = Engine(manager)
    with wire(first, config=config(outbox_dir, None)):
        session_id = first.db_manager.create_trading_session("s", "I", "1d", "paper", 1)
    with manager.engine.begin() as connection:
        connection.exec_driver_sql("SELECT setval('trading_sessions_id_seq', 1)")
        connection.exec_driver_sql("SELECT setval('positions_id_seq', 1)")
    with wire(first, config=config(outbox_dir, None)) as wiring:
        assert wiring.outbox is not None
        reserves = first.db_manager._adapter._reserves
        ids = [reserves.take("trading_sessions", "id") for _ in range(98)]
        reserves.fill(manager.engine)
        ids += [reserves.take("trading_sessions", "id") for _ in range(60)]
        assert session_id not in ids
        assert len(set(ids)) == len(ids)


def test_sequences_are_set_forward_once_postgresql_was_set_back(manager: DatabaseManager, outbox_dir: Path) -> None:
    engine = Engine(manager)
    with wire(engine, config=config(outbox_dir, None)) as wiring:
        engine.db_manager.create_trading_session("s", "I", "1d", "paper", 1)
        with manager.engine.begin() as connection:
            connection.exec_driver_sql("SELECT setval('trading_sessions_id_seq', 1)")
        assert wiring.outbox is not None
        # The relay's word, before it delivers anything to the older database.
        wiring.outbox.progress.rewound()
        with manager.engine.begin() as connection:
            assert connection.exec_driver_sql("SELECT nextval('trading_sessions_id_seq')").scalar_one() > 100


@pytest.mark.parametrize("durable_class", [False, True])
@pytest.mark.parametrize("by_wire", [False, True])
def test_operations_of_ones_own_are_durable_wherever_they_are_given(
    postgres_url: str, outbox_dir: Path, durable_class: bool, by_wire: bool
) -> None:
    operations = (*TRADING_OPERATIONS, ManagerOperation("set_system_halt"))
    given: dict[str, Any] = {} if by_wire else {"operations": operations}
    manager: Any
    if durable_class:
        manager = DurableDatabaseManager.of(DatabaseManager, **given)(postgres_url)
    else:
        manager = DurableDatabaseManager(DatabaseManager(postgres_url), **given)
    engine = Engine(manager)
    wired: dict[str, Any] = {"operations": operations} if by_wire else {}
    with wire(engine, config=config(outbox_dir, postgres_url), relay_here=False, **wired) as wiring:
        engine.db_manager.set_system_halt(True, "mine")
        assert wiring.outbox is not None
        assert [entry.operation for entry in wiring.outbox.pending()] == ["set_system_halt"]
    manager.close()
