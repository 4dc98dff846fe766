"""What a manager does beyond a threshold is not answered by what it does below it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Column, Float, Integer, Numeric, String, TypeDecorator, create_engine, select, text
from sqlalchemy.orm import DeclarativeBase, sessionmaker

from outbox import PostgresTarget, Relay
from outbox.integrations.durable import TRADING_OPERATIONS, bind
from outbox.integrations.view.local_view import UnknownLocally
from tests.unit.fakes.waiting import LONG, until

from .small import Scene, scene


class Base(DeclarativeBase):
    pass


class Cents(TypeDecorator[Decimal]):
    """An amount that the column's own code rounds."""

    impl = Integer
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: object) -> int | None:
        return None if value is None else round(value * 100)

    def process_result_value(self, value: Any, dialect: object) -> Decimal | None:
        return None if value is None else Decimal(value) / 100


class Desk(Base):
    __tablename__ = "trading_sessions"
    id: Any = Column(Integer, primary_key=True)


class Lot(Base):
    __tablename__ = "positions"
    id: Any = Column(Integer, primary_key=True)
    symbol: Any = Column(String)
    size: Any = Column(Numeric(18, 8))
    score: Any = Column(Float)
    paid: Any = Column(Cents)


class Order(Base):
    __tablename__ = "orders"
    id: Any = Column(Integer, primary_key=True)
    client_order_id: Any = Column(String)
    quantity: Any = Column(Numeric(18, 8))
    filled: Any = Column(Numeric(18, 8), default=0)


class Trade(Base):
    __tablename__ = "trades"
    id: Any = Column(Integer, primary_key=True)


def shown(row: Any) -> dict[str, Any]:
    return {column.name: getattr(row, column.name) for column in row.__table__.columns}


class BookManager:
    """Orders end when they are filled, lots when they are sold, and lots of one symbol are one."""

    merges = False

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

    def log_position(self, symbol: str, size: Any, score: Any = None, paid: Any = None) -> int:
        with self.session_factory.begin() as session:
            same = session.scalars(select(Lot).where(Lot.symbol == symbol)).first() if self.merges else None
            if same is not None:
                same.size += size
                return int(same.id)
            session.add(row := Lot(symbol=symbol, size=size, score=score, paid=paid))
            session.flush()
            return int(row.id)

    def log_trade(self, position_id: int, quantity: Any) -> int:
        with self.session_factory.begin() as session:
            session.add(trade := Trade())
            session.flush()
            lot = session.get_one(Lot, position_id)
            lot.size -= quantity
            if lot.size <= 0:
                session.delete(lot)
            return int(trade.id)

    def create_order_journal_entry(self, client_order_id: str, quantity: Any) -> int:
        with self.session_factory.begin() as session:
            session.add(row := Order(client_order_id=client_order_id, quantity=quantity))
            session.flush()
            return int(row.id)

    def update_order_journal(self, client_order_id: str, filled: Any) -> bool:
        """`filled` is the whole that is filled so far."""
        with self.session_factory.begin() as session:
            session.scalars(select(Order).where(Order.client_order_id == client_order_id)).one().filled = filled
        return True

    def get_active_positions(self, session_id: int | None = None) -> list[dict[str, Any]]:
        with self.session_factory() as session:
            return [shown(lot) for lot in session.scalars(select(Lot).order_by(Lot.id))]

    def get_unresolved_orders(self, session_id: int | None = None) -> list[dict[str, Any]]:
        with self.session_factory() as session:
            orders = session.scalars(select(Order).where(Order.filled < Order.quantity).order_by(Order.id))
            return [shown(order) for order in orders]


class DeltaManager(BookManager):
    """Fills are given one by one."""

    def update_order_journal(self, client_order_id: str, filled: Any) -> bool:
        with self.session_factory.begin() as session:
            session.scalars(select(Order).where(Order.client_order_id == client_order_id)).one().filled += filled
        return True


class MergingManager(BookManager):
    merges = True


@pytest.fixture
def book(request: pytest.FixtureRequest, postgres_url: str, outbox_dir: Path) -> Iterator[Scene]:
    """Nothing is delivered until `drain`, as in an outage."""
    with scene(postgres_url, outbox_dir, request.param, write_behind=True, wait_s=0.02) as found:
        found.manager.create_trading_session()
        found.drain()
        yield found


def deliver(book: Scene, *calls: Callable[[], Any]) -> None:
    for call in calls:
        call()
        assert book.drain()


def fill(book: Scene, name: str, *fills: str) -> None:
    deliver(book, lambda: book.manager.create_order_journal_entry(name, Decimal(2)))
    for one in fills:
        deliver(book, lambda one=one: book.manager.update_order_journal(name, Decimal(one)))  # type: ignore[misc]


@pytest.mark.parametrize(
    ("book", "seen", "new"),
    [
        (BookManager, ["1"], ["2"]),
        (BookManager, ["2"], ["1"]),
        (DeltaManager, ["1"], ["1", "1"]),
        (DeltaManager, ["2"], ["1"]),
    ],
    indirect=["book"],
)
def test_fill_to_the_last_is_another_kind_of_call(book: Scene, seen: list[str], new: list[str]) -> None:
    for name in "abc":
        fill(book, name, *seen)
    book.manager.create_order_journal_entry("new", Decimal(2))
    for one in new:
        book.manager.update_order_journal("new", Decimal(one))
    with pytest.raises(UnknownLocally, match="update_order_journal"):
        book.manager.get_unresolved_orders()
    book.drain()
    # Seen a few times, it is answered.
    for name in "de":
        fill(book, name, *new)
    book.manager.create_order_journal_entry("last", Decimal(2))
    for one in new:
        book.manager.update_order_journal("last", Decimal(one))
    here = book.manager.get_unresolved_orders()
    book.drain()
    assert here == book.manager._host.built.get_unresolved_orders()


@pytest.mark.parametrize("book", [BookManager], indirect=True)
def test_trade_of_a_part_is_another_kind_of_call(book: Scene) -> None:
    for _ in range(3):
        lot = book.manager.log_position("A", Decimal(2))
        deliver(book, lambda lot=lot: book.manager.log_trade(lot, Decimal(2)))  # type: ignore[misc]
    lot = book.manager.log_position("A", Decimal(2))
    book.manager.log_trade(lot, Decimal(1))
    with pytest.raises(UnknownLocally, match="log_trade"):
        book.manager.get_active_positions()


@pytest.mark.parametrize("book", [BookManager], indirect=True)
@pytest.mark.parametrize(
    ("column", "known", "new", "kept"),
    [
        ("score", 0.12345678, 0.12345678901234567, [0.12345678901234567]),
        ("paid", Decimal("0.25"), Decimal("0.129"), [Decimal("0.13")]),
    ],
)
def test_rounding_is_that_of_the_amounts_own_column(
    book: Scene, column: str, known: Any, new: Any, kept: list[Any]
) -> None:
    """Also where it is a Float, which SQLAlchemy 2.1 takes for no Numeric, or where its argument's name ends in id."""
    for _ in range(3):
        lot = book.manager.log_position("A", Decimal(2), **{column: known})
        deliver(book, lambda lot=lot: book.manager.log_trade(lot, Decimal(2)))  # type: ignore[misc]
    book.manager.log_position("A", Decimal(2), **{column: new})
    try:
        here = [row[column] for row in book.manager.get_active_positions()]
    except UnknownLocally:
        here = kept
    assert here == kept
    book.drain()
    assert [row[column] for row in book.manager._host.built.get_active_positions()] == kept


def test_id_of_another_row_after_a_wait_in_vain_is_an_alarm(postgres_url: str, outbox_dir: Path) -> None:
    """The caller had waited, and got the local id."""
    with scene(postgres_url, outbox_dir, MergingManager, wait_s=0.5) as book:
        book.relay.start()
        until(lambda: book.manager._adapter.delivery.prompt())
        book.manager.create_trading_session()
        first = book.manager.log_position("A", Decimal(1))
        until(lambda: book.manager._adapter.delivery.passed(book.box.status().last_seq))
        assert book.manager._adapter.delivery.prompt()
        other = create_engine(book.manager._host.built.engine.url)
        with other.connect() as connection:
            connection.execute(text("LOCK TABLE positions"))
            second = book.manager.log_position("A", Decimal(1))
        other.dispose()
        assert book.drain()
        assert second != first
        assert list(book.box.status().alarms) == [f"diverged-id-positions-{second}"]


def test_alarm_is_kept_where_the_relay_has_its_own_manager(postgres_url: str, outbox_dir: Path) -> None:
    with scene(postgres_url, outbox_dir, MergingManager, write_behind=True) as book:
        apart = MergingManager(postgres_url)
        relay = Relay(book.box, PostgresTarget(postgres_url, bind(TRADING_OPERATIONS, lambda: apart)))
        book.manager.create_trading_session()
        book.manager.log_position("A", Decimal(1))
        second = book.manager.log_position("A", Decimal(1))
        assert relay.drain(timeout=LONG)
        relay.stop()
        apart.engine.dispose()
        assert list(book.box.status().alarms) == [f"diverged-id-positions-{second}"]
