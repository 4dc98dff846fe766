"""Folds: what each durable call does to the local view.

Each takes the view (whose lock is held), the call's arguments by name (those that a manager does not know are absent)
and the notes of the adapter: `session`, `id` where the call creates one, and `at`, the time of the capture.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from typing import Any

from .local_view import LocalView, Row, new_session, number, plain

_SESSIONS_KEPT = 50
_RESOLVED = frozenset({"filled", "cancelled", "canceled", "rejected", "expired", "failed", "closed"})

Notes = Mapping[str, Any]


def session_created(view: LocalView, call: Notes, notes: Notes) -> None:
    """A new session with its initial balance becomes the active one."""
    balance = call.get("initial_balance")
    view.sessions[notes["id"]] = new_session(
        call.get("strategy_name"), call.get("symbol"), None if balance is None else number(balance), _naive(notes["at"])
    )
    for old in sorted(view.sessions)[:-_SESSIONS_KEPT]:
        if not view.sessions[old]["active"]:
            del view.sessions[old]


def session_ended(view: LocalView, call: Notes, notes: Notes) -> None:
    """The session is no longer active."""
    session = view.sessions.get(notes["session"])
    if session is not None:
        session["active"] = False


def balance_set(view: LocalView, call: Notes, notes: Notes) -> None:
    """The balance becomes an absolute amount."""
    _account(view, notes)["balance"] = number(call["new_balance"])


def balance_changed(view: LocalView, call: Notes, notes: Notes) -> None:
    """The balance changes by an amount."""
    _change(view, notes, call["balance_change"])


def position_reconciled(view: LocalView, call: Notes, notes: Notes) -> None:
    """A position closes and its profit changes the balance."""
    _change(view, notes, call["realized_pnl"])
    view.positions.pop(call["position_db_id"], None)


def _account(view: LocalView, notes: Notes) -> Row:
    # A balance of no session is nobody's to ask for.
    return new_session() if notes["session"] is None else view.sessions.setdefault(notes["session"], new_session())


def _change(view: LocalView, notes: Notes, change: Any) -> None:
    account = _account(view, notes)
    if account["balance"] is not None:
        account["balance"] += number(change)


def position_opened(view: LocalView, call: Notes, notes: Notes) -> None:
    """A new open position, and its journalled entry order is filled."""
    at, size = _naive(notes["at"]), call.get("size")
    client_order_id = call.get("client_order_id")
    row = {
        "id": notes["id"],
        "session_id": notes["session"],
        "symbol": call.get("symbol"),
        "side": _text(call.get("side")),
        "entry_price": call.get("entry_price"),
        "size": size,
        "quantity": call.get("quantity"),
        "current_price": call.get("entry_price"),
        "unrealized_pnl": None,
        "stop_loss": call.get("stop_loss"),
        "take_profit": call.get("take_profit"),
        "trailing_stop_activated": False,
        "trailing_stop_price": None,
        "entry_time": at,
        "strategy": call.get("strategy_name"),
        "original_size": size,
        "current_size": size,
        "partial_exits_taken": 0,
        "scale_ins_taken": 0,
        "last_partial_exit_price": None,
        "last_scale_in_price": None,
        "entry_order_id": call.get("entry_order_id"),
        "stop_loss_order_id": call.get("stop_loss_order_id"),
        "client_order_id": client_order_id,
        "orders": [],
    }
    extra = {name: value for name, value in call.items() if name not in row and name != "strategy_name"}
    view.positions[notes["id"]] = {**row, **plain(extra)}
    view.orders.pop(str(client_order_id), None)


def position_updated(view: LocalView, call: Notes, notes: Notes) -> None:
    """What is given of a position changes; None leaves a value as it is."""
    row = view.positions.get(call["position_id"])
    if row is not None:
        row |= {name: plain(value) for name, value in call.items() if value is not None and name in row}


def position_closed(view: LocalView, call: Notes, notes: Notes) -> None:
    """The position is no longer open."""
    view.positions.pop(call["position_id"], None)


def trade_logged(view: LocalView, call: Notes, notes: Notes) -> None:
    """A trade with a position closes it."""
    view.positions.pop(call.get("position_id"), None)  # type: ignore[arg-type]


def position_reduced(view: LocalView, call: Notes, notes: Notes) -> None:
    """A part of a position is gone."""
    _resize(view, call["position_id"], -number(call["executed_size_delta"]), "partial_exits_taken",
            "last_partial_exit_price", call.get("price"))  # fmt: skip


def position_enlarged(view: LocalView, call: Notes, notes: Notes) -> None:
    """A position has grown."""
    delta = number(call["added_size_delta"])
    _resize(view, call["position_id"], delta, "scale_ins_taken", "last_scale_in_price", call.get("price"))
    row = view.positions.get(call["position_id"])
    if row is not None and row.get("size") is not None:
        row["size"] = _as(row["size"], number(row["size"]) + delta)


def _resize(view: LocalView, position_id: Any, delta: Decimal, counter: str, last: str, price: Any) -> None:
    row = view.positions.get(position_id)
    if row is None:
        return
    if row.get("current_size") is not None:
        row["current_size"] = _as(row["current_size"], number(row["current_size"]) + delta)
    row[counter] = (row.get(counter) or 0) + 1
    row[last] = price


def _as(like: Any, value: Decimal) -> Any:
    """`value` as float where the manager's rows hold floats."""
    return float(value) if isinstance(like, float) else value


def order_journalled(view: LocalView, call: Notes, notes: Notes) -> None:
    """A new order that is not resolved yet."""
    row = {
        "id": notes["id"],
        "session_id": notes["session"],
        "position_id": None,
        "exchange_order_id": None,
        "status": "pending_submit",
        "strategy": call.get("strategy_name"),
        "fill_price": None,
        "fill_quantity": None,
        "created_at": _naive(notes["at"]),
    }
    given = {name: plain(value) for name, value in call.items() if name not in ("strategy_name", "session_id")}
    key = str(call.get("client_order_id") or notes["id"])
    view.orders[key] = {**row, **given, "side": _text(call.get("side")), "order_type": _text(call.get("order_type"))}


def order_updated(view: LocalView, call: Notes, notes: Notes) -> None:
    """What is given of an order changes; one that is filled or dead is resolved."""
    if call.get("client_order_id") is not None:
        key: str | None = str(call["client_order_id"])
    else:
        key = next((key for key, row in view.orders.items() if row["id"] == call.get("order_id")), None)
    row = view.orders.get(key) if key is not None else None
    if row is None:
        return
    if _text(call.get("status")) in _RESOLVED:
        del view.orders[str(key)]
        return
    row |= {name: plain(value) for name, value in call.items() if value is not None and name in row}


def _text(value: Any) -> Any:
    value = value.value if isinstance(value, Enum) else value
    return value.lower() if isinstance(value, str) else value


def _naive(at: datetime) -> datetime:
    return at.astimezone(UTC).replace(tzinfo=None)
