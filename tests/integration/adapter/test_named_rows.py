"""Positions that calls name by a column of their own, and not by the key with which they are shown."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Column, Integer, Numeric, String, create_engine, select
from sqlalchemy.orm import DeclarativeBase, sessionmaker

from outbox.integrations.durable import TRADING_OPERATIONS, ManagerOperation

from .small import Scene, scene


class Base(DeclarativeBase):
    pass


class Desk(Base):
    __tablename__ = "trading_sessions"
    id: Any = Column(Integer, primary_key=True)


class Holding(Base):
    __tablename__ = "positions"
    id: Any = Column(Integer, primary_key=True)
    session_id: Any = Column(Integer)
    symbol: Any = Column(String)
    size: Any = Column(Numeric(18, 8))
    stop: Any = Column(Numeric(18, 8))


class OneOfEach:
    """Holds one position of a symbol at most, and is asked by the symbol."""

    def __init__(self, url: str) -> None:
        self.engine = create_engine("postgresql+psycopg2://" + url.partition("://")[2])
        self.session_factory = sessionmaker(bind=self.engine)
        self._current_session_id: int | None = None
        Base.metadata.create_all(self.engine)

    def create_trading_session(self) -> int:
        with self.session_factory.begin() as session:
            session.add(row := Desk())
            session.flush()
            self._current_session_id = row.id
            return int(row.id)

    def log_position(self, symbol: str, size: Any, session_id: int | None = None) -> int:
        with self.session_factory.begin() as session:
            session.add(row := Holding(symbol=symbol, size=size, session_id=session_id or self._current_session_id))
            session.flush()
            return int(row.id)

    def move_stop(self, symbol: str, stop: Any) -> bool:
        with self.session_factory.begin() as session:
            self._held(session, symbol).stop = stop
        return True

    def sell(self, symbol: str) -> bool:
        with self.session_factory.begin() as session:
            session.delete(self._held(session, symbol))
        return True

    def _held(self, session: Any, symbol: str) -> Any:
        held = session.scalars(select(Holding).where(Holding.symbol == symbol)).one_or_none()
        if held is None:
            raise LookupError(symbol)
        return held

    def get_active_positions(self, session_id: int | None = None) -> list[dict[str, Any]]:
        with self.session_factory() as session:
            rows = session.scalars(select(Holding).order_by(Holding.id))
            return [
                {"id": row.id, "symbol": row.symbol, "size": row.size, "stop": row.stop}
                for row in rows
                if session_id in (None, row.session_id)
            ]


OPERATIONS = (
    *TRADING_OPERATIONS,
    ManagerOperation("move_stop", like="update_position", args={"symbol": "position_id"}),
    ManagerOperation("sell", like="close_position", args={"symbol": "position_id"}),
)


@pytest.fixture
def book(postgres_url: str, outbox_dir: Path) -> Iterator[Scene]:
    """Both kinds of calls were seen; nothing is delivered from now on."""
    with scene(postgres_url, outbox_dir, OneOfEach, OPERATIONS, write_behind=True, wait_s=0.02) as found:
        found.manager.create_trading_session()
        for size in (1, 2, 3):
            found.manager.log_position("BTC", Decimal(size))
            found.manager.move_stop("BTC", Decimal(size) / 2)
            assert found.drain()
            found.manager.sell("BTC")
            assert found.drain()
        yield found


def test_position_named_by_symbol_is_changed_and_closed(book: Scene) -> None:
    for symbol in ("BTC", "ETH", "SOL"):
        book.manager.log_position(symbol, Decimal(4))
    book.manager.move_stop("ETH", Decimal("1.5"))
    book.manager.sell("BTC")
    here = book.manager.get_active_positions()
    assert [(row["symbol"], row["stop"]) for row in here] == [("ETH", Decimal("1.5")), ("SOL", None)]
    assert book.drain()
    assert here == book.manager._host.built.get_active_positions()
    assert book.box.status().alarms == {}


def test_symbol_of_another_session_belongs_to_that_one(book: Scene) -> None:
    book.manager.log_position("ETH", Decimal(4))
    first = book.manager._current_session_id
    second = book.manager.create_trading_session()
    book.manager.log_position("BTC", Decimal(5))
    book.manager.sell("ETH")
    assert [row["symbol"] for row in book.manager.get_active_positions(second)] == ["BTC"]
    assert book.manager.get_active_positions(first) == []
    assert book.drain()
    assert book.manager._host.built.get_active_positions(first) == []
