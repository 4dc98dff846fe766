"""What each foreign engine declares, as its engineer would after reading the docs."""

from __future__ import annotations

from typing import Any

from outbox.integrations.durable import TRADING_OPERATIONS, ManagerOperation, ManagerRead

CLASSIC_OPERATIONS: tuple[Any, ...] = (
    *TRADING_OPERATIONS,
    ManagerRead("get_system_halt", keep_last=True),
    ManagerRead("get_session_peak_balance", keep_last=True),
)

TYPED_OPERATIONS: tuple[Any, ...] = (
    ManagerOperation(
        "open_session",
        like="create_trading_session",
        args={"name": "strategy_name", "capital": "initial_balance", "settings": "strategy_config"},
        creates="trading.desks.id",
    ),
    ManagerOperation(
        "close_session", like="end_trading_session", args={"desk": "session_id", "closing": "final_balance"}
    ),
    ManagerOperation(
        "set_cash",
        like="update_balance",
        args={"desk": "session_id", "total": "new_balance", "why": "update_reason"},
    ),
    ManagerOperation(
        "adjust_cash",
        like="atomic_balance_update",
        args={"desk": "session_id", "delta": "balance_change", "why": "reason"},
    ),
    ManagerOperation(
        "book_position",
        like="log_position",
        args={
            "desk": "session_id",
            "qty": "size",
            "px": "entry_price",
            "tag": "entry_order_id",
            "stop": "stop_loss",
        },
        creates="trading.open_positions.id",
    ),
    ManagerOperation(
        "mark_position",
        like="update_position",
        args={"position": "position_id", "px": "current_price", "stop": "stop_loss"},
    ),
    ManagerOperation(
        "reduce_position",
        like="apply_partial_exit_update",
        args={"position": "position_id", "by": "executed_size_delta", "px": "price"},
    ),
    ManagerOperation("save_fills", args={"position": "position_id"}),
    ManagerOperation("flatten_position", like="close_position", args={"position": "position_id", "px": "exit_price"}),
    ManagerOperation(
        "place_ticket",
        like="create_order_journal_entry",
        args={"desk": "session_id", "ref": "client_order_id", "qty": "quantity", "px": "price"},
        creates="trading.tickets.id",
    ),
    ManagerOperation(
        "move_ticket",
        like="update_order_journal",
        args={"ref": "client_order_id", "state": "status", "px": "fill_price"},
    ),
    ManagerOperation(
        "save_trade",
        like="log_trade",
        args={
            "desk": "session_id",
            "qty": "size",
            "px": "exit_price",
            "amount": "pnl",
            "position": "position_id",
            "ref": "exit_order_id",
        },
        creates="trading.trade_history.id",
    ),
    ManagerOperation("put_limit", args={"desk": "session_id"}),
    ManagerOperation("add_note", like="log_event", args={"body": "message"}),
    ManagerRead("get_cash", like="get_current_balance", args={"desk": "session_id"}),
    ManagerRead("positions_of", like="get_active_positions", args={"desk": "session_id"}),
    ManagerRead("working_tickets", like="get_unresolved_orders", args={"desk": "session_id"}),
    ManagerRead("open_desk", like="get_active_session_id"),
)

OPERATIONS = {"classic": CLASSIC_OPERATIONS, "typed": TYPED_OPERATIONS}
