"""A manager whose `scoped_session` keeps one session for the life of a thread, as many bots have it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
from sqlalchemy import create_engine, select, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Mapped, mapped_column, scoped_session, sessionmaker

from outbox.errors import ConfigError, OutboxError
from outbox.integrations.calls.callers_session import NotSaved
from outbox.integrations.durable import TRADING_OPERATIONS, ManagerOperation, ManagerRead
from outbox.integrations.roles import Position
from outbox.integrations.view.local_view import UnknownLocally
from outbox.testing import PostgresServer

from .small import Balance, Base, Scene, SmallManager, Trade, scene
from .small import Session as TradingSession


class Scoped(SmallManager):
    """No method closes its session, and some leave the commit to `commit`."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.engine = create_engine("postgresql+psycopg2://" + url.partition("://")[2])
        self.session_factory: Any = scoped_session(sessionmaker(bind=self.engine, autoflush=False))

    def create_trading_session(self, strategy_name: str, initial_balance: Any) -> int:
        made = TradingSession(name=strategy_name)
        self.session_factory.add(made)
        self.session_factory.flush()
        self.session_factory.add(Balance(session_id=made.id, total=initial_balance))
        self.session_factory.commit()
        self._current_session_id = made.id
        return made.id

    def get_current_balance(self, session_id: int | None = None) -> Decimal:
        return self._balance(self.session_factory, session_id or self._current_session_id)

    def log_event(self, message: str) -> None:
        self.session_factory.add(Trade(symbol="event", note=message))
        self.session_factory.commit()

    def log_trade(self, symbol: str, note: Any = None, session_id: int | None = None) -> int:
        trade = Trade(symbol=symbol, note=note)
        self.session_factory.add(trade)
        self.session_factory.commit()
        return trade.id

    def annotate(self, trade_id: int, note: str) -> bool:
        trade = self.session_factory.get(Trade, trade_id)
        trade.note = note
        self.session_factory.commit()
        return True

    def annotate_later(self, trade_id: int, note: str) -> bool:
        trade = self.session_factory.get(Trade, trade_id)
        trade.note = note
        return True

    def add_later(self, symbol: str) -> None:
        self.session_factory.add(Trade(symbol=symbol))

    def open_trades(self) -> list[Trade]:
        return list(self.session_factory.scalars(select(Trade).where(Trade.symbol != "event").order_by(Trade.id)))

    # -- not declared

    def commit(self) -> None:
        self.session_factory.commit()

    def trades(self) -> list[Trade]:
        return list(self.session_factory.scalars(select(Trade).order_by(Trade.id)))

    def notes(self) -> list[str | None]:
        return [trade.note for trade in self.trades()]


class Lasting(Scoped):
    """Its objects keep their values over a commit."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.session_factory = scoped_session(sessionmaker(bind=self.engine, expire_on_commit=False))


OPERATIONS = (
    *(one for one in TRADING_OPERATIONS if one.name != "log_trade"),
    ManagerOperation("log_trade", creates="trades", identity=(), position=Position.OPENS),
    ManagerRead("open_trades", like="get_active_positions"),
    ManagerOperation("annotate", args={"trade_id": "position_id"}, position=Position.UPDATES),
    ManagerOperation("annotate_later"),
    ManagerOperation("add_later"),
)


@contextmanager
def scoped(
    url: str, directory: Path, manager_class: Any = Scoped, *, operations: Any = None, **settings: Any
) -> Iterator[Scene]:
    """A scene whose thread lets go of its session at the end."""
    with scene(url, directory, manager_class, operations or OPERATIONS, **settings) as made:
        try:
            yield made
        finally:
            made.manager.session_factory.remove()


def _notes(made: Scene) -> list[Any]:
    return [note for (note,) in made.rows("SELECT note FROM trades ORDER BY id")]


@pytest.mark.parametrize("write_behind", [False, True])
@pytest.mark.parametrize("manager_class", [Scoped, Lasting])
def test_read_in_a_kept_session_shows_the_callers_writes(
    manager_class: Any, write_behind: bool, postgres_url: str, outbox_dir: Path
) -> None:
    with scoped(postgres_url, outbox_dir, manager_class, write_behind=write_behind) as made:
        made.relay.start()
        trade_id = made.manager.log_trade("IBM", "first")
        (held,) = made.manager.trades()
        assert made.manager.notes() == ["first"]
        for note in ("second", "third"):
            made.manager.annotate(trade_id, note)
            assert made.manager.notes() == [note]
            assert held.note == note


def test_changes_left_to_a_later_commit_are_delivered(postgres_url: str, outbox_dir: Path) -> None:
    with scoped(postgres_url, outbox_dir) as made:
        trade_id = made.manager.log_trade("IBM", "first")
        made.manager.annotate_later(trade_id, "second")
        made.manager.commit()
        made.manager.add_later("AAPL")
        made.manager.commit()
        assert made.drain()
        assert made.rows("SELECT symbol, note FROM trades ORDER BY id") == [("IBM", "second"), ("AAPL", None)]


def test_changed_object_is_saved_with_the_next_call(postgres_url: str, outbox_dir: Path) -> None:
    """The manager's commit saves it on the plain manager."""
    with scoped(postgres_url, outbox_dir) as made:
        made.relay.start()
        trade_id = made.manager.log_trade("IBM", "first")
        (held,) = made.manager.trades()
        held.note = "the engine's"
        made.manager.log_trade("AAPL", "second")
        assert _notes(made) == ["the engine's", "second"]
        held.note = "again"
        made.manager.annotate(trade_id, "the call's")
        assert _notes(made) == ["the call's", "second"]


def test_changed_object_is_not_lost_in_an_outage(
    postgres_server: PostgresServer, postgres_url: str, outbox_dir: Path
) -> None:
    with scoped(postgres_url, outbox_dir) as made:
        made.relay.start()
        made.manager.log_trade("IBM", "first")
        (held,) = made.manager.trades()
        postgres_server.kill()
        try:
            held.note = "the engine's"
            with pytest.raises(NotSaved, match="not durable"):
                made.manager.log_trade("AAPL", "second")
            # It raises nothing into the loop.
            made.manager.log_event("an outage")
        finally:
            postgres_server.start()


def test_session_that_an_outage_broke_serves_again(
    postgres_server: PostgresServer, postgres_url: str, outbox_dir: Path
) -> None:
    """The caller was told of no error, and has rolled nothing back."""
    with scoped(postgres_url, outbox_dir) as made:
        made.relay.start()
        session_id = made.manager.create_trading_session("s", 1000)
        trade_id = made.manager.log_trade("IBM", "first")
        assert (made.manager.get_current_balance(session_id), made.manager.notes()) == (1000, ["first"])
        postgres_server.kill()
        try:
            assert made.manager.get_current_balance(session_id) == 1000
            made.manager.annotate(trade_id, "second")
        finally:
            postgres_server.start()
        assert made.drain()
        assert made.manager.notes() == ["second"]


@pytest.mark.parametrize("held", [False, True])
def test_changed_object_of_the_view_is_not_lost(
    held: bool, postgres_server: PostgresServer, postgres_url: str, outbox_dir: Path
) -> None:
    """A plain manager's commit saves an object that a read has shown."""
    with scoped(postgres_url, outbox_dir) as made:
        made.relay.start()
        made.manager.create_trading_session("s", 1000)
        made.manager.log_trade("IBM", "first")
        made.manager.log_trade("AAPL", "second")
        first = made.manager.open_trades() if held else None
        postgres_server.kill()
        try:
            shown = made.manager.open_trades()
            assert [(trade.symbol, trade.note) for trade in shown] == [("IBM", "first"), ("AAPL", "second")]
            assert first is None or all(one is other for one, other in zip(first, shown, strict=True))
            shown[0].note = "the engine's"
            with pytest.raises(NotSaved):
                made.manager.log_trade("MSFT", "never recorded")
            made.manager.log_trade("MSFT", "third")
            made.manager.open_trades()[1].note = "the engine's"
            with pytest.raises((OutboxError, SQLAlchemyError)):
                made.manager.commit()
            made.manager.session_factory.rollback()
        finally:
            postgres_server.start()
        assert made.drain()
        assert made.manager.notes() == ["first", "second", "third"]


class OfModels(Base):
    """Its mapped class carries the manager's session, and its methods use that."""

    __tablename__ = "carried"
    session: ClassVar[Any] = None
    query: ClassVar[Any] = None
    id: Mapped[int] = mapped_column(primary_key=True)
    note: Mapped[str]

    @classmethod
    def notes(cls) -> list[str]:
        return list(cls.session.scalars(select(cls.note).order_by(cls.id)))

    @staticmethod
    def commit() -> None:
        OfModels.session.commit()


class Carrying(Scoped):
    def __init__(self, url: str) -> None:
        super().__init__(url)
        OfModels.session = self.session_factory
        OfModels.query = self.session_factory.query_property()

    def record(self, note: str) -> int:
        if not note:
            raise ValueError("a note is needed")
        made = OfModels(note=note)
        OfModels.session.add(made)
        OfModels.commit()
        return made.id

    def change(self, record_id: int, note: str) -> bool:
        found = OfModels.query.filter_by(id=record_id).first()
        if found is None:
            return False
        found.note = note
        OfModels.commit()
        return True

    def recorded(self) -> list[str]:
        return OfModels.notes()


@pytest.mark.parametrize("write_behind", [False, True])
def test_session_that_mapped_classes_carry_is_replayed(
    write_behind: bool, postgres_server: PostgresServer, postgres_url: str, outbox_dir: Path
) -> None:
    operations = (*OPERATIONS, ManagerOperation("record", creates="carried"), ManagerOperation("change"))
    with scoped(postgres_url, outbox_dir, Carrying, operations=operations, write_behind=write_behind) as made:
        made.relay.start()
        first = made.manager.record("first")
        assert made.manager.change(first, "changed")
        assert made.manager.recorded() == ["changed"]
        with pytest.raises(ValueError, match="needed"):
            made.manager.record("")
        postgres_server.kill()
        try:
            second = made.manager.record("second")
            made.manager.change(second, "changed, too")
        finally:
            postgres_server.start()
        assert made.drain()
        assert made.rows("SELECT id, note FROM carried ORDER BY id") == [(first, "changed"), (second, "changed, too")]
        assert made.manager.recorded() == ["changed", "changed, too"]
        assert made.box.status().alarms == {}


def test_another_scoped_session_of_mapped_classes_is_refused(postgres_url: str, outbox_dir: Path) -> None:
    class Other(Carrying):
        def __init__(self, url: str) -> None:
            super().__init__(url)
            OfModels.session = scoped_session(sessionmaker(bind=self.engine))

    operations = (ManagerOperation("record", creates="carried"),)
    with (
        pytest.raises(ConfigError, match=r"record: it opens a connection of its own \(OfModels.session.add"),
        scoped(postgres_url, outbox_dir, Other, operations=operations),
    ):
        """It is not wired."""


def test_carried_session_is_replayed_after_a_start_in_an_outage(
    postgres_server: PostgresServer, postgres_url: str, outbox_dir: Path
) -> None:
    """The constructor has given the classes a session, and has then failed."""

    class Early(Carrying):
        def __init__(self, url: str) -> None:
            engine = create_engine("postgresql+psycopg2://" + url.partition("://")[2])
            self.session_factory = OfModels.session = scoped_session(sessionmaker(bind=engine))
            OfModels.query = self.session_factory.query_property()
            with engine.connect():
                super().__init__(url)

    operations = (*OPERATIONS, ManagerOperation("record", creates="carried"), ManagerOperation("change"))
    with scoped(postgres_url, outbox_dir, Early, operations=operations) as made:
        made.relay.start()
        first = made.manager.record("first")
    postgres_server.kill()
    try:
        later = scoped(postgres_url, outbox_dir, lambda url: partial(Early, url), operations=operations)
        made = later.__enter__()
        made.relay.start()
        second = made.manager.record("second")
        assert made.manager.change(second, "changed")
    finally:
        postgres_server.start()
    with closing(ExitStack()) as stack:
        stack.push(later)
        assert made.drain()
        assert made.rows("SELECT id, note FROM carried ORDER BY id") == [(first, "first"), (second, "changed")]
        assert made.manager.recorded() == ["first", "changed"]
        assert not made.box.status().alarms


def test_kept_answer_serves_in_a_session_that_an_outage_broke(
    postgres_server: PostgresServer, postgres_url: str, outbox_dir: Path
) -> None:
    operations = (*OPERATIONS, ManagerRead("notes", keep_last=True))
    with scoped(postgres_url, outbox_dir, operations=operations) as made:
        made.relay.start()
        made.manager.log_trade("IBM", "first")
        assert made.manager.notes() == ["first"]
        postgres_server.kill()
        try:
            assert [made.manager.notes() for _ in range(3)] == [["first"]] * 3
        finally:
            postgres_server.start()


class Reading(Scoped):
    """Its reads are made in one transaction, which goes on."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        with self.engine.begin() as connection:
            connection.exec_driver_sql("CREATE OR REPLACE VIEW named AS SELECT name FROM trading_sessions")
            connection.exec_driver_sql(
                "CREATE OR REPLACE FUNCTION count_names() RETURNS bigint LANGUAGE sql STABLE AS "
                "$$ SELECT count(*) FROM trading_sessions $$"
            )

    def names(self) -> int:
        return self._count("SELECT count(*) FROM trading_sessions")

    def by_view(self) -> int:
        return self._count("SELECT count(*) FROM named")

    def by_function(self) -> int:
        return self._count("SELECT count_names() FROM account_balances LIMIT 1")

    def _count(self, sql: str) -> int:
        return int(self.session_factory.execute(text(sql)).scalar_one())


@pytest.mark.parametrize(("read", "shows_its_own"), [("names", True), ("by_view", False), ("by_function", False)])
def test_kept_answer_outlives_calls_on_tables_of_other_reads(
    read: str, shows_its_own: bool, postgres_url: str, outbox_dir: Path
) -> None:
    """A view and a function may use more than they name: those of earlier reads in the transaction count there."""
    operations = (*OPERATIONS, *(ManagerRead(name, keep_last=True) for name in ("notes", read)))
    with scoped(postgres_url, outbox_dir, Reading, operations=operations, write_behind=True, wait_s=0.02) as made:
        made.manager.create_trading_session("s", 100)
        made.manager.log_trade("IBM", "first")
        assert made.drain()
        assert made.manager.notes() == ["first"]
        assert getattr(made.manager, read)() == 1
        made.manager.log_trade("IBM", "second")
        if shows_its_own:
            assert getattr(made.manager, read)() == 1
        else:
            with pytest.raises(UnknownLocally, match="log_trade"):
                getattr(made.manager, read)()
