"""One operation's trouble is its own: its entries wait, with what must come after them, and all else goes on."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg2
import psycopg2.extras
import pytest
from sqlalchemy import Connection, text
from sqlalchemy.orm import Session

from outbox import Entry, Health, Operation, Outbox, OutboxStatus, PostgresTarget, Relay, TargetMisconfigured
from tests.unit.fakes.audit import query
from tests.unit.fakes.bench import Bench, completed, parked, rejected
from tests.unit.fakes.waiting import LONG, until

QUICK: dict[str, Any] = {"backoff_base": 0.01, "backoff_cap": 0.05, "max_retries": 3}
TRADE = Operation("trade", table="trades", order_by="k")
NOTE = Operation("note", table="notes", order_by="k", best_effort=True)
EVENT = Operation("event", table="events", order_by="k")


@pytest.fixture
def url(postgres_url: str) -> str:
    query(postgres_url, "CREATE TABLE trades (id serial PRIMARY KEY, k text, n int, day int DEFAULT 1)")
    return postgres_url


@contextmanager
def relaying(bench: Bench, *, drains: bool) -> Iterator[OutboxStatus]:
    """The status while a relay is at work that has delivered what it can."""
    with Relay(bench.box, bench.target) as relay:
        if drains:
            assert relay.drain(timeout=LONG)
        else:
            until(lambda: bool(bench.box.status().needs_operator))
        yield bench.box.status()


def trades(bench: Bench) -> list[int]:
    return [row[0] for row in bench.query("SELECT n FROM trades ORDER BY id")]


def test_best_effort_operation_without_its_table_stops_nobody(url: str, outbox_dir: Path) -> None:
    with Bench(outbox_dir, url, TRADE, NOTE, **QUICK) as bench:
        for number in range(20):
            bench.enqueue("note", {"k": "a", "n": number})
            bench.enqueue("trade", {"k": "a", "n": number})
        with relaying(bench, drains=True) as status:
            assert status.health is Health.DEGRADED
            assert "operation 'note' is parked" in status.degraded[0]
            assert "table 'notes' does not exist" in status.degraded[0]
        assert trades(bench) == list(range(20))
        assert (status.pending, status.discarded) == (20, 0)
        query(url, "CREATE TABLE notes (id serial, k text, n int)")
        with relaying(bench, drains=True):
            pass
        assert bench.query("SELECT n FROM notes ORDER BY id") == [(number,) for number in range(20)]


def test_entries_of_a_parked_operation_hold_back_their_keys_only(url: str, outbox_dir: Path) -> None:
    with Bench(outbox_dir, url, TRADE, EVENT, **QUICK) as bench:
        bench.enqueue("trade", {"k": "a", "n": 1})
        bench.enqueue("event", {"k": "a", "n": 2})
        bench.enqueue("trade", {"k": "a", "n": 3})
        bench.enqueue("trade", {"k": "b", "n": 4})
        with bench.box.transaction() as transaction:
            transaction.enqueue("event", {"k": "c", "n": 5})
            transaction.enqueue("trade", {"k": "d", "n": 6})
        bench.enqueue("trade", {"k": "d", "n": 7})
        with relaying(bench, drains=False) as status:
            assert status.health is Health.NEEDS_OPERATOR
            assert status.relay.parked == {"event": "table 'events' does not exist (create it; the entries wait)"}
            assert not status.relay.stopped
            assert trades(bench) == [1, 4]
            query(url, "CREATE TABLE events (id serial, k text, n int)")
        with relaying(bench, drains=True) as status:
            assert status.health is Health.HEALTHY
        assert trades(bench)[:2] == [1, 4]
        assert sorted(trades(bench)[2:]) == [3, 6, 7]
        assert trades(bench).index(6) < trades(bench).index(7)


SCHEMA_FAULTS = {
    "no partition": (
        """DROP TABLE trades;
        CREATE TABLE trades (id serial, k text, n int, day int DEFAULT 2) PARTITION BY RANGE (day);
        CREATE TABLE may PARTITION OF trades FOR VALUES FROM (1) TO (2)""",
        "CREATE TABLE june PARTITION OF trades FOR VALUES FROM (2) TO (3)",
        "23514",
    ),
    "sequence behind its rows": (
        "INSERT INTO trades (id, k) SELECT n, 'old' FROM generate_series(1, 300) n",
        "SELECT setval('trades_id_seq', 300)",
        "23505",
    ),
    "sequence behind the rows of a partition": (
        """DROP TABLE trades;
        CREATE TABLE trades (id serial PRIMARY KEY, k text, n int, day int) PARTITION BY RANGE (id);
        CREATE TABLE low PARTITION OF trades DEFAULT;
        INSERT INTO trades (id, k) SELECT n, 'old' FROM generate_series(1, 300) n""",
        "SELECT setval('trades_id_seq', 300)",
        "23505",
    ),
    "sequence behind its rows, deferred": (
        """ALTER TABLE trades DROP CONSTRAINT trades_pkey;
        ALTER TABLE trades ADD PRIMARY KEY (id) DEFERRABLE INITIALLY DEFERRED;
        INSERT INTO trades (id, k) SELECT n, 'old' FROM generate_series(1, 100000) n""",
        "SELECT setval('trades_id_seq', 100000)",
        "23505",
    ),
    "sequence exhausted": (
        "ALTER SEQUENCE trades_id_seq MAXVALUE 2; SELECT nextval('trades_id_seq'), nextval('trades_id_seq')",
        "ALTER SEQUENCE trades_id_seq NO MAXVALUE",
        "2200H",
    ),
    "no table that a trigger writes": (
        """CREATE FUNCTION missing() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN INSERT INTO audit VALUES (1); RETURN new; END $$;
        CREATE TRIGGER t BEFORE INSERT ON trades FOR EACH ROW EXECUTE FUNCTION missing()""",
        "CREATE TABLE audit (n int)",
        "42P01",
    ),
    "server behind a foreign table away": (
        """ALTER TABLE trades RENAME TO behind;
        CREATE EXTENSION postgres_fdw;
        CREATE SERVER far FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '127.0.0.1', port '1', dbname 'none');
        CREATE USER MAPPING FOR CURRENT_USER SERVER far OPTIONS (user 'postgres');
        CREATE FOREIGN TABLE trades (k text, n int) SERVER far OPTIONS (table_name 'behind')""",
        """DO $$ BEGIN EXECUTE format('ALTER SERVER far OPTIONS (SET port %L, SET dbname %L)',
            inet_server_port(), current_database()); END $$""",
        "08001",
    ),
    "published without a replica identity": (
        """CREATE TABLE newest (n int);
        CREATE PUBLICATION everything FOR ALL TABLES;
        CREATE FUNCTION remember() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN UPDATE newest SET n = new.n; RETURN new; END $$;
        CREATE TRIGGER t BEFORE INSERT ON trades FOR EACH ROW EXECUTE FUNCTION remember()""",
        "ALTER TABLE newest REPLICA IDENTITY FULL",
        "55000",
    ),
}


@pytest.mark.parametrize("best_effort", [False, True])
@pytest.mark.parametrize(("fault", "repair", "sqlstate"), SCHEMA_FAULTS.values(), ids=SCHEMA_FAULTS)
def test_schema_fault_rejects_nothing_and_passes_when_mended(
    url: str, outbox_dir: Path, fault: str, repair: str, sqlstate: str, best_effort: bool
) -> None:
    query(url, fault)
    operation = Operation("trade", table="trades", order_by="k", best_effort=best_effort)
    with Bench(outbox_dir, url, operation, **QUICK) as bench:
        for number in range(60):
            bench.enqueue("trade", {"k": f"k{number % 20}", "n": number})
        with Relay(bench.box, bench.target) as relay:
            if best_effort:
                assert relay.drain(timeout=LONG)
            until(lambda: bool(bench.box.status().degraded if best_effort else bench.box.status().needs_operator))
            status = bench.box.status()
            assert (status.pending, status.dead_letters, status.discarded) == (60, 0, 0)
            assert {entry.attempts for entry in bench.box.pending()} == {0}
            said = status.degraded if best_effort else status.needs_operator
            assert "operation 'trade' is parked" in said[0]
            assert sqlstate in said[0]
            query(url, repair)
            until(lambda: not bench.box.status().pending)
        assert bench.box.status().completed == 60
    found = query(url, "SELECT n FROM trades WHERE k <> 'old' ORDER BY n")
    assert found == [(number,) for number in range(60)]


@pytest.mark.parametrize("name", ["server behind a foreign table away", "published without a replica identity"])
def test_entry_that_comes_alone_is_no_dead_letter(url: str, outbox_dir: Path, name: str) -> None:
    query(url, SCHEMA_FAULTS[name][0])
    query(url, "CREATE TABLE events (id serial, k text, n int)")
    with Bench(outbox_dir, url, TRADE, EVENT, **QUICK) as bench:
        bench.enqueue("trade", {"k": "a", "n": 1})
        bench.enqueue("event", {"k": "b", "n": 2})
        outcome = bench.apply()
        assert (completed(outcome), rejected(outcome)) == ([2], [])
        assert parked(outcome).startswith(f"trade: {SCHEMA_FAULTS[name][2]}")


def test_unique_value_that_the_entry_gives_is_its_own_fault(url: str, outbox_dir: Path) -> None:
    query(url, "CREATE UNIQUE INDEX one ON trades (n); INSERT INTO trades (n) VALUES (1)")
    with Bench(outbox_dir, url, TRADE) as bench:
        bad = bench.enqueue("trade", {"k": "a", "n": 1})
        outcome = bench.apply()
        assert (rejected(outcome), parked(outcome)) == ([bad], "")
        assert outcome.rejected[0][1].permanent


BEHIND = {
    "serial": "CREATE TABLE fills (id serial PRIMARY KEY, n int, key int UNIQUE)",
    "identity": "CREATE TABLE fills (id int GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY, n int, key int UNIQUE)",
    "partitions": """CREATE TABLE fills (n int, key int, id int GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY)
        PARTITION BY RANGE (id); CREATE TABLE low PARTITION OF fills DEFAULT""",
    "deferred": """CREATE TABLE fills (id serial PRIMARY KEY DEFERRABLE INITIALLY DEFERRED, n int, key int UNIQUE)""",
    "two columns": """CREATE SEQUENCE "own ids"; CREATE TABLE fills (n int DEFAULT 0, key int,
        id bigint DEFAULT nextval('"own ids"'), PRIMARY KEY (key, id)); ALTER TABLE fills ALTER key SET DEFAULT 0""",
    "a trigger's": """CREATE TABLE fills (id int, n int, key int UNIQUE); CREATE TABLE audit (id serial PRIMARY KEY);
        CREATE FUNCTION audit() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN INSERT INTO audit DEFAULT VALUES; RETURN new; END $$;
        CREATE TRIGGER t BEFORE INSERT ON fills FOR EACH ROW WHEN (new.n > 0) EXECUTE FUNCTION audit();
        INSERT INTO audit SELECT n FROM generate_series(1, 50) n""",
}


def fill(connection: Connection, entry: Entry) -> None:
    connection.execute(text("INSERT INTO fills (n) VALUES (:n)"), entry.args)


def fill_in_a_session(connection: Connection, entry: Entry) -> None:
    """Which rolls back the relay's transaction when it fails."""
    with Session(connection) as session, session.begin():
        session.execute(text("INSERT INTO fills (n) VALUES (:n)"), dict(entry.args))


def fill_by_name(connection: Connection, entry: Entry) -> None:
    statement = "INSERT INTO fills (id, n) VALUES (nextval('\"fill ids\"'), :n)"
    connection.execute(text(statement), entry.args)


def fill_by_number(connection: Connection, entry: Entry) -> None:
    number = connection.scalar(text("SELECT nextval(:name)"), {"name": '"fill ids"'})
    connection.execute(text("INSERT INTO fills (id, n) VALUES (:id, :n)"), {**entry.args, "id": number})


@pytest.mark.parametrize("how", [fill, fill_in_a_session, fill_by_name, fill_by_number, "table"])
@pytest.mark.parametrize("table", BEHIND)
def test_sequence_that_is_behind_makes_no_dead_letters(url: str, outbox_dir: Path, table: str, how: Any) -> None:
    """As after a restore from a dump, or in a logical copy."""
    query(url, BEHIND[table])
    query(url, 'CREATE SEQUENCE "fill ids"; INSERT INTO fills (id, n) SELECT n, 0 FROM generate_series(1, 50) n')
    operation = Operation("fill", table="fills") if how == "table" else Operation("fill", handler=how)
    with Bench(outbox_dir, url, operation, **QUICK) as bench:
        for number in (1, 2, 3):
            bench.enqueue("fill", {"n": number})
        outcome = bench.apply()
        assert rejected(outcome) == []
        assert "23505" in parked(outcome)
        sequences = "audit_id_seq|fills_id_seq|own ids|fill ids"
        assert re.search(rf'set sequence "?({sequences})"? forward, it is behind its rows', parked(outcome))
        query(url, "SELECT setval(oid::regclass, 60) FROM pg_class WHERE relkind = 'S'")
        assert completed(bench.apply()) == [1, 2, 3]


@pytest.fixture
def lists_as_json() -> Iterator[None]:
    """The host has taught the driver to write lists as JSON."""
    before = psycopg2.extensions.adapters[list, psycopg2.extensions.ISQLQuote]
    psycopg2.extensions.register_adapter(list, psycopg2.extras.Json)
    yield
    psycopg2.extensions.register_adapter(list, before)


@pytest.mark.usefixtures("lists_as_json")
def test_sequence_that_is_behind_is_seen_if_lists_are_json(url: str, outbox_dir: Path) -> None:
    query(url, BEHIND["serial"])
    query(url, "INSERT INTO fills (id, n) SELECT n, 0 FROM generate_series(1, 50) n")
    with Bench(outbox_dir, url, Operation("fill", handler=fill), **QUICK) as bench:
        bench.enqueue("fill", {"n": 1})
        outcome = bench.apply()
        assert (rejected(outcome), "set sequence fills_id_seq forward" in parked(outcome)) == ([], True)


@pytest.mark.parametrize("how", [fill, fill_in_a_session])
def test_number_that_a_handler_was_given_is_its_entrys_fault(url: str, outbox_dir: Path, how: Any) -> None:
    """Though the key has a sequence, which has given the same number to the entry before."""

    def given(connection: Connection, entry: Entry) -> None:
        connection.execute(text("INSERT INTO fills (id, n) VALUES (:id, :n)"), entry.args)

    query(url, BEHIND["serial"])
    operations = [Operation("fill", handler=how), Operation("given", handler=given)]
    with Bench(outbox_dir, url, *operations) as bench:
        query(url, "INSERT INTO fills (id) VALUES (7)")
        assert completed(bench.apply(bench.enqueue("fill", {"n": 1}))) == [1]
        for key in (1, 100, 7):
            bench.enqueue("given", {"id": key, "n": key})
        outcome = bench.apply(2, 3, 4)
        assert (completed(outcome), rejected(outcome), parked(outcome)) == ([3], [2, 4], "")
        assert all(error.permanent for _, error in outcome.rejected)


def test_check_of_a_trigger_is_the_entrys_fault(url: str, outbox_dir: Path) -> None:
    query(
        url,
        """
        CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN IF new.n = 2 THEN RAISE EXCEPTION 'no' USING ERRCODE = '23514'; END IF; RETURN new; END $$;
        CREATE TRIGGER t BEFORE INSERT ON trades FOR EACH ROW EXECUTE FUNCTION refuse()
        """,
    )
    with Bench(outbox_dir, url, TRADE) as bench:
        for number in (1, 2, 3):
            bench.enqueue("trade", {"k": f"k{number}", "n": number})
        outcome = bench.apply()
        assert (completed(outcome), rejected(outcome), parked(outcome)) == ([1, 3], [2], "")


def test_orphan_beside_a_parked_best_effort_operation_is_dead_letter(url: str, outbox_dir: Path) -> None:
    query(url, "CREATE TABLE children (id serial, parent int REFERENCES trades)")
    with Bench(outbox_dir, url, NOTE, Operation("child", table="children"), **QUICK) as bench:
        bench.enqueue("note", {"k": "a", "n": 1})
        with relaying(bench, drains=True):
            bench.enqueue("child", {"parent": 99})
        with relaying(bench, drains=True) as status:
            assert (status.dead_letters, status.pending) == (1, 1)


def test_row_refused_by_a_policy_concerns_its_entry(url: str, outbox_dir: Path) -> None:
    role = f"clerk_{url.rpartition('_')[2]}"
    query(url, f"CREATE ROLE {role} LOGIN")
    try:
        query(url, f"GRANT ALL ON SCHEMA public TO {role}; GRANT ALL ON trades TO {role}")
        query(url, f"GRANT ALL ON SEQUENCE trades_id_seq TO {role}; ALTER TABLE trades ENABLE ROW LEVEL SECURITY")
        query(url, "CREATE POLICY p ON trades WITH CHECK (n <> 3)")
        parts = urlsplit(url)
        clerk = urlunsplit(parts._replace(netloc=f"{role}@{parts.hostname}:{parts.port}"))
        with Bench(outbox_dir, clerk, TRADE, **QUICK) as bench:
            for number in range(20):
                bench.enqueue("trade", {"k": f"k{number}", "n": number})
            with relaying(bench, drains=True) as status:
                assert (status.completed, status.dead_letters) == (19, 1)
            [letter] = bench.box.dead_letters()
            assert (letter.args["n"], letter.attempts) == (3, 4)
        query(url, f"REVOKE ALL ON trades FROM {role}")
        with Bench(outbox_dir / "2", clerk, TRADE, **QUICK) as bench:
            bench.enqueue("trade", {"k": "a", "n": 1})
            assert "42501" in parked(bench.apply())
    finally:
        query(url, f"DROP OWNED BY {role} CASCADE; DROP ROLE {role}")


@pytest.mark.parametrize("lanes", [1, 2])
def test_children_wait_for_a_parent_that_may_still_come(url: str, outbox_dir: Path, lanes: int) -> None:
    query(
        url,
        """
        CREATE TABLE sessions (id text PRIMARY KEY);
        CREATE TABLE children (id serial, session text REFERENCES sessions);
        CREATE FUNCTION deny() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN IF to_regclass('go') IS NULL THEN RAISE EXCEPTION 'not yet'; END IF; RETURN new; END $$;
        CREATE TRIGGER t BEFORE INSERT ON sessions FOR EACH ROW EXECUTE FUNCTION deny()
        """,
    )
    session = Operation("session", table="sessions", order_by="id")
    child = Operation("child", table="children")
    with Bench(outbox_dir, url, session, child, lanes=lanes, **{**QUICK, "max_retries": 1_000_000}) as bench:
        bench.enqueue("session", {"id": "S"})
        for number in range(20):
            bench.enqueue("child", {"session": "S"}, order_by=f"c{number}")
        with Relay(bench.box, bench.target) as relay:
            assert not relay.drain(timeout=0.7)
            query(url, "CREATE TABLE go ()")
            assert relay.drain(timeout=LONG)
        assert bench.box.status().dead_letters == 0
        assert bench.query("SELECT count(*) FROM children") == [(20,)]


def test_child_without_any_parent_is_a_dead_letter(url: str, outbox_dir: Path) -> None:
    query(url, "CREATE TABLE children (id serial, parent int REFERENCES trades)")
    with Bench(outbox_dir, url, Operation("child", table="children"), **QUICK) as bench:
        bench.enqueue("child", {"parent": 99})
        with relaying(bench, drains=True) as status:
            assert status.dead_letters == 1


def test_entries_that_fail_only_together_are_tried_alone(url: str, outbox_dir: Path) -> None:
    def handler(connection: Connection, entry: Entry) -> None:
        connection.execute(text("CREATE TEMP TABLE staging (n int) ON COMMIT DROP"))
        connection.execute(text("INSERT INTO trades (n) VALUES (:n)"), {"n": entry.args["n"]})

    with Bench(outbox_dir, url, Operation("call", handler=handler)) as bench:
        for number in range(5):
            bench.enqueue("call", {"n": number})
        outcome = bench.apply()
        assert (completed(outcome), parked(outcome)) == ([1, 2, 3, 4, 5], "")
        assert trades(bench) == [0, 1, 2, 3, 4]


def test_entry_that_alone_lacks_something_waits_alone(url: str, outbox_dir: Path) -> None:
    def handler(connection: Connection, entry: Entry) -> None:
        table = "absent" if entry.args["n"] == 2 else "trades"
        connection.exec_driver_sql(f"INSERT INTO {table} (n) VALUES ({entry.args['n']})")

    with Bench(outbox_dir, url, Operation("call", handler=handler, order_by="k"), **QUICK) as bench:
        for number, key in ((1, "a"), (2, "b"), (3, "b"), (4, "c")):
            bench.enqueue("call", {"n": number, "k": key})
        with relaying(bench, drains=False) as status:
            assert status.relay.parked == {}
            assert status.needs_operator[0].startswith("entry 2 waits, and its ordering key: 42P01")
        assert trades(bench) == [1, 4]
        query(url, "CREATE TABLE absent (n int)")
        with relaying(bench, drains=True) as status:
            assert (status.health, status.relay.waiting) == (Health.HEALTHY, {})
        assert trades(bench) == [1, 4, 3]


@pytest.mark.parametrize("sqlstate", ["22023", "23514", "P0001", "42P01"])
def test_failure_of_our_own_statement_blames_no_entry(url: str, outbox_dir: Path, sqlstate: str) -> None:
    with Bench(outbox_dir, url, TRADE) as bench:
        assert completed(bench.apply(bench.enqueue("trade", {"k": "a", "n": 1}))) == [1]
        query(
            url,
            f"""
            CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
                $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '{sqlstate}', CONSTRAINT = 'c'; END $$;
            CREATE TRIGGER t BEFORE INSERT ON outbox_receipts FOR EACH ROW EXECUTE FUNCTION refuse()
            """,
        )
        bench.enqueue("trade", {"k": "a", "n": 2})
        outcome = bench.apply(2)
        assert isinstance(outcome.interruption, TargetMisconfigured)
        assert (outcome.completed, outcome.rejected, outcome.waiting, outcome.parked) == ([], [], [], {})


def test_adapters_and_readers_of_the_host_change_nothing(url: str, outbox_dir: Path) -> None:
    """A host may teach the driver, for the whole process, to write lists as JSON and to read numbers as text."""

    def handler(connection: Connection, entry: Entry) -> dict[str, Any]:
        connection.execute(text("INSERT INTO trades (n) VALUES (:n)"), {"n": entry.args["n"]})
        return {"ok": "\u00fc"}

    kinds = psycopg2.extensions
    before = dict(kinds.adapters), dict(kinds.string_types)
    kinds.register_adapter(list, psycopg2.extras.Json)
    kinds.register_adapter(dict, psycopg2.extras.Json)
    kinds.register_type(kinds.new_type((20,), "NUMBERS", lambda value, cursor: value))
    try:
        with Bench(outbox_dir, url, TRADE, Operation("call", handler=handler)) as bench:
            seqs = [bench.enqueue("trade", {"k": "a", "n": 1}), bench.enqueue("call", {"n": 2})]
            assert completed(bench.apply()) == seqs
            again = bench.apply()
            assert completed(again) == seqs
            assert "ok" in again.completed[1][1].decode()
    finally:
        kinds.adapters.clear()
        kinds.adapters.update(before[0])
        kinds.string_types.clear()
        kinds.string_types.update(before[1])
    assert sorted(row[0] for row in query(url, "SELECT n FROM trades")) == [1, 2]


def test_undeclared_operation_holds_up_no_other(url: str, outbox_dir: Path) -> None:
    with Bench(outbox_dir, url, TRADE, EVENT, **QUICK) as bench:
        bench.enqueue("event", {"k": "a", "n": 1})
        bench.enqueue("trade", {"k": "b", "n": 2})
        box: Outbox = bench.box
        relay = Relay(box, PostgresTarget(url, [TRADE], config=box.config))
        with relay:
            until(lambda: trades(bench) == [2] and bool(box.status().relay.parked))
        assert box.status().pending == 1
