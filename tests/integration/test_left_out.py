"""A default that PostgreSQL refuses is no entry's fault: sound entries wait until the table is corrected."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, text
from sqlalchemy.orm import Session

from outbox import Entry, Operation
from tests.unit.fakes.audit import query
from tests.unit.fakes.bench import Bench, completed, parked, rejected

QUICK: dict[str, Any] = {"backoff_base": 0.01, "backoff_cap": 0.05, "max_retries": 3}


def insert(connection: Connection, entry: Entry) -> None:
    connection.execute(text("INSERT INTO fills (k, n) VALUES (:k, :n)"), dict(entry.args))


def insert_in_a_session(connection: Connection, entry: Entry) -> None:
    with Session(connection) as session, session.begin():
        session.execute(text('INSERT INTO public."fills" ("k", n) VALUES (:k, :n)'), dict(entry.args))


@dataclass(frozen=True)
class Fault:
    broken: str
    mended: str
    sqlstate: str


TABLES = {
    "plain": "CREATE TABLE fills (id bigserial, k text, n int, tenant int DEFAULT 7)",
    "partitioned": """CREATE TABLE fills (id bigserial, k text, n int, tenant int DEFAULT 7) PARTITION BY LIST (n);
        CREATE TABLE fills_rest PARTITION OF fills DEFAULT""",
}
VIEW = """ALTER TABLE fills RENAME TO kept;
    CREATE VIEW fills AS SELECT id, k, n, tenant FROM kept"""
FAULTS = {
    "not null": Fault(
        "ALTER TABLE fills ADD venue text; ALTER TABLE fills ALTER venue SET NOT NULL",
        "ALTER TABLE fills ALTER venue DROP NOT NULL",
        "23502",
    ),
    "check": Fault(
        "ALTER TABLE fills ADD CONSTRAINT known CHECK (tenant < 5)", "ALTER TABLE fills DROP CONSTRAINT known", "23514"
    ),
    "check of nothing": Fault(
        "ALTER TABLE fills ADD CONSTRAINT frozen CHECK (false)", "ALTER TABLE fills DROP CONSTRAINT frozen", "23514"
    ),
    "foreign key": Fault(
        "CREATE TABLE tenants (id int PRIMARY KEY); ALTER TABLE fills ADD FOREIGN KEY (tenant) REFERENCES tenants",
        "INSERT INTO tenants VALUES (7)",
        "23503",
    ),
    "domain not null": Fault(
        "CREATE DOMAIN place AS text NOT NULL; ALTER TABLE fills ADD venue place",
        "ALTER TABLE fills ALTER venue SET DEFAULT 'x'",
        "23502",
    ),
    "domain check": Fault(
        "CREATE DOMAIN tenant AS int CHECK (VALUE < 5); ALTER TABLE fills ALTER tenant TYPE tenant",
        "ALTER TABLE fills ALTER tenant SET DEFAULT 1",
        "23514",
    ),
    "sequence beyond its column": Fault(
        "ALTER TABLE fills ALTER id TYPE int; SELECT setval('fills_id_seq', 2147483647)",
        "ALTER TABLE fills ALTER id TYPE bigint",
        "22003",
    ),
}


@pytest.mark.parametrize("how", [insert, insert_in_a_session, "table"])
@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_refused_default_makes_no_dead_letters(
    postgres_url: str, outbox_dir: Path, table: str, fault: Fault, how: Any
) -> None:
    """As after a migration while the program runs: each entry became a dead letter at once."""
    query(postgres_url, table)
    query(postgres_url, fault.broken)
    operation = Operation("fill", table="fills") if how == "table" else Operation("fill", handler=how)
    with Bench(outbox_dir, postgres_url, operation, **QUICK) as bench:
        for number in (1, 2, 3):
            bench.enqueue("fill", {"k": f"k{number}", "n": number})
        outcome = bench.apply()
        assert rejected(outcome) == []
        assert fault.sqlstate in parked(outcome) or "must not be null" in parked(outcome)
        assert "wait" in parked(outcome)
        query(postgres_url, fault.mended)
        assert completed(bench.apply()) == [1, 2, 3]


@pytest.mark.parametrize("how", [insert, "table"])
def test_refused_default_below_a_view_makes_no_dead_letters(postgres_url: str, outbox_dir: Path, how: Any) -> None:
    query(postgres_url, TABLES["plain"])
    query(postgres_url, VIEW)
    query(postgres_url, "ALTER TABLE kept ADD venue text; ALTER TABLE kept ALTER venue SET NOT NULL")
    operation = Operation("fill", table="fills") if how == "table" else Operation("fill", handler=how)
    with Bench(outbox_dir, postgres_url, operation, **QUICK) as bench:
        bench.enqueue("fill", {"k": "a", "n": 1})
        outcome = bench.apply()
        assert (rejected(outcome), "venue" in parked(outcome)) == ([], True)


def test_value_below_a_view_that_renames_it_is_the_entrys_fault(postgres_url: str, outbox_dir: Path) -> None:
    query(postgres_url, TABLES["plain"])
    query(postgres_url, "ALTER TABLE fills ALTER tenant SET NOT NULL; ALTER TABLE fills RENAME TO kept")
    query(postgres_url, "CREATE VIEW fills AS SELECT k, tenant AS owner FROM kept")
    with Bench(outbox_dir, postgres_url, Operation("fill", table="fills"), **QUICK) as bench:
        bench.enqueue("fill", {"k": "a", "owner": None})
        assert rejected(bench.apply()) == [1]


DATA_FAULTS = {
    "a value that it gives": "ALTER TABLE fills ADD CONSTRAINT small CHECK (n < 2)",
    "a value that it gives, with a default": "ALTER TABLE fills ADD CONSTRAINT small CHECK (n < 2 OR tenant < 5)",
    "a generated column": """ALTER TABLE fills ADD twice int GENERATED ALWAYS AS (n * 2) STORED;
        ALTER TABLE fills ADD CONSTRAINT small CHECK (twice < 4)""",
    "a column that a trigger sets": """
        CREATE FUNCTION set_tenant() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN new.tenant := new.n; RETURN new; END $$;
        CREATE TRIGGER t BEFORE INSERT ON fills FOR EACH ROW EXECUTE FUNCTION set_tenant();
        ALTER TABLE fills ADD CONSTRAINT small CHECK (tenant < 2)""",
    "a whole row": "ALTER TABLE fills ADD CONSTRAINT small CHECK ((fills).n < 2)",
    "a number that is too large": "ALTER TABLE fills ALTER n TYPE smallint; ALTER TABLE fills ALTER id TYPE int",
}


@pytest.mark.parametrize("how", [insert, insert_in_a_session, "table"])
@pytest.mark.parametrize("fault", DATA_FAULTS.values(), ids=DATA_FAULTS)
def test_refused_value_of_an_entry_is_its_own_fault(postgres_url: str, outbox_dir: Path, fault: str, how: Any) -> None:
    query(postgres_url, TABLES["plain"])
    query(postgres_url, fault)
    operation = Operation("fill", table="fills") if how == "table" else Operation("fill", handler=how)
    with Bench(outbox_dir, postgres_url, operation, **QUICK) as bench:
        for number in (1, 70_000):
            bench.enqueue("fill", {"k": f"k{number}", "n": number})
        outcome = bench.apply()
        assert (completed(outcome), rejected(outcome), parked(outcome)) == ([1], [2], "")
        assert outcome.rejected[0][1].permanent


def test_insert_without_names_of_columns_gives_them_all(postgres_url: str, outbox_dir: Path) -> None:
    def insert_all(connection: Connection, entry: Entry) -> None:
        connection.execute(text("INSERT INTO fills VALUES (1, :k, :n, NULL)"), dict(entry.args))

    query(postgres_url, TABLES["plain"])
    query(postgres_url, "ALTER TABLE fills ALTER tenant SET NOT NULL")
    with Bench(outbox_dir, postgres_url, Operation("fill", handler=insert_all), **QUICK) as bench:
        bench.enqueue("fill", {"k": "a", "n": 1})
        outcome = bench.apply()
        assert (rejected(outcome), parked(outcome)) == ([1], "")
