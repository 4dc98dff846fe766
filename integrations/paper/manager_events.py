"""What happened and when: events, audits, strategy decisions, account snapshots and the halt flag.

None of these may stop an engine, so all but `log_strategy_execution` and `set_system_halt` answer a database error
with a warning in the log.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from enum import Enum
from typing import Any

from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from .manager_base import Amount, ManagerBase, jsonable, money, money_or_none, text_of, utc_now
from .models import AccountHistory, SystemEvent

_log = logging.getLogger(__name__)

_HALT = "system_halt"


class EventsPart(ManagerBase):
    """The writes that only tell a story, and the halt flag."""

    def log_event(
        self,
        event_type: str | Enum,
        message: str,
        severity: str | Enum = "info",
        details: Mapping[str, Any] | None = None,
        component: str | None = None,
        session_id: int | None = None,
        correlation_id: str | None = None,
    ) -> int | None:
        """Record an event of the given or the current session; its id, or None when it could not be written."""
        try:
            return self._insert_event(event_type, message, severity, details, component, session_id, correlation_id)
        except SQLAlchemyError as exc:
            _log.warning("event %s was not recorded: %s", text_of(event_type), exc)
            return None

    def log_audit_event(
        self,
        action: str | Enum,
        actor: str,
        details: Mapping[str, Any] | None = None,
        session_id: int | None = None,
    ) -> int | None:
        """Record who did what; the event's id, or None when it could not be written."""
        return self.log_event(
            "audit", f"{actor}: {text_of(action)}", "info", details, component=actor, session_id=session_id
        )

    def log_strategy_execution(
        self,
        strategy_name: str,
        symbol: str,
        signal_type: str | Enum,
        action_taken: str | Enum,
        price: Amount,
        reasons: list[str] | None = None,
        session_id: int | None = None,
    ) -> None:
        """Record a strategy's decision.  Unlike its neighbours it raises `SQLAlchemyError` when that fails."""
        details = {
            "strategy": strategy_name,
            "symbol": symbol,
            "signal": signal_type,
            "action": action_taken,
            "price": money(price, "price"),
            "reasons": reasons or [],
        }
        message = f"{strategy_name} {text_of(signal_type)} {symbol}: {text_of(action_taken)}"
        self._insert_event("strategy_execution", message, "info", details, strategy_name, session_id, None)

    def log_account_snapshot(
        self,
        balance: Amount,
        equity: Amount,
        total_pnl: Amount = 0,
        open_positions: int = 0,
        drawdown: Amount | None = None,
        session_id: int | None = None,
    ) -> None:
        """Record the account's state now; `drawdown` is a fraction of the peak.  A database error is only logged."""
        try:
            with self.get_session() as session:
                session.add(
                    AccountHistory(
                        session_id=self._current_session_id if session_id is None else session_id,
                        balance=money(balance, "balance"),
                        equity=money(equity, "equity"),
                        total_pnl=money(total_pnl, "total_pnl"),
                        open_positions=open_positions,
                        drawdown=money_or_none(drawdown, "drawdown"),
                        timestamp=utc_now(),
                    )
                )
                session.commit()
        except SQLAlchemyError as exc:
            _log.warning("account snapshot was not recorded: %s", exc)

    def set_system_halt(self, halted: bool, reason: str) -> None:
        """Raise or lower the halt flag that all engines on this database can see.  Raises `SQLAlchemyError`."""
        self._insert_event(_HALT, reason, "critical" if halted else "info", {"halted": halted}, None, None, None)

    def is_system_halted(self) -> bool:
        """Whether the halt flag was raised last."""
        with self.get_session() as session:
            details = session.scalar(
                select(SystemEvent.details)
                .where(SystemEvent.event_type == _HALT)
                .order_by(SystemEvent.timestamp.desc(), SystemEvent.id.desc())
                .limit(1)
            )
        return bool(details and details["halted"])

    def _insert_event(
        self,
        event_type: str | Enum,
        message: str,
        severity: str | Enum,
        details: Mapping[str, Any] | None,
        component: str | None,
        session_id: int | None,
        correlation_id: str | None,
    ) -> int:
        with self.get_session() as session:
            event = SystemEvent(
                session_id=self._current_session_id if session_id is None else session_id,
                event_type=text_of(event_type),
                severity=text_of(severity),
                component=component,
                message=message,
                details=jsonable(details),
                correlation_id=correlation_id,
                timestamp=utc_now(),
            )
            session.add(event)
            session.flush()
            event_id = event.id
            session.commit()
        return event_id
