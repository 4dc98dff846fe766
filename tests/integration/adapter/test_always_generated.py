"""Ids of columns that are GENERATED ALWAYS are given in an outage and kept by the rows, however they are written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from decimal import Decimal
from pathlib import Path

import psycopg2
import pytest
from sqlalchemy import insert, text

from outbox.integrations.durable import TRADING_OPERATIONS, ManagerOperation
from outbox.integrations.replay.rewritten_sql import overriding

from .small import Scene, SmallManager, Trade, scene

TABLES = ("trading_sessions", "account_balances", "trades", "orders")
METHODS = ("log_trade", "by_core", "by_text", "by_rows", "by_quoted_text")
OPERATIONS = (
    *TRADING_OPERATIONS,
    *(ManagerOperation(name, creates="trades.id", returns=0) for name in METHODS[1:]),
)


class Strict(SmallManager):
    """Tables as PostgreSQL's manual advises them, written in several ways."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        with self.engine.begin() as connection:
            for table in TABLES:
                connection.execute(text(f"ALTER TABLE {table} ALTER id DROP DEFAULT"))
                connection.execute(text(f"ALTER TABLE {table} ALTER id DROP IDENTITY IF EXISTS"))
                connection.execute(text(f"ALTER TABLE {table} ALTER id ADD GENERATED ALWAYS AS IDENTITY"))

    def by_core(self, symbol: str) -> int:
        with self.session_factory.begin() as session:
            return int(session.execute(insert(Trade).values(symbol=symbol).returning(Trade.id)).scalar_one())

    def by_text(self, symbol: str) -> int:
        with self.session_factory.begin() as session:
            sql = text("INSERT INTO trades (symbol) VALUES (:symbol) RETURNING id")
            return int(session.execute(sql, {"symbol": symbol}).scalar_one())

    def by_quoted_text(self, symbol: str) -> int:
        with self.session_factory.begin() as session:
            sql = text(
                'INSERT INTO "trades" ("symbol", "note") VALUES (:symbol, \'(a)\') ON CONFLICT DO NOTHING RETURNING id'
            )
            return int(session.execute(sql, {"symbol": symbol}).scalar_one())

    def by_rows(self, symbol: str) -> int:
        with self.session_factory.begin() as session:
            first, *more = [Trade(symbol=symbol), Trade(symbol=f"{symbol}+"), Trade(symbol=f"{symbol}++")]
            session.add(first)
            session.flush()
            session.add_all(more)
            return first.id


@pytest.fixture
def here(postgres_url: str, outbox_dir: Path) -> Iterator[Scene]:
    with scene(postgres_url, outbox_dir, Strict, OPERATIONS) as made:
        yield made


@pytest.mark.parametrize("name", METHODS)
def test_row_has_the_id_that_its_caller_was_given(here: Scene, name: str) -> None:
    given = [getattr(here.manager, name)(f"s{number}") for number in range(3)]
    assert here.drain()
    symbols = ", ".join(f"'s{number}'" for number in range(3))
    found = here.rows(f"SELECT id FROM trades WHERE symbol IN ({symbols}) ORDER BY symbol")
    assert found == [(id_,) for id_ in given]
    assert (list(here.box.dead_letters()), here.box.status().alarms) == ([], {})


@pytest.mark.parametrize("name", METHODS)
def test_call_with_postgresql_up_answers_with_the_rows_id(here: Scene, name: str) -> None:
    here.relay.start()
    given = getattr(here.manager, name)("up")
    assert here.rows("SELECT id FROM trades WHERE symbol = 'up'") == [(given,)]


def test_block_yields_and_reads_what_it_would_write(here: Scene) -> None:
    here.relay.start()
    here.manager.create_trading_session("s", Decimal(100))
    with here.manager.atomic_balance_update(Decimal(-5), "fee") as told:
        traded = here.manager.log_trade("in")
        here.manager.update_balance(Decimal(90), "mark")
        assert (told["new_balance"], here.manager.get_current_balance()) == (95, 90)
    assert here.rows("SELECT id FROM trades") == [(traded,)]


def test_column_that_is_altered_while_calls_wait_takes_their_ids(postgres_url: str, outbox_dir: Path) -> None:
    with scene(postgres_url, outbox_dir, SmallManager) as here:
        here.manager.log_trade("before")
        assert here.drain()
        given = here.manager.log_trade("behind")
        with closing(psycopg2.connect(postgres_url)) as other, other, other.cursor() as cursor:
            for change in ("DROP DEFAULT", "ADD GENERATED ALWAYS AS IDENTITY"):
                cursor.execute(f"ALTER TABLE trades ALTER id {change}")
        assert here.drain()
        assert here.rows("SELECT id FROM trades WHERE symbol = 'behind'") == [(given,)]


@pytest.mark.parametrize(
    ("statement", "made"),
    [
        ("INSERT INTO t (id, a) VALUES (1, 2)", "INSERT INTO t (id, a) OVERRIDING SYSTEM VALUE VALUES (1, 2)"),
        ('INSERT INTO s."t" ("id") SELECT 1', 'INSERT INTO s."t" ("id") OVERRIDING SYSTEM VALUE SELECT 1'),
        ("INSERT INTO t (a) VALUES (2)", None),
        ("INSERT INTO other (id) VALUES (2)", None),
        ("INSERT INTO t (id) OVERRIDING USER VALUE VALUES (2)", None),
        ("SELECT 'INSERT INTO t (id) VALUES (1)'", None),
        (
            "WITH a AS (INSERT INTO t (id) VALUES (1) RETURNING id) SELECT * FROM a",
            "WITH a AS (INSERT INTO t (id) OVERRIDING SYSTEM VALUE VALUES (1) RETURNING id) SELECT * FROM a",
        ),
        ("UPDATE t SET id = 1", None),
    ],
)
def test_only_an_insert_that_gives_the_id_is_changed(statement: str, made: str | None) -> None:
    assert overriding(statement, {"t": "id"}) == (made or statement)
