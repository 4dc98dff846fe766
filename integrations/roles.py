"""Roles: a method's effect on the balance, the session, the positions and the orders.

A declaration names them, so that no other file has to ask for a method's name.  Only a hint asks which trading
operation a method resembles by its name.
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


_NEW = frozenset(
    {
        *("add", "append", "book", "create", "insert", "log", "open", "place"),
        *("put", "record", "register", "save", "start", "store", "submit", "write"),
    }
)
_CHANGED = frozenset({"change", "mark", "modify", "set", "update"})
_ENDED = frozenset({"close", "end", "finish", "flatten", "stop"})

_LIKE = (
    (_NEW, "trade", "log_trade"),
    (_NEW, "position", "log_position"),
    (_CHANGED, "position", "update_position"),
    (_ENDED, "position", "close_position"),
    (_NEW, "order", "create_order_journal_entry"),
    (_CHANGED, "order", "update_order_journal"),
    (_NEW, "session", "create_trading_session"),
    (_ENDED, "session", "end_trading_session"),
    (_CHANGED, "balance", "update_balance"),
    (_NEW, "event", "log_event"),
)


def like(name: str) -> str | None:
    """Name the trading operation with the same verb and noun; None where there is none."""
    verb, _, rest = name.partition("_")
    noun = rest.rpartition("_")[2]
    return next((operation for verbs, one, operation in _LIKE if verb in verbs and noun == one), None)


def declaration(names: list[str]) -> str:
    """Show how one of these methods would be declared."""
    for name in names:
        operation = like(name)
        if operation is not None:
            return f'ManagerOperation("{name}", like="{operation}")'
    return f'ManagerOperation("{names[0]}")'
