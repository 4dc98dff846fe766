"""Roles: a method's effect on the balance, the session, the positions and the orders.

A declaration names them, so that no other file has to ask for a method's name.
"""

from __future__ import annotations

from enum import Enum


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
