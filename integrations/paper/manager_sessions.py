"""Trading sessions: opening, ending, finding the one to go on with."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import timedelta
from decimal import Decimal
from enum import Enum
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from .manager_base import Amount, jsonable, member, money, money_or_none, utc_now
from .manager_events import EventsPart
from .models import Trade, TradeMode, TradingSession

_log = logging.getLogger(__name__)


class SessionsPart(EventsPart):
    """Everything about the life of a trading session."""

    def create_trading_session(
        self,
        strategy_name: str,
        symbol: str,
        timeframe: str,
        mode: str | Enum,
        initial_balance: Amount,
        strategy_config: Mapping[str, Any] | None = None,
        session_name: str | None = None,
    ) -> int:
        """Open a session, make it the current one and return its id.

        Without `session_name` the name is made of strategy, symbol and time.  Raises `ValueError` for a bad mode or
        amount, `SQLAlchemyError` when it could not be written.
        """
        now = utc_now()
        with self.get_session() as session:
            row = TradingSession(
                session_name=session_name or f"{strategy_name}_{symbol}_{now:%Y%m%d_%H%M%S}",
                strategy_name=strategy_name,
                symbol=symbol,
                timeframe=timeframe,
                mode=member(TradeMode, mode, "mode"),
                initial_balance=money(initial_balance, "initial_balance"),
                start_time=now,
                strategy_config=jsonable(strategy_config),
            )
            session.add(row)
            session.commit()
            session_id = row.id
            self._current_session_id = session_id
            self.log_event(
                "session_start",
                f"session {row.session_name} started",
                details={"mode": row.mode, "initial_balance": row.initial_balance},
                session_id=session_id,
            )
        return session_id

    def end_trading_session(self, session_id: int | None = None, final_balance: Amount | None = None) -> None:
        """Close a session and write its totals from the trades recorded by now; nothing when it does not exist."""
        wanted = self._session_or_current(session_id)
        with self.get_session() as session:
            row = session.get(TradingSession, wanted)
            if row is None:
                _log.warning("trading session %s does not exist and was not ended", wanted)
                return
            _write_totals(session, row)
            row.end_time = utc_now()
            row.is_active = False
            row.final_balance = money_or_none(final_balance, "final_balance")
            details = {"trades": row.total_trades, "pnl": row.total_pnl, "final_balance": row.final_balance}
            session.commit()
        if self._current_session_id == wanted:
            self._current_session_id = None
        self.log_event("session_end", f"session {wanted} ended", details=details, session_id=wanted)

    def set_current_session(self, session_id: int) -> None:
        """Make an existing session the one that calls without `session_id` mean.  `ValueError` when it is unknown."""
        with self.get_session() as session:
            if session.get(TradingSession, session_id) is None:
                raise ValueError(f"session_id {session_id} does not exist")
        self._current_session_id = session_id

    def get_active_session_id(self) -> int | None:
        """The session begun last among those not ended; None when there is none."""
        with self.get_session() as session:
            return session.scalar(
                select(TradingSession.id)
                .where(TradingSession.is_active)
                .order_by(TradingSession.start_time.desc(), TradingSession.id.desc())
                .limit(1)
            )

    def get_last_session_id(
        self, within_hours: float = 24.0, strategy_name: str | None = None, symbol: str | None = None
    ) -> int | None:
        """The session begun last within the given hours, ended or not; None when there is none."""
        query = select(TradingSession.id).where(TradingSession.start_time >= utc_now() - timedelta(hours=within_hours))
        if strategy_name is not None:
            query = query.where(TradingSession.strategy_name == strategy_name)
        if symbol is not None:
            query = query.where(TradingSession.symbol == symbol)
        with self.get_session() as session:
            return session.scalar(query.order_by(TradingSession.start_time.desc(), TradingSession.id.desc()).limit(1))

    def _update_session_metrics(self, session_id: int) -> None:
        """Bring a session's totals up to date in a transaction of its own.

        Its caller has committed already, so a failure here must not look like a failure there: it is only logged,
        and the next call or the end of the session makes up for it.
        """
        try:
            with self.get_session() as session:
                row = session.get(TradingSession, session_id)
                if row is not None:
                    _write_totals(session, row)
                    session.commit()
        except SQLAlchemyError as exc:
            _log.warning("totals of trading session %s were not updated: %s", session_id, exc)


def _write_totals(session: Session, row: TradingSession) -> None:
    count, won, pnl = session.execute(
        select(func.count(), func.count().filter(Trade.pnl > 0), func.sum(Trade.pnl)).where(Trade.session_id == row.id)
    ).one()
    row.total_trades = count
    row.winning_trades = won
    row.total_pnl = pnl or Decimal(0)
