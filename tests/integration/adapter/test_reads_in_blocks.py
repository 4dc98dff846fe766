"""A read in a balance block sees the calls that were made there before it, as on the plain manager."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import SmallInteger, String, Uuid, select, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker

from outbox.integrations.durable import TRADING_OPERATIONS, CallFailed, ManagerRead, NotCaughtUp
from outbox.testing import PostgresServer
from tests.unit.fakes.waiting import LONG

from .days import Engine
from .floats import Side as FloatSide
from .nasty import Side
from .small import Base, Scene, SmallManager, Trade, scene
from .test_local_answers import KINDS, answers, running

MODES = ("waits", "write_behind", "outage")
_OF_ONE_DATABASE = frozenset({"id", "position_id", "session_id"})


def _paper(engine: Engine) -> Iterator[Any]:
    manager = engine.manager
    yield manager.close_position(engine.open[0], Decimal(101))
    name = engine.name("c")
    yield manager.create_order_journal_entry(engine.session_id, name, "IBM", "buy", "entry", Decimal("0.3"), "s")
    made = manager.log_position(
        "IBM", "long", Decimal(100), Decimal("0.1"), "s", f"o-{name}", quantity=Decimal(2), client_order_id=name
    )
    yield made
    yield manager.update_position(made, stop_loss=Decimal(95), current_price=Decimal(99))
    yield manager.apply_partial_exit_update(made, Decimal(1) / 64, Decimal(101), 9)


def _nasty(engine: Engine) -> Iterator[Any]:
    yield engine.manager.close_position(engine.open[0])
    made = engine.manager.log_position(Side.LONG, 1.5, client_order_id=engine.name("c"))
    yield made
    yield engine.manager.update_position(made, stop_loss=Decimal(1) / 3)


def _floats(engine: Engine) -> Iterator[Any]:
    manager, name = engine.manager, engine.name("c")
    yield manager.close_position(engine.open[0], 101.5)
    made = manager.log_position(
        "BTC", FloatSide.SHORT, 100 / 3, 1 / 11, "s", f"o-{name}", stop_loss=32.5,
        entry_balance=manager.get_current_balance(), client_order_id=name,
    )  # fmt: skip
    yield made
    yield manager.update_position(made, current_price=33.5, unrealized_pnl=1 / 9, mfe=12.5)


CALLS: dict[str, Callable[[Engine], Iterator[Any]]] = {
    "paper": _paper, "nasty": _nasty, "nastier": _nasty, "floats": _floats
}  # fmt: skip


def shown(kind: str, engine: Engine) -> dict[str, Any]:
    """The manager's answers, without ids and times, which differ between two databases."""
    return {name: bare(value) for name, value in answers(KINDS[kind], engine.manager, engine.session_id).items()}


def bare(value: Any) -> Any:
    if isinstance(value, list):
        return [bare(one) for one in value]
    if not isinstance(value, dict):
        return value
    return {
        key: bare(one)
        for key, one in value.items()
        if key not in _OF_ONE_DATABASE and not isinstance(one, datetime) and not key.endswith(("_time", "_at"))
    }


def in_block(kind: str, engine: Engine) -> list[Any]:
    """What the manager answers before a block, after each call in it, and after it."""
    found = [shown(kind, engine)]
    with engine.manager.atomic_balance_update(Decimal("0.25"), "in a block"):
        found += [shown(kind, engine) for _ in CALLS[kind](engine)]
    found.append(shown(kind, engine))
    return found


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", KINDS)
def test_reads_in_a_block_are_those_of_the_plain_manager(
    kind: str, mode: str, own_postgres: PostgresServer, postgres_url: str, outbox_dir: Path
) -> None:
    twin = KINDS[kind].manager(postgres_url)
    with running(KINDS[kind], own_postgres, outbox_dir, write_behind=mode == "write_behind") as (durable, box, relay):
        engine, plain = KINDS[kind].engine(durable), KINDS[kind].engine(twin)
        for one in (plain, engine):
            one.begin()
            for turn in range(4):
                one.work(turn)
        assert relay.drain(timeout=LONG)
        if mode == "outage":
            own_postgres.kill()
        here, there = in_block(kind, engine), in_block(kind, plain)
        assert here == there
        if mode == "outage":
            own_postgres.start()
        assert relay.drain(timeout=LONG)
        assert shown(kind, engine) == there[-1]
        assert (box.status().dead_letters, dict(box.status().alarms)) == (0, {})
    twin.close()


def test_read_in_a_nested_block_sees_the_calls_around_it(own_postgres: PostgresServer, outbox_dir: Path) -> None:
    with running(KINDS["paper"], own_postgres, outbox_dir) as (manager, _, relay):
        other = manager.create_trading_session("s", "MSFT", "1d", "paper", Decimal(500))
        session = manager.create_trading_session("s", "IBM", "1d", "paper", Decimal(1000))
        ids = [
            manager.log_position("IBM", "long", Decimal(100), Decimal(1), "s", f"o{n}", session_id=session)
            for n in range(3)
        ]

        def open_() -> list[int]:
            return [row["id"] for row in manager.get_active_positions(session)]

        with manager.atomic_balance_update(Decimal(1), "outer", session_id=session):
            manager.close_position(ids[0], Decimal(1))
            with manager.atomic_balance_update(Decimal(2), "inner", session_id=other):
                manager.close_position(ids[1], Decimal(1))
                assert open_() == ids[2:]
                assert manager.get_current_balance(other) == 500
            assert manager.get_current_balance(other) == 502
            assert manager.get_current_balance(session) == 1000
            assert open_() == ids[2:]
        assert manager.get_current_balance(session) == 1001
        assert relay.drain(timeout=LONG)


def test_read_behind_a_call_that_postgresql_refuses_names_it(own_postgres: PostgresServer, outbox_dir: Path) -> None:
    with running(KINDS["paper"], own_postgres, outbox_dir) as (manager, box, _):
        manager.create_trading_session("s", "IBM", "1d", "paper", Decimal(1000))
        id_ = manager.log_position("IBM", "long", Decimal(100), Decimal(1), "s", "o")
        with (
            pytest.raises(CallFailed, match="apply_partial_exit_update of the same balance block is refused"),
            manager.atomic_balance_update(Decimal(1), "exit"),
        ):
            manager.apply_partial_exit_update(id_, Decimal(9), Decimal(101), 1)
            manager.get_active_positions()
        assert manager.get_current_balance() == 1000
        assert box.status().pending == 0


class ByTables(SmallManager):
    """Its sessions find their engine by the table."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.session_factory = sessionmaker(binds={Base: self.engine})


class Numbered(SmallManager):
    number = 0

    def log_trade(self, symbol: str, note: Any = None, session_id: int | None = None) -> int:
        self.number += 1
        return super().log_trade(f"{symbol} {self.number}", note)

    def symbols(self) -> list[str]:
        with self.session_factory() as session:
            return [*session.scalars(select(Trade.symbol).order_by(Trade.id))]


class Aside(DeclarativeBase):
    """Tables beside those of `Base`."""


class Audit(Aside):
    __tablename__ = "audits"
    id: Mapped[uuid.UUID] = mapped_column(Uuid, primary_key=True, default=uuid.uuid4)


class Tag(Aside):
    __tablename__ = "tags"
    id: Mapped[int] = mapped_column(SmallInteger, primary_key=True)


class Note(Aside):
    __tablename__ = "notes"
    id: Mapped[str] = mapped_column(String(6), primary_key=True, default=lambda: uuid.uuid4().hex[:6])


class Line(Aside):
    __tablename__ = "lines"
    id: Mapped[int] = mapped_column(primary_key=True)


class WritesAside(SmallManager):
    def __init__(self, url: str) -> None:
        super().__init__(url)
        Aside.metadata.create_all(self.engine)

    def log_trade(self, symbol: str, note: Any = None, session_id: int | None = None) -> int:
        with self.session_factory.begin() as session:
            session.add_all([Audit(), Tag(), Note(), Line()])
        return super().log_trade(symbol, note)


def test_read_in_a_block_gives_ids_of_every_type(postgres_url: str, outbox_dir: Path) -> None:
    operations = (*TRADING_OPERATIONS, ManagerRead("count_trades", keep_last=True))
    with scene(postgres_url, outbox_dir, WritesAside, operations) as here:
        here.relay.start()
        here.manager.create_trading_session("s", 100)
        with here.manager.atomic_balance_update(1, "trade"):
            for number in range(3):
                here.manager.log_trade("a")
                assert here.manager.count_trades() == 1 + number
        assert here.drain()
        # Reads take nothing from the sequence of a table whose ids nobody is told.
        assert here.rows("SELECT id FROM lines ORDER BY id") == [(1,), (2,), (3,)]


@pytest.mark.parametrize("declared", ["count_trades", "count_trades_quietly"])
def test_read_in_a_block_writes_nothing(declared: str, postgres_url: str, outbox_dir: Path) -> None:
    operations = (*TRADING_OPERATIONS, ManagerRead(declared, keep_last=True))
    with scene(postgres_url, outbox_dir, ByTables, operations) as here:
        here.relay.start()
        here.manager.create_trading_session("s", 100)
        here.manager.log_trade("before")
        with pytest.raises(ZeroDivisionError), here.manager.atomic_balance_update(1, "trade"):
            for number in range(3):
                here.manager.log_trade("never")
                assert getattr(here.manager, declared)() == 2 + number
            raise ZeroDivisionError
        assert getattr(here.manager, declared)() == 1
        assert here.rows("SELECT symbol FROM trades") == [("before",)]


class NumberedBehind(Numbered):
    """Counts behind the write, and not for certain, so that only the delivery does."""

    def log_trade(self, symbol: str, note: Any = None, session_id: int | None = None) -> int:
        id_ = SmallManager.log_trade(self, f"{symbol} {self.number + 1}", note)
        if symbol:
            self.number += 1
        return id_


@pytest.mark.parametrize("kind", [Numbered, NumberedBehind])
def test_read_in_a_block_sees_the_numbers_that_rows_will_have(
    kind: type[Numbered], postgres_url: str, outbox_dir: Path
) -> None:
    operations = (*TRADING_OPERATIONS, ManagerRead("symbols", keep_last=True))
    with scene(postgres_url, outbox_dir, kind, operations) as here:
        here.relay.start()
        here.manager.create_trading_session("s", 100)
        with here.manager.atomic_balance_update(1, "trade"):
            for _ in range(3):
                here.manager.log_trade("a")
                shown = here.manager.symbols()
        assert shown == here.manager.symbols() == ["a 1", "a 2", "a 3"]
        assert here.manager.number == 3


def test_limits_in_a_block_of_an_outage_count_its_calls(own_postgres: PostgresServer, outbox_dir: Path) -> None:
    with running(KINDS["paper"], own_postgres, outbox_dir) as (manager, box, relay):
        manager.create_trading_session("s", "IBM", "1d", "paper", Decimal(1000))

        def opened(name: str) -> Any:
            return manager.log_position("IBM", "long", Decimal(100), Decimal(1), "s", name, quantity=Decimal(1))

        def exits(id_: int, size: str) -> None:
            manager.apply_partial_exit_update(id_, Decimal(size), Decimal(101), 1)

        for number in range(4):
            id_ = opened(f"o{number}")
            exits(id_, "0.25")
            exits(id_, "0.25")
            with pytest.raises(ValueError, match="left"):
                exits(id_, "0.75")
        assert relay.drain(timeout=LONG)
        own_postgres.kill()
        with manager.atomic_balance_update(Decimal(1), "exit"):
            id_ = opened("in the block")
            exits(id_, "0.75")
            with pytest.raises(ValueError, match="left"):
                exits(id_, "0.5")
            exits(id_, "0.25")
        own_postgres.start()
        assert relay.drain(timeout=LONG)
        (size,) = [row["current_size"] for row in manager.get_active_positions() if row["id"] == id_]
        assert size == 0
        assert (box.status().dead_letters, dict(box.status().alarms)) == (0, {})


def test_answer_within_a_block_is_not_kept_for_an_outage(own_postgres: PostgresServer, outbox_dir: Path) -> None:
    operations = (*TRADING_OPERATIONS, ManagerRead("count_trades", keep_last=True))
    with scene(own_postgres.url(), outbox_dir, SmallManager, operations) as here:
        here.relay.start()
        here.manager.create_trading_session("s", 100)
        here.manager.log_trade("before")
        assert here.manager.count_trades() == 1
        with pytest.raises(ZeroDivisionError), here.manager.atomic_balance_update(1, "trade"):
            here.manager.log_trade("never")
            assert here.manager.count_trades() == 2
            raise ZeroDivisionError
        own_postgres.kill()
        assert here.manager.count_trades() == 1


class Looking(SmallManager):
    """With reads and writes that nobody has declared."""

    looks = 0
    # Written out elsewhere, so that the code of the method shows no write.
    note_sql = "UPDATE trades SET note = :note, number = coalesce(number, 0) + 1"

    def symbols(self) -> list[str]:
        self.looks += 1
        with self.session_factory() as session:
            return [*session.scalars(select(Trade.symbol).order_by(Trade.id))]

    def each_symbol(self) -> Iterator[str]:
        with self.session_factory() as session:
            yield from session.scalars(select(Trade.symbol).order_by(Trade.id))

    def count_quickly(self) -> int:
        with self.session_factory() as session:
            return int(session.execute(text("SELECT count(*) FROM trades")).scalar_one())

    def count_or_zero(self) -> int:
        try:
            return self.count_quickly()
        except Exception:  # noqa: BLE001 - that is what it is for
            return 0

    def first_trade(self) -> Trade | None:
        return self.session_factory().scalars(select(Trade).order_by(Trade.id)).first()

    def note_by_engine(self, note: str) -> int:
        self.looks += 1
        with self.engine.begin() as connection:
            return connection.execute(text(self.note_sql), {"note": note}).rowcount

    def sell_all(self, sold: list[str]) -> int:
        for symbol in self.symbols():
            sold.append(symbol)  # as an order to an exchange
            self.log_trade(f"sold {symbol}")
        return len(sold)

    def note_all(self, note: str) -> int:
        with self.session_factory.begin() as session:
            found = session.scalars(select(Trade)).all()
            for trade in found:
                trade.note = note
            return len(found)


@contextmanager
def looking(url: str, directory: Path, **settings: Any) -> Iterator[Scene]:
    """A session with one trade, delivered or on its way."""
    with scene(url, directory, Looking, **settings) as here:
        here.relay.start()
        here.manager.create_trading_session("s", 100)
        here.manager.log_trade("before")
        yield here


@pytest.mark.parametrize("write_behind", [False, True])
def test_undeclared_reads_in_a_block_see_its_calls(write_behind: bool, postgres_url: str, outbox_dir: Path) -> None:
    with looking(postgres_url, outbox_dir, write_behind=write_behind) as here:
        manager = here.manager
        with manager.atomic_balance_update(1, "trade"):
            assert manager.symbols() == ["before"]
            manager.log_trade("in")
            assert manager.symbols() == ["before", "in"]
            assert (manager.count_trades(), manager.count_quickly(), manager.count_or_zero()) == (2, 2, 2)
        assert here.drain()
        assert (manager.symbols(), manager.looks) == (["before", "in"], 3)


def test_undeclared_method_of_a_block_that_writes_is_kept(postgres_url: str, outbox_dir: Path) -> None:
    with looking(postgres_url, outbox_dir) as here:
        manager = here.manager
        with manager.atomic_balance_update(1, "trade"):
            manager.log_trade("in")
            # Its statements go past the block, as declared calls alone are part of it.
            assert manager.note_all("seen") == 1
        assert here.rows("SELECT symbol, note FROM trades ORDER BY id") == [("before", "seen"), ("in", "null")]


def test_undeclared_method_of_a_block_that_acts_runs_once(postgres_url: str, outbox_dir: Path) -> None:
    sold: list[str] = []
    with looking(postgres_url, outbox_dir) as here:
        with here.manager.atomic_balance_update(1, "trade"):
            here.manager.log_trade("in")
            assert here.manager.sell_all(sold) == len(sold)
        assert len(sold) == len(set(sold))
        assert here.rows("SELECT count(*) FROM trades") == [(2 + len(sold),)]


def test_undeclared_method_that_writes_by_the_engine_is_seen(
    postgres_url: str, outbox_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    with looking(postgres_url, outbox_dir) as here:
        monkeypatch.setattr(here.manager._adapter.passing, "_wrote", lambda *given: seen.append(given))
        with here.manager.atomic_balance_update(1, "trade"):
            here.manager.log_trade("in")
            assert here.manager.note_by_engine("seen") == 1
        assert (seen, here.manager.looks) == ([("note_by_engine", {"trades"})], 1)
        assert here.rows("SELECT symbol, note, number FROM trades ORDER BY id") == [
            ("before", "seen", 1), ("in", "null", None),
        ]  # fmt: skip


def test_undeclared_read_of_a_block_may_go_on_reading(postgres_url: str, outbox_dir: Path) -> None:
    with looking(postgres_url, outbox_dir) as here:
        manager = here.manager
        with manager.atomic_balance_update(1, "trade"):
            manager.log_trade("in")
            assert list(manager.each_symbol()) == ["before"]
            first = manager.first_trade()
            assert (first.symbol, first.note) == ("before", "null")


def test_undeclared_reads_of_a_block_in_an_outage_are_the_managers(
    own_postgres: PostgresServer, outbox_dir: Path
) -> None:
    with looking(own_postgres.url(), outbox_dir) as here:
        manager = here.manager
        own_postgres.kill()
        with manager.atomic_balance_update(1, "trade"):
            manager.log_trade("in")
            with pytest.raises((NotCaughtUp, OperationalError)):
                manager.symbols()
        own_postgres.start()
        assert here.drain()
        assert manager.symbols() == ["before", "in"]
