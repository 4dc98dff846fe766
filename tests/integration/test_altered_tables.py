"""A table that was altered in an outage: sound entries wait until it is altered back, bad values are dead letters."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from sqlalchemy import Connection, text

from outbox import Entry, Operation, PostgresTarget, Relay
from outbox.postgres.watermarks import make_tables
from outbox.testing import PostgresServer
from tests.unit.fakes.audit import query
from tests.unit.fakes.bench import Bench
from tests.unit.fakes.waiting import LONG, until

QUICK: dict[str, Any] = {"backoff_base": 0.01, "backoff_cap": 0.05, "max_retries": 3, "sync_interval": 0.05}


def insert(conn: Connection, entry: Entry) -> None:
    names = list(entry.args)
    values = ", ".join(f":{name}" for name in names)
    conn.execute(text(f"INSERT INTO trades ({', '.join(names)}) VALUES ({values})"), dict(entry.args))


TABLE = Operation("trade", table="trades", order_by="k")
HANDLER = Operation("trade", handler=insert, order_by="k")
OTHER = Operation("other", table="others", order_by="k")


@dataclass(frozen=True)
class Change:
    there: str
    back: str
    sqlstate: str


CHANGES = {
    "text to integer": Change(
        "ALTER TABLE trades ALTER note TYPE int USING 0",
        "ALTER TABLE trades ALTER note TYPE text",
        "22P02",
    ),
    "text to a date": Change(
        "ALTER TABLE trades ALTER note TYPE date USING NULL", "ALTER TABLE trades ALTER note TYPE text", "22007"
    ),
    "text narrowed": Change(
        "ALTER TABLE trades ALTER note TYPE varchar(3) USING NULL", "ALTER TABLE trades ALTER note TYPE text", "22001"
    ),
    "number narrowed": Change(
        "ALTER TABLE trades ALTER price TYPE numeric(3, 2) USING 0",
        "ALTER TABLE trades ALTER price TYPE numeric",
        "22003",
    ),
    "enum value renamed": Change(
        "ALTER TYPE side RENAME VALUE 'buy' TO 'long'", "ALTER TYPE side RENAME VALUE 'long' TO 'buy'", "22P02"
    ),
    "new NOT NULL": Change(
        "UPDATE trades SET extra = ''; ALTER TABLE trades ALTER extra SET NOT NULL",
        "ALTER TABLE trades ALTER extra DROP NOT NULL",
        "23502",
    ),
    "new CHECK": Change(
        "ALTER TABLE trades ADD CONSTRAINT small CHECK (price < 10) NOT VALID",
        "ALTER TABLE trades DROP CONSTRAINT small",
        "23514",
    ),
    "new foreign key": Change(
        "ALTER TABLE trades ADD CONSTRAINT known FOREIGN KEY (note) REFERENCES notes NOT VALID",
        "ALTER TABLE trades DROP CONSTRAINT known",
        "23503",
    ),
    "new unique index": Change("CREATE UNIQUE INDEX once ON trades ((left(note, 1)))", "DROP INDEX once", "23505"),
    "new exclusion": Change(
        "ALTER TABLE trades ADD CONSTRAINT alone EXCLUDE USING btree (price WITH =)",
        "ALTER TABLE trades DROP CONSTRAINT alone",
        "23P01",
    ),
    "new trigger": Change(
        """CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN RAISE 'no' USING ERRCODE = 'check_violation'; END $$;
        CREATE TRIGGER t BEFORE INSERT ON trades FOR EACH ROW EXECUTE FUNCTION refuse()""",
        "DROP TRIGGER t ON trades",
        "23514",
    ),
    "new trigger with an error of its own": Change(
        """CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no'; END $$;
        CREATE TRIGGER t BEFORE INSERT ON trades FOR EACH ROW EXECUTE FUNCTION refuse()""",
        "DROP TRIGGER t ON trades",
        "P0001",
    ),
    "domain with a constraint": Change(
        "ALTER DOMAIN amount ADD CONSTRAINT few CHECK (VALUE < 10) NOT VALID",
        "ALTER DOMAIN amount DROP CONSTRAINT few",
        "23514",
    ),
}
ROW = {"price": 20, "note": "a text", "side": "buy", "amount": 20, "extra": None}


@pytest.fixture(params=[TABLE, HANDLER], ids=["table", "handler"])
def bench(request: pytest.FixtureRequest, postgres_url: str, outbox_dir: Path) -> Iterator[Bench]:
    with Bench(outbox_dir, postgres_url, request.param, OTHER, **QUICK) as bench:
        bench.query(
            """CREATE TYPE side AS ENUM ('buy', 'sell'); CREATE DOMAIN amount AS int;
            CREATE TABLE notes (note text PRIMARY KEY); CREATE TABLE others (k text);
            CREATE TABLE trades (k text, price numeric, note text, side side, amount amount, extra text)"""
        )
        bench.enqueue("trade", {"k": "first", **ROW})
        with Relay(bench.box, bench.target) as relay:
            assert relay.drain(timeout=LONG)
        yield bench


def waiting(bench: Bench) -> str:
    """Why entries wait, as the status shows it."""
    status = bench.box.status()
    return "; ".join([*status.relay.parked.values(), *status.relay.waiting.values()])


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_sound_entries_wait_while_an_altered_table_refuses_them(bench: Bench, change: Change) -> None:
    bench.query(change.there)
    for key in "abc":
        bench.enqueue("trade", {"k": key, **ROW})
    bench.enqueue("other", {"k": "d"})
    with Relay(bench.box, bench.target) as relay:
        until(lambda: change.sqlstate in waiting(bench))
        until(lambda: bench.query("SELECT k FROM others") == [("d",)])
        assert "altered since the entry was enqueued: " in waiting(bench)
        assert list(bench.box.dead_letters()) == []
        bench.query(change.back)
        assert relay.drain(timeout=LONG)
    assert sorted(bench.query("SELECT k FROM trades")) == [("a",), ("b",), ("c",), ("first",)]
    assert bench.box.status().dead_letters == 0


def test_bad_value_beside_an_alteration_becomes_a_dead_letter(bench: Bench) -> None:
    bench.query("ALTER TABLE trades ADD fresh int; ALTER TABLE others ALTER k TYPE varchar(100)")
    bench.enqueue("trade", {"k": "a", **ROW, "side": "none"})
    bench.enqueue("trade", {"k": "b", **ROW})
    with Relay(bench.box, bench.target) as relay:
        assert relay.drain(timeout=LONG)
    assert [entry.seq for entry in bench.box.dead_letters()] == [2]


def test_entry_that_came_after_the_alteration_becomes_a_dead_letter(bench: Bench) -> None:
    bench.query("ALTER TABLE trades ADD CONSTRAINT small CHECK (price < 10) NOT VALID")
    bench.enqueue("other", {"k": "a"})
    with Relay(bench.box, bench.target) as relay:
        assert relay.drain(timeout=LONG)
        bench.enqueue("trade", {"k": "b", **ROW})
        assert relay.drain(timeout=LONG)
    assert [entry.seq for entry in bench.box.dead_letters()] == [3]


def test_sound_entry_waits_though_the_clock_was_set_back(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Entries keep the order of their times: until the clock has caught up, theirs are ahead of it."""
    bench.query("ALTER TABLE trades ALTER price TYPE numeric(3, 2) USING 0")
    now = bench.box.clock.now
    monkeypatch.setattr(type(bench.box.clock), "now", lambda self: now() + timedelta(hours=2))
    bench.enqueue("other", {"k": "d"})
    monkeypatch.undo()
    bench.enqueue("trade", {"k": "a", **ROW})
    with Relay(bench.box, bench.target) as relay:
        until(lambda: "22003" in waiting(bench))
        assert list(bench.box.dead_letters()) == []
        bench.query("ALTER TABLE trades ALTER price TYPE numeric")
        assert relay.drain(timeout=LONG)
    assert bench.query("SELECT k FROM trades WHERE k = 'a'") == [("a",)]


def test_first_entry_behind_the_connection_becomes_a_dead_letter(bench: Bench) -> None:
    """Its caller may wait for the refusal, though nothing was delivered since the alteration."""
    bench.query("ALTER TABLE trades ADD CONSTRAINT small CHECK (price < 10) NOT VALID")
    (lane, *_) = bench.target._lanes
    before = lane._session_on
    with Relay(bench.box, bench.target) as relay:
        until(lambda: lane._session_on is not before)
        bench.enqueue("trade", {"k": "b", **ROW})
        assert relay.drain(timeout=LONG)
    assert [entry.seq for entry in bench.box.dead_letters()] == [2]


def test_entries_that_an_altered_table_refuses_wait_while_others_pass(bench: Bench) -> None:
    bench.query("ALTER TABLE trades ADD CONSTRAINT small CHECK (price < 10) NOT VALID")
    bench.enqueue("trade", {"k": "a", **ROW})
    bench.enqueue("trade", {"k": "b", **ROW, "price": 5})
    with Relay(bench.box, bench.target):
        until(lambda: bool(bench.query("SELECT k FROM trades WHERE k = 'b'")))
        bench.enqueue("trade", {"k": "c", **ROW, "price": 6})
        until(lambda: bool(bench.query("SELECT k FROM trades WHERE k = 'c'")))
        until(lambda: "small" in waiting(bench))
    with Relay(bench.box, bench.target) as relay:
        bench.enqueue("trade", {"k": "d", **ROW, "price": 6})
        until(lambda: bool(bench.query("SELECT k FROM trades WHERE k = 'd'")))
        assert list(bench.box.dead_letters()) == []
        bench.query("ALTER TABLE trades DROP CONSTRAINT small")
        assert relay.drain(timeout=LONG)
    assert len(bench.query("SELECT k FROM trades")) == 5


def test_refusal_by_an_alteration_beside_a_working_relay_is_final(bench: Bench) -> None:
    """A caller may wait for it, as for any other."""
    with Relay(bench.box, bench.target) as relay:
        bench.enqueue("other", {"k": "z"})
        assert relay.drain(timeout=LONG)
        bench.query("ALTER TABLE trades ADD CONSTRAINT small CHECK (price < 10) NOT VALID")
        bench.enqueue("trade", {"k": "a", **ROW})
        assert relay.drain(timeout=LONG)
    assert [entry.args["k"] for entry in bench.box.dead_letters()] == ["a"]


def test_new_row_security_lets_refused_entries_wait(postgres_url: str, outbox_dir: Path) -> None:
    with Bench(outbox_dir, postgres_url, TABLE, **QUICK) as bench:
        bench.query("CREATE TABLE trades (k text); CREATE ROLE app; GRANT ALL ON trades TO app")
        bench.query("GRANT ALL ON SCHEMA public TO app")
        config = bench.box.config
        target = PostgresTarget(f"{postgres_url}?options=-crole%3Dapp", [TABLE], config=config)
        bench.enqueue("trade", {"k": "first"})
        with Relay(bench.box, target) as relay:
            assert relay.drain(timeout=LONG)
        bench.query("ALTER TABLE trades ENABLE ROW LEVEL SECURITY; CREATE SEQUENCE tries; GRANT ALL ON tries TO app")
        bench.query("CREATE POLICY p ON trades FOR INSERT WITH CHECK (k <> 'a' OR nextval('tries') < 0)")
        bench.enqueue("trade", {"k": "a"})
        bench.enqueue("trade", {"k": "b"})
        with Relay(bench.box, target) as relay:
            # More often than `max_retries`.
            until(lambda: bench.query("SELECT last_value > 9 FROM tries") == [(True,)])
            assert "altered since the entry was enqueued: row security of trades" in waiting(bench)
            assert bench.query("SELECT k FROM trades") == [("first",), ("b",)]
            bench.query("ALTER TABLE trades DISABLE ROW LEVEL SECURITY")
            assert relay.drain(timeout=LONG)
        assert bench.query("SELECT k FROM trades") == [("first",), ("b",), ("a",)]
        bench.query("DROP OWNED BY app; DROP ROLE app")


BURN = "DO $$ BEGIN FOR i IN 1..3000 LOOP PERFORM pg_current_xact_id(); COMMIT; END LOOP; END $$"


def park_a_trade(bench: Bench) -> None:
    """Deliver something, and leave behind an entry that has waited for its table since the relay connected."""
    bench.query("CREATE TABLE IF NOT EXISTS others (k text)")
    bench.enqueue("other", {"k": "a"})
    with Relay(bench.box, bench.target) as relay:
        assert relay.drain(timeout=LONG)
    bench.enqueue("trade", {"k": "first"})
    with Relay(bench.box, bench.target):
        until(lambda: "does not exist" in waiting(bench))


def deliver_when_altered_back(bench: Bench) -> None:
    """Meet a table that was altered in the outage, and get over it."""
    bench.query("CREATE TABLE trades (k text); ALTER TABLE trades ADD CONSTRAINT small CHECK (k < 'c')")
    with Relay(bench.box, bench.target) as relay:
        until(lambda: "small" in waiting(bench) or bool(bench.box.status().dead_letters))
        assert list(bench.box.dead_letters()) == []
        bench.query("ALTER TABLE trades DROP CONSTRAINT small")
        assert relay.drain(timeout=LONG)
    assert bench.query("SELECT k FROM trades") == [("first",)]


def test_cluster_that_takes_over_has_a_past_of_its_own(postgres_url: str, outbox_dir: Path) -> None:
    """The numbers of transactions of the old one do not count: with higher ones nothing seemed to be altered."""
    where = [postgres_url]
    with PostgresServer() as copy, Bench(outbox_dir, postgres_url, TABLE, OTHER, **QUICK) as bench:
        query(postgres_url, BURN)
        bench.target = PostgresTarget(lambda: where[0], [TABLE, OTHER], config=bench.box.config)
        park_a_trade(bench)
        copy_tables(postgres_url, copy.url())
        bench.url = where[0] = copy.url()
        deliver_when_altered_back(bench)


def test_bad_value_is_a_dead_letter_where_numbers_are_higher(postgres_url: str, outbox_dir: Path) -> None:
    """By the numbers of the old cluster everything in the new one was altered since, and bad values waited for ever."""
    where = [postgres_url]
    with PostgresServer() as copy, Bench(outbox_dir, postgres_url, TABLE, OTHER, **QUICK) as bench:
        bench.target = PostgresTarget(lambda: where[0], [TABLE, OTHER], config=bench.box.config)
        park_a_trade(bench)
        while newest_number(copy.url()) < newest_number(postgres_url):
            query(copy.url(), BURN)
        query(copy.url(), "CREATE TABLE trades (k varchar(3))")
        copy_tables(postgres_url, copy.url())
        where[0] = copy.url()
        with Relay(bench.box, bench.target) as relay:
            assert relay.drain(timeout=LONG)
        assert [entry.args["k"] for entry in bench.box.dead_letters()] == ["first"]


def newest_number(url: str) -> int:
    return int(query(url, "SELECT pg_current_xact_id()::text")[0][0])


def copy_tables(source: str, target: str) -> None:
    """Copy what the relay keeps in PostgreSQL, as logical replication does."""
    with closing(psycopg2.connect(source)) as one, closing(psycopg2.connect(target)) as other:
        with one.cursor() as reading, other.cursor() as writing:
            writing.execute("SET synchronous_commit = on; SET statement_timeout = 60000; CREATE TABLE others (k text)")
            make_tables(writing)
            for table in ("outbox_watermarks", "outbox_receipts"):
                rows = io.StringIO()
                reading.copy_expert(f"COPY {table} TO STDOUT", rows)
                rows.seek(0)
                writing.copy_expert(f"COPY {table} FROM STDIN", rows)
        other.commit()


def test_cluster_that_was_set_back_has_another_past(outbox_dir: Path) -> None:
    """Numbers of transactions come again there, and those of the lost ones do not count."""
    with PostgresServer() as server, Bench(outbox_dir, server.url(), TABLE, OTHER, reconcile="auto", **QUICK) as bench:
        bench.query("CREATE TABLE others (k text)")
        bench.enqueue("other", {"k": "z"})
        with Relay(bench.box, bench.target) as relay:
            assert relay.drain(timeout=LONG)
        backup = server.backup()
        bench.query(BURN)
        park_a_trade(bench)
        server.stop()
        server.restore(backup)
        server.start()
        deliver_when_altered_back(bench)
