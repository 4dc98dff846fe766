"""A table operation is delivered when its rows are there; and it takes no lock that an INSERT does not take."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import psycopg2
import pytest

from outbox import Health, Operation, Relay
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
