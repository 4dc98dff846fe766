"""A table operation is delivered when its rows are there; and it takes no lock that an INSERT does not take."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg2
import psycopg2.extras
import pytest
from psycopg2 import sql
from sqlalchemy import Column, Connection, Integer, MetaData, Table, text
from sqlalchemy.orm import Session

from outbox import Entry, Health, Operation, Relay
from tests.unit.fakes.audit import query
from tests.unit.fakes.bench import Bench, completed, parked
from tests.unit.fakes.waiting import until

ROW = Operation("row", table="effects")

SWALLOW = """
CREATE FUNCTION swallow() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN IF new.n = 3 OR {everything} THEN RETURN NULL; END IF; RETURN new; END $$;
CREATE TRIGGER swallow BEFORE INSERT ON effects FOR EACH ROW EXECUTE FUNCTION swallow()"""
KEEPS_OUT = {
    "one of many": SWALLOW.format(everything="false"),
    "all": SWALLOW.format(everything="true"),
    "a rule": "CREATE RULE nothing AS ON INSERT TO effects DO INSTEAD NOTHING",
    "a rule for some": "CREATE RULE nothing AS ON INSERT TO effects WHERE new.n = 3 DO INSTEAD NOTHING",
    "a rule elsewhere": "CREATE TABLE other (n int); "
    "CREATE RULE other AS ON INSERT TO effects DO INSTEAD UPDATE other SET n = new.n",
}


@pytest.fixture
def url(postgres_url: str) -> str:
    query(postgres_url, "CREATE TABLE effects (id serial PRIMARY KEY, n int)")
    return postgres_url


def test_table_that_a_crash_empties_takes_nothing_for_good(url: str, outbox_dir: Path) -> None:
    """Its rows were gone after a crash of PostgreSQL, their receipts were not, and the status was healthy."""
    query(url, "ALTER TABLE effects SET UNLOGGED")
    with Bench(outbox_dir, url, ROW) as bench:
        bench.enqueue("row", {"n": 1})
        assert "table 'effects' is UNLOGGED" in parked(bench.apply())
        query(url, "ALTER TABLE effects SET LOGGED")
        assert completed(bench.apply()) == [1]


@pytest.mark.parametrize("declared", [{"may_vanish": True}, {"best_effort": True}], ids=str)
def test_row_that_may_be_lost_goes_into_an_unlogged_table(url: str, outbox_dir: Path, declared: Any) -> None:
    query(url, "ALTER TABLE effects SET UNLOGGED")
    with Bench(outbox_dir, url, Operation("row", table="effects", **declared)) as bench:
        bench.enqueue("row", {"n": 1})
        assert completed(bench.apply()) == [1]


@pytest.mark.parametrize("keeps_out", KEEPS_OUT.values(), ids=KEEPS_OUT)
def test_swallowed_row_stops_its_operation(url: str, outbox_dir: Path, keeps_out: str) -> None:
    query(url, keeps_out)
    with Bench(outbox_dir, url, ROW) as bench:
        for number in range(6):
            bench.enqueue("row", {"n": number})
        with Relay(bench.box, bench.target):
            until(lambda: bool(bench.box.status().needs_operator))
            status = bench.box.status()
        assert status.health is Health.NEEDS_OPERATOR
        assert "took 0 rows of 1 entry: a trigger or a rule keeps rows out" in status.needs_operator[0]
        [(rows,)] = bench.query("SELECT count(*) FROM effects")
        # Where others are written, only the one that is not waits.
        some = "= 3" in keeps_out and "true" not in keeps_out
        assert len(bench.receipts()) == rows == status.completed == (5 if some else 0)


def test_swallowed_row_without_columns_stops_its_operation(url: str, outbox_dir: Path) -> None:
    query(url, KEEPS_OUT["all"])
    with Bench(outbox_dir, url, ROW) as bench:
        bench.enqueue("row", {})
        assert "keeps rows out" in parked(bench.apply())


@pytest.mark.parametrize("keeps_out", KEEPS_OUT.values(), ids=KEEPS_OUT)
def test_swallowed_row_is_delivered_where_it_may_vanish(url: str, outbox_dir: Path, keeps_out: str) -> None:
    query(url, keeps_out)
    with Bench(outbox_dir, url, Operation("row", table="effects", may_vanish=True)) as bench:
        seqs = [bench.enqueue("row", {"n": number}) for number in range(6)]
        assert completed(bench.apply()) == seqs


def test_rows_written_elsewhere_by_an_insert_are_delivered(url: str, outbox_dir: Path) -> None:
    query(
        url,
        """
        CREATE TABLE parts (n int) PARTITION BY RANGE (n); CREATE TABLE part PARTITION OF parts DEFAULT;
        CREATE VIEW simple AS SELECT n FROM effects;
        CREATE VIEW triggered AS SELECT count(*)::int AS n FROM effects;
        CREATE FUNCTION instead() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN INSERT INTO effects (n) VALUES (new.n); RETURN new; END $$;
        CREATE TRIGGER t INSTEAD OF INSERT ON triggered FOR EACH ROW EXECUTE FUNCTION instead();
        CREATE TABLE ruled (n int);
        CREATE RULE r AS ON INSERT TO ruled DO INSTEAD INSERT INTO effects (n) VALUES (new.n);
        """,
    )
    tables = ["parts", "simple", "triggered", "ruled"]
    with Bench(outbox_dir, url, *[Operation(table, table=table) for table in tables]) as bench:
        seqs = [bench.enqueue(table, {"n": number}) for table in tables for number in range(3)]
        assert completed(bench.apply()) == seqs
        assert bench.query("SELECT count(*) FROM effects") == [(9,)]


def test_locked_old_partition_delays_no_row_of_the_newest(url: str, outbox_dir: Path) -> None:
    query(
        url,
        """
        CREATE TABLE parts (n int) PARTITION BY RANGE (n);
        CREATE TABLE part0 PARTITION OF parts FOR VALUES FROM (0) TO (10);
        CREATE TABLE part1 PARTITION OF parts FOR VALUES FROM (10) TO (20);
        CREATE TABLE below (n int); CREATE VIEW above AS SELECT effects.n FROM effects JOIN below USING (n);
        CREATE FUNCTION instead() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN INSERT INTO effects (n) VALUES (new.n); RETURN new; END $$;
        CREATE TRIGGER t INSTEAD OF INSERT ON above FOR EACH ROW EXECUTE FUNCTION instead();
        """,
    )
    operations = [Operation("part", table="parts"), Operation("view", table="above")]
    with Bench(outbox_dir, url, *operations, stall_timeout=5.0) as bench, closing(psycopg2.connect(url)) as other:
        with other.cursor() as cursor:
            cursor.execute("LOCK TABLE part0 IN ACCESS EXCLUSIVE MODE; LOCK TABLE below IN SHARE MODE")
        seqs = [bench.enqueue("part", {"n": 15}), bench.enqueue("view", {"n": 1})]
        assert completed(bench.apply()) == seqs
        other.rollback()


def test_missing_table_is_named_in_the_status(url: str, outbox_dir: Path) -> None:
    for name in ("absent", "nowhere.absent"):
        with Bench(outbox_dir / name, url, Operation("lost", table=name)) as bench:
            bench.enqueue("lost", {"n": 1})
            with Relay(bench.box, bench.target):
                until(lambda: bool(bench.box.status().needs_operator))
                status = bench.box.status()
            assert status.health is Health.NEEDS_OPERATOR
            assert f"table '{name}' does not exist (create it; the entries wait)" in status.needs_operator[0]


def test_many_partitions_need_no_lock_each(url: str, outbox_dir: Path) -> None:
    query(
        url,
        """
        CREATE TABLE parts (n int) PARTITION BY RANGE (n);
        DO $$ BEGIN FOR i IN 0..199 LOOP
            EXECUTE format('CREATE TABLE part%s PARTITION OF parts FOR VALUES FROM (%s) TO (%s)', i, i, i + 1);
        END LOOP; END $$;
        CREATE TABLE locks (n int);
        CREATE FUNCTION count_locks() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            INSERT INTO locks SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid() AND locktype = 'relation';
            RETURN new; END $$;
        CREATE TRIGGER t BEFORE INSERT ON part7 FOR EACH ROW EXECUTE FUNCTION count_locks();
        """,
    )
    with Bench(outbox_dir, url, Operation("part", table="parts")) as bench:
        assert completed(bench.apply(bench.enqueue("part", {"n": 7}))) == [1]
        [(locks,)] = bench.query("SELECT n FROM locks")
        assert locks < 50


EFFECTS = Table("effects", MetaData(), Column("id", Integer, primary_key=True), Column("n", Integer))


def cursor_of(connection: Connection) -> Any:
    return connection.connection.cursor()


def in_a_session(connection: Connection, entry: Entry) -> Any:
    with Session(connection) as session, session.begin():
        return session.execute(EFFECTS.insert().returning(EFFECTS.c.id), {"n": entry.args["n"]}).scalar_one()


Does = Callable[[Connection, Entry], Any]


def by_text(statement: str) -> Does:
    def handler(connection: Connection, entry: Entry) -> None:
        connection.execute(text(statement), entry.args)

    return handler


# With and without an exception of their own where there is no row.
HANDLERS: dict[str, Does] = {
    "text": by_text("INSERT INTO effects (n) VALUES (:n)"),
    "upsert": by_text("INSERT INTO effects (n) VALUES (:n) ON CONFLICT (id) DO UPDATE SET n = excluded.n"),
    "returning": lambda conn, entry: conn.execute(
        text("INSERT INTO effects (n) VALUES (:n) RETURNING id"), entry.args
    ).scalar_one(),
    "session": in_a_session,
    "table": lambda conn, entry: conn.execute(EFFECTS.insert(), {"n": entry.args["n"]}).rowcount,
    "driver": lambda conn, entry: cursor_of(conn).execute("insert into effects(n) values (%(n)s) -- n\n", entry.args),
    "composed": lambda conn, entry: cursor_of(conn).execute(
        sql.SQL("INSERT INTO {} (n) VALUES (%(n)s)").format(sql.Identifier("public", "effects")), entry.args
    ),
    "literal": lambda conn, entry: cursor_of(conn).execute(b"INSERT INTO effects (n) VALUES (3 + length('where') - 5)"),
    "many": lambda conn, entry: cursor_of(conn).executemany(
        "INSERT INTO effects (n) VALUES (%s)", ([n] for n in (entry.args["n"], 100))
    ),
    "many by name": lambda conn, entry: cursor_of(conn).executemany(
        query="INSERT INTO effects (n) VALUES (%s)", vars_list=[[entry.args["n"]]]
    ),
    "values": lambda conn, entry: psycopg2.extras.execute_values(
        cursor_of(conn), "INSERT INTO effects (n) VALUES %s", [[entry.args["n"]]]
    ),
}


@pytest.mark.parametrize(
    ("handler", "keeps_out"),
    [
        (handler, keeps_out)
        for handler in HANDLERS
        for keeps_out in ("all", "a rule", "one of many")
        # PostgreSQL refuses RETURNING by itself.
        if keeps_out != "a rule" or handler not in ("returning", "session", "table")
    ],
)
def test_row_of_a_handler_that_is_swallowed_parks_its_operation(
    url: str, outbox_dir: Path, handler: str, keeps_out: str
) -> None:
    query(url, KEEPS_OUT[keeps_out])
    with Bench(
        outbox_dir, url, Operation("row", handler=HANDLERS[handler]), Operation("other", handler=other)
    ) as bench:
        bench.enqueue("row", {"n": 3})
        bench.enqueue("other", {"n": 3})
        outcome = bench.apply()
        assert completed(outcome) == [2]
        assert outcome.rejected == []
        assert "by the handler of 'row' wrote no row: a trigger or a rule keeps rows out" in parked(outcome)
        assert "an INSERT into effects" in parked(outcome).replace('"public"."effects"', "effects")
        assert bench.query("SELECT count(*) FROM effects") == [(0,)]
        query(url, "DROP FUNCTION IF EXISTS swallow CASCADE; DROP RULE IF EXISTS nothing ON effects")
        assert completed(bench.apply(1)) == [1]


def other(connection: Connection, entry: Entry) -> None:
    """Statements that may write nothing."""
    for statement in (
        "INSERT INTO effects (n) SELECT 3 WHERE false",
        "INSERT INTO effects (n) VALUES (3) ON CONFLICT DO NOTHING",
        "INSERT INTO effects (n) VALUES (3) ON CONFLICT (id) DO UPDATE SET n = 1 WHERE effects.n = 9",
        "UPDATE effects SET n = 4 WHERE n = 99",
        "DELETE FROM effects",
        "SELECT id FROM effects",
    ):
        connection.execute(text(statement))


def test_row_of_a_handler_may_vanish_where_that_is_declared(url: str, outbox_dir: Path) -> None:
    query(url, KEEPS_OUT["all"])
    with Bench(outbox_dir, url, Operation("row", handler=HANDLERS["text"], may_vanish=True)) as bench:
        assert completed(bench.apply(bench.enqueue("row", {"n": 3}))) == [1]
