"""A method that makes the UUID of its new row itself makes the one that its caller was told."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import ForeignKey, create_engine, insert, text
from sqlalchemy.dialects.postgresql import insert as pg_insert
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker

from outbox.integrations.durable import ManagerOperation

from .small import scene


class Base(DeclarativeBase):
    pass


class Trade(Base):
    __tablename__ = "trades"
    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=uuid4)
    symbol: Mapped[str]


class Fill(Base):
    __tablename__ = "fills"
    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=uuid4)
    trade_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("trades.id"))


class Making:
    """Method names say how the row is written."""

    def __init__(self, url: str) -> None:
        self.engine = create_engine("postgresql+psycopg2://" + url.partition("://")[2])
        self.session_factory = sessionmaker(self.engine)
        self.last: uuid.UUID | None = None
        Base.metadata.create_all(self.engine)

    def mapped(self, symbol: str) -> uuid.UUID:
        made = self.last = uuid4()
        with self.session_factory() as session:
            trade = Trade(id=made, symbol="new")
            session.add(trade)
            session.commit()
            trade.symbol = symbol
            session.add(Fill(trade_id=trade.id))
            session.commit()
        return made

    def by_core(self, symbol: str) -> uuid.UUID:
        self.last = uuid.uuid4()
        with self.session_factory.begin() as session:
            session.execute(pg_insert(Trade).values(id=self.last, symbol=symbol).on_conflict_do_nothing())
            session.execute(insert(Fill), [{"trade_id": self.last}, {"trade_id": self.last}])
        return self.last

    def by_text(self, symbol: str) -> uuid.UUID:
        import uuid as here

        self.last = here.uuid4()
        with self.session_factory.begin() as session:
            values = {"id": str(self.last), "symbol": symbol}
            session.execute(text("INSERT INTO trades (id, symbol) VALUES (:id, :symbol)"), values)
        return self.last

    def by_default(self, symbol: str) -> uuid.UUID:
        """The first row is the fill's, and its default makes another id."""
        with self.session_factory.begin() as session:
            trades = [Trade(symbol=symbol), Trade(symbol="second")]
            session.add_all(trades)
            session.flush()
            session.add(Fill(trade_id=trades[0].id))
            return trades[0].id


@pytest.mark.parametrize("method", ["mapped", "by_core", "by_text", "by_default"])
def test_row_has_the_uuid_that_its_caller_was_told(method: str, postgres_url: str, outbox_dir: Path) -> None:
    operations: tuple[Any, ...] = (ManagerOperation(method, creates="trades"),)
    with scene(postgres_url, outbox_dir, Making, operations) as here:
        here.relay.start()
        call = getattr(here.manager, method)
        told = {f"up {number}": call(f"up {number}") for number in range(3)}
        here.relay.stop()
        for number in range(3):
            told[f"away {number}"] = last = call(f"away {number}")
            if method in ("mapped", "by_core"):
                assert here.manager.last == last
        assert here.drain()
        status = here.box.status()
        assert (status.pending, status.dead_letters, status.alarms, status.needs_operator) == (0, 0, {}, [])
        assert dict(here.rows("SELECT symbol, id FROM trades WHERE symbol <> 'second'")) == told
