"""Handlers that use the driver's own connection and cursors, as programs of psycopg2 do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg2.extensions
import psycopg2.extras
import pytest
from sqlalchemy import Connection, text

from outbox import Entry, Operation
from tests.unit.fakes.audit import query
from tests.unit.fakes.bench import Bench


@pytest.fixture
def url(postgres_url: str) -> str:
    query(postgres_url, "CREATE TABLE effects (id serial PRIMARY KEY, n int UNIQUE)")
    return postgres_url


def insert(connection: Connection, entry: Entry) -> int:
    with driver_connection(connection).cursor() as cursor:
        cursor.execute("INSERT INTO effects (n) VALUES (%(n)s) RETURNING id, 1.5", entry.args)
        row: Any = cursor.fetchone()
        assert type(row) is tuple
        assert str(type(row[1])) == "<class 'decimal.Decimal'>"
        return int(row[0])


def by_sqlalchemy(connection: Connection, entry: Entry) -> int:
    statement = text("INSERT INTO effects (n) VALUES (:n) RETURNING id")
    return int(connection.execute(statement, entry.args).scalar_one())


def bench_with(directory: Path, url: str, handler: Callable[[Connection, Entry], Any]) -> Bench:
    """`special` does what `handler` does; `plain` and `modern` insert."""
    return Bench(
        directory,
        url,
        Operation("special", handler=handler),
        Operation("plain", handler=insert),
        Operation("modern", handler=by_sqlalchemy),
    )


def driver_connection(connection: Connection) -> Any:
    return connection.connection.dbapi_connection


@pytest.mark.parametrize("fails", [False, True])
def test_cursor_class_of_a_handler_stays_its_own(url: str, outbox_dir: Path, fails: bool) -> None:
    """The line stopped for good: the relay read its own rows by number, as did the next handler."""

    def handler(connection: Connection, entry: Entry) -> int:
        raw = driver_connection(connection)
        raw.cursor_factory = psycopg2.extras.RealDictCursor
        floats = psycopg2.extensions.new_type((1700,), "FLOATS", lambda value, _: value and float(value))
        psycopg2.extensions.register_type(floats, raw)
        with raw.cursor() as cursor:
            cursor.execute("INSERT INTO effects (n) VALUES (%(n)s) RETURNING id", entry.args)
            found = int(cursor.fetchone()["id"])
        if fails:
            raise ArithmeticError
        return found

    with bench_with(outbox_dir, url, handler) as bench:
        for number in range(3):
            bench.enqueue("special", {"n": number})
            bench.enqueue("plain", {"n": 10 + number})
            bench.enqueue("modern", {"n": 20 + number})
        outcome = bench.apply()
        assert outcome.interruption is None
        bench.settle(outcome)
        # The relay's own statements are on the same connection.
        assert bench.target.compare(bench.box.store.identity.store_id).loss is None
        done = {row[0] for row in bench.query("SELECT n FROM effects")}
        assert done == {10, 11, 12, 20, 21, 22} | (set() if fails else {0, 1, 2})


@pytest.mark.parametrize(
    ("factory", "kept"),
    [
        (psycopg2.extras.RealDictCursor, {"id": 1, "n": 7}),
        (psycopg2.extras.DictCursor, [1, 7]),
        (psycopg2.extras.NamedTupleCursor, (1, 7)),
    ],
)
def test_row_that_a_handler_returns_is_kept(url: str, outbox_dir: Path, factory: Any, kept: Any) -> None:
    def handler(connection: Connection, entry: Entry) -> Any:
        with driver_connection(connection).cursor(cursor_factory=factory) as cursor:
            cursor.execute("INSERT INTO effects (n) VALUES (%(n)s) RETURNING id, n", entry.args)
            return cursor.fetchone()

    with bench_with(outbox_dir, url, handler) as bench:
        bench.enqueue("special", {"n": 7})
        bench.settle(bench.apply())
        [entry] = bench.box.ledger()
        assert (entry.result, type(entry.result)) == (kept, type(kept))


def test_row_of_sqlalchemy_that_a_handler_returns_is_kept(url: str, outbox_dir: Path) -> None:
    def handler(connection: Connection, entry: Entry) -> Any:
        rows = connection.execute(text("INSERT INTO effects (n) VALUES (:n) RETURNING id, n"), entry.args)
        return rows.all()

    with bench_with(outbox_dir, url, handler) as bench:
        bench.enqueue("special", {"n": 7})
        bench.settle(bench.apply())
        [entry] = bench.box.ledger()
        assert entry.result == [(1, 7)]
