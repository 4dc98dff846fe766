"""The two foreign managers with their engines, and what the comparison must know of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from .classic_engine import ClassicEngine
from .classic_manager import ClassicManager
from .classic_models import Base
from .compare import Clock, Shape
from .typed_engine import TypedEngine
from .typed_manager import LIVES_FOR, TypedManager
from .typed_models import Base as TypedBase


@dataclass(frozen=True, kw_only=True)
class Kind:
    name: str
    manager: Any
    engine: Callable[..., Any]
    shape: Shape


CLASSIC = Kind(
    name="classic",
    manager=ClassicManager,
    engine=ClassicEngine,
    shape=Shape(
        metadata=Base.metadata,
        tells={
            "create_trading_session": "trading_sessions",
            "log_position": "positions",
            "log_trade": "trades",
            "atomic_position_reconciliation.trade_id": "trades",
            "create_order_journal_entry": "orders",
        },
        repeats={
            "get_active_session_id": "trading_sessions",
            "get_last_session_id": "trading_sessions",
            "get_active_positions.id": "positions",
            "get_active_positions.orders.id": "orders",
            "get_unresolved_orders.id": "orders",
            "get_unresolved_orders.position_id": "positions",
            "get_recent_trades.id": "trades",
            "atomic_position_reconciliation.position_id": "positions",
        },
        references={
            "trades.position_id": "positions",
            "system_events.session_id": "trading_sessions",
            "strategy_executions.session_id": "trading_sessions",
        },
        unanswered=frozenset({"log_event"}),
    ),
)

TYPED = Kind(
    name="typed",
    manager=TypedManager,
    engine=TypedEngine,
    shape=Shape(
        metadata=TypedBase.metadata,
        tells={
            "open_session": "trading.desks",
            "book_position": "trading.open_positions",
            "place_ticket": "trading.tickets",
            "save_trade": "trading.trade_history",
            "record_fill": "trading.trade_history",
        },
        repeats={"open_desk": "trading.desks", "positions_of.id": "trading.open_positions"},
        references={"trading.trade_history.position_id": "trading.open_positions"},
        clocks={
            "trading.tickets.expires_at": Clock(ahead=LIVES_FOR),
            "trading.trade_history.at_ms": Clock(unit=timedelta(milliseconds=1), exact_to_s=0.001),
            "trading.trade_history.at_second": Clock(exact_to_s=1),
        },
        per_run=frozenset(
            f"trading.{column}"
            for column in (
                *("legs.id", "notes.id", "limit_changes.id"),
                # Keys of fills, which nobody was told: their number and order count, see the tests.
                "open_positions.fills",
            )
        ),
    ),
)

KINDS = {one.name: one for one in (CLASSIC, TYPED)}
