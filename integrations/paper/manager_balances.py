"""The account's balance: absolute and relative changes, and what it is now."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal

from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from .manager_base import Amount, money, utc_now
from .manager_sessions import SessionsPart
from .models import AccountBalance, AccountHistory, TradingSession

_log = logging.getLogger(__name__)

# First half of the advisory lock's key, so that it cannot meet locks that others take on small numbers.
_BALANCE_LOCK = 0x0BA1


@dataclass(frozen=True, kw_only=True)
class BalanceChange:
    """A balance before and after one change, in the account's currency."""

    old_balance: Decimal
    new_balance: Decimal
    change: Decimal


class BalancesPart(SessionsPart):
    """Everything about the balance of a session."""

    def update_balance(
        self,
        new_balance: Amount,
        update_reason: str,
        updated_by: str = "system",
        session_id: int | None = None,
    ) -> bool:
        """Set the balance to an absolute value; False, with the reason in the log, when that failed in any way."""
        try:
            amount = money(new_balance, "new_balance")
            if amount < 0:
                raise ValueError(f"new_balance must not be negative, not {amount}")
            with self.get_session() as session:
                insert_balance(session, self._session_or_current(session_id), amount, None, update_reason, updated_by)
                session.commit()
        except (SQLAlchemyError, ValueError, TypeError) as exc:
            _log.warning("balance was not set to %s: %s", new_balance, exc)
            return False
        return True

    @contextmanager
    def atomic_balance_update(
        self,
        balance_change: Amount,
        reason: str,
        updated_by: str = "system",
        session_id: int | None = None,
        correlation_id: str | None = None,
    ) -> Iterator[BalanceChange]:
        """Add `balance_change` to the balance when the block ends well; an exception in the block undoes it.

        Changes of one session wait for each other.  Raises `ValueError` when the balance would fall below zero,
        `SQLAlchemyError` when it could not be written.
        """
        wanted = self._session_or_current(session_id)
        with self.get_session() as session:
            change = apply_balance_change(
                session, wanted, money(balance_change, "balance_change"), reason, updated_by, correlation_id
            )
            yield change
            session.commit()

    def get_current_balance(self, session_id: int | None = None) -> float:
        """The latest balance of the session, else its initial one; 0.0 for an unknown session."""
        wanted = self._current_session_id if session_id is None else session_id
        if wanted is None:
            return 0.0
        with self.get_session() as session:
            return float(current_balance(session, wanted) or 0)

    def recover_last_balance(self, session_id: int | None = None) -> float | None:
        """The balance to go on with after a restart; None when nothing is known.

        A session without any balance gets one: that of its last snapshot, else its initial balance.
        """
        wanted = self._current_session_id if session_id is None else session_id
        if wanted is None:
            wanted = self.get_active_session_id()
        if wanted is None:
            return None
        with self.get_session() as session:
            latest = _latest_balance(session, wanted)
            if latest is not None:
                return float(latest)
            snapshot = session.scalar(
                select(AccountHistory.balance)
                .where(AccountHistory.session_id == wanted)
                .order_by(AccountHistory.timestamp.desc())
                .limit(1)
            )
            known = snapshot if snapshot is not None else current_balance(session, wanted)
            if known is None:
                return None
            insert_balance(session, wanted, known, None, "recovered", "system")
            session.commit()
        return float(known)


def current_balance(session: Session, session_id: int) -> Decimal | None:
    """The latest balance of a trading session, else its initial one; None when the session is unknown."""
    latest = _latest_balance(session, session_id)
    if latest is not None:
        return latest
    return session.scalar(select(TradingSession.initial_balance).where(TradingSession.id == session_id))


def apply_balance_change(
    session: Session,
    session_id: int,
    change: Decimal,
    reason: str,
    updated_by: str,
    correlation_id: str | None = None,
) -> BalanceChange:
    """Write the balance after `change` inside the transaction of `session`, one such transaction at a time.

    Raises `ValueError` when the balance would fall below zero.
    """
    # An advisory lock, since a row lock on the trading session would block writes of the same engine inside the block.
    session.execute(select(func.pg_advisory_xact_lock(_BALANCE_LOCK, session_id)))
    old = current_balance(session, session_id) or Decimal(0)
    new = old + change
    if new < 0:
        raise ValueError(
            f"balance_change {change} would take the balance of session {session_id} from {old} below zero"
        )
    insert_balance(session, session_id, new, change, reason, updated_by, correlation_id)
    session.flush()
    return BalanceChange(old_balance=old, new_balance=new, change=change)


def insert_balance(
    session: Session,
    session_id: int,
    balance: Decimal,
    change: Decimal | None,
    reason: str,
    updated_by: str,
    correlation_id: str | None = None,
) -> None:
    """Add a balance row, stamped now, to the transaction of `session`."""
    session.add(
        AccountBalance(
            session_id=session_id,
            total_balance=balance,
            change=change,
            update_reason=reason,
            updated_by=updated_by,
            correlation_id=correlation_id,
            last_updated=utc_now(),
        )
    )


def _latest_balance(session: Session, session_id: int) -> Decimal | None:
    return session.scalar(
        select(AccountBalance.total_balance)
        .where(AccountBalance.session_id == session_id)
        .order_by(AccountBalance.last_updated.desc())
        .limit(1)
    )
