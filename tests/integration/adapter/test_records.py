"""Methods that take their fields in a dict or an object are answered in an outage as those that take arguments."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import attrs
import msgspec
import pydantic
import pytest
from sqlalchemy import Column, Integer, Numeric, String, create_engine, insert, select
from sqlalchemy.orm import DeclarativeBase, sessionmaker

from outbox.integrations.durable import TRADING_OPERATIONS, ManagerOperation
from outbox.integrations.roles import Balance, Position
from outbox.integrations.view.local_view import UnknownLocally
from tests.unit.fakes.waiting import until

from .small import Scene, scene


class Base(DeclarativeBase):
    pass


class Run(Base):
    __tablename__ = "runs"
    id: Any = Column(Integer, primary_key=True)


class Cash(Base):
    __tablename__ = "cash"
    id: Any = Column(Integer, primary_key=True)
    run_id: Any = Column(Integer)
    total: Any = Column(Numeric(18, 8))


class Holding(Base):
    __tablename__ = "positions"
    id: Any = Column(Integer, primary_key=True)
    symbol: Any = Column(String)
    size: Any = Column(Numeric(18, 8))
    stop: Any = Column(Numeric(18, 8))
    tag: Any = Column(String, default="none")


class Fill(Base):
    __tablename__ = "fills"
    id: Any = Column(Integer, primary_key=True)
    position_id: Any = Column(Integer)
    pnl: Any = Column(Numeric(18, 8))


class Work(Base):
    __tablename__ = "orders"
    id: Any = Column(Integer, primary_key=True)
    client_order_id: Any = Column(String)
    status: Any = Column(String)
    quantity: Any = Column(Numeric(18, 8))


def shown(row: Any) -> dict[str, Any]:
    return {column.name: getattr(row, column.name) for column in row.__table__.columns}


class DictManager:
    """Each method takes the items of a dict in another way."""

    def __init__(self, url: str) -> None:
        self.engine = create_engine("postgresql+psycopg2://" + url.partition("://")[2])
        self.session_factory = sessionmaker(bind=self.engine)
        self._current_session_id: int | None = None
        Base.metadata.create_all(self.engine)

    def create_trading_session(self, initial_balance: Any) -> int:
        with self.session_factory.begin() as session:
            session.add(row := Run())
            session.flush()
            session.add(Cash(run_id=row.id, total=initial_balance))
            self._current_session_id = row.id
            return int(row.id)

    def _total(self, session: Any) -> Any:
        of_run = select(Cash.total).where(Cash.run_id == self._current_session_id)
        return session.scalar(of_run.order_by(Cash.id.desc()).limit(1))

    def get_current_balance(self) -> Any:
        with self.session_factory() as session:
            return self._total(session)

    def log_position(self, position: dict[str, Any]) -> int:
        with self.session_factory.begin() as session:
            session.add(row := Holding(**position))
            session.flush()
            return int(row.id)

    def update_position(self, position_id: int, changes: Mapping[str, Any]) -> bool:
        with self.session_factory.begin() as session:
            row = session.get_one(Holding, position_id)
            for name, value in changes.items():
                setattr(row, name, value)
        return True

    def record_fill(self, fill: dict[str, Any]) -> int:
        with self.session_factory.begin() as session:
            session.add(row := Fill(position_id=fill["position_id"], pnl=fill.get("pnl", 0)))
            self._pay(session, fill)
            session.flush()
            session.delete(session.get_one(Holding, fill["position_id"]))
            return int(row.id)

    def _pay(self, session: Any, fill: dict[str, Any]) -> None:
        session.add(Cash(run_id=self._current_session_id, total=self._total(session) + fill["pnl"]))

    def create_order_journal_entry(self, order: dict[str, Any]) -> int:
        return self._insert(Work, order)

    def _insert(self, table: Any, values: dict[str, Any]) -> int:
        with self.session_factory.begin() as session:
            return int(session.scalar(insert(table).values(values).returning(table.id)))

    def update_order_journal(self, order: dict[str, Any]) -> bool:
        with self.session_factory.begin() as session:
            row = session.scalars(select(Work).where(Work.client_order_id == order["client_order_id"])).one()
            row.status = order["status"]
        return True

    def get_active_positions(self, session_id: int | None = None) -> list[dict[str, Any]]:
        with self.session_factory() as session:
            return [shown(row) for row in session.scalars(select(Holding).order_by(Holding.id))]

    def get_unresolved_orders(self, session_id: int | None = None) -> list[dict[str, Any]]:
        with self.session_factory() as session:
            orders = session.scalars(select(Work).where(Work.status != "filled").order_by(Work.id))
            return [shown(order) for order in orders]


@dataclass(frozen=True, slots=True)
class NewOrder:
    client_order_id: str
    status: str
    quantity: Decimal


@dataclass
class NewHolding:
    symbol: str
    size: Decimal
    tag: str = "swing"


class NewFill(NamedTuple):
    position_id: int
    pnl: Decimal


class ObjectManager(DictManager):
    """Dataclasses, annotated and not, and a named tuple."""

    def log_position(self, position: NewHolding) -> int:  # type: ignore[override]
        return super().log_position(asdict(position))

    def update_order_journal(self, order: NewOrder) -> bool:  # type: ignore[override]
        with self.session_factory.begin() as session:
            session.scalars(
                select(Work).where(Work.client_order_id == order.client_order_id)
            ).one().status = order.status
        return True

    def create_order_journal_entry(self, order: Any) -> int:
        return self._insert(
            Work, {"client_order_id": order.client_order_id, "status": order.status, "quantity": order.quantity}
        )

    def record_fill(self, fill: NewFill) -> int:  # type: ignore[override]
        return super().record_fill(fill._asdict())


class ModelOrder(pydantic.BaseModel):
    client_order_id: str
    status: str
    quantity: Decimal


@attrs.define
class AttrsHolding:
    symbol: str
    size: Decimal
    tag: str = "swing"


class PlainFill:
    def __init__(self, position_id: int, pnl: Decimal) -> None:
        self.position_id, self.pnl = position_id, pnl


class LibraryManager(ObjectManager):
    """A model of pydantic, an object of attrs, and one of a class of its own."""

    def log_position(self, position: AttrsHolding) -> int:  # type: ignore[override]
        return DictManager.log_position(self, attrs.asdict(position))

    def create_order_journal_entry(self, order: ModelOrder) -> int:  # type: ignore[override]
        return self._insert(Work, order.model_dump())

    def record_fill(self, fill: PlainFill) -> int:  # type: ignore[override]
        with self.session_factory.begin() as session:
            session.add(row := Fill(position_id=fill.position_id, pnl=fill.pnl))
            session.add(Cash(run_id=self._current_session_id, total=self._total(session) + fill.pnl))
            session.flush()
            session.delete(session.get_one(Holding, fill.position_id))
            return int(row.id)


class StructHolding(msgspec.Struct, frozen=True):
    symbol: str
    size: Decimal
    tag: str = "swing"


class StructManager(LibraryManager):
    """A struct of msgspec."""

    def log_position(self, position: StructHolding) -> int:  # type: ignore[override]
        return DictManager.log_position(self, msgspec.structs.asdict(position))


class DetailsManager(DictManager):
    """A dict of which the method takes one item."""

    def log_position(self, symbol: str, size: Any, details: dict[str, Any]) -> int:  # type: ignore[override]
        return super().log_position({"symbol": symbol, "size": size, "tag": details.get("tag", "none")})


MADE: dict[type, dict[str, Any]] = {
    DictManager: dict.fromkeys(("order", "holding", "fill"), dict),
    ObjectManager: {"order": NewOrder, "holding": NewHolding, "fill": NewFill},
    LibraryManager: {"order": ModelOrder, "holding": AttrsHolding, "fill": PlainFill},
    StructManager: {"order": ModelOrder, "holding": StructHolding, "fill": PlainFill},
}

OPERATIONS = (
    *(one for one in TRADING_OPERATIONS if one.name != "create_trading_session"),
    ManagerOperation("record_fill", creates="fills", balance=Balance.CHANGE, amount="pnl", position=Position.CLOSES),
    ManagerOperation("create_trading_session", like="create_trading_session", creates="runs"),
)


def trade(manager: Any, number: int, *, stop: Any) -> None:
    """One bar of an engine: an order, its fill, a position that is moved, and one that is closed."""
    made = next(MADE[one] for one in reversed(MADE) if isinstance(manager, one))
    order = {"client_order_id": f"c{number}", "quantity": Decimal(number)}
    manager.create_order_journal_entry(made["order"](**order, status="new"))
    if number % 3:
        manager.update_order_journal(made["order"](**order, status="filled"))
    position = manager.log_position(made["holding"](symbol=f"S{number}", size=Decimal(number) / 8, tag="swing"))
    manager.update_position(position, {"stop": stop})
    if number % 2:
        manager.record_fill(made["fill"](position_id=position, pnl=Decimal(number) - 20))


def answers(manager: Any) -> list[Any]:
    return [manager.get_current_balance(), manager.get_active_positions(), manager.get_unresolved_orders()]


@pytest.fixture
def here(request: pytest.FixtureRequest, postgres_url: str, outbox_dir: Path) -> Iterator[Scene]:
    with scene(postgres_url, outbox_dir, getattr(request, "param", DictManager), OPERATIONS) as made:
        made.relay.start()
        made.manager.create_trading_session(Decimal(1000))
        for number in range(1, 13):
            trade(made.manager, number, stop=Decimal(number) / 3)
            answers(made.manager)
        assert made.drain()
        until(lambda: made.manager._adapter.view.is_sure(made.manager._current_session_id))
        made.relay.stop()
        yield made


@pytest.mark.parametrize("here", list(MADE), indirect=True)
def test_fields_are_answered_as_the_manager_does(here: Scene) -> None:
    for number in range(13, 25):
        trade(here.manager, number, stop=Decimal(number) / 7)
    told = answers(here.manager)
    assert here.drain()
    assert told == answers(here.manager)


def test_items_that_the_method_does_not_take_are_no_arguments(postgres_url: str, outbox_dir: Path) -> None:
    with scene(postgres_url, outbox_dir, DetailsManager, OPERATIONS) as made:
        made.relay.start()
        made.manager.create_trading_session(Decimal(1000))
        for number in range(1, 9):
            made.manager.log_position(
                f"S{number}", Decimal(number) / 8, {"tag": f"t{number}", f"seen {number}": number}
            )
        assert made.drain()
        until(lambda: made.manager._adapter.view.is_sure(made.manager._current_session_id))
        made.relay.stop()
        made.manager.log_position("S9", Decimal(9) / 8, {"tag": "new", "never seen": 1})
        told = answers(made.manager)
        assert made.drain()
        assert told == answers(made.manager)


def test_field_that_was_never_given_is_not_guessed(here: Scene) -> None:
    position = here.manager.log_position({"symbol": "X", "size": Decimal(3), "tag": "swing"})
    here.manager.update_position(position, {"size": Decimal(4)})
    with pytest.raises(UnknownLocally, match="size"):
        here.manager.get_active_positions()
    assert here.drain()
    assert here.manager.get_active_positions()[-1]["size"] == Decimal(4)


def test_default_of_a_field_left_out_is_not_guessed(here: Scene) -> None:
    here.manager.log_position({"symbol": "X", "size": Decimal(3)})
    with pytest.raises(UnknownLocally, match="tag"):
        here.manager.get_active_positions()
