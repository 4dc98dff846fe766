"""Reads that the local view answers while PostgreSQL cannot: the ones that engines make at start and in their loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from .local_view import LocalView

Call = Mapping[str, Any]
# (view, arguments of the call, current session, now) -> what the manager would return
Answerer = Callable[[LocalView, Call, int | None, datetime], Any]


def _session(call: Call, current: int | None) -> int | None:
    given: int | None = call.get("session_id")
    return current if given is None else given


def _balance(view: LocalView, call: Call, current: int | None, now: datetime) -> float:
    return float(view.balance(_session(call, current)))


def _last_balance(view: LocalView, call: Call, current: int | None, now: datetime) -> float | None:
    session = _session(call, current)
    session = view.active_session_id() if session is None else session
    return None if session is None else float(view.balance(session))


def _positions(view: LocalView, call: Call, current: int | None, now: datetime) -> list[dict[str, Any]]:
    return view.open_positions(_session(call, current))


def _orders(view: LocalView, call: Call, current: int | None, now: datetime) -> list[dict[str, Any]]:
    return view.unresolved_orders(_session(call, current))


def _active(view: LocalView, call: Call, current: int | None, now: datetime) -> int | None:
    return view.active_session_id()


def _last(view: LocalView, call: Call, current: int | None, now: datetime) -> int | None:
    known = {name: call[name] for name in ("within_hours", "strategy_name", "symbol") if name in call}
    return view.last_session_id(now, **known)


LOCAL_READS: Mapping[str, Answerer] = {
    "get_current_balance": _balance,
    "recover_last_balance": _last_balance,
    "get_active_positions": _positions,
    "get_unresolved_orders": _orders,
    "get_active_session_id": _active,
    "get_last_session_id": _last,
}
