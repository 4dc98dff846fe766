"""Checks that refuse a call while the manager cannot be asked: what the local view already shows to be impossible.

Each raises `ValueError`, as managers do.  What the view does not know passes: the manager decides at replay.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any

from .local_view import LocalView, UnknownLocally, number

Call = Mapping[str, Any]

_EXITS = ("exit", "close", "stop", "take_profit")


def session_known(call: Call, view: LocalView) -> None:
    """The session must be one that exists."""
    session_id = call.get("session_id")
    if session_id is not None and view.sessions and session_id not in view.sessions:
        raise UnknownLocally(
            f"session {session_id} is not known while PostgreSQL is away",
            hint="use the id that the session was created with",
        )


def balance_stays_positive(call: Call, view: LocalView) -> None:
    """A change must not take the balance below zero.  Raises `UnknownLocally` where the balance is not known."""
    change = number(call["balance_change"] if "balance_change" in call else call["realized_pnl"])
    balance = view.balance(call.get("session_id"))
    if balance + change < 0:
        raise ValueError(f"the balance of session {call.get('session_id')} is {balance} and cannot change by {change}")


def position_open(call: Call, view: LocalView) -> None:
    """The position must be open, as far as the view knows its session."""
    position_id = call["position_db_id"]
    if view.sessions and position_id not in view.positions:
        raise ValueError(f"position_db_id {position_id} is not open")


def exit_not_more_than_left(call: Call, view: LocalView) -> None:
    """A partial exit must not be more than what is left of the position."""
    row = view.positions.get(call["position_id"])
    left = None if row is None else row.get("current_size")
    if left is not None and number(call["executed_size_delta"]) > number(left):
        raise ValueError(
            f"executed_size_delta must be at most the {left} left of position {call['position_id']}, "
            f"not {call['executed_size_delta']}"
        )


def is_exit_order(call: Call) -> bool:
    """Whether an order leaves a position, by its purpose or because it names one."""
    purpose = call.get("order_type")
    text = str(purpose.value if isinstance(purpose, Enum) else purpose).lower()
    return call.get("position_id") is not None or any(word in text for word in _EXITS)
