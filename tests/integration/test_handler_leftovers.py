"""Handlers that leave something behind: a forked process, a statement, a cursor, a lock, a limit on the transaction."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from sqlalchemy import Connection, text

from outbox import Entry, Operation, Outbox, OutboxConfig, PostgresTarget, Relay
from tests.unit.fakes.audit import query
from tests.unit.fakes.bench import Bench, completed, parked, rejected
from tests.unit.fakes.waiting import LONG


@pytest.fixture
def url(postgres_url: str) -> str:
    query(postgres_url, "CREATE TABLE effects (id serial PRIMARY KEY, n int)")
    return postgres_url


def insert(connection: Connection, entry: Entry) -> None:
    connection.execute(text("INSERT INTO effects (n) VALUES (:n)"), {"n": entry.args["n"]})


def send(connection: Connection, sql: str) -> None:
    connection.connection.cursor().execute(sql)


def _operations(before: Callable[[Connection], Any]) -> tuple[Operation, ...]:
    def special(connection: Connection, entry: Entry) -> None:
        insert(connection, entry)
        before(connection)

    return Operation("special", handler=special), Operation("plain", handler=insert)


def _bench(directory: Path, url: str, before: Callable[[Connection], Any]) -> Bench:
    bench = Bench(directory, url, *_operations(before))
    for n, name in enumerate(("plain", "special", "special", "plain")):
        bench.enqueue(name, {"n": n})
    return bench


def _effects(url: str) -> list[int]:
    return [n for (n,) in query(url, "SELECT n FROM effects ORDER BY n")]


def _returns(_: Connection) -> None:
    if (child := os.fork()) != 0:
        os.waitpid(child, 0)


def _exits(_: Connection) -> None:
    if (child := os.fork()) == 0:
        sys.exit(0)
    os.waitpid(child, 0)


def _fails(_: Connection) -> None:
    if (child := os.fork()) == 0:
        raise RuntimeError("in the child")
    os.waitpid(child, 0)


@pytest.mark.parametrize("forks", [_returns, _exits, _fails])
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_process_that_a_handler_forks_writes_nothing_again(
    url: str, outbox_dir: Path, forks: Callable[[Connection], None]
) -> None:
    operations, here = _operations(forks), os.getpid()
    try:
        with (
            Outbox.open(outbox_dir, OutboxConfig(), operations) as box,
            Relay(box, PostgresTarget(url, operations)) as relay,
        ):
            for n, name in enumerate(("plain", "special", "plain", "special", "plain")):
                box.enqueue(name, {"n": n})
            assert relay.drain(timeout=LONG)
            assert box.status().completed == 5
    finally:
        if os.getpid() != here:
            os._exit(9)
    assert _effects(url) == [0, 1, 2, 3, 4]


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_exit_code_of_a_forked_process_reaches_the_handler(url: str, outbox_dir: Path) -> None:
    found: list[int] = []

    def exits(_: Connection) -> None:
        if (child := os.fork()) == 0:
            sys.exit(7)
        found.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

    with _bench(outbox_dir, url, exits) as bench:
        assert completed(bench.apply()) == [1, 2, 3, 4]
    assert found == [7, 7]


LEAVES = {
    "prepared": "PREPARE kept AS SELECT 1",
    "cursor": "DECLARE kept CURSOR FOR SELECT 1",
    "cursor_with_hold": 'DECLARE "Ke%pt" CURSOR WITH HOLD FOR SELECT 1',
}


@pytest.mark.parametrize("sql", LEAVES.values(), ids=LEAVES)
def test_name_that_a_handler_has_left_can_be_used_again(url: str, outbox_dir: Path, sql: str) -> None:
    with _bench(outbox_dir, url, lambda conn: send(conn, sql)) as bench:
        assert completed(bench.apply()) == [1, 2, 3, 4]
        bench.enqueue("special", {"n": 4})
        assert 5 in completed(bench.apply(5))


def test_named_cursor_of_the_driver_can_be_opened_again(url: str, outbox_dir: Path) -> None:
    def reads(conn: Connection) -> None:
        cursor = conn.connection.cursor("kept", withhold=True)
        cursor.execute("SELECT 1")

    with _bench(outbox_dir, url, reads) as bench:
        assert completed(bench.apply()) == [1, 2, 3, 4]
        assert bench.query("SELECT count(*) FROM effects") == [(4,)]


def test_failed_handler_leaves_no_prepared_statement(url: str, outbox_dir: Path) -> None:
    """What remains of the first try must not hide why the entry is refused."""

    def fails(conn: Connection) -> None:
        send(conn, "PREPARE kept AS SELECT 1")
        send(conn, "SELECT 1/0")

    with _bench(outbox_dir, url, fails) as bench:
        outcome = bench.apply()
        assert rejected(outcome) == [2, 3]
        assert all("22012" in str(error) for _, error in outcome.rejected)


def test_handler_that_swallows_an_error_leaves_no_statement(url: str, outbox_dir: Path) -> None:
    def swallows(conn: Connection) -> None:
        send(conn, "PREPARE kept AS SELECT 1")
        with suppress(psycopg2.Error):
            send(conn, "SELECT 1/0")

    with Bench(outbox_dir, url, *_operations(swallows)) as bench:
        bench.enqueue("special", {"n": 0})
        for _ in range(2):
            [(_, error)] = bench.apply().rejected
            assert "swallowed" in str(error)


def test_lock_and_channel_of_a_handler_end_with_it(url: str, outbox_dir: Path) -> None:
    with _bench(outbox_dir, url, lambda conn: send(conn, "SELECT pg_advisory_lock(4711); LISTEN news")) as bench:
        assert completed(bench.apply()) == [1, 2, 3, 4]
        assert query(url, "SELECT pg_try_advisory_lock(4711)") == [(True,)]


@pytest.mark.parametrize(
    "sql", ["DO $$ BEGIN COMMIT; END $$", "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE"], ids=["commits", "isolation"]
)
def test_handler_that_the_transaction_forbids_is_parked(url: str, outbox_dir: Path, sql: str) -> None:
    """Its entries are sound, so they must not become dead letters."""
    with _bench(outbox_dir, url, lambda conn: send(conn, sql)) as bench:
        outcome = bench.apply()
        assert completed(outcome) == [1, 4]
        assert parked(outcome)


@pytest.mark.parametrize("before", ["SELECT 1", "DO $$ DECLARE n int; BEGIN NULL; END $$"])
def test_handler_whose_limit_ends_the_connection_waits_alone(url: str, outbox_dir: Path, before: str) -> None:
    def limits(conn: Connection) -> None:
        send(conn, before)
        send(conn, "SET LOCAL idle_in_transaction_session_timeout = '20ms'")
        time.sleep(0.2)

    operations = _operations(limits)
    config = OutboxConfig(backoff_base=0.01, backoff_cap=0.02)
    with Outbox.open(outbox_dir, config, operations) as box, Relay(box, PostgresTarget(url, operations)) as relay:
        box.enqueue("special", {"n": 0}, order_by="a")
        for n in range(1, 5):
            box.enqueue("plain", {"n": n}, order_by="b")
        assert not relay.drain(timeout=5)
        assert box.status().pending == 1
    assert _effects(url) == [1, 2, 3, 4]


@pytest.mark.parametrize("setting", ["transaction_timeout", "idle_in_transaction_session_timeout"])
def test_limit_of_the_role_does_not_end_a_batch(url: str, outbox_dir: Path, setting: str) -> None:
    query(url, f"ALTER DATABASE {query(url, 'SELECT current_database()')[0][0]} SET {setting} = '50ms'")
    with _bench(outbox_dir, url, lambda _: time.sleep(0.1)) as bench:
        assert completed(bench.apply()) == [1, 2, 3, 4]


@pytest.mark.parametrize("threaded", [True, False])
def test_drain_within_a_handler_ends_at_once(url: str, outbox_dir: Path, threaded: bool) -> None:
    """It would wait for its own entry, and a connection that is shut for that delivers nothing."""
    found: list[bool] = []
    operations = _operations(lambda _: found.append(relay.drain(timeout=LONG)))
    with Outbox.open(outbox_dir, None, operations) as box:
        relay = Relay(box, PostgresTarget(url, operations))
        box.enqueue("special", {"n": 0})
        try:
            if threaded:
                relay.start()
            assert relay.drain(timeout=LONG / 2)
        finally:
            relay.stop()
    assert found == [False]
    assert _effects(url) == [0]
