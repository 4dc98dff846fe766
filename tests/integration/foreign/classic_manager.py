"""The classic engine's DatabaseManager: one object for sessions, balances, positions, orders, trades and events."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .classic_accounts import Accounts
from .classic_base import as_float, side_of
from .classic_book import Book, naive
from .classic_models import AccountBalance, Position, Trade, utcnow
from .classic_orders import Orders


class ClassicManager(Accounts, Book, Orders):
    """As public engines have it: floats in and out, upper-case enums, a session that outlives its end."""

    @contextmanager
    def atomic_position_reconciliation(
        self,
        position_db_id: int,
        realized_pnl: float,
        exit_price: float,
        exit_reason: str,
        trade_data: dict[str, Any],
        session_id: int | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Balance, trade and closed position of a position that the exchange closed, in one transaction."""
        session_id = self._session_or_current(session_id)
        if session_id is None:
            raise ValueError("No active trading session for reconciliation")
        with self.get_session() as session:
            now = utcnow()
            row = self._latest_balance(session, session_id, lock=True)
            old = as_float(row.total_balance) if row is not None else 0.0
            new = old + realized_pnl
            if new < 0:
                raise ValueError(f"Balance would go negative: {old} + {realized_pnl} = {new}")
            position = session.query(Position).filter_by(id=position_db_id).first()
            if position is None:
                raise ValueError(f"Position {position_db_id} not found")
            trade = Trade(
                symbol=trade_data["symbol"],
                side=side_of(trade_data["side"]),
                entry_price=trade_data["entry_price"],
                exit_price=exit_price,
                size=trade_data["size"],
                pnl=realized_pnl,
                entry_time=naive(trade_data["entry_time"]),
                exit_time=now,
                exit_reason=exit_reason,
                strategy_name=trade_data.get("strategy_name"),
                position_id=position_db_id,
                session_id=session_id,
            )
            session.add(trade)
            session.add(
                AccountBalance(
                    total_balance=new,
                    balance_change=realized_pnl,
                    update_reason=f"reconciliation:{exit_reason}",
                    updated_by="reconciler",
                    last_updated=now,
                    session_id=session_id,
                )
            )
            self._close(position, exit_price, now, realized_pnl)
            session.flush()
            yield {
                "old_balance": old,
                "new_balance": new,
                "change": realized_pnl,
                "position_id": position_db_id,
                "trade_id": int(trade.id),
            }
            session.commit()
