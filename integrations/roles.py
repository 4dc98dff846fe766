"""Roles: a method's effect on the balance, the session, the positions and the orders.

A declaration names them, so that no other file has to ask for a method's name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import Enum
from typing import Any

# The session of a manager that has none: of all its calls.  No sequence gives it to another.
NO_SESSIONS = 0
# What an order is for, by its type.  With a stop price alone it may as well open a position, and an auction is a time.
_AUCTION = re.compile(r"(on|at)_(close|open)", re.IGNORECASE)
_EXITS = re.compile(r"exit|close|closing|stop_?loss|take_?profit|trailing_?stop|liquidat|reduce|^stop$", re.IGNORECASE)
_OPENS = re.compile(r"entry|enter|open|scale_?in|increase", re.IGNORECASE)
# Arguments that say it, true or false.
_FLAGS = ("reduce_only", "close_position", "is_exit")


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
    """Whether an order leaves a position: by a flag, by its type, or because it names one and does not enlarge it."""
    if any(call.get(flag) is True for flag in _FLAGS):
        return True
    purpose = call.get("order_type")
    text = str(purpose.value if isinstance(purpose, Enum) else purpose).strip().replace(" ", "_").replace("-", "_")
    text = _AUCTION.sub("", text)
    if _OPENS.search(text):
        return False
    return call.get("position_id") is not None or _EXITS.search(text) is not None
