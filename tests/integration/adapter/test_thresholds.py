"""What a manager does beyond a threshold is not answered by what it does below it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Column, Float, Integer, Numeric, String, TypeDecorator, create_engine, select, text, update
from sqlalchemy.orm import DeclarativeBase, sessionmaker

from outbox import PostgresTarget, Relay
from outbox.integrations.durable import TRADING_OPERATIONS, bind
from outbox.integrations.view.local_view import UnknownLocally
from tests.unit.fakes.waiting import LONG, until

from .small import Scene, SmallManager, scene


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
    cheap: Any = Column(Integer, default=0)


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


BIG, DEAR = Decimal(10), frozenset({"BTC", "ETH"})


def tier_of(amount: Any) -> float:
    return 2.5 if Decimal(str(amount)) > BIG else 0.5


class DecidingManager(BookManager):
    """Each method decides by what a call says in another way."""

    LIMIT = 10

    def log_position(self, symbol: str, size: Any, score: Any = None, paid: Any = None) -> int:
        return super().log_position(symbol, size, self.scored(symbol, size), paid)

    def scored(self, symbol: str, size: Any) -> float:
        raise NotImplementedError

    def update_position(self, position_id: int, price: Any) -> bool:
        """A stop that trails the price."""
        with self.session_factory.begin() as session:
            lot = session.get_one(Lot, position_id)
            if lot.score is None or price > lot.score:
                lot.score = price
        return True


class ByNumber(DecidingManager):
    def scored(self, symbol: str, size: Any) -> float:
        return 2.5 if size > 10 else 0.5


class Counting(ByNumber):
    def update_position(self, position_id: int, price: Any) -> bool:
        with self.session_factory.begin() as session:
            if price < 1:
                session.get_one(Desk, self._current_session_id).cheap += 1
            session.get_one(Lot, position_id).score = price
        return True


class ByConstant(DecidingManager):
    def scored(self, symbol: str, size: Any) -> float:
        amount = Decimal(size)
        if not amount > self.LIMIT:
            return 0.5
        return 2.5


class ByFunction(DecidingManager):
    def scored(self, symbol: str, size: Any) -> float:
        return tier_of(size)


class ByCap(DecidingManager):
    def scored(self, symbol: str, size: Any) -> float:
        return min(float(size), 10.0)


class ByName(DecidingManager):
    def scored(self, symbol: str, size: Any) -> float:
        return 2.5 if symbol.upper() in DEAR else 0.5


class ByMatch(DecidingManager):
    def scored(self, symbol: str, size: Any) -> float:
        match symbol:
            case "ETH":
                return 2.5
        return 0.5


class ByTruth(DecidingManager):
    def scored(self, symbol: str, size: Any) -> float:
        return 0.5 if size else 2.5


class WholeSteps(BookManager):
    """Sizes are cut off to what the exchange takes."""

    def log_position(self, symbol: str, size: Any, score: Any = None, paid: Any = None) -> int:
        return super().log_position(symbol, Decimal(int(size * 100)) / 100, score, paid)


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


@pytest.mark.parametrize(
    ("book", "seen", "beyond", "named"),
    [
        (ByNumber, ("A", 4), ("A", 12), "size > 10 for size: True"),
        (ByNumber, ("A", 12), ("A", 4), "size > 10 for size: False"),
        (ByConstant, ("A", 4), ("A", 12), "amount > self.LIMIT for size: True"),
        (ByFunction, ("A", 4), ("A", 12), "Decimal(str(amount)) > BIG for size: True"),
        (ByCap, ("A", 4), ("A", 12), "min(float(size), 10.0) for size: 2"),
        (ByName, ("A", 4), ("eth", 4), "symbol.upper() in DEAR for symbol: True"),
        (ByMatch, ("A", 4), ("ETH", 4), "symbol == 'ETH' for symbol: True"),
        (ByTruth, ("A", 4), ("A", 0), "size for size: False"),
    ],
    indirect=["book"],
)
def test_branch_not_yet_taken_is_not_answered(
    book: Scene, seen: tuple[str, int], beyond: tuple[str, int], named: str
) -> None:
    for _ in range(3):
        deliver(book, lambda: book.manager.log_position(seen[0], Decimal(seen[1])))
    # Of the kind that was seen, with other values.
    book.manager.log_position("B", Decimal(seen[1] + 1))
    here = book.manager.get_active_positions()
    book.manager.log_position(beyond[0], Decimal(beyond[1]))
    with pytest.raises(UnknownLocally, match=f"with {re.escape(named)}\\)"):
        book.manager.get_active_positions()
    book.drain()
    assert here == book.manager._host.built.get_active_positions()[:-1]
    deliver(book, lambda: book.manager.log_position(beyond[0], Decimal(beyond[1])))
    book.manager.log_position(beyond[0], Decimal(beyond[1]))
    book.manager.log_position(seen[0], Decimal(seen[1]))
    here = book.manager.get_active_positions()
    book.drain()
    assert here == book.manager._host.built.get_active_positions()


@pytest.mark.parametrize("book", [ByNumber], indirect=True)
def test_comparison_with_the_row_that_is_named_decides(book: Scene) -> None:
    deliver(book, *[lambda: book.manager.log_position("A", Decimal(4))] * 3)
    lot = book.manager.get_active_positions()[0]["id"]
    deliver(book, *(lambda price=price: book.manager.update_position(lot, price) for price in (1.5, 2.5)))
    book.manager.update_position(lot, 4.5)
    assert [row["score"] for row in book.manager.get_active_positions()] == [4.5, 0.5, 0.5]
    book.manager.update_position(lot, 3.5)
    with pytest.raises(UnknownLocally, match="update_position was never seen with price > lot.score: False"):
        book.manager.get_active_positions()
    book.drain()
    assert [row["score"] for row in book.manager.get_active_positions()] == [4.5, 0.5, 0.5]
    book.manager.update_position(lot, 3.75)
    book.manager.update_position(lot, 5.5)
    here = book.manager.get_active_positions()
    book.drain()
    assert here == book.manager._host.built.get_active_positions()
    assert [row["score"] for row in here] == [5.5, 0.5, 0.5]


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


@pytest.mark.parametrize("book", [Counting], indirect=True)
def test_branch_that_only_counts_hides_no_row(book: Scene) -> None:
    deliver(book, *[lambda: book.manager.log_position("A", Decimal(4))] * 3)
    lot = book.manager.get_active_positions()[0]["id"]
    deliver(book, *(lambda price=price: book.manager.update_position(lot, price) for price in (1.5, 2.5)))
    book.manager.update_position(lot, 0.5)
    here = book.manager.get_active_positions()
    book.drain()
    assert here == book.manager._host.built.get_active_positions()
    assert here[0]["score"] == 0.5


class Graded(SmallManager):
    """A block is told how large its change is; a large one costs a fee."""

    @contextmanager
    def atomic_balance_update(
        self, balance_change: Any, reason: str, session_id: int | None = None, correlation_id: str | None = None
    ) -> Iterator[dict[str, Any]]:
        fee = Decimal(1) if abs(balance_change) >= 1000 else Decimal(0)
        with super().atomic_balance_update(balance_change - fee, reason, session_id, correlation_id) as told:
            yield {**told, "grade": "loss" if balance_change < 0 else "profit"}


@pytest.fixture
def graded(postgres_url: str, outbox_dir: Path) -> Iterator[Scene]:
    with scene(postgres_url, outbox_dir, Graded, write_behind=True, wait_s=0.02) as book:
        book.manager.create_trading_session("momentum", initial_balance=Decimal(0))
        for change in (Decimal(5), Decimal(7)):
            with book.manager.atomic_balance_update(change, "seen"):
                pass
            assert book.drain()
        book.manager.log_trade("A")  # so that the manager cannot be asked
        yield book


def test_block_of_a_branch_not_yet_taken_knows_its_amounts(graded: Scene) -> None:
    """What chooses between texts changes none."""
    with graded.manager.atomic_balance_update(Decimal(9), "seen") as told:
        assert (told["grade"], told["new_balance"]) == ("profit", Decimal(21))
    with graded.manager.atomic_balance_update(Decimal(-2), "new") as told:
        with pytest.raises(UnknownLocally, match="was never seen with balance_change < 0: True"):
            told["grade"]
        assert told["new_balance"] == Decimal(19)
    assert graded.manager.get_current_balance() == Decimal(19)
    assert graded.drain()
    assert graded.manager._host.built.get_current_balance() == Decimal(19)


def test_block_of_a_branch_that_changes_amounts_is_not_told(graded: Scene) -> None:
    with (
        graded.manager.atomic_balance_update(Decimal(5000), "new") as told,
        pytest.raises(UnknownLocally, match="was never seen with .*abs.balance_change. >= 1000: True"),
    ):
        told["new_balance"]
    with pytest.raises(UnknownLocally, match="was never seen with .*abs.balance_change. >= 1000: True"):
        graded.manager.get_current_balance()
    assert graded.drain()
    assert graded.manager.get_current_balance() == Decimal(5011)
    assert graded.box.status().alarms == {}


def test_id_after_a_wait_in_vain_stands_for_the_row_added_to(postgres_url: str, outbox_dir: Path) -> None:
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
        assert book.box.status().alarms == {}
        assert book.manager._adapter.replayer.same_row.of(second) == first
        assert book.rows("SELECT count(*), max(id) FROM positions") == [(1, first)]


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


class Turning(BookManager):
    """A lot of which more is sold than there is turns into a debt."""

    def log_trade(self, position_id: int, quantity: Any) -> int:
        with self.session_factory.begin() as session:
            session.add(trade := Trade())
            lot = session.get_one(Lot, position_id)
            session.execute(update(Lot).where(Lot.id == position_id).values(size=Lot.size - quantity))
            session.refresh(lot)
            if lot.size < 0:
                lot.score, lot.size = -1.0, -lot.size
            session.flush()
            return int(trade.id)


@pytest.mark.parametrize("book", [Turning], indirect=True)
def test_lot_that_has_turned_shows_nothing_of_a_part(book: Scene) -> None:
    lot = book.manager.log_position("A", Decimal(2))
    deliver(book, lambda: book.manager.log_trade(lot, Decimal(4)))
    other = book.manager.log_position("A", Decimal(2))
    assert book.drain()
    book.manager.log_trade(other, Decimal(1))
    with pytest.raises(UnknownLocally, match="log_trade was never seen with not all of size"):
        book.manager.get_active_positions()


class Ticking(BookManager):
    """Sizes are whole multiples of a tick."""

    def log_position(self, symbol: str, size: Any, score: Any = None, paid: Any = None) -> int:
        return super().log_position(symbol, (size / Decimal("0.05")).quantize(Decimal(1)) * Decimal("0.05"))


@pytest.mark.parametrize("book", [Ticking], indirect=True)
def test_amount_finer_than_any_seen_is_not_answered(book: Scene) -> None:
    deliver(book, *(lambda size=size: book.manager.log_position("A", Decimal(size)) for size in ("1", "2.5", "3.5")))
    book.manager.log_position("A", Decimal("4.5"))
    assert [row["size"] for row in book.manager.get_active_positions()][-1] == Decimal("4.5")
    book.manager.log_position("A", Decimal("4.51"))
    with pytest.raises(UnknownLocally, match="never seen with so many decimal places of size"):
        book.manager.get_active_positions()
    # A few whole amounts do not make up for one that was rounded.
    for size in ("5", "6", "7"):
        deliver(book, lambda size=size: book.manager.log_position("A", Decimal(size)))  # type: ignore[misc]
    book.manager.log_position("A", Decimal("4.52"))
    with pytest.raises(UnknownLocally, match="'size' of positions"):
        book.manager.get_active_positions()


@pytest.mark.parametrize("book", [WholeSteps], indirect=True)
def test_size_that_is_cut_off_is_not_answered_whole(book: Scene) -> None:
    for size in "234":
        lot = book.manager.log_position("ADA", Decimal(size))
        assert book.drain()
        book.manager.log_trade(lot, Decimal(size))
        assert book.drain()
    book.manager.log_position("ADA", Decimal("1.23456"))
    here: Any = None
    with suppress(UnknownLocally):
        here = book.manager.get_active_positions()
    assert book.drain()
    there = book.manager._host.built.get_active_positions()
    assert there[0]["size"] == Decimal("1.23")
    assert here in (None, there)
