"""A manager without trading sessions is answered in an outage as one account."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Integer, Numeric, String, create_engine, func, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker

from outbox.integrations.durable import ManagerOperation, ManagerRead
from outbox.integrations.roles import Balance, Position
from outbox.integrations.view.local_view import UnknownLocally
from outbox.testing import PostgresServer
from tests.unit.fakes.waiting import LONG, until

from .small import Scene, scene


class Base(DeclarativeBase):
    pass


class Lot(Base):
    __tablename__ = "lots"
    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    ticker: Mapped[str] = mapped_column(String)
    units: Mapped[Decimal] = mapped_column(Numeric(18, 8))
    mark: Mapped[Decimal] = mapped_column(Numeric(18, 8))
    closed: Mapped[str | None] = mapped_column(String)


class Purse(Base):
    __tablename__ = "purse"
    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    cash: Mapped[Decimal] = mapped_column(Numeric(18, 8))


class Account:
    """Holds the lots and the cash of one account, and knows no sessions; only its sessions know its engine."""

    def __init__(self, url: str) -> None:
        engine = create_engine("postgresql+psycopg2://" + url.partition("://")[2], pool_pre_ping=True)
        self.session_factory = sessionmaker(bind=engine)
        Base.metadata.create_all(engine)

    def buy(self, ticker: str, units: Decimal, mark: Decimal) -> int:
        import logging

        logging.getLogger("account").debug("buy %s", ticker)
        with self.session_factory.begin() as session:
            lot = Lot(ticker=ticker, units=units, mark=mark)
            session.add(lot)
            session.flush()
            return lot.id

    def mark_lot(self, lot_id: int, mark: Decimal) -> None:
        with self.session_factory.begin() as session:
            session.get_one(Lot, lot_id).mark = mark

    def sell(self, lot_id: int, reason: str) -> None:
        with self.session_factory.begin() as session:
            session.get_one(Lot, lot_id).closed = reason

    def set_cash(self, cash: Decimal) -> None:
        with self.session_factory.begin() as session:
            session.add(Purse(cash=cash))

    def held(self) -> list[Lot]:
        with self.session_factory() as session:
            return list(session.scalars(select(Lot).where(Lot.closed.is_(None)).order_by(Lot.id)))

    def cash(self) -> Decimal | None:
        with self.session_factory() as session:
            return session.scalar(select(Purse.cash).order_by(Purse.id.desc()).limit(1))

    def number_held(self) -> int:
        with self.session_factory() as session:
            return session.scalar(select(func.count()).select_from(Lot).where(Lot.closed.is_(None))) or 0


LOT = {"lot_id": "position_id"}
OPERATIONS = (
    ManagerOperation("buy", creates="lots", position=Position.OPENS),
    ManagerOperation("mark_lot", args=LOT, position=Position.UPDATES),
    ManagerOperation("sell", args=LOT, position=Position.CLOSES),
    ManagerOperation("set_cash", balance=Balance.SET, amount="cash"),
    ManagerRead("held", like="get_active_positions"),
    ManagerRead("cash", like="get_current_balance"),
    ManagerRead("number_held", keep_last=True),
)


def shown(lots: list[Lot]) -> list[tuple[Any, ...]]:
    return [(lot.id, lot.ticker, lot.units, lot.mark, lot.closed) for lot in lots]


def trade(manager: Any, ticker: str) -> int:
    """A lot that is bought, marked and kept, and one that is sold."""
    kept: int = manager.buy(ticker, Decimal(3), Decimal(100))
    manager.mark_lot(kept, Decimal(len(ticker)))
    gone = manager.buy(ticker, Decimal(1), Decimal(7))
    manager.sell(gone, "target")
    manager.set_cash(Decimal(kept))
    return kept


def learned(here: Scene) -> None:
    here.relay.start()
    view = here.manager._durable.adapter.view
    until(lambda: view.sessions)
    for number in range(4):
        trade(here.manager, f"T{number}")
    here.manager.number_held()
    adapter = here.manager._durable.adapter
    until(lambda: here.box.status().pending == 0 and view.is_sure(0))
    until(lambda: adapter.keeper.view.learning.version == adapter.keeper.kept.learned_version)


def test_account_is_answered_in_an_outage_and_a_restart(own_postgres: PostgresServer, outbox_dir: Path) -> None:
    url = own_postgres.url()
    with scene(url, outbox_dir, Account, OPERATIONS) as here:
        learned(here)
        plain = here.manager._host.built
        before = shown(plain.held())
        own_postgres.kill()
        kept = trade(here.manager, "OUT")
        expected = [*before, (kept, "OUT", Decimal(3), Decimal(3), None)]
        assert (shown(here.manager.held()), here.manager.cash()) == (expected, Decimal(kept))
    with scene(url, outbox_dir, lambda _: plain, OPERATIONS) as again:
        assert (shown(again.manager.held()), again.manager.cash()) == (expected, Decimal(kept))
        last = trade(again.manager, "AGAIN")
        expected.append((last, "AGAIN", Decimal(3), Decimal(5), None))
        assert shown(again.manager.held()) == expected
        own_postgres.start()
        assert again.drain()
        assert shown(plain.held()) == expected
        assert plain.cash() == Decimal(last)
        assert again.box.status().alarms == {}


def test_empty_account_is_known_to_be_empty(own_postgres: PostgresServer, outbox_dir: Path) -> None:
    with scene(own_postgres.url(), outbox_dir, Account, OPERATIONS) as here:
        here.relay.start()
        view = here.manager._durable.adapter.view
        until(lambda: view.sessions)
        own_postgres.kill()
        assert here.manager.held() == []


def test_refused_call_holds_back_no_other_call(postgres_url: str, outbox_dir: Path) -> None:
    """Nothing tells which calls belong together, so the next one is not made to wait for an operator."""
    with scene(postgres_url, outbox_dir, Account, OPERATIONS) as here:
        here.manager.sell(4711, "no such lot")
        here.manager.set_cash(Decimal(5))
        here.relay.drain(timeout=LONG)
        assert here.box.status().dead_letters == 1
        assert here.rows("SELECT cash FROM purse") == [(Decimal(5),)]


def test_session_of_the_manager_is_none(postgres_url: str, outbox_dir: Path) -> None:
    with scene(postgres_url, outbox_dir, Account, OPERATIONS) as here:
        here.manager.set_cash(Decimal(5))
        assert here.manager._current_session_id is None
        assert here.drain()
        assert not hasattr(here.manager._host.built, "_current_session_id")


def test_kept_count_is_unknown_while_a_purchase_waits(own_postgres: PostgresServer, outbox_dir: Path) -> None:
    """A limit of open lots must not be held against the number before the outage."""
    with scene(own_postgres.url(), outbox_dir, Account, OPERATIONS) as here:
        learned(here)
        own_postgres.kill()
        assert here.manager.number_held() == 4
        here.manager.set_cash(Decimal(1))
        assert here.manager.number_held() == 4
        here.manager.buy("OUT", Decimal(1), Decimal(1))
        with pytest.raises(UnknownLocally, match="while buy is not delivered"):
            here.manager.number_held()
