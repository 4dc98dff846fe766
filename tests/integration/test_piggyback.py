"""Statements that are owed are sent before the next one, whoever sends it, and in its round trip."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psycopg2
import psycopg2.errors
import psycopg2.extras
import pytest
from sqlalchemy import Connection, text

from outbox import Entry, Operation, Outbox, PostgresTarget, Relay
from outbox.postgres.piggyback import PiggybackConnection, tried, tried_in_time
from tests.unit.fakes.waiting import LONG


@pytest.fixture
def raw(postgres_url: str) -> Iterator[PiggybackConnection]:
    connection: PiggybackConnection = psycopg2.connect(postgres_url, connection_factory=PiggybackConnection)
    with connection.cursor() as cursor:
        cursor.execute("CREATE TEMP TABLE seen (n int)")
    connection.commit()
    yield connection
    connection.close()


def rows(raw: PiggybackConnection) -> list[int]:
    with raw.cursor() as cursor:
        cursor.execute("SELECT n FROM seen ORDER BY n")
        return [int(n) for (n,) in cursor.fetchall()]


def test_owed_savepoint_is_sent_with_the_next_statement(raw: PiggybackConnection) -> None:
    with raw.cursor() as cursor:
        assert raw.owe_savepoint("a")
        cursor.execute("INSERT INTO seen VALUES (1)")
        assert b"SAVEPOINT a; INSERT" in cursor.query
        cursor.execute("ROLLBACK TO SAVEPOINT a")
    assert rows(raw) == []


def test_savepoint_in_which_nothing_was_sent_is_never_sent(raw: PiggybackConnection) -> None:
    with raw.cursor() as cursor:
        assert raw.owe_savepoint("a")
        assert raw.owe_release("a")
        cursor.execute("INSERT INTO seen VALUES (%s)", (1,))
        assert cursor.query == b"INSERT INTO seen VALUES (1)"


@pytest.mark.parametrize("way", ["executemany", "a class of cursors", "bytes", "a named cursor", "copy"])
def test_every_way_to_send_sends_first_what_is_owed(raw: PiggybackConnection, way: str, tmp_path: Path) -> None:
    with raw.cursor() as cursor:
        cursor.execute("INSERT INTO seen VALUES (0)")
        raw.owe("SET LOCAL application_name = 'owed'")
        if way == "executemany":
            cursor.executemany("INSERT INTO seen SELECT 1 WHERE current_setting('application_name') = %s", [("owed",)])
        elif way == "bytes":
            cursor.execute(b"INSERT INTO seen SELECT 1 WHERE current_setting('application_name') = 'owed'")
        elif way == "copy":
            (tmp_path / "rows").write_text("1\n")
            with (tmp_path / "rows").open() as file:
                cursor.copy_expert("COPY seen FROM STDIN WHERE current_setting('application_name') = 'owed'", file)
        else:
            name = "named" if way == "a named cursor" else None
            with raw.cursor(name, cursor_factory=psycopg2.extras.RealDictCursor) as other:
                other.execute("SELECT current_setting('application_name') AS found")
                assert [row["found"] for row in other.fetchall()] == ["owed"]
            cursor.execute("INSERT INTO seen VALUES (1)")
    assert rows(raw) == [0, 1]


@pytest.mark.parametrize("code", ["42501", "42883", "42P01", "55000", "0A000"])
def test_question_without_an_answer_leaves_the_rest(raw: PiggybackConnection, code: str) -> None:
    """Services and servers that speak PostgreSQL's protocol refuse such a question in ways of their own."""
    with raw.cursor() as cursor:
        cursor.execute(
            "CREATE FUNCTION pg_temp.refuse(code text) RETURNS int LANGUAGE plpgsql AS "
            "$$ BEGIN RAISE EXCEPTION USING ERRCODE = code; END $$; INSERT INTO seen VALUES (0)"
        )
        assert tried(cursor, "SELECT pg_temp.refuse(%s)", code) is None
        assert tried(cursor, "SELECT 1") == (1,)
        # Savepoints go on costing no round trip.
        assert raw.owe_savepoint("later")
    assert rows(raw) == [0]


def test_query_that_takes_too_long_has_no_answer(raw: PiggybackConnection) -> None:
    with raw.cursor() as cursor:
        cursor.execute("SET LOCAL statement_timeout = 400; INSERT INTO seen VALUES (0)")
        assert tried_in_time(cursor, "SELECT pg_sleep(0.3)") is None
        assert tried_in_time(cursor, "SELECT %s", 7) == (7,)
        cursor.execute("SHOW statement_timeout")
        assert cursor.fetchone() == ("400ms",)
        assert raw.owe_savepoint("later")
    assert rows(raw) == [0]


def test_release_that_would_fail_is_not_owed(raw: PiggybackConnection) -> None:
    with raw.cursor() as cursor:
        assert raw.owe_savepoint("a")
        assert raw.owe_savepoint("b")
        cursor.execute("SELECT 1")
        assert raw.owe_release("a")
        assert raw.is_merged("b")
        assert raw.owe_release("b")  # it ended with the one around it
        assert not raw.owe_release("b")
        assert raw.owe_savepoint("c")
        with pytest.raises(psycopg2.errors.DivisionByZero):
            cursor.execute("SELECT 1 / 0")
        assert not raw.owe_release("c")


def test_savepoint_of_somebody_else_ends_the_owing(raw: PiggybackConnection) -> None:
    with raw.cursor() as cursor:
        cursor.execute("SAVEPOINT theirs")
        assert not raw.owe_savepoint("ours")
    raw.rollback()
    assert raw.owe_savepoint("ours")


def test_handler_cannot_commit_receipts_of_entries_behind_it(postgres_url: str, outbox_dir: Path) -> None:
    """Receipts of a batch are written at once; a commit in its middle would acknowledge what has not been applied."""
    seen: list[list[tuple[int]]] = []

    def handle(connection: Connection, entry: Entry) -> None:
        connection.execute(text(f"INSERT INTO seen VALUES ({entry.args['n']})"))
        if entry.args["n"] == 2 and not seen:
            try:
                connection.connection.cursor().execute("COMMIT")
            finally:
                with psycopg2.connect(postgres_url) as other, other.cursor() as cursor:
                    cursor.execute("SELECT seq FROM outbox_receipts")
                    seen.append(cursor.fetchall())
                other.close()

    operations = [Operation("seen", handler=handle)]
    with psycopg2.connect(postgres_url) as plain, plain.cursor() as cursor:
        cursor.execute("CREATE TABLE seen (n int)")
    with Outbox.open(outbox_dir, operations=operations) as box:
        for number in range(1, 5):
            box.enqueue("seen", {"n": number})
        with Relay(box, PostgresTarget(postgres_url, operations)) as relay:
            assert relay.drain(LONG)
    assert seen == [[]]
    with plain, plain.cursor() as cursor:
        cursor.execute("SELECT n FROM seen ORDER BY n")
        assert cursor.fetchall() == [(1,), (2,), (3,), (4,)]
    plain.close()
