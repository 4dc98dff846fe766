"""The order journal of the classic manager."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from .classic_base import ManagerBase, logger, maybe_float, member, retried, side_of
from .classic_models import Order, OrderStatus, OrderType, utcnow

UNRESOLVED = (OrderStatus.PENDING_SUBMIT, OrderStatus.SUBMITTED)


class Orders(ManagerBase):
    def create_order_journal_entry(
        self,
        session_id: int,
        client_order_id: str,
        symbol: str,
        side: Any,
        order_type: Any,
        quantity: float,
        strategy_name: str,
        price: float | None = None,
        size_fraction: float | None = None,
        position_id: int | None = None,
    ) -> int:
        """Write the order down before it is sent to the exchange."""
        with self.get_session() as session:
            order = Order(
                session_id=session_id,
                client_order_id=client_order_id,
                internal_order_id=client_order_id,
                symbol=symbol,
                side=side_of(side),
                order_type=member(OrderType, order_type),
                status=OrderStatus.PENDING_SUBMIT,
                quantity=quantity,
                price=price,
                size_fraction=size_fraction,
                strategy_name=strategy_name,
                position_id=position_id,
                created_at=utcnow(),
            )
            session.add(order)
            session.commit()
            return int(order.id)

    def update_order_journal(
        self,
        client_order_id: str,
        status: Any,
        exchange_order_id: str | None = None,
        fill_price: float | None = None,
        fill_quantity: float | None = None,
        commission: float | None = None,
        position_id: int | None = None,
    ) -> bool:
        with self.get_session() as session:
            order = session.query(Order).filter_by(client_order_id=client_order_id).first()
            if order is None:
                return False
            order.status = member(OrderStatus, status)
            if exchange_order_id is not None:
                order.exchange_order_id = exchange_order_id
            if fill_price is not None:
                order.filled_price = fill_price
            if fill_quantity is not None:
                order.filled_quantity = fill_quantity
            if commission is not None:
                order.commission = commission
            if position_id is not None:
                order.position_id = position_id
            self._stamp(order)
            session.commit()
            return True

    def update_order_status_new(
        self,
        order_id: int,
        status: Any,
        exchange_order_id: str | None = None,
        filled_price: float | None = None,
        filled_quantity: float | None = None,
    ) -> bool:
        """Change an order by its id.  An error is logged and answered with False."""
        try:
            with self.get_session() as session:
                order = session.query(Order).filter_by(id=order_id).first()
                if order is None:
                    return False
                order.status = member(OrderStatus, status)
                order.exchange_order_id = exchange_order_id or order.exchange_order_id
                if filled_price is not None:
                    order.filled_price = filled_price
                if filled_quantity is not None:
                    order.filled_quantity = filled_quantity
                self._stamp(order)
                session.commit()
        except SQLAlchemyError as error:
            logger.error("order %s could not be updated: %s", order_id, error)
            return False
        return True

    def _stamp(self, order: Order) -> None:
        now = utcnow()
        if order.status is OrderStatus.FILLED:
            order.filled_at = now
        if order.status is OrderStatus.CANCELLED:
            order.cancelled_at = now
        order.last_update = now

    def expire_stale_pending_orders(self, session_id: int, older_than_hours: float = 24.0) -> int:
        with self.get_session() as session:
            query = session.query(Order).filter(
                Order.session_id == session_id,
                Order.status == OrderStatus.PENDING_SUBMIT,
                Order.created_at < utcnow() - timedelta(hours=older_than_hours),
            )
            stale = query.all()
            for order in stale:
                order.status = OrderStatus.CANCELLED
                self._stamp(order)
            session.commit()
            return len(stale)

    @retried()
    def get_unresolved_orders(self, session_id: int) -> list[dict[str, Any]]:
        with self.get_session() as session:
            query = session.query(Order).filter(Order.session_id == session_id, Order.status.in_(UNRESOLVED))
            return [
                {
                    "id": one.id,
                    "client_order_id": one.client_order_id,
                    "internal_order_id": one.internal_order_id,
                    "exchange_order_id": one.exchange_order_id,
                    "replaced_order_id": one.replaced_order_id,
                    "symbol": one.symbol,
                    "side": one.side.value,
                    "order_type": one.order_type.value,
                    "status": one.status.value,
                    "quantity": maybe_float(one.quantity),
                    "price": maybe_float(one.price),
                    "size_fraction": maybe_float(one.size_fraction),
                    "strategy_name": one.strategy_name,
                    "position_id": one.position_id,
                    "created_at": one.created_at,
                }
                for one in query.order_by(Order.id)
            ]
