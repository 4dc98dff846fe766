"""The order journal: what is about to go to the exchange, and what became of it."""

from __future__ import annotations

import logging
from datetime import timedelta
from enum import Enum
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.exc import SQLAlchemyError

from .manager_base import Amount, ManagerBase, member, money, money_or_none, text_of, utc_now
from .models import UNRESOLVED, Order, OrderSide, OrderStatus

_log = logging.getLogger(__name__)


class OrdersPart(ManagerBase):
    """Everything about orders."""

    def create_order_journal_entry(
        self,
        session_id: int | None,
        client_order_id: str,
        symbol: str,
        side: str | Enum,
        order_type: str | Enum,
        quantity: Amount,
        strategy_name: str,
        price: Amount | None = None,
        position_id: int | None = None,
    ) -> int:
        """Record an order before it is sent and return its id.

        `order_type` tells its purpose ("entry", "exit", ...).  Raises `IntegrityError` when `client_order_id` is
        taken, `SQLAlchemyError` when it could not be written: then the order must not be sent.
        """
        now = utc_now()
        with self.get_session() as session:
            order = Order(
                session_id=self._session_or_current(session_id),
                position_id=position_id,
                client_order_id=client_order_id,
                symbol=symbol,
                side=member(OrderSide, side, "side"),
                order_type=text_of(order_type),
                status=OrderStatus.PENDING_SUBMIT,
                strategy_name=strategy_name,
                quantity=money(quantity, "quantity"),
                price=money_or_none(price, "price"),
                created_at=now,
                last_update=now,
            )
            session.add(order)
            session.flush()
            order_id = order.id
            session.commit()
        return order_id

    def update_order_journal(
        self,
        client_order_id: str,
        status: str | Enum,
        exchange_order_id: str | None = None,
        fill_price: Amount | None = None,
        fill_quantity: Amount | None = None,
        commission: Amount | None = None,
        position_id: int | None = None,
    ) -> bool:
        """Record what became of an order; None leaves a value as it is.  False when the order does not exist."""
        with self.get_session() as session:
            order = session.scalar(select(Order).where(Order.client_order_id == client_order_id))
            if order is None:
                return False
            _set_status(order, member(OrderStatus, status, "status"))
            if exchange_order_id is not None:
                order.exchange_order_id = exchange_order_id
            if fill_price is not None:
                order.fill_price = money(fill_price, "fill_price")
            if fill_quantity is not None:
                order.fill_quantity = money(fill_quantity, "fill_quantity")
            if commission is not None:
                order.commission = money(commission, "commission")
            if position_id is not None:
                order.position_id = position_id
            session.commit()
        return True

    def update_order_status_new(
        self,
        order_id: int,
        status: str | Enum,
        fill_price: Amount | None = None,
        fill_quantity: Amount | None = None,
        commission: Amount | None = None,
    ) -> bool:
        """Like `update_order_journal` by row id; False also, with the reason in the log, when it failed."""
        try:
            with self.get_session() as session:
                order = session.get(Order, order_id)
                if order is None:
                    return False
                _set_status(order, member(OrderStatus, status, "status"))
                if fill_price is not None:
                    order.fill_price = money(fill_price, "fill_price")
                if fill_quantity is not None:
                    order.fill_quantity = money(fill_quantity, "fill_quantity")
                if commission is not None:
                    order.commission = money(commission, "commission")
                session.commit()
        except (SQLAlchemyError, ValueError) as exc:
            _log.warning("order %s was not updated: %s", order_id, exc)
            return False
        return True

    def get_unresolved_orders(self, session_id: int | None = None) -> list[dict[str, Any]]:
        """Orders that are neither filled nor dead, oldest first; of every session when none is given or current."""
        wanted = self._current_session_id if session_id is None else session_id
        query = select(Order).where(Order.status.in_(UNRESOLVED)).order_by(Order.id)
        if wanted is not None:
            query = query.where(Order.session_id == wanted)
        with self.get_session() as session:
            return [order_as_dict(order) for order in session.scalars(query)]

    def expire_stale_pending_orders(self, older_than: timedelta, session_id: int | None = None) -> int:
        """Mark orders that were recorded long ago but never sent as expired; how many there were."""
        now = utc_now()
        change = update(Order).where(Order.status == OrderStatus.PENDING_SUBMIT, Order.created_at < now - older_than)
        wanted = self._current_session_id if session_id is None else session_id
        if wanted is not None:
            change = change.where(Order.session_id == wanted)
        with self.get_session() as session:
            expired = session.scalars(
                change.values(status=OrderStatus.EXPIRED, cancelled_at=now, last_update=now).returning(Order.id)
            ).all()
            session.commit()
        return len(expired)


def order_as_dict(order: Order) -> dict[str, Any]:
    """An order as reads return it: plain values, money as Decimal."""
    return {
        "id": order.id,
        "session_id": order.session_id,
        "position_id": order.position_id,
        "client_order_id": order.client_order_id,
        "exchange_order_id": order.exchange_order_id,
        "symbol": order.symbol,
        "side": order.side.value,
        "order_type": order.order_type,
        "status": order.status.value,
        "strategy": order.strategy_name,
        "quantity": order.quantity,
        "price": order.price,
        "fill_price": order.fill_price,
        "fill_quantity": order.fill_quantity,
        "created_at": order.created_at,
    }


def _set_status(order: Order, status: OrderStatus) -> None:
    now = utc_now()
    order.status = status
    order.last_update = now
    if status is OrderStatus.FILLED:
        order.filled_at = now
    elif status in (OrderStatus.CANCELLED, OrderStatus.EXPIRED, OrderStatus.REJECTED):
        order.cancelled_at = now
