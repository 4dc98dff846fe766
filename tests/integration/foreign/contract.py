"""Calls that a host makes of each manager while PostgreSQL is up, refusals among them."""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal
from typing import Any

from .classic_models import OrderStatus, OrderType, PositionSide
from .classic_parts import Side
from .journal import Journal
from .market import bar_time
from .typed_models import Side as TypedSide
from .typed_models import State

MISSING = 2_000_000_000
Script = Callable[[Any, Journal, dict[str, Any]], None]


class Mode(enum.Enum):
    PAPER = "paper"


def classic_sessions(manager: Any, call: Journal, made: dict[str, Any]) -> None:
    call(manager.get_active_session_id)
    call(manager.get_last_session_id)
    call(manager.get_current_balance)
    call(manager.recover_last_balance)
    call.tried(manager.create_trading_session, "momentum", "BTCUSDT", "1h", "paper", None)
    first = call(manager.create_trading_session, "momentum", "BTCUSDT", "1h", Mode.PAPER, 1000)
    call(manager.get_current_balance)
    call(manager.get_current_balance, session_id=first)
    call(manager.recover_last_balance)
    call(manager.end_trading_session)
    call(manager.end_trading_session, first, 1000.5)
    call(manager.end_trading_session, MISSING, 1.0)
    call(manager.get_active_session_id)
    call.record("current", lambda: manager._current_session_id == first)
    made["session"] = call(
        manager.create_trading_session,
        strategy_name="momentum",
        symbol="ETHUSDT",
        timeframe="1h",
        mode="LIVE",
        initial_balance=2500.123456789,
        strategy_config={"levels": [1, 2.5], "deep": {"on": True}},
    )
    call(manager.get_active_session_id)
    call(manager.get_last_session_id, 24, "momentum", "BTCUSDT")
    call(manager.get_last_session_id, within_hours=1, strategy_name="none")


def classic_balances(manager: Any, call: Journal, made: dict[str, Any]) -> None:
    call(manager.update_balance, 2500.123456789, "session_start", "system")
    call(manager.get_current_balance)
    call(manager.update_balance, new_balance=0.1 + 0.2, update_reason="sync", session_id=made["session"])
    call(manager.get_current_balance, made["session"])
    call(manager.update_balance, 1e15, "too much")
    call(manager.update_balance, 100, "int", session_id=MISSING)
    call(manager.get_current_balance, MISSING)
    call(manager.update_balance, Decimal("1000.5"), "decimal")
    for change, reason in ((12.345678912345, "trade_pnl"), (-3, "fee"), (-3, "fee"), (Decimal("0.1"), "bonus")):
        with call.block(manager.atomic_balance_update, change, reason) as told:
            assert told["new_balance"] is not None
        call(manager.get_current_balance)
    refused(call, manager.atomic_balance_update, -1e6, "too much")
    refused(call, manager.atomic_balance_update, 5.0, "unknown", session_id=MISSING)
    call(manager.get_current_balance)
    call(manager.get_session_peak_balance)
    call(manager.recover_last_balance, made["session"])


def refused(call: Journal, block: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    """Enter a block that is refused, or whose body fails."""
    with contextlib.suppress(Exception), call.block(block, *args, **kwargs):
        raise LookupError("the exchange said no")


def classic_positions(manager: Any, call: Journal, made: dict[str, Any]) -> None:
    sides: tuple[Any, ...] = ("long", "SHORT", Side.LONG, PositionSide.SHORT)
    made["positions"] = [
        call(
            manager.log_position,
            "BTCUSDT",
            side,
            100.123456789 + number,
            size=0.5,
            strategy_name="momentum",
            entry_order_id=f"x-{number}",
            quantity=None if number else 0.25,
            entry_balance=1000.0,
            client_order_id=f"p-{number}",
        )
        for number, side in enumerate(sides)
    ]
    call(manager.get_active_positions)
    one, two, three, _ = made["positions"]
    call(manager.update_position, one, 101.5, 0.75, 0.1, stop_loss=Decimal("95.5"), mfe=1.25, mfe_time=bar_time(3))
    call(manager.update_position, one, breakeven_triggered=True, trailing_stop_price=99.9)
    call(manager.update_position, MISSING, 1.0)
    call(manager.apply_partial_exit_update, one, 0.125, 102.25, 0)
    call(manager.apply_scale_in_update, position_id=one, added_size_delta=0.0625, price=99.0, threshold_level=1)
    call(manager.apply_partial_exit_update, MISSING, 0.5, 1.0)
    call(manager.get_active_positions, made["session"])
    call(manager.close_position, two, exit_price=90.0, pnl=5.5)
    call(manager.close_position, three, 90.0, bar_time(9), -5.5)
    call(manager.close_position, MISSING)
    call(manager.get_active_positions)
    call.tried(manager.log_position, "BTCUSDT", "sideways", 1.0, 1.0, "momentum", "x-9")
    call.tried(manager.log_position, "BTCUSDT", "long", 1e12, 1.0, "momentum", "x-10")
    call.tried(manager.log_position, "BTCUSDT", "long", 1.0, 1.0, "momentum", "x-11", session_id=MISSING)
    call.tried(manager.log_position, "BTCUSDT", "long", 1.0, 1.0, None, "x-12")
    call.tried(manager.log_position, "BTCUSDT")
    call(manager.get_active_positions, MISSING)


def classic_orders(manager: Any, call: Journal, made: dict[str, Any]) -> None:
    session = made["session"]
    kinds: tuple[Any, ...] = ("ENTRY", "entry", OrderType.FULL_EXIT, OrderType.SCALE_IN)
    orders = [
        call(
            manager.create_order_journal_entry,
            session,
            f"o-{number}",
            "BTCUSDT",
            Side.LONG,
            kind,
            0.75,
            "momentum",
            price=None if number else 50.5,
            position_id=made["positions"][3] if number == 2 else None,
        )
        for number, kind in enumerate(kinds)
    ]
    call(manager.get_unresolved_orders, session)
    call(manager.update_order_journal, "o-0", "SUBMITTED", exchange_order_id="e-0")
    call(manager.get_unresolved_orders, session)
    call(manager.update_order_journal, "o-0", OrderStatus.FILLED, fill_price=50.25, fill_quantity=0.75, commission=0.01)
    call(manager.update_order_journal, "nobody", "FILLED")
    call.tried(manager.update_order_journal, "o-1", "half filled")
    call(manager.update_order_status_new, orders[1], "cancelled")
    call(manager.update_order_status_new, orders[2], "SUBMITTED", "e-2", filled_price=1e12)
    call(manager.update_order_status_new, order_id=MISSING, status="FILLED")
    call.tried(manager.create_order_journal_entry, session, "o-9", None, "long", "ENTRY", 1.0, "momentum")
    call(manager.expire_stale_pending_orders, session, 0.0)
    call(manager.get_unresolved_orders, session)
    call(manager.get_unresolved_orders, MISSING)


def classic_trades(manager: Any, call: Journal, made: dict[str, Any]) -> None:
    def trade(number: int, **more: Any) -> Any:
        return call.tried(
            manager.log_trade,
            "BTCUSDT",
            more.pop("side", "LONG"),
            100.0,
            more.pop("exit_price", 103.25),
            0.5,
            bar_time(number),
            bar_time(number + 5),
            1.625 - number,
            "take_profit",
            "momentum",
            **more,
        )

    last = made["positions"][3]
    trade(0, exit_order_id="xe-0", extra={"path": [1.5, None, "a"]})
    trade(1, position_id=last, exit_order_id="xe-1")
    trade(2, position_id=last, side=Side.SHORT)
    trade(3, position_id=MISSING)
    trade(4, side="flat")
    trade(5, exit_price=1e12)
    trade(6, exit_price=None)
    call(manager.get_recent_trades, 2)
    data = {"symbol": "BTCUSDT", "side": "LONG", "entry_price": 100.1, "size": 0.4, "entry_time": bar_time(1)}
    with call.block(
        manager.atomic_position_reconciliation, made["positions"][0], 7.5, 110.0, "liquidated", data, made["session"]
    ):
        pass
    refused(call, manager.atomic_position_reconciliation, MISSING, 7.5, 110.0, "liquidated", data)
    refused(call, manager.atomic_position_reconciliation, last, -1e7, 110.0, "liquidated", data)
    call(manager.get_current_balance)
    call(manager.get_active_positions)


def classic_events(manager: Any, call: Journal, made: dict[str, Any]) -> None:
    call(manager.log_event, "ALERT", "something", details={"at": 1.5})
    call(manager.log_strategy_execution, "momentum", "BTCUSDT", "buy", "opened", 1.25, ["a", "b"])
    call(manager.log_account_snapshot, 1000.0, 1001.5, 2, 0.01, session_id=made["session"])
    call(manager.get_account_history, limit=5)
    call(manager.get_system_halt)
    call(manager.set_system_halt, True, "by hand")
    call(manager.get_system_halt)
    call(manager.set_system_halt, False)
    call(manager.get_system_halt)
    call(manager.test_connection)
    with manager.get_session() as session:
        call.record("autoflush", lambda: session.autoflush)


def typed_desks(manager: Any, call: Journal, made: dict[str, Any]) -> None:
    call(manager.open_desk)
    first = call(manager.open_session, "alpha", "ETH-USD", Decimal("100.1234567"))
    call(manager.get_cash, first)
    call(manager.close_session, first, Decimal(99))
    call(manager.close_session, MISSING)
    call(manager.open_desk)
    made["desk"] = call(
        manager.open_session, name="beta", symbol="ETH-USD", capital=Decimal(5000), settings={"a": [1, {"b": None}]}
    )
    call(manager.open_desk)
    call(manager.get_cash, made["desk"])
    call.tried(manager.open_session, "gamma", None, Decimal(1))


def typed_cash(manager: Any, call: Journal, made: dict[str, Any]) -> None:
    desk = made["desk"]
    call(manager.set_cash, desk, Decimal("4999.9999995"), "custody")
    call(manager.get_cash, desk)
    for delta in (Decimal("1.25"), Decimal("-0.0000004"), Decimal(3)):
        with call.block(manager.adjust_cash, desk, delta, why="fill"):
            pass
        call(manager.get_cash, desk)
    refused(call, manager.adjust_cash, desk, Decimal(-10_000))
    refused(call, manager.adjust_cash, desk, Decimal(1))
    refused(call, manager.adjust_cash, MISSING, Decimal(1))
    call.tried(manager.set_cash, desk, Decimal(10) ** 20, "too much")
    call.tried(manager.set_cash, MISSING, Decimal(1), "nobody's")
    call(manager.get_cash, desk)


def typed_positions(manager: Any, call: Journal, made: dict[str, Any]) -> None:
    desk = made["desk"]
    made["positions"] = [
        call(
            manager.book_position,
            desk,
            "ETH-USD",
            side,
            Decimal("1.5"),
            Decimal("200.123"),
            f"b-{side.value}",
            stop=Decimal(150),
            targets=[Decimal(220), Decimal(240)],
        )
        for side in TypedSide
    ]
    one, two = made["positions"]
    call(manager.positions_of, desk)
    call(manager.mark_position, one, Decimal("201.5"))
    call(manager.mark_position, one, Decimal("201.5"))
    call(manager.mark_position, one, px=Decimal("202.5"), stop=Decimal("160.0000001"))
    call(manager.mark_position, MISSING, Decimal(1))
    call(manager.save_fills, one, [(Decimal("200.1"), Decimal("0.5")), (Decimal("200.2"), Decimal(1))])
    call(manager.save_fills, one, [(Decimal("200.3"), Decimal("0.5"))])
    call(manager.reduce_position, one, Decimal("0.5"), Decimal(210))
    call.tried(manager.reduce_position, MISSING, Decimal(1), Decimal(1))
    call(manager.flatten_position, two, Decimal(199))
    call(manager.flatten_position, two, Decimal(199))
    call(manager.flatten_position, MISSING, Decimal(199))
    call(manager.positions_of, desk)
    call(manager.positions_of, MISSING)
    call.tried(manager.book_position, MISSING, "ETH-USD", TypedSide.BUY, Decimal(1), Decimal(1), "x")


def typed_tickets(manager: Any, call: Journal, made: dict[str, Any]) -> None:
    desk = made["desk"]
    for number in range(3):
        price = Decimal(200) if number else None
        call(manager.place_ticket, desk, f"t-{number}", "ETH-USD", TypedSide.BUY, Decimal(1), price, "a", "b,c")
    call(manager.working_tickets, desk)
    call(manager.move_ticket, "t-0", State.WORKING)
    call(manager.move_ticket, ref="t-1", state=State.DONE, px=Decimal("201.5"))
    call(manager.move_ticket, "nobody", State.DEAD)
    call(manager.working_tickets, desk)
    call.tried(manager.place_ticket, desk, None, "ETH-USD", TypedSide.BUY, Decimal(1), None)
    call.tried(manager.place_ticket, MISSING, "t-9", "ETH-USD", TypedSide.BUY, Decimal(1), None)


def typed_trades(manager: Any, call: Journal, made: dict[str, Any]) -> None:
    desk, (position, _) = made["desk"], made["positions"]

    def counted() -> None:
        call.record("counts", lambda: [manager.trades_today, manager.pnl, manager._n, manager.loss_limit_reached])

    counted()
    call(manager.save_trade, desk, Decimal(1), Decimal(200), Decimal("-60.5"))
    counted()
    call(
        manager.save_trade,
        desk,
        qty=Decimal(1),
        px=Decimal(200),
        amount=Decimal(2),
        ref="r-1",
        tags=["x"],
        meta={"a": 1},
    )
    call.tried(manager.save_trade, desk, Decimal(10) ** 20, Decimal(200), Decimal(7))
    counted()
    call.tried(manager.save_trade, MISSING, Decimal(1), Decimal(200), Decimal(7))
    counted()
    call(manager.record_fill, desk, position, "t-2", Decimal(1), Decimal("205.5"), Decimal("5.5"))
    counted()
    call(manager.working_tickets, desk)
    call(manager.positions_of, desk)
    call(manager.trade_count, desk)


def typed_limits(manager: Any, call: Journal, made: dict[str, Any]) -> None:
    desk = made["desk"]
    call(manager.limit, desk, "max_qty")
    for value in (5, 7, 7):
        call(manager.put_limit, desk, "max_qty", Decimal(value))
        call(manager.limit, desk, "max_qty")
    call.tried(manager.put_limit, MISSING, "max_qty", Decimal(1))
    call(manager.add_note, "hello", day=str(bar_time(1) + timedelta(days=1)), nested={"a": [1]})


SCRIPTS: dict[str, dict[str, Script]] = {
    "classic": {
        "sessions": classic_sessions,
        "balances": classic_balances,
        "positions": classic_positions,
        "orders": classic_orders,
        "trades": classic_trades,
        "events": classic_events,
    },
    "typed": {
        "desks": typed_desks,
        "cash": typed_cash,
        "positions": typed_positions,
        "tickets": typed_tickets,
        "trades": typed_trades,
        "limits": typed_limits,
    },
}


def perform(kind: str, manager: Any, call: Journal) -> None:
    """All scripts of a kind in their order, each a section of the journal."""
    made: dict[str, Any] = {}
    for name, script in SCRIPTS[kind].items():
        call.mark(name)
        script(manager, call, made)
