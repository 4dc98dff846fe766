"""Positions and trades of the classic manager."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from .classic_base import ManagerBase, as_float, logger, maybe_float, retried, side_of
from .classic_models import (
    Order,
    OrderStatus,
    OrderType,
    PartialTrade,
    PerformanceMetrics,
    Position,
    PositionStatus,
    Trade,
    utcnow,
)


def naive(moment: datetime | None) -> datetime | None:
    return moment.replace(tzinfo=None) if moment is not None else None


class Book(ManagerBase):
    def log_position(
        self,
        symbol: str,
        side: Any,
        entry_price: float,
        size: float,
        strategy_name: str,
        entry_order_id: str,
        stop_loss: float | None = None,
        take_profit: float | None = None,
        confidence_score: float | None = None,
        quantity: float | None = None,
        entry_balance: float | None = None,
        session_id: int | None = None,
        client_order_id: str | None = None,
        stop_loss_order_id: str | None = None,
    ) -> int:
        """Record an open position together with the order that opened it."""
        session_id = self._session_or_current(session_id)
        with self.get_session() as session:
            now = utcnow()
            position = Position(
                symbol=symbol,
                side=side_of(side),
                entry_price=entry_price,
                size=size,
                quantity=quantity,
                entry_balance=entry_balance,
                entry_time=now,
                current_price=entry_price,
                stop_loss=stop_loss,
                take_profit=take_profit,
                original_size=size,
                current_size=size,
                strategy_name=strategy_name,
                confidence_score=confidence_score,
                entry_order_id=entry_order_id,
                stop_loss_order_id=stop_loss_order_id,
                client_order_id=client_order_id,
                session_id=session_id,
            )
            session.add(position)
            session.flush()
            session.add(
                Order(
                    position_id=position.id,
                    order_type=OrderType.ENTRY,
                    status=OrderStatus.FILLED,
                    internal_order_id=f"{entry_order_id}_entry",
                    exchange_order_id=entry_order_id,
                    symbol=symbol,
                    side=side_of(side),
                    quantity=quantity if quantity is not None else size,
                    price=entry_price,
                    filled_quantity=quantity if quantity is not None else size,
                    filled_price=entry_price,
                    strategy_name=strategy_name,
                    created_at=now,
                    filled_at=now,
                    session_id=session_id,
                )
            )
            session.commit()
            return int(position.id)

    def update_position(
        self,
        position_id: int,
        current_price: float | None = None,
        unrealized_pnl: float | None = None,
        unrealized_pnl_percent: float | None = None,
        stop_loss: float | None = None,
        take_profit: float | None = None,
        trailing_stop_activated: bool | None = None,
        trailing_stop_price: float | None = None,
        breakeven_triggered: bool | None = None,
        mfe: float | None = None,
        mae: float | None = None,
        mfe_price: float | None = None,
        mae_price: float | None = None,
        mfe_time: datetime | None = None,
        mae_time: datetime | None = None,
        stop_loss_order_id: str | None = None,
    ) -> bool:
        changes = {name: value for name, value in locals().items() if name not in ("self", "position_id")}
        with self.get_session() as session:
            position = session.query(Position).filter_by(id=position_id).first()
            if position is None:
                logger.error("position %s was not found", position_id)
                return False
            for name, value in changes.items():
                if value is not None:
                    setattr(position, name, naive(value) if isinstance(value, datetime) else value)
            position.last_update = utcnow()
            session.commit()
            return True

    def close_position(
        self,
        position_id: int,
        exit_price: float | None = None,
        exit_time: datetime | None = None,
        pnl: float | None = None,
    ) -> bool:
        """Close a position; False when there is none, and when the commit failed."""
        with self.get_session() as session:
            position = session.query(Position).filter_by(id=position_id).first()
            if position is None:
                return False
            self._close(position, exit_price, naive(exit_time) or utcnow(), pnl)
            try:
                session.commit()
            except SQLAlchemyError as error:
                logger.error("position %s could not be closed: %s", position_id, error)
                session.rollback()
                return False
            return True

    def _close(self, position: Position, price: float | None, moment: datetime | None, pnl: float | None) -> None:
        position.status = PositionStatus.CLOSED
        position.exit_price = price
        position.exit_time = moment
        position.realized_pnl = pnl
        position.last_update = utcnow()

    def log_trade(
        self,
        symbol: str,
        side: Any,
        entry_price: float,
        exit_price: float,
        size: float,
        entry_time: datetime,
        exit_time: datetime,
        pnl: float,
        exit_reason: str,
        strategy_name: str,
        commission: float = 0.0,
        extra: dict[str, Any] | None = None,
        exit_order_id: str | None = None,
        session_id: int | None = None,
        position_id: int | None = None,
    ) -> int:
        """Record a closed trade, close its position in the same transaction, then bring the metrics up to date."""
        session_id = self._session_or_current(session_id)
        with self.get_session() as session:
            trade = Trade(
                symbol=symbol,
                side=side_of(side),
                entry_price=entry_price,
                exit_price=exit_price,
                size=size,
                pnl=pnl,
                pnl_percent=pnl / (entry_price * size) * 100 if entry_price and size else 0.0,
                commission=commission,
                entry_time=naive(entry_time),
                exit_time=naive(exit_time),
                duration_minutes=int((exit_time - entry_time).total_seconds() // 60),
                exit_reason=exit_reason,
                strategy_name=strategy_name,
                exit_order_id=exit_order_id,
                extra=extra,
                position_id=position_id,
                session_id=session_id,
            )
            session.add(trade)
            if position_id is not None:
                position = session.query(Position).filter_by(id=position_id).first()
                if position is not None:
                    self._close(position, exit_price, naive(exit_time), pnl)
            session.commit()
            trade_id = int(trade.id)
        self._update_performance_metrics(session_id)
        return trade_id

    def _update_performance_metrics(self, session_id: int | None) -> None:
        with self.get_session() as session:
            trades = session.query(Trade).filter_by(session_id=session_id).all()
            row = session.query(PerformanceMetrics).filter_by(session_id=session_id, period="all-time").first()
            if row is None:
                row = PerformanceMetrics(session_id=session_id, period="all-time")
                session.add(row)
            row.total_trades = len(trades)
            row.winning_trades = sum(1 for one in trades if as_float(one.pnl) > 0)
            row.total_return = sum(as_float(one.pnl) for one in trades)
            row.updated_at = utcnow()
            session.commit()

    def apply_partial_exit_update(
        self, position_id: int, executed_size_delta: float, price: float, target_level: int | None = None
    ) -> None:
        with self.get_session() as session:
            position = session.query(Position).filter_by(id=position_id).first()
            if position is None:
                return
            position.current_size = max(0.0, as_float(position.current_size) - executed_size_delta)
            position.partial_exits_taken = (position.partial_exits_taken or 0) + 1
            position.last_partial_exit_price = price
            position.last_update = utcnow()
            session.add(
                PartialTrade(
                    position_id=position_id,
                    operation_type="PARTIAL_EXIT",
                    size=executed_size_delta,
                    price=price,
                    level=target_level,
                )
            )
            session.commit()

    def apply_scale_in_update(
        self, position_id: int, added_size_delta: float, price: float, threshold_level: int | None = None
    ) -> None:
        with self.get_session() as session:
            position = session.query(Position).filter_by(id=position_id).first()
            if position is None:
                return
            position.current_size = as_float(position.current_size) + added_size_delta
            position.scale_ins_taken = (position.scale_ins_taken or 0) + 1
            position.last_scale_in_price = price
            position.last_update = utcnow()
            session.add(
                PartialTrade(
                    position_id=position_id,
                    operation_type="SCALE_IN",
                    size=added_size_delta,
                    price=price,
                    level=threshold_level,
                )
            )
            session.commit()

    @retried()
    def get_active_positions(self, session_id: int | None = None) -> list[dict[str, Any]]:
        session_id = self._session_or_current(session_id)
        with self.get_session() as session:
            query = session.query(Position).filter_by(session_id=session_id, status=PositionStatus.OPEN)
            return [self._position_row(one) for one in query.order_by(Position.id)]

    def _position_row(self, one: Position) -> dict[str, Any]:
        return {
            "id": one.id,
            "symbol": one.symbol,
            "side": one.side.value,
            "entry_price": as_float(one.entry_price),
            "size": as_float(one.size),
            "quantity": maybe_float(one.quantity),
            "entry_balance": maybe_float(one.entry_balance),
            "current_price": maybe_float(one.current_price),
            "unrealized_pnl": as_float(one.unrealized_pnl),
            "unrealized_pnl_percent": as_float(one.unrealized_pnl_percent),
            "stop_loss": maybe_float(one.stop_loss),
            "take_profit": maybe_float(one.take_profit),
            "trailing_stop_activated": bool(one.trailing_stop_activated),
            "trailing_stop_price": maybe_float(one.trailing_stop_price),
            "breakeven_triggered": bool(one.breakeven_triggered),
            "mfe": as_float(one.mfe),
            "mae": as_float(one.mae),
            "mfe_price": maybe_float(one.mfe_price),
            "mae_price": maybe_float(one.mae_price),
            "mfe_time": one.mfe_time,
            "mae_time": one.mae_time,
            "entry_time": one.entry_time,
            "strategy": one.strategy_name,
            "confidence_score": maybe_float(one.confidence_score),
            "original_size": maybe_float(one.original_size),
            "current_size": maybe_float(one.current_size),
            "partial_exits_taken": one.partial_exits_taken or 0,
            "scale_ins_taken": one.scale_ins_taken or 0,
            "last_partial_exit_price": maybe_float(one.last_partial_exit_price),
            "last_scale_in_price": maybe_float(one.last_scale_in_price),
            "entry_order_id": one.entry_order_id,
            "stop_loss_order_id": one.stop_loss_order_id,
            "client_order_id": one.client_order_id,
            "orders": [
                {
                    "id": order.id,
                    "internal_order_id": order.internal_order_id,
                    "exchange_order_id": order.exchange_order_id,
                    "order_type": order.order_type.value,
                    "status": order.status.value,
                    "quantity": maybe_float(order.quantity),
                    "filled_price": maybe_float(order.filled_price),
                }
                for order in one.orders
            ],
        }

    @retried()
    def get_recent_trades(self, limit: int = 50, session_id: int | None = None) -> list[dict[str, Any]]:
        session_id = self._session_or_current(session_id)
        with self.get_session() as session:
            query = session.query(Trade).filter_by(session_id=session_id).order_by(Trade.id.desc()).limit(limit)
            return [
                {"id": one.id, "symbol": one.symbol, "side": one.side.value, "pnl": as_float(one.pnl)} for one in query
            ]
