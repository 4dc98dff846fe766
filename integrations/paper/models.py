"""The tables of the paper engine's database: sessions, positions, orders, trades, balances, history and events.

Ids are integers drawn from PostgreSQL sequences, timestamps are UTC without a zone, and money is NUMERIC(18,8).
Sizes are fractions of the balance; quantities are units of the traded asset.
"""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from enum import Enum as PyEnum
from enum import StrEnum
from typing import Annotated, Any

from sqlalchemy import JSON, DateTime, Enum, ForeignKey, Index, Numeric, String, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship


class TradeMode(StrEnum):
    """Where a session trades."""

    PAPER = "paper"
    LIVE = "live"
    BACKTEST = "backtest"


class PositionSide(StrEnum):
    """Which way a position profits."""

    LONG = "long"
    SHORT = "short"


class PositionStatus(StrEnum):
    """Whether a position is still in the market."""

    OPEN = "open"
    CLOSED = "closed"


class OrderSide(StrEnum):
    """What an order does at the exchange."""

    BUY = "buy"
    SELL = "sell"


class OrderStatus(StrEnum):
    """How far an order has come; the first three are unresolved."""

    PENDING_SUBMIT = "pending_submit"
    SUBMITTED = "submitted"
    PARTIALLY_FILLED = "partially_filled"
    FILLED = "filled"
    CANCELLED = "cancelled"
    REJECTED = "rejected"
    EXPIRED = "expired"


UNRESOLVED = (OrderStatus.PENDING_SUBMIT, OrderStatus.SUBMITTED, OrderStatus.PARTIALLY_FILLED)


class PartialKind(StrEnum):
    """Whether a partial trade took size off a position or added to it."""

    EXIT = "exit"
    SCALE_IN = "scale_in"


def _values(cls: type[PyEnum]) -> list[str]:
    return [str(item.value) for item in cls]


def _choice(cls: type[PyEnum]) -> Enum:
    """A text column that holds the values of `cls`, guarded by a CHECK instead of a PostgreSQL type."""
    return Enum(cls, native_enum=False, create_constraint=True, length=24, values_callable=_values)


Key = Annotated[int, mapped_column(primary_key=True)]
Money = Annotated[Decimal, mapped_column(Numeric(18, 8))]
Stamp = Annotated[datetime, mapped_column(DateTime(timezone=False))]
SessionKey = Annotated[int, mapped_column(ForeignKey("trading_sessions.id"))]
PositionKey = Annotated[int, mapped_column(ForeignKey("positions.id"))]
Name = Annotated[str, mapped_column(String(100))]
Symbol = Annotated[str, mapped_column(String(20))]


class Base(DeclarativeBase):
    """Metadata of every table here; `create_all` on it makes the schema."""


class TradingSession(Base):
    """One run of an engine from its start to its orderly end; it survives restarts in between."""

    __tablename__ = "trading_sessions"

    id: Mapped[Key]
    session_name: Mapped[str] = mapped_column(String(200))
    strategy_name: Mapped[Name]
    symbol: Mapped[Symbol]
    timeframe: Mapped[str] = mapped_column(String(10))
    mode: Mapped[TradeMode] = mapped_column(_choice(TradeMode))
    initial_balance: Mapped[Money]
    final_balance: Mapped[Money | None]
    start_time: Mapped[Stamp]
    end_time: Mapped[Stamp | None]
    is_active: Mapped[bool] = mapped_column(default=True)
    strategy_config: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    total_trades: Mapped[int] = mapped_column(default=0)
    winning_trades: Mapped[int] = mapped_column(default=0)
    total_pnl: Mapped[Money] = mapped_column(default=Decimal(0))


class Position(Base):
    """One entry into the market until its close."""

    __tablename__ = "positions"
    __table_args__ = (Index("ix_positions_session_status", "session_id", "status"),)

    id: Mapped[Key]
    session_id: Mapped[SessionKey]
    symbol: Mapped[Symbol]
    side: Mapped[PositionSide] = mapped_column(_choice(PositionSide))
    status: Mapped[PositionStatus] = mapped_column(_choice(PositionStatus))
    strategy_name: Mapped[Name]
    entry_price: Mapped[Money]
    size: Mapped[Money]
    quantity: Mapped[Money | None]
    original_size: Mapped[Money]
    current_size: Mapped[Money]
    current_price: Mapped[Money | None]
    unrealized_pnl: Mapped[Money | None]
    stop_loss: Mapped[Money | None]
    take_profit: Mapped[Money | None]
    trailing_stop_activated: Mapped[bool] = mapped_column(default=False)
    trailing_stop_price: Mapped[Money | None]
    entry_time: Mapped[Stamp]
    last_update: Mapped[Stamp]
    exit_price: Mapped[Money | None]
    exit_time: Mapped[Stamp | None]
    realized_pnl: Mapped[Money | None]
    entry_order_id: Mapped[str | None] = mapped_column(String(100), index=True)
    stop_loss_order_id: Mapped[str | None] = mapped_column(String(100))
    client_order_id: Mapped[str | None] = mapped_column(String(100), index=True)
    partial_exits_taken: Mapped[int] = mapped_column(default=0)
    scale_ins_taken: Mapped[int] = mapped_column(default=0)
    last_partial_exit_price: Mapped[Money | None]
    last_scale_in_price: Mapped[Money | None]

    orders: Mapped[list[Order]] = relationship(back_populates="position", order_by="Order.id")


class Order(Base):
    """The journal of one order, written before it goes to the exchange."""

    __tablename__ = "orders"
    __table_args__ = (Index("ix_orders_session_status", "session_id", "status"),)

    id: Mapped[Key]
    session_id: Mapped[SessionKey]
    position_id: Mapped[PositionKey | None] = mapped_column(index=True)
    client_order_id: Mapped[str | None] = mapped_column(String(100), unique=True)
    exchange_order_id: Mapped[str | None] = mapped_column(String(100))
    symbol: Mapped[Symbol]
    side: Mapped[OrderSide] = mapped_column(_choice(OrderSide))
    order_type: Mapped[str] = mapped_column(String(24))
    status: Mapped[OrderStatus] = mapped_column(_choice(OrderStatus))
    strategy_name: Mapped[Name]
    quantity: Mapped[Money]
    price: Mapped[Money | None]
    fill_price: Mapped[Money | None]
    fill_quantity: Mapped[Money | None]
    commission: Mapped[Money | None]
    created_at: Mapped[Stamp]
    filled_at: Mapped[Stamp | None]
    cancelled_at: Mapped[Stamp | None]
    last_update: Mapped[Stamp]

    position: Mapped[Position | None] = relationship(back_populates="orders")


class Trade(Base):
    """A completed round trip."""

    __tablename__ = "trades"

    id: Mapped[Key]
    session_id: Mapped[SessionKey] = mapped_column(index=True)
    position_id: Mapped[PositionKey | None] = mapped_column(index=True)
    symbol: Mapped[Symbol]
    side: Mapped[PositionSide] = mapped_column(_choice(PositionSide))
    strategy_name: Mapped[Name]
    entry_price: Mapped[Money]
    exit_price: Mapped[Money]
    size: Mapped[Money]
    quantity: Mapped[Money | None]
    entry_time: Mapped[Stamp]
    exit_time: Mapped[Stamp]
    pnl: Mapped[Money]
    commission: Mapped[Money | None]
    exit_reason: Mapped[str] = mapped_column(String(100))
    exit_order_id: Mapped[str | None] = mapped_column(String(100), index=True)
    created_at: Mapped[Stamp]


class PartialTrade(Base):
    """One change of an open position's size."""

    __tablename__ = "partial_trades"

    id: Mapped[Key]
    position_id: Mapped[PositionKey] = mapped_column(index=True)
    kind: Mapped[PartialKind] = mapped_column(_choice(PartialKind))
    size: Mapped[Money]
    price: Mapped[Money]
    level: Mapped[int]
    timestamp: Mapped[Stamp]


class AccountBalance(Base):
    """The balance after one change; a session's current one has the highest `last_updated`."""

    __tablename__ = "account_balances"
    __table_args__ = (Index("ix_account_balances_session_updated", "session_id", "last_updated"),)

    id: Mapped[Key]
    session_id: Mapped[SessionKey]
    total_balance: Mapped[Money]
    change: Mapped[Money | None]
    update_reason: Mapped[str] = mapped_column(String(200))
    updated_by: Mapped[Name]
    correlation_id: Mapped[str | None] = mapped_column(String(100), index=True)
    last_updated: Mapped[Stamp]


class AccountHistory(Base):
    """A snapshot of the account at one moment, for charts."""

    __tablename__ = "account_history"

    id: Mapped[Key]
    session_id: Mapped[SessionKey | None] = mapped_column(index=True)
    balance: Mapped[Money]
    equity: Mapped[Money]
    total_pnl: Mapped[Money]
    open_positions: Mapped[int]
    drawdown: Mapped[Money | None]
    timestamp: Mapped[Stamp]


class SystemEvent(Base):
    """Something that happened: starts, stops, halts, audits, strategy decisions."""

    __tablename__ = "system_events"
    __table_args__ = (Index("ix_system_events_type_timestamp", "event_type", "timestamp"),)

    id: Mapped[Key]
    session_id: Mapped[SessionKey | None] = mapped_column(index=True)
    event_type: Mapped[str] = mapped_column(String(50))
    severity: Mapped[str] = mapped_column(String(20))
    component: Mapped[str | None] = mapped_column(String(50))
    message: Mapped[str] = mapped_column(Text)
    details: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    correlation_id: Mapped[str | None] = mapped_column(String(100))
    timestamp: Mapped[Stamp]
