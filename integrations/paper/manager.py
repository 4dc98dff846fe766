"""The paper engine's `DatabaseManager`: the one class through which it reads and writes PostgreSQL.

An ordinary host: every method opens its own session and commits by itself, it knows of no outbox, and when
PostgreSQL is away its writes fail.  The parts are kept by subject in the modules beside this one.
"""

from __future__ import annotations

from .manager_balances import BalanceChange
from .manager_orders import OrdersPart
from .manager_positions import PositionsPart
from .manager_trades import Reconciliation, TradesPart

__all__ = ["BalanceChange", "DatabaseManager", "Reconciliation"]


class DatabaseManager(TradesPart, PositionsPart, OrdersPart):
    """Sessions, balances, positions, orders, trades, history and events of the paper engine in PostgreSQL.

    Amounts may be Decimal, int, float, numpy scalars or decimal text; choices may be text or enum members; times may
    be aware or UTC without a zone.  Calls without `session_id` mean the current trading session.
    """
