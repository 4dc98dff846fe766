"""What a rule of the database refuses (a CHECK, a domain, a trigger's RAISE), an outage refuses as it was seen to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import DBAPIError, IntegrityError, InternalError
from sqlalchemy.orm import sessionmaker

from outbox.integrations.durable import ManagerOperation, ManagerRead
from outbox.integrations.roles import Balance
from outbox.testing import PostgresServer
from tests.unit.fakes.waiting import until

from .small import Scene, scene

BOOK = {"book": "session_id"}
OPERATIONS = (
    ManagerOperation("start", like="create_trading_session", creates="books"),
    ManagerOperation("move", args=BOOK, balance=Balance.CHANGE, amount="delta"),
    ManagerOperation("try_to_move", args=BOOK, balance=Balance.CHANGE, amount="delta", returns=True),
    ManagerRead("cash", like="get_current_balance", args=BOOK),
)
CHECKED = "CREATE TABLE IF NOT EXISTS cash (book int PRIMARY KEY, amount numeric NOT NULL CHECK (amount >= 0))"
DOMAIN = (
    "DO $$ BEGIN CREATE DOMAIN money_left AS numeric CHECK (VALUE >= 0); "
    "EXCEPTION WHEN duplicate_object THEN NULL; END $$; "
    "CREATE TABLE IF NOT EXISTS cash (book int PRIMARY KEY, amount money_left NOT NULL)"
)
TRIGGER = """
    CREATE TABLE IF NOT EXISTS cash (book int PRIMARY KEY, amount numeric NOT NULL);
    CREATE OR REPLACE FUNCTION refuse_debt() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN IF NEW.amount < 0 THEN RAISE EXCEPTION 'no credit'; END IF; RETURN NEW; END $$;
    DROP TRIGGER IF EXISTS refuse_debt ON cash;
    CREATE TRIGGER refuse_debt BEFORE UPDATE ON cash FOR EACH ROW EXECUTE FUNCTION refuse_debt()
"""


class Ruled:
    """Leaves it to the database to refuse a balance below zero."""

    rule = CHECKED

    def __init__(self, url: str) -> None:
        self.engine = create_engine("postgresql+psycopg2://" + url.partition("://")[2])
        self.session_factory = sessionmaker(self.engine)
        with self.engine.begin() as connection:
            connection.exec_driver_sql("CREATE TABLE IF NOT EXISTS books (id serial PRIMARY KEY, name text)")
            connection.exec_driver_sql(self.rule)

    def start(self, name: str, amount: Any) -> int:
        with self.session_factory.begin() as session:
            made = session.execute(text("INSERT INTO books (name) VALUES (:name) RETURNING id"), {"name": name})
            book = int(made.scalar_one())
            session.execute(text("INSERT INTO cash VALUES (:book, :amount)"), {"book": book, "amount": amount})
            return book

    def move(self, book: int, delta: Any) -> None:
        with self.session_factory.begin() as session:
            changed = "UPDATE cash SET amount = amount + :delta WHERE book = :book"
            session.execute(text(changed), {"book": book, "delta": delta})

    def try_to_move(self, book: int, delta: Any) -> bool:
        try:
            self.move(book, delta)
        except DBAPIError:
            return False
        return True

    def cash(self, book: int) -> Decimal:
        with self.session_factory() as session:
            found = session.execute(text("SELECT amount FROM cash WHERE book = :book"), {"book": book})
            return Decimal(found.scalar_one())


class OfDomain(Ruled):
    rule = DOMAIN


class OfTrigger(Ruled):
    rule = TRIGGER


RULES = [(Ruled, IntegrityError, "23514"), (OfDomain, IntegrityError, "23514"), (OfTrigger, InternalError, "P0001")]


@contextmanager
def trading(server: PostgresServer, directory: Path, kind: type[Ruled]) -> Iterator[tuple[Scene, int]]:
    with scene(server.url(), directory, kind, OPERATIONS) as made:
        made.relay.start()
        book = made.manager.start("a", Decimal(100))
        made.manager.move(book, Decimal(-1))
        assert made.manager.try_to_move(book, Decimal(-1)) is True
        until(lambda: made.manager._adapter.keeper.view.is_sure(book))
        yield made, book


@pytest.mark.parametrize(("kind", "error", "sqlstate"), RULES)
def test_call_that_broke_a_rule_is_refused_in_an_outage(
    kind: type[Ruled], error: type[DBAPIError], sqlstate: str, own_postgres: PostgresServer, outbox_dir: Path
) -> None:
    """It was recorded, the balance read as below zero, and its dead letter held back all that came after it."""
    with trading(own_postgres, outbox_dir, kind) as (made, book):
        with pytest.raises(error) as refused:
            made.manager.move(book, Decimal(-1000))
        assert made.manager.cash(book) == 98
        own_postgres.kill()
        with pytest.raises(error) as away:
            made.manager.move(book, Decimal(-1000))
        assert type(away.value) is type(refused.value)
        assert (away.value.orig.pgcode, refused.value.orig.pgcode) == (sqlstate, sqlstate)  # type: ignore[union-attr]
        made.manager.move(book, Decimal(-8))
        assert made.manager.cash(book) == 90
        own_postgres.start()
        assert made.drain()
        assert made.box.status().dead_letters == 0
        assert made.rows("SELECT amount FROM cash") == [(90,)]


@pytest.mark.parametrize(("kind", "error", "sqlstate"), RULES)
def test_answer_to_a_broken_rule_is_given_in_an_outage(
    kind: type[Ruled], error: type[DBAPIError], sqlstate: str, own_postgres: PostgresServer, outbox_dir: Path
) -> None:
    with trading(own_postgres, outbox_dir, kind) as (made, book):
        assert made.manager.try_to_move(book, Decimal(-1000)) is False
        own_postgres.kill()
        assert made.manager.try_to_move(book, Decimal(-1000)) is False
        assert made.manager.try_to_move(book, Decimal(-8)) is True
        assert made.manager.cash(book) == 90
        own_postgres.start()
        assert made.drain()
        assert made.box.status().dead_letters == 0


class OfItsOwnCode(Ruled):
    rule = TRIGGER.replace("'no credit'", "'no credit' USING ERRCODE = 'K0001'")


@pytest.mark.parametrize("kind", [OfTrigger, OfItsOwnCode])
def test_waiting_caller_gets_what_a_trigger_raised_at_once(
    kind: type[Ruled], postgres_url: str, outbox_dir: Path
) -> None:
    """It was tried again ten times, while the caller was told that the call would be delivered."""
    with scene(postgres_url, outbox_dir, kind, OPERATIONS) as made:
        made.relay.start()
        book = made.manager.start("a", Decimal(100))
        with pytest.raises(DBAPIError, match="no credit"):
            made.manager.move(book, Decimal(-1000))
        assert made.manager.try_to_move(book, Decimal(-1000)) is False
        assert [entry.attempts for entry in made.box.ledger() if entry.error is not None] == [1, 1]
        made.manager.move(book, Decimal(-10))
        assert made.manager.cash(book) == 90
        assert made.box.status().dead_letters == 0
