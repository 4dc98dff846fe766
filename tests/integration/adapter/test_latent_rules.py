"""Rules that no call has shown so far: letters of texts are changed, and an order ends when nothing is left."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Column, Integer, Numeric, String, case, create_engine, select, update
from sqlalchemy.orm import DeclarativeBase, sessionmaker, validates

from outbox.integrations.durable import ManagerOperation, ManagerRead
from outbox.integrations.roles import Order
from outbox.integrations.view.local_view import UnknownLocally
from tests.unit.fakes.waiting import until

from .small import Scene, scene


class Base(DeclarativeBase):
    pass


class Work(Base):
    __tablename__ = "work"
    id: Any = Column(Integer, primary_key=True)
    symbol: Any = Column(String)
    size: Any = Column(Numeric, nullable=False)
    done: Any = Column(Numeric, nullable=False, default=0)
    status: Any = Column(String, default="new")

    @validates("symbol")
    def capitals(self, key: str, value: str) -> str:
        return value.upper()


class Orders:
    """Its rows name what is left of an order in `LEFT`."""

    LEFT = "left"

    def __init__(self, url: str) -> None:
        self.engine = create_engine("postgresql+psycopg2://" + url.partition("://")[2])
        self.session_factory = sessionmaker(bind=self.engine)
        Base.metadata.create_all(self.engine)

    def place(self, symbol: str, size: Decimal) -> int:
        with self.session_factory.begin() as session:
            session.add(row := Work(symbol=symbol, size=size))
            session.flush()
            return int(row.id)

    def fill(self, order_id: int, amount: Decimal) -> None:
        status = case((Work.done + amount >= Work.size, "filled"), else_="part")
        with self.session_factory.begin() as session:
            session.execute(update(Work).where(Work.id == order_id).values(done=Work.done + amount, status=status))

    def working(self) -> list[dict[str, Any]]:
        with self.session_factory() as session:
            rows = session.scalars(select(Work).where(Work.status != "filled").order_by(Work.id))
            return [
                {"id": row.id, "symbol": row.symbol, "size": row.size, self.LEFT: row.size - row.done} for row in rows
            ]


class OwnWord(Orders):
    """Shows it under a name by which nothing can be told."""

    LEFT = "z"


class InSteps(Orders):
    """Decides by what its own statements have made of the row."""

    def fill(self, order_id: int, amount: Decimal) -> None:
        with self.session_factory.begin() as session:
            row = session.get(Work, order_id)
            assert row is not None
            row.done += amount
            row.status = "part"
            if row.done >= row.size:
                row.status = "filled"

    def working(self) -> list[dict[str, Any]]:
        with self.session_factory() as session:
            rows = session.scalars(select(Work).where(Work.status != "filled").order_by(Work.id))
            return [{"id": row.id, "size": row.size, "done": row.done, "status": row.status} for row in rows]


OPERATIONS: tuple[Any, ...] = (
    ManagerOperation("place", creates="work", order=Order.OPENS),
    ManagerOperation("fill", order=Order.UPDATES),
    ManagerRead("working", like="get_unresolved_orders"),
)


def learn(made: Scene) -> None:
    """Some orders are filled in part, and one at once."""
    made.relay.start()
    manager = made.manager
    for number in range(1, 9):
        order = manager.place("BTC", Decimal(10 + number))
        manager.fill(order, Decimal(number) / 4)
        manager.fill(order, Decimal(number) / 2)
        manager.working()
    for number in (3, 5):
        manager.fill(manager.place("BTC", Decimal(number)), Decimal(number))
    assert made.drain()
    until(lambda: manager._adapter.view.is_sure(manager._adapter.view.otherwise))
    made.relay.stop()


def test_text_with_letters_never_seen_is_not_guessed(postgres_url: str, outbox_dir: Path) -> None:
    with scene(postgres_url, outbox_dir, Orders, OPERATIONS) as made:
        learn(made)
        made.manager.place("ETH", Decimal(4))
        assert made.manager.working()[-1]["symbol"] == "ETH"
        made.manager.place("sol", Decimal(5))
        with pytest.raises(UnknownLocally, match="such letters in symbol"):
            made.manager.working()
        assert made.drain()
        assert made.manager.working()[-1]["symbol"] == "SOL"


@pytest.mark.parametrize("manager", [Orders, OwnWord])
def test_order_of_which_nothing_is_left_is_not_shown_on(
    postgres_url: str, outbox_dir: Path, manager: type[Orders]
) -> None:
    with scene(postgres_url, outbox_dir, manager, OPERATIONS) as made:
        learn(made)
        order = made.manager.place("BTC", Decimal(8))
        made.manager.fill(order, Decimal(3))
        told = made.manager.working()
        assert told[-1][manager.LEFT] == 5
        made.manager.fill(order, Decimal(5))
        try:
            told = made.manager.working()
        except UnknownLocally:
            told = None
        assert made.drain()
        assert told in (None, made.manager.working())


def test_branch_by_a_changed_column_never_seen_is_not_guessed(postgres_url: str, outbox_dir: Path) -> None:
    """Orders were filled in part so far: the one that is filled was shown on, as one that is not."""
    with scene(postgres_url, outbox_dir, InSteps, OPERATIONS) as made:
        made.relay.start()
        for number in range(1, 9):
            order = made.manager.place("BTC", Decimal(10 + number))
            made.manager.fill(order, Decimal(number) / 4)
            made.manager.fill(order, Decimal(number) / 2)
            made.manager.working()
        assert made.drain()
        until(lambda: made.manager._adapter.view.is_sure(made.manager._adapter.view.otherwise))
        made.relay.stop()
        made.manager.fill(order, Decimal(3))
        assert made.manager.working()[-1]["done"] == 9
        made.manager.fill(order, Decimal(9))
        with pytest.raises(UnknownLocally, match="row.done >= row.size"):
            made.manager.working()
        assert made.drain()
        assert order not in [one["id"] for one in made.manager.working()]
