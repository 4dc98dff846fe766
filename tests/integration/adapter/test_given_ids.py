"""A row whose id its caller has made, such as a UUID by time, gets that id, and the caller is told that one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import create_engine, insert, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker

from outbox.integrations.durable import ManagerOperation

from .small import scene


class Base(DeclarativeBase):
    pass


class Event(Base):
    __tablename__ = "events"
    id: Mapped[UUID] = mapped_column(primary_key=True)
    of: Mapped[UUID]


class Trade(Base):
    __tablename__ = "trades"
    id: Mapped[UUID] = mapped_column(primary_key=True)
    symbol: Mapped[str]


@dataclass(frozen=True)
class Fill:
    id: UUID
    symbol: str


class Given:
    """Method names say how the row is written; each makes an id of its own for the event."""

    def __init__(self, url: str) -> None:
        self.engine = create_engine("postgresql+psycopg2://" + url.partition("://")[2])
        self.session_factory = sessionmaker(self.engine)
        Base.metadata.create_all(self.engine)

    def by_core(self, fill: Fill) -> UUID:
        with self.session_factory.begin() as session:
            session.execute(insert(Event).values(id=uuid4(), of=fill.id))
            session.execute(insert(Trade).values(id=fill.id, symbol=fill.symbol))
        return fill.id

    def by_text(self, trade_id: UUID, symbol: str) -> UUID:
        with self.session_factory.begin() as session:
            values = {"id": trade_id, "symbol": symbol}
            session.execute(text("INSERT INTO trades (id, symbol) VALUES (:id, :symbol)"), values)
            session.add(Event(id=uuid4(), of=trade_id))
        return trade_id

    def mapped(self, trade_id: UUID, symbol: str) -> UUID:
        with self.session_factory.begin() as session:
            session.add_all([Trade(id=trade_id, symbol=symbol), Event(id=uuid4(), of=trade_id)])
        return trade_id


OPERATIONS = tuple(ManagerOperation(name, creates="trades") for name in ("by_core", "by_text", "mapped"))


@pytest.mark.parametrize("write_behind", [False, True])
@pytest.mark.parametrize("method", ["by_core", "by_text", "mapped"])
def test_row_gets_the_id_that_its_caller_has_made(
    method: str, write_behind: bool, postgres_url: str, outbox_dir: Path
) -> None:
    def record(symbol: str) -> tuple[UUID, str]:
        id_ = uuid4()
        given: Any = (Fill(id_, symbol),) if method == "by_core" else (id_, symbol)
        assert getattr(made.manager, method)(*given) == id_
        return id_, symbol

    with scene(postgres_url, outbox_dir, Given, OPERATIONS, write_behind=write_behind) as made:
        recorded = [record("no relay")]
        made.relay.start()
        recorded += [record("first"), record("second")]
        assert made.drain()
        assert sorted(made.rows("SELECT id, symbol FROM trades")) == sorted(recorded)
        assert sorted(made.rows("SELECT of FROM events")) == sorted((id_,) for id_, _ in recorded)
        ids = {id_ for id_, _ in recorded}
        assert not ids & {id_ for (id_,) in made.rows("SELECT id FROM events")}
        assert made.box.status().alarms == {}
