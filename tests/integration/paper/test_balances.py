"""How the paper engine's `DatabaseManager` keeps balances and events."""

from __future__ import annotations

import logging
import threading
from datetime import datetime
from decimal import Decimal

import pytest
from sqlalchemy.exc import IntegrityError

from outbox.integrations.paper import DatabaseManager

from .rows import one, rows

MOMENT = datetime.fromisoformat("2024-05-01T16:00:00")


@pytest.fixture
def position_id(manager: DatabaseManager, session_id: int) -> int:
    return manager.log_position("IBM", "long", 100, "0.1", "ma", "exchange-1", quantity=2)


def test_balance_is_initial_until_set_and_zero_without_a_session(manager: DatabaseManager, session_id: int) -> None:
    assert manager.get_current_balance() == 1000.0
    assert manager.update_balance(Decimal("1100.5"), "deposit", "operator", session_id)
    assert manager.get_current_balance(session_id) == 1100.5
    assert manager.get_current_balance(session_id + 1) == 0.0


@pytest.mark.parametrize("amount", [-1, float("nan"), 10**20])
def test_update_balance_swallows_every_error(manager: DatabaseManager, session_id: int, amount: float) -> None:
    assert manager.update_balance(amount, "bad", "test") is False
    assert manager.get_current_balance() == 1000.0


def test_update_balance_answers_false_without_a_known_session(manager: DatabaseManager) -> None:
    assert manager.update_balance(1, "bad", "test") is False
    assert manager.update_balance(1, "bad", "test", session_id=99) is False


def test_balance_change_tells_old_new_and_change(manager: DatabaseManager, session_id: int) -> None:
    with manager.atomic_balance_update("-12.5", "fee", "test", correlation_id="x") as change:
        assert change.old_balance == 1000
        assert change.new_balance == Decimal("987.5")
        assert change.change == Decimal("-12.5")
    row = one(manager, "SELECT * FROM account_balances")
    assert (row["total_balance"], row["change"], row["correlation_id"]) == (Decimal("987.5"), Decimal("-12.5"), "x")


def test_balance_change_below_zero_is_refused(manager: DatabaseManager, session_id: int) -> None:
    with pytest.raises(ValueError, match="below zero"), manager.atomic_balance_update(-1001, "loss", "test"):
        pytest.fail("the block must not run")
    assert manager.get_current_balance() == 1000.0


def test_exception_in_the_block_undoes_the_balance_change(manager: DatabaseManager, session_id: int) -> None:
    with pytest.raises(RuntimeError), manager.atomic_balance_update(5, "gain", "test"):
        raise RuntimeError
    assert manager.get_current_balance() == 1000.0


def test_other_writes_of_the_engine_work_inside_the_block(manager: DatabaseManager, position_id: int) -> None:
    with manager.atomic_balance_update(20, "gain", "test"):
        manager.log_trade("IBM", "long", 100, 110, "0.1", MOMENT, MOMENT, 20, "signal", "ma", position_id=position_id)
    assert manager.get_current_balance() == 1020.0


def test_concurrent_balance_changes_all_count(manager: DatabaseManager, session_id: int) -> None:
    def add() -> None:
        for _ in range(10):
            with manager.atomic_balance_update(1, "gain", "test", session_id):
                pass

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert manager.get_current_balance() == 1040.0


def test_reconciliation_writes_balance_trade_and_close_in_one(manager: DatabaseManager, position_id: int) -> None:
    extra = {"exit_time": MOMENT, "exit_order_id": "x-9", "commission": 1}
    with manager.atomic_position_reconciliation(position_id, 20, 110, "found closed", extra) as result:
        assert rows(manager, "SELECT id FROM trades") == []
    assert result.position_id == position_id
    assert result.old_balance == 1000
    assert result.new_balance == 1020
    row = one(manager, "SELECT * FROM trades")
    assert (row["id"], row["pnl"], row["exit_time"], row["exit_order_id"]) == (result.trade_id, 20, MOMENT, "x-9")
    assert manager.get_active_positions() == []
    assert manager.get_current_balance() == 1020.0
    assert one(manager, "SELECT total_trades FROM trading_sessions")["total_trades"] == 1


def test_reconciliation_of_a_missing_or_closed_position_is_refused(manager: DatabaseManager, position_id: int) -> None:
    manager.close_position(position_id, 110)
    for wanted, state in ((position_id, "is closed already"), (position_id + 1, "does not exist")):
        with pytest.raises(ValueError, match=state), manager.atomic_position_reconciliation(wanted, 1, 1, "x"):
            pytest.fail("the block must not run")
    assert manager.get_current_balance() == 1000.0


def test_recovered_balance_is_the_latest_one(manager: DatabaseManager, session_id: int) -> None:
    manager.update_balance(1234, "deposit", "test")
    assert manager.recover_last_balance() == 1234.0
    assert len(rows(manager, "SELECT id FROM account_balances")) == 1


def test_recovery_writes_a_balance_where_none_is(manager: DatabaseManager, session_id: int) -> None:
    manager.log_account_snapshot(1500, 1500)
    assert manager.recover_last_balance(session_id) == 1500.0
    assert one(manager, "SELECT update_reason FROM account_balances")["update_reason"] == "recovered"
    assert manager.get_current_balance() == 1500.0


def test_recovery_without_any_session_knows_nothing(manager: DatabaseManager) -> None:
    assert manager.recover_last_balance() is None
    assert manager.recover_last_balance(9) is None


def test_events_audits_decisions_and_snapshots_are_recorded(manager: DatabaseManager, session_id: int) -> None:
    event_id = manager.log_event("alert", "hot", "warning", {"at": MOMENT, "amount": Decimal("1.5"), "sides": {"long"}})
    manager.log_audit_event("withdraw", "operator", {"amount": 5})
    manager.log_strategy_execution("ma", "IBM", "buy", "long", 100.0, ["crossed"])
    manager.log_account_snapshot(1000, 1010, 10, 1, drawdown=0.1)
    first = one(manager, f"SELECT * FROM system_events WHERE id = {event_id}")
    assert first["details"] == {"at": "2024-05-01T16:00:00", "amount": "1.5", "sides": ["long"]}
    types = [row["event_type"] for row in rows(manager, "SELECT event_type FROM system_events ORDER BY id")]
    assert types == ["session_start", "alert", "audit", "strategy_execution"]
    assert one(manager, "SELECT equity, drawdown FROM account_history") == {"equity": 1010, "drawdown": Decimal("0.1")}


def test_only_the_strategy_log_raises_when_the_database_refuses(
    manager: DatabaseManager, session_id: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    assert manager.log_event("alert", "of an unknown session", session_id=99) is None
    assert manager.log_audit_event("withdraw", "operator", session_id=99) is None
    manager.log_account_snapshot(1, 1, session_id=99)
    assert len(caplog.records) == 3
    with pytest.raises(IntegrityError):
        manager.log_strategy_execution("ma", "IBM", "buy", "long", 100, session_id=99)


def test_halt_flag_is_seen_by_other_managers(postgres_url: str, manager: DatabaseManager) -> None:
    other = DatabaseManager(postgres_url)
    assert not other.is_system_halted()
    manager.set_system_halt(True, "disk")
    assert other.is_system_halted()
    manager.set_system_halt(False, "disk replaced")
    assert not other.is_system_halted()
    other.close()
