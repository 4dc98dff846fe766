"""What a table's own code sets for its session reaches neither the next rows nor the commit."""

from __future__ import annotations

from pathlib import Path

import pytest

from outbox import Operation
from outbox.postgres.connection import GuardedConnection
from tests.unit.fakes.audit import query
from tests.unit.fakes.bench import Bench, completed, parked

TABLES = """
CREATE SCHEMA other;
CREATE TABLE first (n int);
CREATE TABLE second (n int, durable text DEFAULT current_setting('synchronous_commit'));
CREATE TABLE other.first (n int);
CREATE TABLE other.second (n int);
CREATE FUNCTION sets() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {sets}; RETURN new; END $$;
CREATE FUNCTION passes(n int) RETURNS bool LANGUAGE plpgsql AS $$ BEGIN {sets}; RETURN true; END $$;
"""
# Code that an INSERT into `first` runs.
CODE = {
    "row trigger": "CREATE TRIGGER sets BEFORE INSERT ON first FOR EACH ROW EXECUTE FUNCTION sets()",
    "statement trigger": "CREATE TRIGGER sets AFTER INSERT ON first EXECUTE FUNCTION sets()",
    "check": "ALTER TABLE first ADD CHECK (public.passes(n))",
    "default": "ALTER TABLE first ADD said bool DEFAULT public.passes(1)",
}
SETS = [
    "PERFORM set_config('search_path', 'other', false)",
    "PERFORM set_config('search_path', 'other, public', true)",
    "SET search_path = ''",
    "SET ROLE pg_monitor",
    "SET synchronous_commit = off",
]
OPERATIONS = [Operation("first", table="first"), Operation("second", table="second")]


@pytest.mark.parametrize("sets", SETS)
@pytest.mark.parametrize("code", CODE)
def test_settings_of_a_tables_code_end_with_its_rows(postgres_url: str, outbox_dir: Path, code: str, sets: str) -> None:
    query(postgres_url, TABLES.format(sets=sets) + CODE[code])
    with Bench(outbox_dir, postgres_url, *OPERATIONS) as bench:
        for name in ("first", "first", "second", "first"):
            bench.enqueue(name, {"n": 1})
        assert completed(bench.apply()) == [1, 2, 3, 4]
        bench.enqueue("second", {"n": 2})
        bench.enqueue("first", {"n": 2})
        assert completed(bench.apply(5)) == [5]
        assert completed(bench.apply(6)) == [6]
        assert bench.query("SELECT (SELECT count(*) FROM first), (SELECT count(*) FROM second)") == [(4, 2)]
        assert bench.query("SELECT DISTINCT durable FROM second") == [("on",)]


def test_search_path_with_odd_characters_is_kept(postgres_url: str, outbox_dir: Path) -> None:
    odd = """"50% \\ o'clock\""""
    query(
        postgres_url,
        f"CREATE SCHEMA {odd}; CREATE TABLE {odd}.second (n int);"
        + TABLES.format(sets="PERFORM set_config('search_path', 'other', false)")
        + CODE["row trigger"],
    )
    name = postgres_url.rpartition("/")[2]
    query(postgres_url, f"ALTER DATABASE {name} SET search_path = {odd}, public")
    with Bench(outbox_dir, postgres_url, *OPERATIONS) as bench:
        for operation in ("first", "second", "first"):
            bench.enqueue(operation, {"n": 1})
        assert completed(bench.apply()) == [1, 2, 3]
        assert bench.query(f"SELECT (SELECT count(*) FROM {odd}.second), (SELECT count(*) FROM public.first)") == [
            (1, 2)
        ]


@pytest.mark.parametrize("own", ["", "DEFAULT 0", "CHECK (n > 0)", "REFERENCES parent", "UNIQUE"])
def test_settings_are_set_again_only_behind_code(
    postgres_url: str, outbox_dir: Path, own: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = "CREATE TABLE parent (n int PRIMARY KEY); INSERT INTO parent VALUES (1), (2), (3)"
    query(postgres_url, f"{parent}; CREATE TABLE first (n int {own}); CREATE TABLE second (n int)")
    owed: list[object] = []
    owe = GuardedConnection.owe_beginning

    def counted(link: GuardedConnection, raw: object) -> None:
        owed.append(raw)
        owe(link, raw)

    monkeypatch.setattr(GuardedConnection, "owe_beginning", counted)
    with Bench(outbox_dir, postgres_url, *OPERATIONS) as bench:
        bench.enqueue("second", {"n": 0})
        bench.apply(1)
        for number in (1, 2, 3):
            bench.enqueue("first", {"n": number})
            bench.enqueue("second", {"n": number})
        owed.clear()
        assert len(completed(bench.apply(*range(2, 8)))) == 6
        # At the beginning of the transaction, and behind those of `first`.
        assert len(owed) == (1 if own in ("", "UNIQUE") else 4)


def test_commit_after_a_trigger_that_turns_it_off_is_durable(postgres_url: str, outbox_dir: Path) -> None:
    deferred = """
    CREATE TABLE seen (durable text);
    CREATE FUNCTION sees() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN INSERT INTO seen VALUES (current_setting('synchronous_commit')); RETURN new; END $$;
    CREATE CONSTRAINT TRIGGER at_commit AFTER INSERT ON first DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW EXECUTE FUNCTION sees();"""
    query(postgres_url, TABLES.format(sets="SET synchronous_commit = off") + deferred + CODE["row trigger"])
    with Bench(outbox_dir, postgres_url, *OPERATIONS) as bench:
        assert completed(bench.apply(bench.enqueue("first", {"n": 1}))) == [1]
        assert bench.query("SELECT durable FROM seen") == [("on",)]


def test_deferred_trigger_reads_what_an_earlier_one_has_set(postgres_url: str, outbox_dir: Path) -> None:
    deferred = """
    CREATE TABLE seen (who text, n bigint);
    CREATE FUNCTION sees() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN INSERT INTO seen SELECT current_setting('app.who'), count(*) FROM touched; RETURN new; END $$;
    CREATE CONSTRAINT TRIGGER at_commit AFTER INSERT ON first DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW EXECUTE FUNCTION sees();"""
    sets = "SET LOCAL app.who = 'me'; CREATE TEMP TABLE IF NOT EXISTS touched () ON COMMIT DROP"
    query(postgres_url, TABLES.format(sets=sets) + deferred + CODE["row trigger"])
    with Bench(outbox_dir, postgres_url, *OPERATIONS) as bench:
        assert completed(bench.apply(bench.enqueue("first", {"n": 1}))) == [1]
        assert bench.query("SELECT * FROM seen") == [("me", 0)]


def test_temporary_table_that_hides_the_real_one_parks_it(postgres_url: str, outbox_dir: Path) -> None:
    query(postgres_url, TABLES.format(sets="CREATE TEMP TABLE second (n int)") + CODE["row trigger"])
    with Bench(outbox_dir, postgres_url, *OPERATIONS) as bench:
        bench.enqueue("first", {"n": 1})
        bench.enqueue("second", {"n": 1})
        assert completed(outcome := bench.apply()) == [1]
        assert "'second' is a temporary table of the relay's connection" in parked(outcome)
