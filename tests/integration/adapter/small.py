"""A small manager in which each test overrides what it is about, and its scene with a real PostgreSQL and store."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from sqlalchemy import Integer, Numeric, String, create_engine, func, select, text, update
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker

from outbox import Hooks, Outbox, OutboxConfig, PostgresTarget, Relay
from outbox.integrations.durable import TRADING_OPERATIONS, DurableDatabaseManager
from outbox.integrations.manager.manager_connection import engine_of
from tests.unit.fakes.waiting import LONG


class Base(DeclarativeBase):
    pass


class Session(Base):
    __tablename__ = "trading_sessions"
    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    name: Mapped[str] = mapped_column(String(100))


class Balance(Base):
    __tablename__ = "account_balances"
    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    session_id: Mapped[int] = mapped_column(Integer)
    total: Mapped[Decimal] = mapped_column(Numeric(18, 8))


class Trade(Base):
    __tablename__ = "trades"
    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    symbol: Mapped[str] = mapped_column(String(100))
    note: Mapped[str | None] = mapped_column(String)
    number: Mapped[int | None] = mapped_column(Integer)


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    client_order_id: Mapped[str] = mapped_column(String)
    status: Mapped[str] = mapped_column(String)


class SmallManager:
    """What an engine needs at least."""

    def __init__(self, url: str) -> None:
        self.engine = create_engine("postgresql+psycopg2://" + url.partition("://")[2], pool_pre_ping=True)
        self.session_factory = sessionmaker(bind=self.engine)
        self._current_session_id: int | None = None
        Base.metadata.create_all(self.engine)

    def create_trading_session(self, strategy_name: str, initial_balance: Any) -> int:
        with self.session_factory.begin() as session:
            made = Session(name=strategy_name)
            session.add(made)
            session.flush()
            session.add(Balance(session_id=made.id, total=initial_balance))
            self._current_session_id = made.id
            return made.id

    def get_current_balance(self, session_id: int | None = None) -> Decimal:
        with self.session_factory() as session:
            return self._balance(session, session_id or self._current_session_id)

    def _balance(self, session: Any, session_id: int | None) -> Decimal:
        latest = select(Balance.total).where(Balance.session_id == session_id).order_by(Balance.id.desc()).limit(1)
        found = session.scalar(latest)
        return Decimal(0) if found is None else found

    def update_balance(self, new_balance: Any, update_reason: str, session_id: int | None = None) -> bool:
        with self.session_factory.begin() as session:
            session.add(Balance(session_id=session_id or self._current_session_id, total=new_balance))
        return True

    @contextmanager
    def atomic_balance_update(
        self, balance_change: Any, reason: str, session_id: int | None = None, correlation_id: str | None = None
    ) -> Iterator[dict[str, Any]]:
        session_id = session_id or self._current_session_id
        with self.session_factory() as session:
            old = self._balance(session, session_id)
            new = old + Decimal(balance_change)
            session.add(Balance(session_id=session_id, total=new))
            session.flush()
            yield {"old_balance": old, "new_balance": new, "change": Decimal(balance_change)}
            session.commit()

    def log_trade(self, symbol: str, note: Any = None, session_id: int | None = None) -> int:
        with self.session_factory.begin() as session:
            trade = Trade(symbol=symbol, note=json.dumps(note))
            session.add(trade)
            session.flush()
            return trade.id

    def create_order_journal_entry(self, client_order_id: str, order_type: str = "entry") -> int:
        with self.session_factory.begin() as session:
            order = Order(client_order_id=client_order_id, status="pending_submit")
            session.add(order)
            session.flush()
            return order.id

    def log_event(self, message: str) -> None:
        with self.session_factory.begin() as session:
            session.add(Trade(symbol="event", note=message))

    # -- not declared

    def cancel_order(self, order_id: int) -> int:
        with self.session_factory.begin() as session:
            done = session.execute(update(Order).where(Order.id == order_id).values(status="cancelled"))
            return int(done.rowcount)  # type: ignore[attr-defined]

    def count_trades(self) -> int:
        with self.session_factory() as session:
            return int(session.scalar(select(func.count()).select_from(Trade)) or 0)

    def count_trades_quietly(self) -> int:
        try:
            return self.count_trades()
        except Exception:  # noqa: BLE001 - that is what it is for
            return 0

    def count_or_nothing(self) -> int | None:
        try:
            return self.count_trades()
        except Exception:  # noqa: BLE001 - as above
            return None

    def between_tries(self) -> object:
        """What happens before another try."""

    def count_with_another_try(self) -> int:
        with self.session_factory() as session:
            for _ in range(2):
                try:
                    return int(session.scalar(select(func.count()).select_from(Trade)) or 0)
                except Exception:  # noqa: BLE001 - as above
                    session.rollback()
                    self.between_tries()
        return -1


@dataclass
class Scene:
    """A durable manager, its store, a relay that was not started, and a look at the rows."""

    manager: Any
    box: Outbox
    relay: Relay
    url: str

    def drain(self) -> bool:
        return self.relay.drain(timeout=LONG)

    def change(self, sql: str) -> None:
        """What another program does with the database."""
        engine = create_engine("postgresql+psycopg2://" + self.url.partition("://")[2])
        with engine.begin() as connection:
            connection.execute(text(sql))
        engine.dispose()

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        engine = create_engine("postgresql+psycopg2://" + self.url.partition("://")[2])
        with engine.connect() as connection:
            found = [tuple(row) for row in connection.execute(text(sql))]
        engine.dispose()
        return found


@contextmanager
def scene(
    url: str,
    directory: Path,
    manager_class: Any = SmallManager,
    operations: Any = TRADING_OPERATIONS,
    *,
    config: OutboxConfig | None = None,
    hooks: Hooks | None = None,
    **settings: Any,
) -> Iterator[Scene]:
    """Without a relay nothing is delivered until `drain`, as in an outage, though PostgreSQL answers."""
    with Outbox.open(directory, config, hooks=hooks) as box:
        manager: Any = DurableDatabaseManager(manager_class(url), box, operations, **settings)
        relay = Relay(box, PostgresTarget(url, manager.outbox_operations))
        try:
            yield Scene(manager, box, relay, url)
        finally:
            relay.stop()
            manager.detach_outbox()
            engine_of(manager._host.built).dispose()
