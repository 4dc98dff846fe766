"""Positions: opening, following, resizing, closing and listing them."""

from __future__ import annotations

import logging
from datetime import datetime
from decimal import Decimal
from enum import Enum
from typing import Any

from sqlalchemy import exists, select, update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, selectinload

from .manager_base import Amount, ManagerBase, member, money, money_or_none, naive_utc, utc_now
from .manager_orders import order_as_dict
from .models import (
    Order,
    OrderSide,
    OrderStatus,
    PartialKind,
    PartialTrade,
    Position,
    PositionSide,
    PositionStatus,
    Trade,
)

_log = logging.getLogger(__name__)


class PositionsPart(ManagerBase):
    """Everything about positions."""

    def log_position(
        self,
        symbol: str,
        side: str | Enum,
        entry_price: Amount,
        size: Amount,
        strategy_name: str,
        entry_order_id: str,
        stop_loss: Amount | None = None,
        take_profit: Amount | None = None,
        quantity: Amount | None = None,
        stop_loss_order_id: str | None = None,
        session_id: int | None = None,
        client_order_id: str | None = None,
    ) -> int:
        """Record an open position with its filled entry order and return the position's id.

        `size` is a fraction of the balance, `quantity` units of the asset.  The order of `client_order_id` in the
        journal becomes the entry order; without one a new order is written.  Raises `ValueError` for a bad argument,
        `SQLAlchemyError` when it could not be written.
        """
        now = utc_now()
        with self.get_session() as session:
            position = Position(
                session_id=self._session_or_current(session_id),
                symbol=symbol,
                side=member(PositionSide, side, "side"),
                status=PositionStatus.OPEN,
                strategy_name=strategy_name,
                entry_price=money(entry_price, "entry_price"),
                size=money(size, "size"),
                original_size=money(size, "size"),
                current_size=money(size, "size"),
                quantity=money_or_none(quantity, "quantity"),
                current_price=money(entry_price, "entry_price"),
                stop_loss=money_or_none(stop_loss, "stop_loss"),
                take_profit=money_or_none(take_profit, "take_profit"),
                entry_time=now,
                last_update=now,
                entry_order_id=entry_order_id,
                stop_loss_order_id=stop_loss_order_id,
                client_order_id=client_order_id,
            )
            session.add(position)
            session.flush()
            position_id = position.id
            _link_entry_order(session, position)
            session.commit()
        return position_id

    def update_position(
        self,
        position_id: int,
        stop_loss: Amount | None = None,
        current_price: Amount | None = None,
        take_profit: Amount | None = None,
        trailing_stop_activated: bool | None = None,
        trailing_stop_price: Amount | None = None,
        stop_loss_order_id: str | None = None,
    ) -> bool:
        """Change what is given of a position; None leaves a value as it is.  False when it does not exist."""
        with self.get_session() as session:
            position = session.get(Position, position_id)
            if position is None:
                return False
            if stop_loss is not None:
                position.stop_loss = money(stop_loss, "stop_loss")
            if take_profit is not None:
                position.take_profit = money(take_profit, "take_profit")
            if trailing_stop_activated is not None:
                position.trailing_stop_activated = trailing_stop_activated
            if trailing_stop_price is not None:
                position.trailing_stop_price = money(trailing_stop_price, "trailing_stop_price")
            if stop_loss_order_id is not None:
                position.stop_loss_order_id = stop_loss_order_id
            if current_price is not None:
                position.current_price = money(current_price, "current_price")
                position.unrealized_pnl = _unrealized(position, position.current_price)
            position.last_update = utc_now()
            session.commit()
        return True

    def close_position(
        self,
        position_id: int,
        exit_price: Amount | None = None,
        exit_time: datetime | None = None,
        pnl: Amount | None = None,
    ) -> bool:
        """Close a position without a trade; False when it does not exist, and also when its commit failed."""
        try:
            with self.get_session() as session:
                position = session.get(Position, position_id)
                if position is None:
                    return False
                mark_closed(position, exit_price, exit_time, pnl)
                session.commit()
        except SQLAlchemyError as exc:
            _log.warning("position %s was not closed: %s", position_id, exc)
            return False
        return True

    def apply_partial_exit_update(
        self, position_id: int, executed_size_delta: Amount, price: Amount, target_level: int
    ) -> None:
        """Take a fraction off a position; nothing when it does not exist.

        Raises `ValueError` when `executed_size_delta` is not positive or more than what is left.
        """
        delta = _positive(executed_size_delta, "executed_size_delta")
        with self.get_session() as session:
            position = session.get(Position, position_id, with_for_update=True)
            if position is None:
                return
            if delta > position.current_size:
                raise ValueError(
                    f"executed_size_delta must be at most the {position.current_size} left of position {position_id}, "
                    f"not {delta}"
                )
            position.current_size -= delta
            position.partial_exits_taken += 1
            position.last_partial_exit_price = money(price, "price")
            _add_partial(session, position, PartialKind.EXIT, delta, position.last_partial_exit_price, target_level)
            session.commit()

    def apply_scale_in_update(
        self, position_id: int, added_size_delta: Amount, price: Amount, threshold_level: int
    ) -> None:
        """Add a fraction to a position; nothing when it does not exist.  `ValueError` when it is not positive."""
        delta = _positive(added_size_delta, "added_size_delta")
        with self.get_session() as session:
            position = session.get(Position, position_id, with_for_update=True)
            if position is None:
                return
            position.current_size += delta
            position.size += delta
            position.scale_ins_taken += 1
            position.last_scale_in_price = money(price, "price")
            _add_partial(session, position, PartialKind.SCALE_IN, delta, position.last_scale_in_price, threshold_level)
            session.commit()

    def get_active_positions(self, session_id: int | None = None) -> list[dict[str, Any]]:
        """Open positions with their orders, oldest first; of every session when none is given or current.

        Money is Decimal, `side` is text, times are UTC without a zone.
        """
        wanted = self._current_session_id if session_id is None else session_id
        query = (
            select(Position)
            .where(Position.status == PositionStatus.OPEN)
            .order_by(Position.id)
            .options(selectinload(Position.orders))
        )
        if wanted is not None:
            query = query.where(Position.session_id == wanted)
        with self.get_session() as session:
            return [_position_as_dict(position) for position in session.scalars(query)]

    def reassign_open_positions_to_session(self, source_session_id: int, target_session_id: int) -> int:
        """Move the open positions of one session to another; how many there were."""
        change = (
            update(Position)
            .where(Position.session_id == source_session_id, Position.status == PositionStatus.OPEN)
            .values(session_id=target_session_id, last_update=utc_now())
        )
        return self._change_many(change.returning(Position.id))

    def heal_positions_with_terminal_trades(self, session_id: int | None = None) -> int:
        """Close open positions that have a trade already; how many there were."""
        now = utc_now()
        change = update(Position).where(
            Position.status == PositionStatus.OPEN, exists().where(Trade.position_id == Position.id)
        )
        wanted = self._current_session_id if session_id is None else session_id
        if wanted is not None:
            change = change.where(Position.session_id == wanted)
        values = change.values(status=PositionStatus.CLOSED, exit_time=now, last_update=now)
        return self._change_many(values.returning(Position.id))

    def _change_many(self, statement: Any) -> int:
        with self.get_session() as session:
            changed = session.scalars(statement).all()
            session.commit()
        return len(changed)


def mark_closed(position: Position, exit_price: Amount | None, exit_time: datetime | None, pnl: Amount | None) -> None:
    """Close a position inside its transaction; without `exit_time` it closes now."""
    now = utc_now()
    position.status = PositionStatus.CLOSED
    position.exit_price = money_or_none(exit_price, "exit_price")
    position.exit_time = now if exit_time is None else naive_utc(exit_time)
    position.realized_pnl = money_or_none(pnl, "pnl")
    position.last_update = now


def _link_entry_order(session: Session, position: Position) -> None:
    order = None
    if position.client_order_id is not None:
        order = session.scalar(select(Order).where(Order.client_order_id == position.client_order_id))
    if order is None:
        order = Order(
            session_id=position.session_id,
            client_order_id=position.client_order_id,
            exchange_order_id=position.entry_order_id,
            symbol=position.symbol,
            side=OrderSide.BUY if position.side is PositionSide.LONG else OrderSide.SELL,
            order_type="entry",
            strategy_name=position.strategy_name,
            quantity=position.size if position.quantity is None else position.quantity,
            fill_price=position.entry_price,
            fill_quantity=position.quantity,
            created_at=position.entry_time,
            filled_at=position.entry_time,
        )
        session.add(order)
    order.position_id = position.id
    order.status = OrderStatus.FILLED
    order.last_update = position.entry_time


def _unrealized(position: Position, price: Decimal) -> Decimal | None:
    if position.quantity is None:
        return None
    move = price - position.entry_price
    return (move if position.side is PositionSide.LONG else -move) * position.quantity


def _positive(value: Amount, what: str) -> Decimal:
    amount = money(value, what)
    if amount <= 0:
        raise ValueError(f"{what} must be more than zero, not {amount}")
    return amount


def _add_partial(
    session: Session, position: Position, kind: PartialKind, size: Decimal, price: Decimal, level: int
) -> None:
    now = utc_now()
    position.last_update = now
    session.add(PartialTrade(position_id=position.id, kind=kind, size=size, price=price, level=level, timestamp=now))


def _position_as_dict(position: Position) -> dict[str, Any]:
    return {
        "id": position.id,
        "session_id": position.session_id,
        "symbol": position.symbol,
        "side": position.side.value,
        "entry_price": position.entry_price,
        "size": position.size,
        "quantity": position.quantity,
        "current_price": position.current_price,
        "unrealized_pnl": position.unrealized_pnl,
        "stop_loss": position.stop_loss,
        "take_profit": position.take_profit,
        "trailing_stop_activated": position.trailing_stop_activated,
        "trailing_stop_price": position.trailing_stop_price,
        "entry_time": position.entry_time,
        "strategy": position.strategy_name,
        "original_size": position.original_size,
        "current_size": position.current_size,
        "partial_exits_taken": position.partial_exits_taken,
        "scale_ins_taken": position.scale_ins_taken,
        "last_partial_exit_price": position.last_partial_exit_price,
        "last_scale_in_price": position.last_scale_in_price,
        "entry_order_id": position.entry_order_id,
        "stop_loss_order_id": position.stop_loss_order_id,
        "client_order_id": position.client_order_id,
        "orders": [order_as_dict(order) for order in position.orders],
    }
