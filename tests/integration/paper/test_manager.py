"""How the paper engine's `DatabaseManager` keeps sessions, orders, positions and trades."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum
from typing import Any

import numpy as np
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DataError, IntegrityError, OperationalError

from outbox.integrations.paper import DatabaseManager

from .rows import one, rows

ENTRY = datetime.fromisoformat("2024-05-01T09:30:00")
EXIT = datetime.fromisoformat("2024-05-01T16:00:00")


class HostSide(Enum):
    """A host's own enum, with a value that the tables know."""

    LONG = "LONG"


def open_position(manager: DatabaseManager, **changes: Any) -> int:
    arguments: dict[str, Any] = {
        "symbol": "IBM",
        "side": "long",
        "entry_price": 100,
        "size": "0.1",
        "strategy_name": "ma",
        "entry_order_id": "exchange-1",
        "quantity": 2,
    }
    return manager.log_position(**{**arguments, **changes})


def trade(manager: DatabaseManager, **changes: Any) -> int:
    arguments: dict[str, Any] = {
        "symbol": "IBM",
        "side": "long",
        "entry_price": 100,
        "exit_price": 110,
        "size": "0.1",
        "entry_time": ENTRY,
        "exit_time": EXIT,
        "pnl": 20,
        "exit_reason": "signal",
        "strategy_name": "ma",
    }
    return manager.log_trade(**{**arguments, **changes})


def refuse_commits(manager: DatabaseManager) -> None:
    """Make every commit fail in PostgreSQL that changed a position, after the change itself went well."""
    with manager.engine.begin() as connection:
        connection.execute(
            text("CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'refused'; END $$")
        )
        connection.execute(
            text(
                "CREATE CONSTRAINT TRIGGER refuse AFTER UPDATE ON positions DEFERRABLE INITIALLY DEFERRED "
                "FOR EACH ROW EXECUTE FUNCTION refuse()"
            )
        )


def test_constructor_raises_operational_error_when_postgresql_is_away() -> None:
    with pytest.raises(OperationalError):
        DatabaseManager("postgresql://nobody@127.0.0.1:1/nothing", connect_timeout=2)


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg2"])
def test_every_spelling_of_the_url_uses_psycopg2(postgres_url: str, scheme: str) -> None:
    manager = DatabaseManager(scheme + postgres_url[postgres_url.index("://") :])
    assert manager.engine.url.drivername == "postgresql+psycopg2"
    manager.close()


def test_url_of_another_database_is_refused() -> None:
    with pytest.raises(ValueError, match="must begin with postgresql://, not sqlite"):
        DatabaseManager("sqlite:///file.db")


def test_constructor_may_run_again_on_the_same_database(postgres_url: str, manager: DatabaseManager) -> None:
    trade_id = trade(manager, session_id=manager.create_trading_session("ma", "IBM", "1d", "paper", 1))
    second = DatabaseManager(postgres_url)
    assert one(second, "SELECT id FROM trades")["id"] == trade_id
    second.close()


def test_ids_come_from_sequences(manager: DatabaseManager) -> None:
    tables = ["trading_sessions", "positions", "orders", "trades", "partial_trades"]
    tables += ["account_balances", "account_history", "system_events"]
    for table in tables:
        assert one(manager, f"SELECT pg_get_serial_sequence('{table}', 'id') AS s")["s"] == f"public.{table}_id_seq"


def test_new_session_is_current_named_by_time_and_logs_an_event(manager: DatabaseManager) -> None:
    before = datetime.now(UTC).replace(tzinfo=None)
    session_id = manager.create_trading_session("ma", "IBM", "1d", "PAPER", 1000, {"fast": np.int64(3), "at": ENTRY})
    row = one(manager, "SELECT * FROM trading_sessions")
    assert row["id"] == session_id == manager._current_session_id
    assert before <= row["start_time"] <= datetime.now(UTC).replace(tzinfo=None)
    assert row["session_name"] == f"ma_IBM_{row['start_time']:%Y%m%d_%H%M%S}"
    assert row["strategy_config"] == {"fast": 3, "at": "2024-05-01T09:30:00"}
    assert one(manager, "SELECT * FROM system_events")["event_type"] == "session_start"


def test_session_with_an_unknown_mode_is_refused(manager: DatabaseManager) -> None:
    with pytest.raises(ValueError, match="mode must be one of paper, live, backtest, not 'demo'"):
        manager.create_trading_session("ma", "IBM", "1d", "demo", 1000)
    assert rows(manager, "SELECT id FROM trading_sessions") == []


def test_ended_session_has_its_totals_and_is_no_longer_active(manager: DatabaseManager, session_id: int) -> None:
    trade(manager, pnl=20)
    trade(manager, pnl=-5)
    manager.end_trading_session(session_id, 1015)
    row = one(manager, "SELECT * FROM trading_sessions")
    assert (row["total_trades"], row["winning_trades"], row["total_pnl"]) == (2, 1, 15)
    assert row["final_balance"] == 1015
    assert row["end_time"] is not None
    assert manager.get_active_session_id() is None
    assert manager._current_session_id is None


def test_ending_a_missing_session_changes_nothing(manager: DatabaseManager, session_id: int) -> None:
    manager.end_trading_session(session_id + 1, 1)
    assert manager.get_active_session_id() == session_id


def test_last_session_is_found_by_age_strategy_and_symbol(manager: DatabaseManager, session_id: int) -> None:
    manager.end_trading_session(session_id)
    assert manager.get_last_session_id() == session_id
    assert manager.get_last_session_id(strategy_name="ma", symbol="IBM") == session_id
    assert manager.get_last_session_id(symbol="MSFT") is None
    assert manager.get_last_session_id(within_hours=0) is None


def test_current_session_can_only_be_set_to_an_existing_one(manager: DatabaseManager, session_id: int) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        manager.set_current_session(session_id + 1)
    manager.end_trading_session(session_id)
    manager.set_current_session(session_id)
    assert manager._current_session_id == session_id


def test_a_write_without_any_session_is_refused(manager: DatabaseManager) -> None:
    with pytest.raises(ValueError, match="session_id is missing"):
        trade(manager)


def test_position_takes_over_its_journalled_entry_order(manager: DatabaseManager, session_id: int) -> None:
    order_id = manager.create_order_journal_entry(session_id, "c-1", "IBM", "buy", "entry", 2, "ma")
    position_id = open_position(manager, client_order_id="c-1")
    row = one(manager, "SELECT * FROM orders")
    assert (row["id"], row["position_id"], row["status"]) == (order_id, position_id, "filled")


def test_position_without_a_journalled_order_writes_one(manager: DatabaseManager, session_id: int) -> None:
    position_id = open_position(manager, side="short")
    row = one(manager, "SELECT * FROM orders")
    assert (row["position_id"], row["side"], row["exchange_order_id"]) == (position_id, "sell", "exchange-1")


def test_the_same_position_logged_twice_appears_twice(manager: DatabaseManager, session_id: int) -> None:
    assert open_position(manager) != open_position(manager)


@pytest.mark.parametrize("side", [HostSide.LONG, "LONG", "long"])
def test_choices_are_taken_as_text_or_as_anyones_enum(manager: DatabaseManager, session_id: int, side: Any) -> None:
    open_position(manager, side=side)
    assert one(manager, "SELECT side FROM positions")["side"] == "long"


@pytest.mark.parametrize("amount", [Decimal("1.5"), 1.5, "1.5", np.float64(1.5), np.float32(1.5)])
def test_amounts_are_taken_in_every_number_type(manager: DatabaseManager, session_id: int, amount: Any) -> None:
    open_position(manager, entry_price=amount)
    assert one(manager, "SELECT entry_price FROM positions")["entry_price"] == Decimal("1.5")


@pytest.mark.parametrize("amount", [float("nan"), Decimal("Infinity"), "ten"])
def test_amounts_that_are_no_finite_number_are_refused(manager: DatabaseManager, session_id: int, amount: Any) -> None:
    with pytest.raises(ValueError, match="entry_price must be a"):
        open_position(manager, entry_price=amount)
    assert rows(manager, "SELECT id FROM positions") == []


def test_amount_beyond_the_column_is_refused_by_postgresql(manager: DatabaseManager, session_id: int) -> None:
    with pytest.raises(DataError):
        open_position(manager, entry_price=10**20)


def test_aware_times_are_stored_in_utc(manager: DatabaseManager, session_id: int) -> None:
    trade(manager, entry_time=ENTRY.replace(tzinfo=timezone(timedelta(hours=2))))
    assert one(manager, "SELECT entry_time FROM trades")["entry_time"] == ENTRY - timedelta(hours=2)


def test_position_update_changes_only_what_is_given(manager: DatabaseManager, session_id: int) -> None:
    position_id = open_position(manager, stop_loss=90, take_profit=120)
    assert manager.update_position(position_id, stop_loss=95, current_price=105)
    row = one(manager, "SELECT * FROM positions")
    assert (row["stop_loss"], row["take_profit"], row["unrealized_pnl"]) == (95, 120, 10)


def test_updates_of_missing_rows_answer_false(manager: DatabaseManager) -> None:
    assert manager.update_position(1, stop_loss=1) is False
    assert manager.close_position(1, 1) is False
    assert manager.update_order_journal("c-1", "filled") is False
    assert manager.update_order_status_new(1, "filled") is False


def test_closed_position_is_no_longer_active(manager: DatabaseManager, session_id: int) -> None:
    position_id = open_position(manager)
    assert manager.close_position(position_id, 110, EXIT, 20)
    assert manager.get_active_positions(session_id) == []
    row = one(manager, "SELECT * FROM positions")
    assert (row["exit_price"], row["exit_time"], row["realized_pnl"]) == (110, EXIT, 20)


def test_close_answers_false_when_its_commit_failed(manager: DatabaseManager, session_id: int) -> None:
    position_id = open_position(manager)
    refuse_commits(manager)
    assert manager.close_position(position_id, 110) is False
    assert [row["id"] for row in manager.get_active_positions()] == [position_id]


def test_active_positions_tell_all_that_an_engine_needs(manager: DatabaseManager, session_id: int) -> None:
    manager.create_order_journal_entry(session_id, "c-1", "IBM", "buy", "entry", 2, "ma")
    position_id = open_position(manager, client_order_id="c-1", stop_loss=95)
    (row,) = manager.get_active_positions(session_id)
    assert row["id"] == position_id
    assert (row["symbol"], row["side"], row["strategy"]) == ("IBM", "long", "ma")
    assert (row["entry_price"], row["size"], row["quantity"], row["stop_loss"]) == (100, Decimal("0.1"), 2, 95)
    assert (row["client_order_id"], row["entry_order_id"]) == ("c-1", "exchange-1")
    assert (row["current_size"], row["partial_exits_taken"], row["scale_ins_taken"]) == (Decimal("0.1"), 0, 0)
    assert [order["client_order_id"] for order in row["orders"]] == ["c-1"]
    assert manager.get_active_positions(session_id + 1) == []


def test_partial_exit_and_scale_in_change_the_size_and_are_recorded(manager: DatabaseManager, session_id: int) -> None:
    position_id = open_position(manager, size="0.4")
    manager.apply_partial_exit_update(position_id, "0.1", 110, 1)
    manager.apply_scale_in_update(position_id, "0.3", 105, 2)
    (row,) = manager.get_active_positions()
    assert (row["current_size"], row["original_size"]) == (Decimal("0.6"), Decimal("0.4"))
    assert (row["partial_exits_taken"], row["scale_ins_taken"]) == (1, 1)
    partials = rows(manager, "SELECT kind, size, price, level FROM partial_trades ORDER BY id")
    assert [tuple(partial.values()) for partial in partials] == [
        ("exit", Decimal("0.1"), 110, 1),
        ("scale_in", Decimal("0.3"), 105, 2),
    ]


def test_partial_exit_of_more_than_is_left_is_refused(manager: DatabaseManager, session_id: int) -> None:
    position_id = open_position(manager, size="0.1")
    with pytest.raises(ValueError, match=r"must be at most the 0\.10000000 left"):
        manager.apply_partial_exit_update(position_id, "0.2", 110, 1)
    with pytest.raises(ValueError, match="must be more than zero"):
        manager.apply_scale_in_update(position_id, 0, 110, 1)


def test_resizing_a_missing_position_changes_nothing(manager: DatabaseManager) -> None:
    manager.apply_partial_exit_update(1, "0.1", 110, 1)
    manager.apply_scale_in_update(1, "0.1", 110, 1)
    assert rows(manager, "SELECT id FROM partial_trades") == []


def test_trade_closes_its_position_and_updates_the_sessions_totals(manager: DatabaseManager, session_id: int) -> None:
    position_id = open_position(manager)
    trade_id = trade(manager, position_id=position_id)
    row = one(manager, "SELECT p.status, p.realized_pnl, t.id FROM positions p JOIN trades t ON t.position_id = p.id")
    assert tuple(row.values()) == ("closed", 20, trade_id)
    assert one(manager, "SELECT total_pnl FROM trading_sessions")["total_pnl"] == 20


def test_trade_of_an_unknown_position_is_refused_whole(manager: DatabaseManager, session_id: int) -> None:
    with pytest.raises(IntegrityError):
        trade(manager, position_id=7)
    assert rows(manager, "SELECT id FROM trades") == []


def test_trade_stands_when_the_totals_cannot_be_updated(manager: DatabaseManager, session_id: int) -> None:
    with manager.engine.begin() as connection:
        connection.execute(text("ALTER TABLE trading_sessions RENAME COLUMN total_pnl TO gone"))
        connection.execute(text("ALTER TABLE trading_sessions ADD COLUMN other integer"))
    assert trade(manager) == one(manager, "SELECT id FROM trades")["id"]


def test_order_is_journalled_once_per_client_order_id(manager: DatabaseManager, session_id: int) -> None:
    manager.create_order_journal_entry(session_id, "c-1", "IBM", "buy", "entry", 2, "ma")
    with pytest.raises(IntegrityError):
        manager.create_order_journal_entry(session_id, "c-1", "IBM", "buy", "entry", 2, "ma")


def test_orders_are_unresolved_until_filled_or_dead(manager: DatabaseManager, session_id: int) -> None:
    ids = [
        manager.create_order_journal_entry(session_id, f"c-{n}", "IBM", "buy", "entry", 2, "ma", price=100)
        for n in range(3)
    ]
    assert manager.update_order_journal("c-0", "filled", "x-0", fill_price=100, fill_quantity=2, commission="0.1")
    assert manager.update_order_status_new(ids[1], "cancelled")
    assert [order["client_order_id"] for order in manager.get_unresolved_orders(session_id)] == ["c-2"]
    filled, cancelled, _ = rows(manager, "SELECT * FROM orders ORDER BY id")
    assert (filled["exchange_order_id"], filled["fill_price"], filled["commission"]) == ("x-0", 100, Decimal("0.1"))
    assert filled["filled_at"] is not None
    assert cancelled["cancelled_at"] is not None


def test_order_status_swallows_a_bad_status(manager: DatabaseManager, session_id: int) -> None:
    order_id = manager.create_order_journal_entry(session_id, "c-1", "IBM", "buy", "entry", 2, "ma")
    assert manager.update_order_status_new(order_id, "lost") is False


def test_stale_orders_expire(manager: DatabaseManager, session_id: int) -> None:
    manager.create_order_journal_entry(session_id, "c-1", "IBM", "buy", "entry", 2, "ma")
    assert manager.expire_stale_pending_orders(timedelta(hours=1)) == 0
    assert manager.expire_stale_pending_orders(timedelta(0)) == 1
    assert manager.get_unresolved_orders() == []


def test_open_positions_move_to_another_session(manager: DatabaseManager, session_id: int) -> None:
    position_id = open_position(manager)
    other = manager.create_trading_session("ma", "IBM", "1d", "paper", 1000)
    assert manager.reassign_open_positions_to_session(session_id, other) == 1
    assert [row["id"] for row in manager.get_active_positions(other)] == [position_id]


def test_open_positions_with_a_trade_are_healed(manager: DatabaseManager, session_id: int) -> None:
    position_id = open_position(manager)
    trade(manager, position_id=position_id)
    with manager.engine.begin() as connection:
        connection.execute(text("UPDATE positions SET status = 'open'"))
    assert manager.heal_positions_with_terminal_trades() == 1
    assert manager.get_active_positions() == []
