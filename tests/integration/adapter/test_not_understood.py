"""Positions that the view cannot understand leave the orders of the same session known, also after a restart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqlalchemy import Column, Integer, String, create_engine, select
from sqlalchemy.orm import DeclarativeBase, sessionmaker

from outbox.integrations.durable import ManagerOperation, ManagerRead
from outbox.integrations.roles import Order
from tests.unit.fakes.waiting import until

from .small import scene


class Base(DeclarativeBase):
    pass


class Work(Base):
    __tablename__ = "work"
    id: Any = Column(Integer, primary_key=True)
    desk: Any = Column(String)
    symbol: Any = Column(String)
    status: Any = Column(String)


class Desks:
    """Has desks by name, which no method begins, and shows what they hold as a set."""

    def __init__(self, url: str) -> None:
        self.engine = create_engine("postgresql+psycopg2://" + url.partition("://")[2])
        self.session_factory = sessionmaker(bind=self.engine)
        Base.metadata.create_all(self.engine)

    def place(self, desk: str, symbol: str) -> int:
        with self.session_factory.begin() as session:
            session.add(row := Work(desk=desk, symbol=symbol, status="new"))
            session.flush()
            return int(row.id)

    def fill(self, order_id: int) -> bool:
        with self.session_factory.begin() as session:
            session.get_one(Work, order_id).status = "filled"
        return True

    def working(self, desk: str) -> list[dict[str, Any]]:
        with self.session_factory() as session:
            rows = session.scalars(select(Work).where(Work.desk == desk, Work.status == "new").order_by(Work.id))
            return [{"id": row.id, "symbol": row.symbol} for row in rows]

    def held(self, desk: str) -> set[str]:
        with self.session_factory() as session:
            return set(session.scalars(select(Work.symbol).where(Work.desk == desk, Work.status == "filled")))


OPERATIONS: tuple[Any, ...] = (
    ManagerOperation("place", args={"desk": "session_id"}, creates="work", order=Order.OPENS),
    ManagerOperation("fill", returns=True, order=Order.UPDATES),
    ManagerRead("working", like="get_unresolved_orders", args={"desk": "session_id"}),
    ManagerRead("held", like="get_active_positions", args={"desk": "session_id"}),
)


def test_orders_are_known_after_a_restart_beside_unread_positions(postgres_url: str, outbox_dir: Path) -> None:
    with scene(postgres_url, outbox_dir, Desks, OPERATIONS) as made:
        made.relay.start()
        for symbol in ("A", "B", "C"):
            made.manager.fill(made.manager.place("east", symbol))
            made.manager.place("east", symbol)
        assert made.drain()
        keeper = made.manager._adapter.keeper
        until(lambda: "east" in keeper.view.sessions and not keeper._doubtful)
        keeper._tend()
        notes = [one.message for one in made.box.status().notices.values() if "does not answer" in one.message]
        assert ["positions at all (positions are shown as a set" in one for one in notes] == [True]
        made.relay.stop()
        made.manager.place("east", "D")
        told = made.manager.working("east")
        assert [row["symbol"] for row in told] == ["A", "B", "C", "D"]
    with scene(postgres_url, outbox_dir, Desks, OPERATIONS) as again:
        assert again.manager.working("east") == told
        assert again.drain()
        assert again.manager.working("east") == told
