"""Sessions, balances, events and halts of the classic manager."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from .classic_base import ManagerBase, as_float, logger, maybe_float, member, retried
from .classic_models import (
    AccountBalance,
    AccountHistory,
    EventType,
    StrategyExecution,
    SystemEvent,
    SystemHalt,
    Trade,
    TradingSession,
    utcnow,
)


class Accounts(ManagerBase):
    def create_trading_session(
        self,
        strategy_name: str,
        symbol: str,
        timeframe: str,
        mode: Any,
        initial_balance: float,
        strategy_config: dict[str, Any] | None = None,
        session_name: str | None = None,
    ) -> int:
        """Begin a session.  Its balance is 0.0 until the engine records the first one."""
        with self.get_session() as session:
            now = utcnow()
            row = TradingSession(
                session_name=session_name or f"{strategy_name}_{symbol}_{now:%Y%m%d_%H%M%S_%f}",
                strategy_name=strategy_name,
                symbol=symbol,
                timeframe=timeframe,
                mode=str(getattr(mode, "value", mode)).upper(),
                initial_balance=initial_balance,
                strategy_config=strategy_config or {},
                start_time=now,
            )
            session.add(row)
            session.commit()
            self._current_session_id = row.id
            self.log_event(
                EventType.ENGINE_START,
                f"Started trading session: {strategy_name}",
                severity="info",
                details={"symbol": symbol, "initial_balance": initial_balance},
                session_id=row.id,
            )
            return int(row.id)

    def end_trading_session(self, session_id: int | None = None, final_balance: float | None = None) -> None:
        """Close the session's books; it stays the current one, since late events still belong to it."""
        session_id = self._session_or_current(session_id)
        with self.get_session() as session:
            row = session.query(TradingSession).filter_by(id=session_id).first()
            if row is None:
                logger.error("session %s was not found", session_id)
                return
            trades = session.query(Trade).filter_by(session_id=session_id).all()
            row.end_time = utcnow()
            row.is_active = False
            row.total_trades = len(trades)
            row.total_pnl = sum(as_float(one.pnl) for one in trades)
            wins = sum(1 for one in trades if as_float(one.pnl) > 0)
            row.win_rate = wins / len(trades) * 100 if trades else 0.0
            if final_balance is not None:
                row.final_balance = final_balance
            session.commit()
            message = f"Ended trading session: {row.strategy_name}"
        self.log_event(EventType.ENGINE_STOP, message, session_id=session_id)

    @retried()
    def get_active_session_id(self) -> int | None:
        with self.get_session() as session:
            row = session.query(TradingSession).filter_by(is_active=True).order_by(TradingSession.id.desc()).first()
            return row.id if row is not None else None

    @retried()
    def get_last_session_id(
        self, within_hours: int = 24, strategy_name: str | None = None, symbol: str | None = None
    ) -> int | None:
        with self.get_session() as session:
            query = session.query(TradingSession)
            query = query.filter(TradingSession.start_time >= utcnow() - timedelta(hours=within_hours))
            if strategy_name is not None:
                query = query.filter(TradingSession.strategy_name == strategy_name)
            if symbol is not None:
                query = query.filter(TradingSession.symbol == symbol)
            row = query.order_by(TradingSession.start_time.desc()).first()
            return row.id if row is not None else None

    def set_current_session(self, session_id: int) -> None:
        self._current_session_id = session_id

    @retried()
    def get_current_balance(self, session_id: int | None = None) -> float:
        """The latest balance of the session; 0.0 where it has none."""
        session_id = self._session_or_current(session_id)
        if session_id is None:
            return 0.0
        with self.get_session() as session:
            row = self._latest_balance(session, session_id)
            return float(row.total_balance) if row is not None else 0.0

    def _latest_balance(self, session: Session, session_id: int, lock: bool = False) -> Any:
        query = session.query(AccountBalance).filter_by(session_id=session_id)
        query = query.order_by(AccountBalance.last_updated.desc())
        return (query.with_for_update() if lock else query).first()

    @retried()
    def recover_last_balance(self, session_id: int | None = None) -> float | None:
        """The balance to go on with after a restart, None where the session never had one."""
        session_id = self._session_or_current(session_id)
        if session_id is None:
            return None
        with self.get_session() as session:
            row = self._latest_balance(session, session_id)
            if row is None or as_float(row.total_balance) <= 0:
                return None
            return float(row.total_balance)

    @retried()
    def get_session_peak_balance(self, session_id: int | None = None) -> float | None:
        session_id = self._session_or_current(session_id)
        with self.get_session() as session:
            rows = session.query(AccountBalance.total_balance).filter_by(session_id=session_id).all()
            return max((float(one[0]) for one in rows), default=None)

    def update_balance(
        self, new_balance: float, update_reason: str, updated_by: str = "system", session_id: int | None = None
    ) -> bool:
        """Record an absolute balance.  An error is logged and answered with False."""
        session_id = self._session_or_current(session_id)
        if session_id is None:
            logger.error("no active trading session")
            return False
        try:
            with self.get_session() as session:
                old = self._latest_balance(session, session_id)
                session.add(
                    AccountBalance(
                        total_balance=float(new_balance),
                        balance_change=float(new_balance) - (as_float(old.total_balance) if old is not None else 0.0),
                        update_reason=update_reason,
                        updated_by=updated_by,
                        last_updated=utcnow(),
                        session_id=session_id,
                    )
                )
                session.commit()
        except SQLAlchemyError as error:
            logger.error("the balance could not be updated: %s", error)
            return False
        return True

    @contextmanager
    def atomic_balance_update(
        self,
        balance_change: float,
        reason: str,
        updated_by: str = "system",
        session_id: int | None = None,
        correlation_id: str | None = None,
    ) -> Iterator[dict[str, float]]:
        """Change the balance when the block ends well; an exception in the block leaves it as it was."""
        session_id = self._session_or_current(session_id)
        if session_id is None:
            raise ValueError("No active trading session for balance update")
        with self.get_session() as session:
            row = self._latest_balance(session, session_id, lock=True)
            old = as_float(row.total_balance) if row is not None else 0.0
            change = float(balance_change)
            new = old + change
            if new < 0:
                raise ValueError(f"Balance would go negative: {old} + {change} = {new}")
            session.add(
                AccountBalance(
                    total_balance=new,
                    balance_change=change,
                    update_reason=reason,
                    updated_by=updated_by,
                    correlation_id=correlation_id,
                    last_updated=utcnow(),
                    session_id=session_id,
                )
            )
            session.flush()
            yield {"old_balance": old, "new_balance": new, "change": change}
            session.commit()

    def log_event(
        self,
        event_type: Any,
        message: str,
        severity: str = "info",
        component: str | None = None,
        details: dict[str, Any] | None = None,
        session_id: int | None = None,
    ) -> int:
        with self.get_session() as session:
            row = SystemEvent(
                event_type=member(EventType, event_type),
                message=message,
                severity=severity,
                component=component,
                details=details,
                timestamp=utcnow(),
                session_id=self._session_or_current(session_id),
            )
            session.add(row)
            session.commit()
            return int(row.id)

    def log_strategy_execution(
        self,
        strategy_name: str,
        symbol: str,
        signal_type: str,
        action_taken: str,
        price: float,
        reasons: list[str] | None = None,
        session_id: int | None = None,
    ) -> None:
        with self.get_session() as session:
            session.add(
                StrategyExecution(
                    strategy_name=strategy_name,
                    symbol=symbol,
                    signal_type=signal_type,
                    action_taken=action_taken,
                    price=price,
                    reasons=reasons,
                    timestamp=utcnow(),
                    session_id=self._session_or_current(session_id),
                )
            )
            session.commit()

    def log_account_snapshot(
        self, balance: float, equity: float, open_positions: int, drawdown: float, session_id: int | None = None
    ) -> None:
        with self.get_session() as session:
            session.add(
                AccountHistory(
                    balance=balance,
                    equity=equity,
                    open_positions=open_positions,
                    drawdown=drawdown,
                    timestamp=utcnow(),
                    session_id=self._session_or_current(session_id),
                )
            )
            session.commit()

    @retried()
    def get_system_halt(self) -> dict[str, Any]:
        with self.get_session() as session:
            row = session.query(SystemHalt).order_by(SystemHalt.id.desc()).first()
            if row is None:
                return {"halted": False, "reason": None}
            return {"halted": bool(row.halted), "reason": row.reason}

    def set_system_halt(self, halted: bool, reason: str | None = None) -> None:
        with self.get_session() as session:
            row = session.query(SystemHalt).order_by(SystemHalt.id.desc()).first()
            if row is None:
                row = SystemHalt()
                session.add(row)
            row.halted = halted
            row.reason = reason
            session.commit()

    @retried()
    def get_account_history(self, session_id: int | None = None, limit: int = 100) -> list[dict[str, Any]]:
        session_id = self._session_or_current(session_id)
        with self.get_session() as session:
            query = session.query(AccountHistory).filter_by(session_id=session_id).order_by(AccountHistory.id.desc())
            return [
                {
                    "balance": as_float(row.balance),
                    "equity": as_float(row.equity),
                    "drawdown": maybe_float(row.drawdown),
                }
                for row in query.limit(limit)
            ]
