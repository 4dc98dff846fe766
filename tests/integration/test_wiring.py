"""A wired paper engine: what it is told at once is what PostgreSQL holds in the end."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from outbox import ConfigError, DurabilityError, OutboxConfig
from outbox.integrations.durable import DurableDatabaseManager
from outbox.integrations.ids.id_reserve import IdReserve, IdReserveEmpty
from outbox.integrations.paper import DatabaseManager, PaperEngine, load
from outbox.integrations.paper.check import compare
from outbox.integrations.trading_engine import Wiring, wire
from outbox.testing import PostgresServer
from tests.unit.fakes.waiting import LONG


class Recorded(list[dict[str, Any]]):
    """What the engine was told was durable."""

    def __call__(self, kind: str, record: dict[str, Any]) -> None:
        self.append({"kind": kind, **record})


def _config(folder: Path, url: str, **settings: Any) -> OutboxConfig:
    return OutboxConfig(dir=str(folder), database_url=url, backoff_cap=0.5, **settings)


@pytest.fixture
def wired(postgres_url: str, outbox_dir: Path) -> Iterator[tuple[PaperEngine, Wiring, DatabaseManager]]:
    manager = DatabaseManager(postgres_url)
    engine = PaperEngine(manager, on_ack=Recorded())
    with wire(engine, config=_config(outbox_dir, postgres_url)) as wiring:
        yield engine, wiring, manager
    manager.close()


def _rows(manager: DatabaseManager, sql: str) -> list[Any]:
    with manager.engine.connect() as connection:
        return list(connection.execute(text(sql)))


def test_engine_with_a_killed_server_trades_on_and_loses_nothing(
    own_postgres: PostgresServer, outbox_dir: Path
) -> None:
    manager = DatabaseManager(own_postgres.url())
    recorded = Recorded()
    engine = PaperEngine(manager, on_ack=recorded)
    bars = load()
    with wire(engine, config=_config(outbox_dir, own_postgres.url())) as wiring:
        engine.start()
        engine.run(bars[:40])
        own_postgres.kill()
        before = len(recorded)
        engine.run(bars[:90], start=40)
        assert len(recorded) > before + 50, "trading went on during the outage"
        status = wiring.get_outbox_status()
        assert status is not None
        assert status.pending > 50
        own_postgres.start()
        assert wiring.relay is not None
        assert wiring.relay.drain(timeout=LONG)

    manager.engine.dispose()
    report = compare(recorded, manager.engine)
    assert (report.applied, report.lost, report.duplicated, report.findings) == (report.acknowledged, 0, 0, [])
    assert engine.stats.failed_writes.keys() <= {"strategy_execution", "snapshot"}
    manager.close()


def test_ids_are_final_when_the_call_returns(wired: tuple[PaperEngine, Wiring, DatabaseManager]) -> None:
    engine, wiring, manager = wired
    assert wiring.relay is not None
    wiring.relay.stop()
    session_id = engine.db_manager.create_trading_session("s", "IBM", "1d", "paper", Decimal(1000))
    position_id = engine.db_manager.log_position("IBM", "long", Decimal(10), Decimal("0.1"), "s", "o1")
    assert _rows(manager, "SELECT id FROM positions") == []

    wiring.relay.start()
    assert wiring.relay.drain(LONG)

    assert _rows(manager, "SELECT id FROM trading_sessions") == [(session_id,)]
    assert _rows(manager, "SELECT id, session_id FROM positions") == [(position_id, session_id)]
    assert _rows(manager, "SELECT count(*) FROM system_events WHERE event_type = 'session_start'") == [(1,)]


def test_two_equal_balance_changes_both_count(wired: tuple[PaperEngine, Wiring, DatabaseManager]) -> None:
    engine, wiring, manager = wired
    engine.db_manager.create_trading_session("s", "IBM", "1d", "paper", Decimal(1000))
    engine.db_manager.update_balance(Decimal(1000), "start")
    for _ in range(2):
        with engine.db_manager.atomic_balance_update(Decimal("-2.5"), "fee") as change:
            pass

    assert (change.old_balance, change.new_balance) == (Decimal("997.5"), Decimal("995.0"))
    assert wiring.relay is not None
    assert wiring.relay.drain(LONG)
    assert _rows(manager, "SELECT total_balance FROM account_balances ORDER BY id DESC LIMIT 1") == [(Decimal(995),)]


def test_an_exception_in_a_balance_block_records_nothing(wired: tuple[PaperEngine, Wiring, DatabaseManager]) -> None:
    engine, wiring, _ = wired
    engine.db_manager.create_trading_session("s", "IBM", "1d", "paper", Decimal(1000))
    assert wiring.outbox is not None
    before = wiring.outbox.status().acknowledged

    with pytest.raises(RuntimeError, match="caller"), engine.db_manager.atomic_balance_update(Decimal(1), "x"):
        raise RuntimeError("the caller's own failure")
    with (
        pytest.raises(ValueError, match="below zero"),
        engine.db_manager.atomic_balance_update(Decimal(-5000), "x"),
    ):
        pass

    assert wiring.outbox.status().acknowledged == before


def test_the_same_client_order_id_is_one_order(wired: tuple[PaperEngine, Wiring, DatabaseManager]) -> None:
    engine, wiring, manager = wired
    session_id = engine.db_manager.create_trading_session("s", "IBM", "1d", "paper", Decimal(1000))
    for _ in range(2):
        engine.db_manager.create_order_journal_entry(session_id, "c1", "IBM", "buy", "entry", Decimal(1), "s")

    assert wiring.relay is not None
    assert wiring.relay.drain(LONG)
    assert _rows(manager, "SELECT client_order_id FROM orders") == [("c1",)]


def test_failure_swallowed_by_the_manager_leaves_no_dead_letter(
    wired: tuple[PaperEngine, Wiring, DatabaseManager],
) -> None:
    engine, wiring, _ = wired
    assert engine.db_manager.update_position(4711, stop_loss=Decimal(1)) is False
    status = wiring.get_outbox_status()
    assert status is not None
    assert (status.pending, status.dead_letters, status.discarded) == (0, 0, 1)


def test_a_swallowed_failure_during_an_outage_becomes_a_dead_letter(
    wired: tuple[PaperEngine, Wiring, DatabaseManager],
) -> None:
    engine, wiring, _ = wired
    assert wiring.relay is not None
    assert wiring.outbox is not None
    wiring.relay.stop()
    assert engine.db_manager.update_position(4711, stop_loss=Decimal(1)) is True
    wiring.relay.start()
    assert wiring.relay.drain(LONG)
    (dead,) = wiring.outbox.dead_letters()
    assert "answered False" in (dead.error or "")


def test_a_durability_error_enters_close_only_and_is_raised(
    wired: tuple[PaperEngine, Wiring, DatabaseManager], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, wiring, _ = wired
    assert wiring.outbox is not None

    def fails(*_: object, **__: object) -> None:
        raise DurabilityError("the disk is gone")

    monkeypatch.setattr(wiring.outbox, "submit", fails)
    with pytest.raises(DurabilityError):
        engine.db_manager.update_balance(Decimal(1), "x", session_id=1)

    assert engine.close_only
    assert "disk is gone" in (engine.close_only_reason or "")


def test_disabled_leaves_the_engine_as_it_was(postgres_url: str, outbox_dir: Path) -> None:
    manager = DatabaseManager(postgres_url)
    engine = PaperEngine(manager)
    with wire(engine, config=_config(outbox_dir, postgres_url, enabled=False)) as wiring:
        assert engine.db_manager is manager
        assert wiring.get_outbox_status() is None
    assert not outbox_dir.exists()
    manager.close()


def test_disabled_is_refused_while_entries_are_left(postgres_url: str, outbox_dir: Path) -> None:
    """The plain manager would answer without them, and the engine would open its positions again."""
    manager = DatabaseManager(postgres_url)
    engine = PaperEngine(manager)
    with wire(engine, config=_config(outbox_dir, postgres_url), relay_here=False):
        engine.start()
    off = _config(outbox_dir, postgres_url, enabled=False)
    with pytest.raises(ConfigError, match=r"the outbox is off, and \d+ entries at .* are not delivered") as refused:
        wire(engine, config=off)
    assert "atb outbox drain" in refused.value.hint
    with wire(engine, config=_config(outbox_dir, postgres_url)) as wiring:
        assert wiring.relay is not None
        assert wiring.relay.drain(LONG)
    with wire(engine, config=off):
        assert engine.db_manager is manager
    manager.close()


def test_closing_the_wiring_gives_the_manager_back(postgres_url: str, outbox_dir: Path) -> None:
    manager = DatabaseManager(postgres_url)
    engine = PaperEngine(manager)
    wiring = wire(engine, config=_config(outbox_dir, postgres_url))
    assert isinstance(engine.db_manager, DurableDatabaseManager)
    assert engine.db_manager.get_active_session_id() is None

    wiring.close()
    wiring.close()

    restored: Any = engine.db_manager
    assert restored is manager
    with wire(engine, config=_config(outbox_dir, postgres_url)):
        pass
    manager.close()


def test_entries_of_an_earlier_process_are_seen_and_delivered(postgres_url: str, outbox_dir: Path) -> None:
    manager = DatabaseManager(postgres_url)
    engine = PaperEngine(manager)
    wiring = wire(engine, config=_config(outbox_dir, postgres_url), relay_here=False)
    session_id = engine.start()
    wiring.close()
    assert manager.get_active_session_id() is None

    with wire(engine, config=_config(outbox_dir, postgres_url)) as wiring:
        assert engine.start() == session_id
        assert wiring.relay is not None
        assert wiring.relay.drain(LONG)
        assert manager.get_active_session_id() == session_id
    manager.close()


def test_reserved_ids_are_never_handed_out_twice(wired: tuple[PaperEngine, Wiring, DatabaseManager]) -> None:
    _, wiring, manager = wired
    assert wiring.outbox is not None
    first = IdReserve(wiring.outbox, "account_balances", wanted=200)
    with pytest.raises(IdReserveEmpty, match="account_balances"):
        first.take()
    first.fill(manager.engine)
    taken = [first.take() for _ in range(70)]

    second = IdReserve(wiring.outbox, "account_balances")  # as after a crash
    rest = [second.take() for _ in range(second.left())]

    assert len(rest) == 200 - 72
    assert len({*taken, *rest}) == len(taken) + len(rest)
    with pytest.raises(IdReserveEmpty):
        second.take()
