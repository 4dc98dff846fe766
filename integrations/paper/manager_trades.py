"""Completed trades, alone or together with the balance that they change."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Any

from .manager_balances import BalanceChange, BalancesPart, apply_balance_change
from .manager_base import Amount, member, money, money_or_none, naive_utc, utc_now
from .manager_positions import mark_closed
from .models import Position, PositionSide, PositionStatus, Trade


@dataclass(frozen=True, kw_only=True)
class Reconciliation(BalanceChange):
    """A position's close: the balance before and after, and the rows involved."""

    position_id: int
    trade_id: int


class TradesPart(BalancesPart):
    """Everything about completed trades."""

    def log_trade(
        self,
        symbol: str,
        side: str | Enum,
        entry_price: Amount,
        exit_price: Amount,
        size: Amount,
        entry_time: datetime,
        exit_time: datetime,
        pnl: Amount,
        exit_reason: str,
        strategy_name: str,
        quantity: Amount | None = None,
        commission: Amount | None = None,
        exit_order_id: str | None = None,
        session_id: int | None = None,
        position_id: int | None = None,
    ) -> int:
        """Record a completed trade and return its id; with `position_id` close that position in the same transaction.

        `size` is a fraction of the balance, `pnl` and `commission` are in the account's currency.  Raises
        `ValueError` for a bad argument, `SQLAlchemyError` when it could not be written (an unknown `position_id`
        breaks the foreign key).  The session's totals follow in a transaction of their own.
        """
        wanted = self._session_or_current(session_id)
        with self.get_session() as session:
            trade = Trade(
                session_id=wanted,
                position_id=position_id,
                symbol=symbol,
                side=member(PositionSide, side, "side"),
                strategy_name=strategy_name,
                entry_price=money(entry_price, "entry_price"),
                exit_price=money(exit_price, "exit_price"),
                size=money(size, "size"),
                quantity=money_or_none(quantity, "quantity"),
                entry_time=naive_utc(entry_time),
                exit_time=naive_utc(exit_time),
                pnl=money(pnl, "pnl"),
                commission=money_or_none(commission, "commission"),
                exit_reason=exit_reason,
                exit_order_id=exit_order_id,
                created_at=utc_now(),
            )
            session.add(trade)
            session.flush()
            trade_id = trade.id
            position = None if position_id is None else session.get(Position, position_id)
            if position is not None:
                mark_closed(position, exit_price, exit_time, pnl)
            session.commit()
        self._update_session_metrics(wanted)
        return trade_id

    @contextmanager
    def atomic_position_reconciliation(
        self,
        position_db_id: int,
        realized_pnl: Amount,
        exit_price: Amount,
        exit_reason: str,
        trade_data: Mapping[str, Any] | None = None,
        session_id: int | None = None,
    ) -> Iterator[Reconciliation]:
        """Close a position, record its trade and change the balance in one transaction when the block ends well.

        `trade_data` may give the trade's `exit_time`, `commission` and `exit_order_id`.  Raises `ValueError` when the
        position is missing or closed already or the balance would fall below zero, `SQLAlchemyError` when it could
        not be written.
        """
        extra = dict(trade_data or {})
        pnl = money(realized_pnl, "realized_pnl")
        price = money(exit_price, "exit_price")
        with self.get_session() as session:
            position = session.get(Position, position_db_id, with_for_update=True)
            if position is None or position.status is PositionStatus.CLOSED:
                state = "does not exist" if position is None else "is closed already"
                raise ValueError(f"position_db_id {position_db_id} {state}")
            wanted = position.session_id if session_id is None else session_id
            exit_time = extra.get("exit_time") or utc_now()
            change = apply_balance_change(
                session, wanted, pnl, exit_reason, "reconciliation", f"position-{position_db_id}"
            )
            trade = Trade(
                session_id=wanted,
                position_id=position.id,
                symbol=position.symbol,
                side=position.side,
                strategy_name=position.strategy_name,
                entry_price=position.entry_price,
                exit_price=price,
                size=position.current_size,
                quantity=position.quantity,
                entry_time=position.entry_time,
                exit_time=naive_utc(exit_time),
                pnl=pnl,
                commission=money_or_none(extra.get("commission"), "trade_data.commission"),
                exit_reason=exit_reason,
                exit_order_id=extra.get("exit_order_id"),
                created_at=utc_now(),
            )
            session.add(trade)
            mark_closed(position, price, exit_time, pnl)
            session.flush()
            yield Reconciliation(
                old_balance=change.old_balance,
                new_balance=change.new_balance,
                change=change.change,
                position_id=position.id,
                trade_id=trade.id,
            )
            session.commit()
        self._update_session_metrics(wanted)
