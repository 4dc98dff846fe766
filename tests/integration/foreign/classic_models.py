"""Tables of the classic engine: integer keys, naive UTC times, NUMERIC(18,8) money, enums in upper case."""

from __future__ import annotations

import enum
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    DateTime,
    Enum,
    ForeignKey,
    Index,
    Integer,
    Numeric,
    String,
    Text,
    UniqueConstraint,
)
from sqlalchemy.orm import DeclarativeBase, relationship


class Base(DeclarativeBase):
    """Models in the classic style have no `Mapped[...]`."""

    __allow_unmapped__ = True


Money = Numeric(18, 8)


def utcnow() -> datetime:
    return datetime.now(UTC).replace(tzinfo=None)


class PositionSide(enum.Enum):
    LONG = "LONG"
    SHORT = "SHORT"


class PositionStatus(enum.Enum):
    OPEN = "OPEN"
    CLOSED = "CLOSED"


class OrderType(enum.Enum):
    ENTRY = "ENTRY"
    PARTIAL_EXIT = "PARTIAL_EXIT"
    SCALE_IN = "SCALE_IN"
    FULL_EXIT = "FULL_EXIT"


class OrderStatus(enum.Enum):
    PENDING_SUBMIT = "PENDING_SUBMIT"
    SUBMITTED = "SUBMITTED"
    FILLED = "FILLED"
    CANCELLED = "CANCELLED"
    FAILED = "FAILED"


class EventType(enum.Enum):
    ENGINE_START = "ENGINE_START"
    ENGINE_STOP = "ENGINE_STOP"
    BALANCE_ADJUSTMENT = "BALANCE_ADJUSTMENT"
    ALERT = "ALERT"
    ERROR = "ERROR"


class TradingSession(Base):
    __tablename__ = "trading_sessions"

    id: Any = Column(Integer, primary_key=True)
    session_name: Any = Column(String(150), unique=True)
    strategy_name: Any = Column(String(100), nullable=False)
    symbol: Any = Column(String(20), nullable=False)
    timeframe: Any = Column(String(10), nullable=False)
    mode: Any = Column(String(10), nullable=False)
    initial_balance: Any = Column(Money, nullable=False)
    final_balance: Any = Column(Money)
    total_pnl: Any = Column(Money)
    total_trades: Any = Column(Integer, default=0)
    win_rate: Any = Column(Money)
    max_drawdown: Any = Column(Money)
    strategy_config: Any = Column(JSON)
    is_active: Any = Column(Boolean, default=True)
    start_time: Any = Column(DateTime, nullable=False, default=utcnow)
    end_time: Any = Column(DateTime)
    positions = relationship("Position", back_populates="session", cascade="all, delete-orphan")


class Position(Base):
    __tablename__ = "positions"
    __table_args__ = (Index("idx_positions_open", "session_id", "status"),)

    id: Any = Column(Integer, primary_key=True)
    symbol: Any = Column(String(20), nullable=False)
    side: Any = Column(Enum(PositionSide), nullable=False)
    status: Any = Column(Enum(PositionStatus), nullable=False, default=PositionStatus.OPEN)
    entry_price: Any = Column(Money, nullable=False)
    size: Any = Column(Money, nullable=False)
    quantity: Any = Column(Money)
    entry_balance: Any = Column(Money)
    entry_time: Any = Column(DateTime, nullable=False)
    current_price: Any = Column(Money)
    unrealized_pnl: Any = Column(Money, default=0.0)
    unrealized_pnl_percent: Any = Column(Money, default=0.0)
    stop_loss: Any = Column(Money)
    take_profit: Any = Column(Money)
    trailing_stop_activated: Any = Column(Boolean, default=False)
    trailing_stop_price: Any = Column(Money)
    breakeven_triggered: Any = Column(Boolean, default=False)
    mfe: Any = Column(Money, default=0.0)
    mae: Any = Column(Money, default=0.0)
    mfe_price: Any = Column(Money)
    mae_price: Any = Column(Money)
    mfe_time: Any = Column(DateTime)
    mae_time: Any = Column(DateTime)
    original_size: Any = Column(Money)
    current_size: Any = Column(Money)
    partial_exits_taken: Any = Column(Integer, default=0)
    scale_ins_taken: Any = Column(Integer, default=0)
    last_partial_exit_price: Any = Column(Money)
    last_scale_in_price: Any = Column(Money)
    strategy_name: Any = Column(String(100), nullable=False)
    confidence_score: Any = Column(Money)
    entry_order_id: Any = Column(String(100), nullable=False)
    stop_loss_order_id: Any = Column(String(100))
    client_order_id: Any = Column(String(100))
    exit_price: Any = Column(Money)
    exit_time: Any = Column(DateTime)
    realized_pnl: Any = Column(Money)
    last_update: Any = Column(DateTime, default=utcnow, onupdate=utcnow)
    session_id: Any = Column(Integer, ForeignKey("trading_sessions.id"))
    session = relationship("TradingSession", back_populates="positions")
    orders = relationship("Order", back_populates="position", order_by="Order.id")


class Order(Base):
    __tablename__ = "orders"
    __table_args__ = (
        UniqueConstraint("internal_order_id", "session_id", name="uq_order_internal"),
        UniqueConstraint("client_order_id", name="uq_order_client"),
    )

    id: Any = Column(Integer, primary_key=True)
    position_id: Any = Column(Integer, ForeignKey("positions.id"))
    order_type: Any = Column(Enum(OrderType), nullable=False)
    status: Any = Column(Enum(OrderStatus), nullable=False)
    internal_order_id: Any = Column(String(120), nullable=False)
    client_order_id: Any = Column(String(100))
    exchange_order_id: Any = Column(String(100))
    replaced_order_id: Any = Column(String(100))
    symbol: Any = Column(String(20), nullable=False)
    side: Any = Column(Enum(PositionSide), nullable=False)
    quantity: Any = Column(Money)
    price: Any = Column(Money)
    filled_quantity: Any = Column(Money)
    filled_price: Any = Column(Money)
    commission: Any = Column(Money)
    size_fraction: Any = Column(Money)
    strategy_name: Any = Column(String(100))
    created_at: Any = Column(DateTime, nullable=False, default=utcnow)
    filled_at: Any = Column(DateTime)
    cancelled_at: Any = Column(DateTime)
    last_update: Any = Column(DateTime, default=utcnow, onupdate=utcnow)
    session_id: Any = Column(Integer, ForeignKey("trading_sessions.id"))
    position = relationship("Position", back_populates="orders")


class Trade(Base):
    __tablename__ = "trades"

    id: Any = Column(Integer, primary_key=True)
    symbol: Any = Column(String(20), nullable=False)
    side: Any = Column(Enum(PositionSide), nullable=False)
    entry_price: Any = Column(Money, nullable=False)
    exit_price: Any = Column(Money, nullable=False)
    size: Any = Column(Money, nullable=False)
    pnl: Any = Column(Money, nullable=False)
    pnl_percent: Any = Column(Money)
    commission: Any = Column(Money, default=0.0)
    entry_time: Any = Column(DateTime, nullable=False)
    exit_time: Any = Column(DateTime, nullable=False)
    duration_minutes: Any = Column(Integer)
    exit_reason: Any = Column(String(100))
    strategy_name: Any = Column(String(100))
    exit_order_id: Any = Column(String(100))
    extra: Any = Column(JSON)
    position_id: Any = Column(Integer)
    created_at: Any = Column(DateTime, default=utcnow)
    session_id: Any = Column(Integer, ForeignKey("trading_sessions.id"))


class PartialTrade(Base):
    __tablename__ = "partial_trades"

    id: Any = Column(Integer, primary_key=True)
    position_id: Any = Column(Integer, ForeignKey("positions.id"), nullable=False)
    operation_type: Any = Column(String(20), nullable=False)
    size: Any = Column(Money, nullable=False)
    price: Any = Column(Money, nullable=False)
    level: Any = Column(Integer)
    timestamp: Any = Column(DateTime, default=utcnow)


class AccountBalance(Base):
    __tablename__ = "account_balances"

    id: Any = Column(Integer, primary_key=True)
    base_currency: Any = Column(String(10), default="USD")
    total_balance: Any = Column(Money, nullable=False)
    balance_change: Any = Column(Money)
    update_reason: Any = Column(String(100))
    updated_by: Any = Column(String(50), default="system")
    correlation_id: Any = Column(String(100))
    last_updated: Any = Column(DateTime, nullable=False, default=utcnow)
    session_id: Any = Column(Integer, ForeignKey("trading_sessions.id"))


class AccountHistory(Base):
    __tablename__ = "account_history"

    id: Any = Column(Integer, primary_key=True)
    timestamp: Any = Column(DateTime, nullable=False, default=utcnow)
    balance: Any = Column(Money, nullable=False)
    equity: Any = Column(Money, nullable=False)
    open_positions: Any = Column(Integer)
    drawdown: Any = Column(Money)
    session_id: Any = Column(Integer, ForeignKey("trading_sessions.id"))


class PerformanceMetrics(Base):
    __tablename__ = "performance_metrics"
    __table_args__ = (UniqueConstraint("session_id", "period", name="uq_metrics"),)

    id: Any = Column(Integer, primary_key=True)
    session_id: Any = Column(Integer, ForeignKey("trading_sessions.id"))
    period: Any = Column(String(20), nullable=False)
    total_trades: Any = Column(Integer, default=0)
    winning_trades: Any = Column(Integer, default=0)
    total_return: Any = Column(Money)
    updated_at: Any = Column(DateTime, default=utcnow, onupdate=utcnow)


class SystemEvent(Base):
    __tablename__ = "system_events"

    id: Any = Column(Integer, primary_key=True)
    timestamp: Any = Column(DateTime, nullable=False, default=utcnow)
    event_type: Any = Column(Enum(EventType), nullable=False)
    severity: Any = Column(String(20), default="info")
    component: Any = Column(String(50))
    message: Any = Column(Text, nullable=False)
    details: Any = Column(JSON)
    session_id: Any = Column(Integer)


class StrategyExecution(Base):
    __tablename__ = "strategy_executions"

    id: Any = Column(Integer, primary_key=True)
    timestamp: Any = Column(DateTime, nullable=False, default=utcnow)
    strategy_name: Any = Column(String(100), nullable=False)
    symbol: Any = Column(String(20), nullable=False)
    signal_type: Any = Column(String(20))
    action_taken: Any = Column(String(200))
    price: Any = Column(Money)
    reasons: Any = Column(JSON)
    session_id: Any = Column(Integer)


class SystemHalt(Base):
    __tablename__ = "system_halt"

    id: Any = Column(Integer, primary_key=True)
    halted: Any = Column(Boolean, nullable=False, default=False)
    reason: Any = Column(String(200))
    updated_at: Any = Column(DateTime, default=utcnow, onupdate=utcnow)
