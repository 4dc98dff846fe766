"""With PostgreSQL up the wrapped manager behaves as the plain one: same results, same exceptions, same rows."""

from __future__ import annotations

import inspect
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from outbox import Outbox, OutboxConfig, PostgresTarget, Relay
from outbox.integrations.durable import DurableDatabaseManager
from outbox.integrations.paper import DatabaseManager
from outbox.integrations.paper.models import Base, OrderSide, PositionSide
from outbox.testing import PostgresServer

NOW = datetime(2024, 5, 6, 7, 8, 9, 123456, tzinfo=UTC)
TRADE: dict[str, Any] = {
    "symbol": "IBM",
    "side": "long",
    "entry_price": 100.25,
    "exit_price": Decimal("101.5"),
    "size": Decimal("0.1"),
    "entry_time": NOW,
    "exit_time": NOW + timedelta(hours=1),
    "pnl": 12.5,
    "exit_reason": "signal",
    "strategy_name": "s",
}


@dataclass
class Scene:
    """A manager with a session (1), two open positions (1, 2) and an order (3) in its database."""

    manager: Any
    rows_of: DatabaseManager

    def prepare(self) -> None:
        self.manager.create_trading_session("s", "IBM", "1d", "paper", Decimal(1000), session_name="one")
        self.manager.update_balance(1000, "start")
        for number in (1, 2):
            self.manager.log_position(
                "IBM", "long", 100, 0.1, "s", f"o{number}", quantity=2, client_order_id=f"c{number}"
            )
        self.manager.create_order_journal_entry(1, "c3", "IBM", "buy", "entry", 1, "s")


@pytest.fixture
def plain(postgres_server: PostgresServer) -> Iterator[Scene]:
    name = f"plain_{uuid.uuid4().hex}"
    manager = DatabaseManager(postgres_server.create_database(name))
    yield Scene(manager, manager)
    manager.close()
    postgres_server.drop_database(name)


@pytest.fixture
def wrapped(postgres_url: str, outbox_dir: Path) -> Iterator[Scene]:
    manager = DatabaseManager(postgres_url)
    with Outbox.open(outbox_dir, OutboxConfig()) as box:
        durable = DurableDatabaseManager(manager, box)
        with Relay(box, PostgresTarget(postgres_url, durable.outbox_operations)):
            yield Scene(durable, manager)
        durable.detach_outbox()
    manager.close()


Call = Callable[[Any], Any]


def entered(block: AbstractContextManager[Any]) -> Any:
    with block as change:
        return change


def refused_inside(block: AbstractContextManager[Any]) -> None:
    with block:
        raise KeyError("the caller's own")


CALLS: dict[str, Call] = {
    "create_trading_session": lambda m: m.create_trading_session("t", "X", "1h", "live", 5, {"a": Decimal(1)}, "named"),
    "create_trading_session, bad mode": lambda m: m.create_trading_session("t", "X", "1h", "fantasy", 5),
    "create_trading_session, bad amount": lambda m: m.create_trading_session("t", "X", "1h", "live", float("nan")),
    "create_trading_session, long symbol": lambda m: m.create_trading_session("t", "X" * 21, "1h", "live", 5),
    "create_trading_session, too much": lambda m: m.create_trading_session("t", "X", "1h", "live", Decimal(10) ** 11),
    "end_trading_session": lambda m: m.end_trading_session(1, final_balance=900),
    "end_trading_session, current": lambda m: m.end_trading_session(),
    "end_trading_session, missing": lambda m: m.end_trading_session(99),
    "set_current_session": lambda m: m.set_current_session(1),
    "set_current_session, missing": lambda m: m.set_current_session(99),
    "get_active_session_id": lambda m: m.get_active_session_id(),
    "get_last_session_id": lambda m: m.get_last_session_id(1.0, strategy_name="s"),
    "update_balance": lambda m: m.update_balance(Decimal("1234.5"), "manual", updated_by="me"),
    "update_balance, negative": lambda m: m.update_balance(-1, "manual"),
    "update_balance, no number": lambda m: m.update_balance("much", "manual"),
    "update_balance, missing session": lambda m: m.update_balance(1, "manual", session_id=99),
    "atomic_balance_update": lambda m: shown(entered(m.atomic_balance_update(Decimal("-2.5"), "fee"))),
    "atomic_balance_update, below zero": lambda m: entered(m.atomic_balance_update(-5000, "fee")),
    "atomic_balance_update, no number": lambda m: entered(m.atomic_balance_update("x", "fee")),
    "atomic_balance_update, caller raises": lambda m: refused_inside(m.atomic_balance_update(1, "fee")),
    "get_current_balance": lambda m: m.get_current_balance(),
    "get_current_balance, missing": lambda m: m.get_current_balance(99),
    "recover_last_balance": lambda m: m.recover_last_balance(1),
    "log_position": lambda m: m.log_position("IBM", PositionSide.SHORT, "5", 0.2, "s", "o9", stop_loss=6),
    "log_position, journalled": lambda m: m.log_position("IBM", "long", 5, 1, "s", "o9", client_order_id="c3"),
    "log_position, bad side": lambda m: m.log_position("IBM", "up", 5, 1, "s", "o9"),
    "log_position, missing session": lambda m: m.log_position("IBM", "long", 5, 1, "s", "o9", session_id=99),
    "log_position, missing argument": lambda m: m.log_position("IBM", "long"),
    "update_position": lambda m: m.update_position(1, stop_loss=95, current_price=Decimal("101.25")),
    "update_position, missing": lambda m: m.update_position(99, stop_loss=95),
    "update_position, no number": lambda m: m.update_position(1, stop_loss="low"),
    "close_position": lambda m: m.close_position(1, 101, NOW, 3),
    "close_position, missing": lambda m: m.close_position(99),
    "close_position, too much": lambda m: m.close_position(1, Decimal(10) ** 11),
    "apply_partial_exit_update": lambda m: m.apply_partial_exit_update(1, 0.05, 101, 1),
    "apply_partial_exit_update, too much": lambda m: m.apply_partial_exit_update(1, 0.5, 101, 1),
    "apply_partial_exit_update, nothing": lambda m: m.apply_partial_exit_update(1, 0, 101, 1),
    "apply_partial_exit_update, missing": lambda m: m.apply_partial_exit_update(99, 0.05, 101, 1),
    "apply_scale_in_update": lambda m: m.apply_scale_in_update(2, 0.05, 101, 1),
    "apply_scale_in_update, nothing": lambda m: m.apply_scale_in_update(2, -1, 101, 1),
    "log_trade": lambda m: m.log_trade(**TRADE),
    "log_trade, with position": lambda m: m.log_trade(**TRADE, position_id=1, exit_order_id="x1", commission="0.1"),
    "log_trade, missing position": lambda m: m.log_trade(**TRADE, position_id=99),
    "log_trade, bad side": lambda m: m.log_trade(**{**TRADE, "side": "up"}),
    "atomic_position_reconciliation": lambda m: shown(
        entered(m.atomic_position_reconciliation(2, 7.5, 104, "target", {"exit_order_id": "x2", "commission": 1}))
    ),
    "atomic_position_reconciliation, missing": lambda m: entered(m.atomic_position_reconciliation(99, 1, 1, "x")),
    "atomic_position_reconciliation, below zero": lambda m: entered(m.atomic_position_reconciliation(1, -5000, 1, "x")),
    "create_order_journal_entry": lambda m: m.create_order_journal_entry(1, "c4", "I", OrderSide.SELL, "exit", 1, "s"),
    "create_order_journal_entry, bad side": lambda m: m.create_order_journal_entry(1, "c4", "IBM", "?", "exit", 1, "s"),
    "create_order_journal_entry, long id": lambda m: m.create_order_journal_entry(1, "c" * 101, "I", "buy", "x", 1, ""),
    "update_order_journal": lambda m: m.update_order_journal("c3", "filled", "e3", 100, 1, commission=1, position_id=1),
    "update_order_journal, missing": lambda m: m.update_order_journal("c99", "filled"),
    "update_order_journal, bad status": lambda m: m.update_order_journal("c3", "lost"),
    "update_order_status_new": lambda m: m.update_order_status_new(3, "cancelled"),
    "update_order_status_new, missing": lambda m: m.update_order_status_new(99, "cancelled"),
    "update_order_status_new, bad status": lambda m: m.update_order_status_new(3, "lost"),
    "get_unresolved_orders": lambda m: timeless(m.get_unresolved_orders()),
    "get_active_positions": lambda m: timeless(m.get_active_positions()),
    "get_active_positions, missing": lambda m: m.get_active_positions(99),
    "expire_stale_pending_orders": lambda m: m.expire_stale_pending_orders(timedelta(0)),
    "reassign_open_positions_to_session": lambda m: m.reassign_open_positions_to_session(1, 1),
    "heal_positions_with_terminal_trades": lambda m: m.heal_positions_with_terminal_trades(),
    "set_system_halt": lambda m: m.set_system_halt(True, "test"),
    "is_system_halted": lambda m: m.is_system_halted(),
    "log_event": lambda m: m.log_event("e", "happened", details={"x": Decimal("1.5")}),
    "log_audit_event": lambda m: m.log_audit_event("did", "me"),
    "log_strategy_execution": lambda m: m.log_strategy_execution("s", "IBM", "buy", "none", 5, ["why"]),
    "log_strategy_execution, no number": lambda m: m.log_strategy_execution("s", "IBM", "buy", "none", "x"),
    "log_account_snapshot": lambda m: m.log_account_snapshot(1000, 1001, 1, 2),
    "get_session": lambda m: entered(m.get_session()).is_active,
    "close": lambda m: m.close(),
}  # fmt: skip


def shown(change: Any) -> dict[str, Any]:
    return {name: getattr(change, name) for name in ("old_balance", "new_balance", "change")}


def timeless(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {name: timeless(value) if name == "orders" else value for name, value in row.items() if not is_time(value)}
        for row in rows
    ]


def is_time(value: Any) -> bool:
    return isinstance(value, datetime)


def outcome(call: Call, manager: Any) -> tuple[str, Any]:
    try:
        value = call(manager)
    except Exception as exc:  # noqa: BLE001 - what is raised is what is compared
        return "raised", type(exc)
    return "returned", value


def tables(manager: DatabaseManager) -> dict[str, list[dict[str, Any]]]:
    """Every row of every table in the order of the ids, times apart."""
    manager.engine.dispose()
    with manager.engine.connect() as connection:
        found = {}
        for table in Base.metadata.sorted_tables:
            rows = connection.execute(text(f"SELECT * FROM {table.name} ORDER BY id")).mappings()
            found[table.name] = [dict(row) for row in rows]
        return found


def utc(time: datetime) -> datetime:
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def assert_same_rows(
    left: dict[str, list[dict[str, Any]]], right: dict[str, list[dict[str, Any]]], began: datetime
) -> None:
    """Equal but for times of the clock, which must lie between `began` and now."""
    ended = datetime.now(UTC)
    assert left.keys() == right.keys()
    for name, rows in left.items():
        assert len(rows) == len(right[name]), name
        for one, other in zip(rows, right[name], strict=True):
            assert one.keys() == other.keys()
            for column, value in one.items():
                found = other[column]
                if is_time(value) and is_time(found):
                    assert value == found or all(began <= utc(time) <= ended for time in (value, found)), (name, column)
                elif column == "session_name":
                    assert value.rpartition("_")[0] == found.rpartition("_")[0]
                else:
                    assert value == found, (name, column, one, other)


def test_every_public_method_has_a_case() -> None:
    public = {name for name, _ in inspect.getmembers(DatabaseManager, inspect.isfunction) if not name.startswith("_")}
    assert {name.partition(",")[0] for name in CALLS} == public


@pytest.mark.parametrize("name", CALLS)
def test_a_call_gives_the_same_result_and_leaves_the_same_rows(name: str, plain: Scene, wrapped: Scene) -> None:
    began = datetime.now(UTC)
    for scene in (plain, wrapped):
        scene.prepare()
    expected = outcome(CALLS[name], plain.manager)
    assert outcome(CALLS[name], wrapped.manager) == expected
    assert wrapped.manager.session_factory is wrapped.rows_of.session_factory
    assert_same_rows(tables(plain.rows_of), tables(wrapped.rows_of), began)


def test_signatures_and_help_are_the_managers_own(wrapped: Scene) -> None:
    for name, function in inspect.getmembers(DatabaseManager, inspect.isfunction):
        if not name.startswith("_"):
            own = inspect.signature(getattr(wrapped.rows_of, name))
            assert inspect.signature(getattr(wrapped.manager, name)) == own
            assert getattr(wrapped.manager, name).__doc__ == function.__doc__
            assert name in dir(wrapped.manager)
    assert isinstance(wrapped.manager, DatabaseManager)
    assert isinstance(wrapped.manager, DurableDatabaseManager)
