"""Behind a connection pooler: the relay's settings hold in each of its transactions, and nobody else meets them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Literal

import psycopg2
import pytest
from sqlalchemy import Connection, text

from outbox import Entry, Health, Operation, Relay, TargetMisconfigured
from tests.unit.fakes.audit import query
from tests.unit.fakes.bench import Bench, completed
from tests.unit.fakes.pgbouncer import PgBouncer
from tests.unit.fakes.waiting import LONG

NAMES = ("synchronous_commit", "statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout")
OURS = ["on", "7s", "0", "14s"]
ROW = Operation("row", table="effects")


def settings_of(connection: Connection, entry: Entry) -> list[str]:
    """What holds while an entry is applied."""
    statement = text("SELECT current_setting(:name)")
    return [str(connection.execute(statement, {"name": name}).scalar_one()) for name in NAMES]


def setting(connection: Connection, entry: Entry) -> None:
    """Set something for the session, as handlers must not and do."""
    connection.execute(text("SET statement_timeout = '1h'"))


SETTINGS = Operation("settings", handler=settings_of)
CARELESS = Operation("careless", handler=setting)


@pytest.fixture
def url(postgres_url: str) -> str:
    database = postgres_url.rpartition("/")[2]
    query(postgres_url, f"ALTER DATABASE {database} SET synchronous_commit = off")
    query(postgres_url, f"ALTER DATABASE {database} SET timezone = 'America/New_York'")
    query(postgres_url, "CREATE TABLE effects (id serial PRIMARY KEY, n int)")
    return postgres_url


@pytest.fixture(params=["transaction", "session"])
def mode(request: pytest.FixtureRequest) -> Literal["transaction", "session"]:
    value: Literal["transaction", "session"] = request.param
    return value


@pytest.fixture
def pooler(url: str, mode: Literal["transaction", "session"]) -> Iterator[PgBouncer]:
    with PgBouncer(url, mode) as pooler:
        yield pooler


def apply_settings(bench: Bench) -> list[str]:
    bench.settle(bench.apply(bench.enqueue("settings", {})))
    result: list[str] = list(bench.box.ledger())[-1].result
    return result


def seen_by_others(url: str) -> set[tuple[str, ...]]:
    """What another program of the pool meets on each of several connections."""
    seen: set[tuple[str, ...]] = set()
    others = [psycopg2.connect(url) for _ in range(3)]
    for other in others:
        with other, other.cursor() as cursor:
            cursor.execute("SELECT " + ", ".join(f"current_setting('{name}')" for name in NAMES))
            seen |= set(cursor.fetchall())
    for other in others:
        other.close()
    return seen


def test_settings_hold_behind_a_pooler_and_leak_to_nobody(pooler: PgBouncer, outbox_dir: Path) -> None:
    untouched = seen_by_others(pooler.url)
    with Bench(outbox_dir, pooler.url, SETTINGS, CARELESS, ROW, stall_timeout=7) as bench:
        for number in range(4):
            assert apply_settings(bench) == OURS
            bench.enqueue("row", {"n": number})
            bench.enqueue("careless", {})
            bench.settle(bench.apply())
            assert seen_by_others(pooler.url) == untouched
    assert query(pooler.url, "SELECT count(*) FROM effects") == [(4,)]


def test_settings_hold_when_the_pooler_renews_its_servers(pooler: PgBouncer, outbox_dir: Path) -> None:
    with Bench(outbox_dir, pooler.url, SETTINGS, stall_timeout=7) as bench:
        assert apply_settings(bench) == OURS
        pooler.command("RECONNECT")
        assert apply_settings(bench) == OURS


def test_settings_of_other_programs_do_not_reach_the_relay(url: str, outbox_dir: Path) -> None:
    with (
        PgBouncer(url, "transaction", default_pool_size=1) as pooler,
        Bench(outbox_dir, pooler.url, SETTINGS, stall_timeout=7) as bench,
        closing(psycopg2.connect(pooler.url)) as other,
    ):
        assert apply_settings(bench) == OURS
        with other, other.cursor() as cursor:
            cursor.execute("SET synchronous_commit = off; SET statement_timeout = '1h'; SET lock_timeout = '1h'")
        assert apply_settings(bench) == OURS


def test_three_lanes_deliver_behind_a_pooler(pooler: PgBouncer, outbox_dir: Path) -> None:
    ordered = Operation("row", table="effects", order_by="n")
    with Bench(outbox_dir, pooler.url, ordered, lanes=3, batch_size=10) as bench:
        for number in range(300):
            bench.enqueue("row", {"n": number % 7})
        with Relay(bench.box, bench.target) as relay:
            assert relay.drain(LONG)
        assert bench.box.status().health is Health.HEALTHY
        assert bench.query("SELECT count(*) FROM effects") == [(300,)]


def test_pooler_that_splits_transactions_delivers_nothing(url: str, outbox_dir: Path) -> None:
    with PgBouncer(url, "statement") as pooler, Bench(outbox_dir, pooler.url, ROW) as bench:  # type: ignore[arg-type]
        bench.enqueue("row", {"n": 1})
        outcome = bench.apply()
        assert outcome.interruption is not None
        assert (outcome.completed, outcome.rejected) == ([], [])
        assert bench.query("SELECT count(*) FROM effects") == [(0,)]


def test_read_only_default_is_told_from_a_standby(url: str, outbox_dir: Path) -> None:
    with Bench(outbox_dir, url, ROW) as bench:
        bench.enqueue("row", {"n": 1})
        database = url.rpartition("/")[2]
        query(url, f"ALTER DATABASE {database} SET default_transaction_read_only = on")
        interruption = bench.apply().interruption
        assert isinstance(interruption, TargetMisconfigured)
        assert "read-only by default_transaction_read_only" in str(interruption)
        writable = f"{url}?options=-cdefault_transaction_read_only%3Doff"
        query(writable, f"ALTER DATABASE {database} RESET default_transaction_read_only")
        assert completed(bench.apply()) == [1]


def test_read_only_default_on_an_open_connection_stops_the_line(url: str, outbox_dir: Path) -> None:
    def handler(connection: Connection, entry: Entry) -> None:
        connection.execute(text("INSERT INTO effects (n) VALUES (1)"))

    with Bench(outbox_dir, url, Operation("call", handler=handler)) as bench:
        assert completed(bench.apply(bench.enqueue("call", {}))) == [1]
        raw = bench.target._lanes[0]._link.current
        assert raw is not None
        with raw.begin():
            raw.execute(text("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY"))
        outcome = bench.apply(bench.enqueue("call", {}))
        assert (outcome.completed, outcome.rejected) == ([], [])
        # The connection that failed is given up, and the next one is sound.
        assert completed(bench.apply(2)) == [2]
