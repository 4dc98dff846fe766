"""Roles: a method's effect on the balance, the session, the positions and the orders.

A declaration names them, so that no other file has to ask for a method's name.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any

# The session of a manager that has none: of all its calls.  No sequence gives it to another.
NO_SESSIONS = 0
_EXITS = ("exit", "close", "stop", "take_profit")


class Balance(Enum):
    """What a call does to the balance of its session, by the argument that `amount` names."""

    SET = "set"
    CHANGE = "change"


class Session(Enum):
    """What a call does to a trading session."""

    BEGINS = "begins"
    ENDS = "ends"


class Position(Enum):
    """What a call does to the position that it creates, or that its `position_id` names."""

    OPENS = "opens"
    UPDATES = "updates"
    REDUCES = "reduces"
    ENLARGES = "enlarges"
    CLOSES = "closes"


class Order(Enum):
    """What a call does to the order that it creates, or that its `client_order_id` or `order_id` names."""

    OPENS = "opens"
    UPDATES = "updates"


def is_exit_order(call: Mapping[str, Any]) -> bool:
    """Whether an order leaves a position, by its purpose or because it names one."""
    purpose = call.get("order_type")
    text = str(purpose.value if isinstance(purpose, Enum) else purpose).lower()
    return call.get("position_id") is not None or any(word in text for word in _EXITS)
