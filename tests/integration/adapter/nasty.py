"""A deliberately nasty DatabaseManager: everything that real ones were seen to do, in one small class."""

from __future__ import annotations

import enum
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import (
    JSON,
    Column,
    DateTime,
    Engine,
    ForeignKey,
    Integer,
    Numeric,
    String,
    create_engine,
    func,
    select,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import DeclarativeBase, Session, scoped_session, sessionmaker

_log = logging.getLogger(__name__)


class InsufficientFunds(Exception):
    """An error class of the host's own, which is no ValueError."""


class Side(enum.Enum):
    """The application's enum; the ORM has another one of equal values."""

    LONG = "LONG"
    SHORT = "SHORT"


class OrmSide(enum.Enum):
    LONG = "LONG"
    SHORT = "SHORT"


class Base(DeclarativeBase):
    __allow_unmapped__ = True


class TradingSession(Base):
    __tablename__ = "trading_sessions"
    id: Any = Column(Integer, primary_key=True)
    session_name: Any = Column(String(100), nullable=False)
    start_time: Any = Column(DateTime, default=lambda: datetime.now(UTC).replace(tzinfo=None))
    end_time: Any = Column(DateTime)
    config: Any = Column(JSON)


class Position(Base):
    __tablename__ = "positions"
    id: Any = Column(Integer, primary_key=True)
    session_id: Any = Column(Integer, ForeignKey("trading_sessions.id"))
    side: Any = Column(String(8), nullable=False)
    size: Any = Column(Numeric(18, 8), nullable=False)
    stop_loss: Any = Column(Numeric(18, 8))
    status: Any = Column(String(8), default="OPEN")
    client_order_id: Any = Column(String(40))
    entry_time: Any = Column(DateTime(timezone=True), default=lambda: datetime.now(UTC))
    updated_at: Any = Column(DateTime(timezone=True), server_default=func.now(), onupdate=lambda: datetime.now(UTC))


class AccountBalance(Base):
    __tablename__ = "account_balances"
    id: Any = Column(Integer, primary_key=True)
    session_id: Any = Column(Integer, ForeignKey("trading_sessions.id"))
    total_balance: Any = Column(Numeric(18, 8), nullable=False)
    reason: Any = Column(String(40))
    last_updated: Any = Column(DateTime, nullable=False)


class Counter(Base):
    __tablename__ = "counters"
    name: Any = Column(String(40), primary_key=True)
    value: Any = Column(Integer, nullable=False)


class Event(Base):
    __tablename__ = "system_events"
    id: Any = Column(Integer, primary_key=True)
    message: Any = Column(String(200))
    timestamp: Any = Column(DateTime, server_default=text("(now() AT TIME ZONE 'UTC')"))


class NastyManager:
    """Each method does something that an adapter would like it not to do."""

    def __init__(self, url: str, *, scoped: bool = False) -> None:
        self.engine: Engine = create_engine("postgresql+psycopg2://" + url.partition("://")[2])
        maker = sessionmaker(bind=self.engine, autoflush=False)
        self.session_factory: Any = scoped_session(maker) if scoped else maker
        self._current_session_id: int | None = None
        with self.engine.connect() as connection:
            connection.execute(text("SELECT 1"))
        Base.metadata.create_all(self.engine)

    def close(self) -> None:
        self.engine.dispose()

    @contextmanager
    def get_session(self) -> Iterator[Session]:
        session = self.session_factory()
        try:
            yield session
        finally:
            session.rollback()
            session.close()

    def create_trading_session(self, name: str, *, strategy_config: dict[str, Any] | None = None) -> int:
        """Uses its session again after the commit, while a nested session logs an event."""
        with self.get_session() as session:
            row = TradingSession(session_name=f"{name} {datetime.now(UTC):%H:%M:%S.%f}", config=strategy_config)
            session.add(row)
            session.commit()
            session_id: int = row.id
            self._current_session_id = session_id
            self.log_event(f"session {row.session_name} started")
            assert row.id == session_id
        return session_id

    def end_trading_session(self, session_id: int) -> None:
        """Core update; says nothing when there is no such session."""
        with self.session_factory.begin() if hasattr(self.session_factory, "begin") else self.get_session() as session:
            session.execute(
                update(TradingSession).where(TradingSession.id == session_id).values(end_time=datetime.now(UTC))
            )
            session.commit() if not hasattr(self.session_factory, "begin") else None

    def log_position(
        self, side: Side | OrmSide | str, size: Any, client_order_id: str | None = None, **extra: Any
    ) -> int:
        """Takes str or either enum, numpy floats, extra arguments; flushes inside a savepoint."""
        value = side.value if isinstance(side, enum.Enum) else side.upper()
        session = self.session_factory()
        try:
            with session.begin_nested():
                row = Position(
                    session_id=self._current_session_id, side=value, size=size, client_order_id=client_order_id, **extra
                )
                session.add(row)
                session.flush()
            position_id: int = row.id
            session.commit()
        finally:
            session.close()
        self.bump("positions")
        return position_id

    def update_position(self, position_id: int, stop_loss: Any = None) -> bool:
        """Swallows everything, with a bare except; sets a timeout for its transaction; locks its row."""
        session = self.session_factory()
        try:
            session.execute(text("SET LOCAL statement_timeout = '100s'"))
            row = session.get(Position, position_id, with_for_update=True)
            row.stop_loss = stop_loss
            session.commit()
            return True
        except:  # noqa: E722 - as seen
            session.rollback()
            return False
        finally:
            session.close()

    def close_position(self, position_id: int) -> bool:
        """Legacy query API; commits, and then raises for a position that was large."""
        with self.get_session() as session:
            changed = session.query(Position).filter(Position.id == position_id).update({"status": "CLOSED"})
            large = session.query(Position.size).filter(Position.id == position_id).scalar()
            session.commit()
        if large is not None and large > 1000:
            raise RuntimeError(f"position {position_id} was large")
        return bool(changed)

    def update_balance(self, new_balance: Any, reason: str = "set", session_id: int | None = None) -> bool:
        try:
            with self.get_session() as session:
                session.add(self._balance(session_id, new_balance, reason))
                session.commit()
        except Exception as exc:  # noqa: BLE001 - as seen
            _log.warning("not set: %s", exc)
            return False
        return True

    @contextmanager
    def atomic_balance_update(
        self, balance_change: Any, reason: str, session_id: int | None = None, correlation_id: str | None = None
    ) -> Iterator[dict[str, Any]]:
        """Yields a dict; raises an error of its own; logs from a nested session inside the block."""
        del correlation_id
        with self.get_session() as session:
            old = Decimal(str(self.get_current_balance(session_id)))
            new = old + Decimal(str(balance_change))
            if new < 0:
                raise InsufficientFunds(f"{old} {balance_change:+}")
            session.add(self._balance(session_id, new, reason))
            yield {"old_balance": old, "new_balance": new, "change": new - old}
            session.commit()
            self.log_event(f"balance {new.normalize():f}")

    def get_current_balance(self, session_id: int | None = None) -> float:
        """The latest by its timestamp, without a tie-break."""
        with self.get_session() as session:
            found = session.scalar(
                select(AccountBalance.total_balance)
                .where(AccountBalance.session_id == (session_id or self._current_session_id))
                .order_by(AccountBalance.last_updated.desc())
                .limit(1)
            )
            return float(found or 0)

    def get_active_positions(self, session_id: int | None = None) -> list[dict[str, Any]]:
        with self.get_session() as session:
            rows = session.scalars(
                select(Position)
                .where(Position.status == "OPEN", Position.session_id == (session_id or self._current_session_id))
                .order_by(Position.id)
            )
            return [{"id": row.id, "side": row.side, "size": float(row.size)} for row in rows]

    def log_event(self, message: str) -> int | None:
        try:
            with self.get_session() as session:
                row = Event(message=message)
                session.add(row)
                session.commit()
                event_id: int = row.id
                return event_id
        except Exception as exc:  # noqa: BLE001 - as seen
            _log.warning("not logged: %s", exc)
            return None

    def bump(self, name: str) -> bool:
        """An upsert in Core, in a session of its own."""
        statement = insert(Counter).values(name=name, value=1)
        with self.get_session() as session:
            session.execute(statement.on_conflict_do_update(index_elements=["name"], set_={"value": Counter.value + 1}))
            session.commit()
        return True

    def go_around(self, name: str) -> bool:
        """Writes through a connection of its own, in a way that its source does not show."""
        with vars(self)["engine"].begin() as connection:
            connection.execute(text("INSERT INTO counters VALUES (:name, 1)"), {"name": name})
        return True

    def bump_and_go_around(self, name: str) -> bool:
        """Turns to its session first."""
        return self.bump(name) and self.go_around(f"{name} 2")

    @staticmethod
    def helper(value: int) -> int:
        return value + 1

    def _balance(self, session_id: int | None, balance: Any, reason: str) -> AccountBalance:
        return AccountBalance(
            session_id=session_id or self._current_session_id,
            total_balance=balance,
            reason=reason,
            last_updated=datetime.now(UTC).replace(tzinfo=None),
        )
