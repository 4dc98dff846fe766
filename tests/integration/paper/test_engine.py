"""How the paper engine trades, what it records, and how it goes on when its manager or PostgreSQL fails."""

from __future__ import annotations

import threading
from datetime import date, timedelta
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import text

from outbox.integrations.paper import Bar, DatabaseManager, MovingAverageCrossover, PaperEngine, load
from outbox.testing import PostgresServer
from tests.unit.fakes.waiting import LONG

BARS = load()[:200]
Acks = list[tuple[str, dict[str, Any]]]


@pytest.fixture
def acks() -> Acks:
    return []


@pytest.fixture
def engine(manager: DatabaseManager, acks: Acks) -> PaperEngine:
    return PaperEngine(manager, on_ack=lambda kind, record: acks.append((kind, record)))


class Refusing:
    """Any manager, with methods that fail instead of doing their work."""

    def __init__(self, manager: Any, *names: str) -> None:
        self.manager = manager
        self.names = set(names)
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        self.calls.append(name)
        if name in self.names:
            return self._fail
        return getattr(self.manager, name)

    def _fail(self, *_: Any, **__: Any) -> Any:
        raise ConnectionError("away")


def kinds(acks: Acks, kind: str) -> list[dict[str, Any]]:
    return [record for name, record in acks if name == kind]


def table(manager: DatabaseManager, sql: str) -> list[tuple[Any, ...]]:
    with manager.engine.connect() as connection:
        return [tuple(row) for row in connection.execute(text(sql))]


def flat(index: int, low: int, high: int) -> Bar:
    middle = Decimal(low + high) / 2
    return Bar(
        symbol="IBM",
        index=index,
        date=date(2024, 1, 1) + timedelta(days=index),
        open=middle,
        high=Decimal(high),
        low=Decimal(low),
        close=middle,
        volume=1,
    )


def test_acknowledged_writes_of_a_run_are_all_in_postgresql(
    manager: DatabaseManager, engine: PaperEngine, acks: Acks
) -> None:
    engine.start()
    assert engine.run(BARS) == len(BARS)
    engine.finish(BARS[-1])
    assert engine.stats.entries > 50
    assert engine.stats.failed_writes == {}

    trades = table(manager, "SELECT position_id, pnl::text, exit_price::text, exit_order_id FROM trades ORDER BY id")
    assert trades == [
        (one["position_id"], one["pnl"], one["exit_price"], one["exit_order_id"]) for one in kinds(acks, "trade")
    ]
    positions = table(manager, "SELECT id, client_order_id, quantity::text, status FROM positions ORDER BY id")
    assert positions == [
        (one["position_id"], one["client_order_id"], one["quantity"], "closed") for one in kinds(acks, "position")
    ]
    orders = table(manager, "SELECT client_order_id, status, fill_price::text FROM orders ORDER BY id")
    assert orders == [(one["client_order_id"], "filled", one["fill_price"]) for one in kinds(acks, "fill")]
    assert len(orders) == len(kinds(acks, "order"))
    balances = table(manager, "SELECT total_balance::text, correlation_id FROM account_balances ORDER BY id")
    assert balances == [(one["balance"], one["correlation_id"]) for one in kinds(acks, "balance")]


def test_balance_is_the_initial_one_plus_all_profits(manager: DatabaseManager, engine: PaperEngine, acks: Acks) -> None:
    session_id = engine.start()
    engine.run(BARS)
    profits = sum(Decimal(one["pnl"]) for one in kinds(acks, "trade"))
    assert engine.balance == Decimal(100_000) + profits
    assert engine.balance == Decimal(str(manager.get_current_balance(session_id)))


def test_trailing_stops_in_postgresql_are_those_of_the_engine(manager: DatabaseManager, engine: PaperEngine) -> None:
    session_id = engine.start()
    engine.run(BARS)
    stops = {row["id"]: row["stop_loss"] for row in manager.get_active_positions(session_id)}
    assert stops == {held.position_id: held.stop_loss for held in engine.positions.values()}
    assert table(manager, "SELECT count(*) FROM positions WHERE trailing_stop_activated")[0][0] > 0


def test_two_runs_trade_alike(manager: DatabaseManager) -> None:
    def outcome() -> list[tuple[Any, ...]]:
        acks: Acks = []
        engine = PaperEngine(manager, on_ack=lambda kind, record: acks.append((kind, record)))
        engine.start(resume=False)
        engine.run(BARS[:80])
        return [(one["strategy_name"], one["pnl"], one["exit_reason"]) for one in kinds(acks, "trade")]

    first = outcome()
    assert first
    assert outcome() == first


def test_entry_is_journalled_before_it_is_filled(manager: DatabaseManager) -> None:
    recorder = Refusing(manager)
    engine = PaperEngine(recorder)
    engine.start()
    engine.run(BARS[:60])
    writes = [name for name in recorder.calls if name in ("create_order_journal_entry", "log_position", "log_trade")]
    assert writes[:2] == ["create_order_journal_entry", "log_position"]
    assert writes.count("create_order_journal_entry") == writes.count("log_position") + writes.count("log_trade")


def test_entry_is_refused_when_the_journal_fails(manager: DatabaseManager, engine: PaperEngine, acks: Acks) -> None:
    engine.start()
    engine.db_manager = Refusing(manager, "create_order_journal_entry")
    engine.run(BARS)
    assert engine.stats.entries == 0
    assert engine.stats.refused_entries > 0
    assert kinds(acks, "position") == []
    assert table(manager, "SELECT count(*) FROM positions") == [(0,)]


def test_exits_go_on_whatever_fails(manager: DatabaseManager, engine: PaperEngine, acks: Acks) -> None:
    engine.start()
    at = next(n for n in range(10, 100) if engine.run(BARS[:n], start=n - 1) and len(engine.positions) == 3)
    acks.clear()
    engine.db_manager = Refusing(
        manager,
        "create_order_journal_entry",
        "update_order_journal",
        "update_position",
        "log_trade",
        "atomic_balance_update",
        "log_strategy_execution",
        "log_account_snapshot",
        "end_trading_session",
    )
    engine.run(BARS, start=at)
    engine.finish(BARS[-1])
    assert engine.positions == {}
    assert engine.stats.exits == engine.stats.entries
    assert acks == []
    assert engine.stats.failed_writes["trade"] >= 3


def test_position_that_could_not_be_recorded_is_still_left(manager: DatabaseManager, acks: Acks) -> None:
    engine = PaperEngine(Refusing(manager, "log_position"), on_ack=lambda kind, record: acks.append((kind, record)))
    engine.start()
    engine.run(BARS)
    assert engine.stats.exits > 0
    assert {one["position_id"] for one in kinds(acks, "trade")} == {None}


def test_write_answered_with_false_is_not_acknowledged(
    manager: DatabaseManager, engine: PaperEngine, acks: Acks, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.start()
    monkeypatch.setattr(manager, "update_order_journal", lambda *_, **__: False)
    engine.run(BARS[:60])
    assert kinds(acks, "fill") == []
    assert engine.stats.failed_writes["fill"] == engine.stats.entries + engine.stats.exits


def test_engine_does_not_start_without_its_initial_balance(
    manager: DatabaseManager, engine: PaperEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manager, "update_balance", lambda *_, **__: False)
    with pytest.raises(RuntimeError, match="initial balance"):
        engine.start()


def test_error_of_the_callback_stops_the_engine(manager: DatabaseManager) -> None:
    def refuse(kind: str, record: dict[str, Any]) -> None:
        if kind == "position":
            raise OSError("no space for the record")

    engine = PaperEngine(manager, on_ack=refuse)
    engine.start()
    with pytest.raises(OSError, match="no space"):
        engine.run(BARS)


def test_close_only_refuses_entries_and_keeps_its_first_reason(engine: PaperEngine) -> None:
    engine.start()
    engine.run(BARS[:60])
    entries, open_now = engine.stats.entries, len(engine.positions)
    assert open_now > 0
    thread = threading.Thread(target=engine.enter_close_only, args=("disk failure",))
    thread.start()
    thread.join()
    engine.enter_close_only("later")
    engine.run(BARS, start=60)
    assert engine.close_only
    assert engine.close_only_reason == "disk failure"
    assert engine.stats.entries == entries
    assert engine.positions == {}
    assert engine.stats.refused_entries > 0


def test_stop_loss_is_taken_at_the_stop_or_at_a_worse_open(manager: DatabaseManager, acks: Acks) -> None:
    strategy = MovingAverageCrossover(1, 2)
    engine = PaperEngine(manager, strategies=[strategy], on_ack=lambda kind, record: acks.append((kind, record)))
    engine.start()
    bars = [flat(0, 99, 101), flat(1, 99, 101), flat(2, 109, 111), flat(3, 100, 114), flat(4, 119, 121)]
    engine.run(bars)
    long, short = kinds(acks, "trade")[:2]
    assert (long["side"], long["exit_reason"], long["exit_price"]) == ("long", "stop_loss", "104.50000000")
    assert (short["side"], short["exit_reason"], short["exit_price"]) == ("short", "stop_loss", "120.00000000")


def test_restarted_engine_goes_on_as_if_nothing_had_happened(manager: DatabaseManager) -> None:
    whole: Acks = []
    split: Acks = []
    engine = PaperEngine(manager, on_ack=lambda kind, record: whole.append((kind, record)))
    engine.start(resume=False)
    engine.run(BARS)
    engine.finish(BARS[-1])

    first = PaperEngine(manager, on_ack=lambda kind, record: split.append((kind, record)))
    session_id = first.start()
    at = first.run(BARS[:101])
    second = PaperEngine(manager, on_ack=lambda kind, record: split.append((kind, record)))
    assert second.start() == session_id
    assert second.balance == first.balance
    assert {one.position_id for one in second.positions.values()} == {
        one.position_id for one in first.positions.values()
    }
    assert second.run(BARS, start=at) == len(BARS)
    second.finish(BARS[-1])

    def outcome(acks: Acks) -> list[tuple[Any, ...]]:
        return [(one["strategy_name"], one["entry_price"], one["exit_price"]) for one in kinds(acks, "trade")]

    assert outcome(split)[:20] == outcome(whole)[:20]
    assert len(kinds(split, "session")) == 1


def test_engine_refuses_two_open_positions_of_one_strategy(manager: DatabaseManager, engine: PaperEngine) -> None:
    engine.start()
    for _ in range(2):
        manager.log_position("IBM", "long", 100, "0.1", "ma2x5", "x", stop_loss=95, quantity=1)
    with pytest.raises(RuntimeError, match=r"ma2x5 of session .* has two open positions"):
        PaperEngine(manager).start()


def test_a_bar_traded_again_after_a_crash_makes_no_second_order(manager: DatabaseManager, engine: PaperEngine) -> None:
    engine.start()
    engine.run(BARS[:60])
    with manager.engine.begin() as connection:
        connection.execute(text("DELETE FROM trades"))
        connection.execute(text("UPDATE orders SET position_id = NULL"))
        connection.execute(text("DELETE FROM positions"))
    again = PaperEngine(manager)
    again.start()
    again.run(BARS[:60])
    assert again.stats.entries == 0
    assert again.stats.refused_entries == again.stats.failed_writes["order"]


def test_engine_trades_on_through_an_outage_without_new_entries(own_postgres: PostgresServer, acks: Acks) -> None:
    manager = DatabaseManager(own_postgres.create_database("trading"), connect_timeout=2)
    engine = PaperEngine(manager, on_ack=lambda kind, record: acks.append((kind, record)))
    engine.start()
    at = engine.run(BARS[:60])
    entries = engine.stats.entries
    acknowledged = len(acks)
    own_postgres.kill()
    at = engine.run(BARS[:120], start=at)
    assert at == 120
    assert engine.positions == {}
    assert engine.stats.entries == entries
    assert len(acks) == acknowledged
    own_postgres.start()
    assert engine.run(BARS, start=at) == len(BARS)
    assert engine.stats.entries > entries
    manager.close()


def test_run_is_paced_by_the_injected_wait(manager: DatabaseManager) -> None:
    waits: list[float] = []

    def wait(seconds: float) -> bool:
        waits.append(seconds)
        return len(waits) == 5

    engine = PaperEngine(manager, wait=wait)
    engine.start()
    assert engine.run(BARS, bars_per_second=4) == 5
    assert waits == [0.25] * 5


def test_stop_from_another_thread_ends_a_paced_run(engine: PaperEngine) -> None:
    engine.start()
    reached: list[int] = []
    thread = threading.Thread(target=lambda: reached.append(engine.run(BARS, bars_per_second=0.001)))
    thread.start()
    engine.stop()
    thread.join(timeout=LONG)
    assert reached
    assert reached[0] <= 1
    assert engine.run(BARS, start=7) == 7


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strategies": []}, "strategies must be at least one"),
        ({"strategies": [MovingAverageCrossover(1, 2)] * 2}, "all different"),
        ({"fraction": Decimal("0.4")}, "fraction must share a whole among 3"),
        ({"trail_every": 0}, "trail_every must be at least 1"),
    ],
)
def test_bad_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PaperEngine(None, **changes)


def test_bad_run_arguments_and_a_missing_start_are_refused(engine: PaperEngine) -> None:
    with pytest.raises(RuntimeError, match=r"call start\(\) first"):
        engine.step(BARS[0])
    with pytest.raises(ValueError, match="start must be between 0 and 200, not 201"):
        engine.run(BARS, start=201)
    with pytest.raises(ValueError, match="bars_per_second must be more than zero"):
        engine.run(BARS, bars_per_second=0)
