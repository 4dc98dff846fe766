"""A DatabaseManager as a public trading engine has it: floats, upper-case enums, numeric(18,8), a session that stays.

Its balance blocks yield dicts of floats, a session has no balance row before the first `update_balance`, the current
session outlives its end, and rows have keys that no argument is called like.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import Boolean, Column, DateTime, Enum, ForeignKey, Integer, Numeric, String, create_engine, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, relationship, sessionmaker


class Side(enum.Enum):
    LONG = "LONG"
    SHORT = "SHORT"


class OrderStatus(enum.Enum):
    PENDING_SUBMIT = "PENDING_SUBMIT"
    SUBMITTED = "SUBMITTED"
    FILLED = "FILLED"
    CANCELLED = "CANCELLED"


class OrderType(enum.Enum):
    ENTRY = "ENTRY"
    EXIT = "EXIT"


class Base(DeclarativeBase):
    __allow_unmapped__ = True


_AMOUNT = Numeric(18, 8)


class SessionRow(Base):
    __tablename__ = "trading_sessions"
    id: Any = Column(Integer, primary_key=True)
    name: Any = Column(String(100))
    strategy_name: Any = Column(String(40))
    symbol: Any = Column(String(20))
    initial_balance: Any = Column(_AMOUNT)
    is_active: Any = Column(Boolean, default=True)
    start_time: Any = Column(DateTime)
    end_time: Any = Column(DateTime)


class PositionRow(Base):
    __tablename__ = "positions"
    id: Any = Column(Integer, primary_key=True)
    session_id: Any = Column(ForeignKey("trading_sessions.id"))
    symbol: Any = Column(String(20))
    side: Any = Column(Enum(Side))
    status: Any = Column(String(10), default="OPEN")
    entry_price: Any = Column(_AMOUNT)
    size: Any = Column(_AMOUNT)
    current_size: Any = Column(_AMOUNT)
    entry_balance: Any = Column(_AMOUNT)
    stop_loss: Any = Column(_AMOUNT)
    current_price: Any = Column(_AMOUNT)
    unrealized_pnl: Any = Column(_AMOUNT, default=0)
    breakeven_triggered: Any = Column(Boolean, default=False)
    mfe: Any = Column(_AMOUNT, default=0)
    partial_exits: Any = Column(Integer, default=0)
    strategy_name: Any = Column(String(40))
    entry_order_id: Any = Column(String(40))
    client_order_id: Any = Column(String(40))
    entry_time: Any = Column(DateTime)
    orders: Mapped[list[OrderRow]] = relationship(order_by="OrderRow.id")


class OrderRow(Base):
    __tablename__ = "orders"
    id: Any = Column(Integer, primary_key=True)
    session_id: Any = Column(ForeignKey("trading_sessions.id"))
    position_id: Any = Column(ForeignKey("positions.id"))
    client_order_id: Any = Column(String(40))
    side: Any = Column(Enum(Side))
    order_type: Any = Column(Enum(OrderType))
    status: Any = Column(Enum(OrderStatus))
    quantity: Any = Column(_AMOUNT)
    filled_price: Any = Column(_AMOUNT)
    created_at: Any = Column(DateTime)


class TradeRow(Base):
    __tablename__ = "trades"
    id: Any = Column(Integer, primary_key=True)
    session_id: Any = Column(Integer)
    position_id: Any = Column(Integer)
    pnl: Any = Column(_AMOUNT)
    exit_time: Any = Column(DateTime)


class BalanceRow(Base):
    __tablename__ = "account_balances"
    id: Any = Column(Integer, primary_key=True)
    session_id: Any = Column(Integer)
    total: Any = Column(_AMOUNT)
    reason: Any = Column(String(40))
    last_updated: Any = Column(DateTime)


def now() -> datetime:
    return datetime.now(UTC).replace(tzinfo=None)


def member(kind: Any, value: Any) -> Any:
    return kind[str(value.value if isinstance(value, enum.Enum) else value).upper()]


class FloatManager:
    """All amounts in, all amounts out: floats."""

    def __init__(self, url: str) -> None:
        self.engine = create_engine("postgresql+psycopg2://" + url.partition("://")[2], pool_pre_ping=True)
        self.session_factory = sessionmaker(bind=self.engine)
        self._current_session_id: int | None = None
        Base.metadata.create_all(self.engine)

    def close(self) -> None:
        self.engine.dispose()

    @contextmanager
    def get_session(self) -> Iterator[Session]:
        session = self.session_factory()
        try:
            yield session
        finally:
            session.close()

    # -- sessions

    def create_trading_session(self, strategy_name: str, symbol: str, mode: str, initial_balance: float) -> int:
        del mode
        with self.get_session() as session:
            row = SessionRow(
                name=f"{strategy_name}_{now():%H%M%S}", strategy_name=strategy_name, symbol=symbol,
                initial_balance=initial_balance, start_time=now(),
            )  # fmt: skip
            session.add(row)
            session.commit()
            self._current_session_id = row.id
            return int(row.id)

    def end_trading_session(self, session_id: int | None = None, final_balance: float | None = None) -> None:
        del final_balance
        with self.get_session() as session:
            row = session.get(SessionRow, session_id or self._current_session_id)
            if row is not None:
                row.is_active, row.end_time = False, now()
                session.commit()

    def get_active_session_id(self) -> int | None:
        with self.get_session() as session:
            return session.scalar(select(SessionRow.id).where(SessionRow.is_active).order_by(SessionRow.id.desc()))

    # -- balance

    def _latest(self, session: Session, session_id: int | None) -> BalanceRow | None:
        query = select(BalanceRow).where(BalanceRow.session_id == (session_id or self._current_session_id))
        return session.scalars(query.order_by(BalanceRow.last_updated.desc()).limit(1)).first()

    def update_balance(
        self, new_balance: float, update_reason: str, updated_by: str = "system", session_id: int | None = None
    ) -> bool:
        del updated_by
        try:
            with self.get_session() as session:
                session.add(self._balance(new_balance, update_reason, session_id))
                session.commit()
            return True
        except Exception:  # noqa: BLE001 - as seen
            return False

    def _balance(self, total: float, reason: str, session_id: int | None) -> BalanceRow:
        used = session_id or self._current_session_id
        return BalanceRow(session_id=used, total=total, reason=reason, last_updated=now())

    @contextmanager
    def atomic_balance_update(
        self, balance_change: float, reason: str, session_id: int | None = None, correlation_id: str | None = None
    ) -> Iterator[dict[str, float]]:
        del correlation_id
        with self.get_session() as session:
            latest = self._latest(session, session_id)
            old = float(latest.total) if latest is not None else 0.0
            new = old + float(balance_change)
            session.add(self._balance(new, reason, session_id))
            yield {"old_balance": old, "new_balance": new, "change": float(balance_change)}
            session.commit()

    def get_current_balance(self, session_id: int | None = None) -> float:
        with self.get_session() as session:
            latest = self._latest(session, session_id)
            return float(latest.total) if latest is not None else 0.0

    # -- positions

    def log_position(
        self, symbol: str, side: Any, entry_price: float, size: float, strategy_name: str, entry_order_id: str,
        stop_loss: float | None = None, entry_balance: float | None = None, session_id: int | None = None,
        client_order_id: str | None = None,
    ) -> int:  # fmt: skip
        with self.get_session() as session:
            used = session_id or self._current_session_id
            row = PositionRow(
                session_id=used, symbol=symbol, side=member(Side, side), entry_price=entry_price, size=size,
                current_size=size, entry_balance=entry_balance, stop_loss=stop_loss, current_price=entry_price,
                strategy_name=strategy_name, entry_order_id=entry_order_id, client_order_id=client_order_id,
                entry_time=now(),
            )  # fmt: skip
            session.add(row)
            session.flush()
            journalled = session.scalar(select(OrderRow).where(OrderRow.client_order_id == client_order_id))
            order = journalled or OrderRow(
                session_id=used, side=row.side, order_type=OrderType.ENTRY, created_at=now(),
                client_order_id=f"entry-{entry_order_id}", quantity=size,
            )  # fmt: skip
            order.position_id, order.status, order.filled_price = row.id, OrderStatus.FILLED, entry_price
            session.add(order)
            session.commit()
            return int(row.id)

    def update_position(
        self, position_id: int, stop_loss: float | None = None, current_price: float | None = None,
        unrealized_pnl: float | None = None, mfe: float | None = None, breakeven_triggered: bool | None = None,
    ) -> bool:  # fmt: skip
        with self.get_session() as session:
            row = session.get(PositionRow, position_id)
            if row is None:
                return False
            given = {"stop_loss": stop_loss, "current_price": current_price, "unrealized_pnl": unrealized_pnl,
                     "mfe": mfe, "breakeven_triggered": breakeven_triggered}  # fmt: skip
            for name, value in given.items():
                if value is not None:
                    setattr(row, name, value)
            session.commit()
            return True

    def close_position(self, position_id: int, exit_price: float | None = None) -> bool:
        del exit_price
        with self.get_session() as session:
            row = session.get(PositionRow, position_id)
            if row is None:
                return False
            row.status = "CLOSED"
            session.commit()
            return True

    def apply_partial_exit_update(
        self, position_id: int, executed_size_delta: float, price: float, target_level: int
    ) -> None:
        del price, target_level
        with self.get_session() as session:
            row = session.get(PositionRow, position_id)
            if row is not None:
                row.current_size = float(row.current_size) - executed_size_delta
                row.partial_exits += 1
                session.commit()

    def log_trade(
        self, symbol: str, side: Any, pnl: float, exit_reason: str, position_id: int | None = None,
        session_id: int | None = None,
    ) -> int:  # fmt: skip
        del symbol, side, exit_reason
        with self.get_session() as session:
            used = session_id or self._current_session_id
            trade = TradeRow(session_id=used, position_id=position_id, pnl=pnl, exit_time=now())
            session.add(trade)
            row = session.get(PositionRow, position_id) if position_id is not None else None
            if row is not None:
                row.status = "CLOSED"
            session.commit()
            return int(trade.id)

    def get_active_positions(self, session_id: int | None = None) -> list[dict[str, Any]]:
        with self.get_session() as session:
            query = select(PositionRow).where(PositionRow.status == "OPEN").order_by(PositionRow.id)
            query = query.where(PositionRow.session_id == (session_id or self._current_session_id))
            return [_position(row) for row in session.scalars(query)]

    # -- orders

    def create_order_journal_entry(
        self, session_id: int, client_order_id: str, symbol: str, side: Any, order_type: Any, quantity: float
    ) -> int:
        del symbol
        with self.get_session() as session:
            order = OrderRow(
                session_id=session_id, client_order_id=client_order_id, side=member(Side, side),
                order_type=member(OrderType, order_type), status=OrderStatus.PENDING_SUBMIT, quantity=quantity,
                created_at=now(),
            )  # fmt: skip
            session.add(order)
            session.commit()
            return int(order.id)

    def update_order_journal(self, client_order_id: str, status: Any, fill_price: float | None = None) -> bool:
        with self.get_session() as session:
            order = session.scalar(select(OrderRow).where(OrderRow.client_order_id == client_order_id))
            if order is None:
                return False
            order.status = member(OrderStatus, status)
            if fill_price is not None:
                order.filled_price = fill_price
            session.commit()
            return True

    def get_unresolved_orders(self, session_id: int | None = None) -> list[dict[str, Any]]:
        open_ = (OrderStatus.PENDING_SUBMIT, OrderStatus.SUBMITTED)
        with self.get_session() as session:
            query = select(OrderRow).where(OrderRow.status.in_(open_)).order_by(OrderRow.id)
            query = query.where(OrderRow.session_id == (session_id or self._current_session_id))
            return [_order(row) for row in session.scalars(query)]


def _float(value: Decimal | None) -> float | None:
    return None if value is None else float(value)


def _position(row: Any) -> dict[str, Any]:
    amounts = ("entry_price", "size", "current_size", "entry_balance", "stop_loss", "current_price", "mfe")
    return {
        "id": row.id, "symbol": row.symbol, "side": row.side.value, "strategy": row.strategy_name,
        "entry_order_id": row.entry_order_id, "client_order_id": row.client_order_id, "entry_time": row.entry_time,
        "breakeven_triggered": row.breakeven_triggered, "partial_exits_taken": row.partial_exits,
        "unrealized_pnl": _float(row.unrealized_pnl), "orders": [_order(order) for order in row.orders],
        **{name: _float(getattr(row, name)) for name in amounts},
    }  # fmt: skip


def _order(row: Any) -> dict[str, Any]:
    return {
        "id": row.id, "internal_order_id": row.client_order_id, "client_order_id": row.client_order_id,
        "side": row.side.value, "order_type": row.order_type.value, "status": row.status.value,
        "quantity": _float(row.quantity), "price": _float(row.filled_price), "position_id": row.position_id,
        "created_at": row.created_at,
    }  # fmt: skip
