"""Handlers that use the driver's own connection and cursors, as programs of psycopg2 do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg2.extensions
import psycopg2.extras
import pytest
from sqlalchemy import Connection, text
from sqlalchemy.orm import Session

from outbox import Entry, Operation, Reject, RetryLater
from tests.unit.fakes.audit import query
from tests.unit.fakes.bench import Bench, completed, parked


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


class Refuses(Exception):
    """An error of the handler's own."""


@pytest.mark.parametrize("error", [None, Reject("no such account"), RetryLater("not yet"), Refuses("odd")])
def test_error_that_leaves_a_session_counts_as_elsewhere(url: str, outbox_dir: Path, error: Exception | None) -> None:
    """The session rolls back, which was taken for a handler that ends the transaction."""

    def handler(connection: Connection, entry: Entry) -> None:
        with Session(connection) as session, session.begin():
            session.execute(text("INSERT INTO effects (n) VALUES (:n)"), {"n": entry.args["n"]})
            if entry.args["n"] == 5 and error is not None:
                raise error

    with bench_with(outbox_dir, url, handler) as bench:
        query(url, "INSERT INTO effects (n) VALUES (%s)", [99 if error is not None else 5])
        for number in (4, 5, 6):
            bench.enqueue("special", {"n": number})
        outcome = bench.apply()
        assert parked(outcome) == ""
        assert completed(outcome) == [1, 3]
        if isinstance(error, RetryLater):
            [waiting] = outcome.waiting
            assert isinstance(waiting.error, RetryLater)
            return
        [(record, rejection)] = outcome.rejected
        assert record.seq == 2
        assert rejection.permanent == (not isinstance(error, Refuses))
        assert str(error or "duplicate key") in str(rejection)


@pytest.mark.parametrize("how", ["statement", "method"])
def test_handler_that_commits_and_fails_has_ended_the_transaction(url: str, outbox_dir: Path, how: str) -> None:
    def handler(connection: Connection, entry: Entry) -> None:
        raw = driver_connection(connection)
        with raw.cursor() as cursor:
            cursor.execute("INSERT INTO effects (n) VALUES (%(n)s)", entry.args)
            cursor.execute("commit") if how == "statement" else raw.commit()
        raise Reject("too late")

    with bench_with(outbox_dir, url, handler) as bench:
        bench.enqueue("special", {"n": 1})
        outcome = bench.apply()
        assert outcome.rejected == []
        bench.settle(outcome)
        # Its receipt was committed with its effect.
        bench.settle(bench.apply())
        assert [row[0] for row in bench.query("SELECT n FROM effects")] == [1]
