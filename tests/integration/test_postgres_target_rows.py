"""Table operations: the stored JSON becomes a row with exactly the values that were enqueued."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy

from outbox import Operation
from outbox.postgres import rows
from tests.unit.fakes.audit import query
from tests.unit.fakes.bench import Bench, completed, parked, rejected

BERLIN = timezone(timedelta(hours=2))
NAIVE = datetime.fromisoformat("2024-07-01 12:00")


@pytest.fixture
def values(postgres_url: str) -> str:
    query(postgres_url, "CREATE TABLE typed (id serial PRIMARY KEY)")
    return postgres_url


# Type of the column, value enqueued, and what PostgreSQL shows of it (None: the value itself).
VALUES: list[tuple[str, Any, str | None]] = [
    ("numeric", Decimal("1.10"), "1.10"),
    ("numeric", Decimal("-0.000000000000000001"), "-0.000000000000000001"),
    ("numeric", Decimal("1E+5"), "100000"),
    ("numeric", 10**40, "1" + "0" * 40),
    ("numeric(20,8)", Decimal("0.1"), "0.10000000"),
    ("numeric(20,8)", Decimal("123456789012.12345678"), "123456789012.12345678"),
    ("double precision", 0.1, "0.1"),
    ("double precision", 1e-300, "1e-300"),
    ("bigint", 2**63 - 1, "9223372036854775807"),
    ("bigint", -(2**63), "-9223372036854775808"),
    ("smallint", 7, "7"),
    ("boolean", True, "true"),
    ("boolean", False, "false"),
    ("text", "quote ' \" backslash \\ percent %s tab \t umlaut ü emoji 🚀", None),
    ("text", "", ""),
    ("text", "null", "null"),
    ("varchar(5)", "short", "short"),
    ("uuid", UUID(int=7), "00000000-0000-0000-0000-000000000007"),
    ("bytea", b"\x00\xff'", "\\x00ff27"),
    ("date", date(2024, 2, 29), "2024-02-29"),
    ("time", time(1, 2, 3, 4), "01:02:03.000004"),
    ("interval", timedelta(days=-1, seconds=1.5), "-1 days +00:00:01.5"),
    ("timestamp", datetime(2024, 7, 1, 12, 0, 0, 1, BERLIN), "2024-07-01 19:00:00.000001"),
    ("timestamp", NAIVE, "2024-07-01 12:00:00"),
    ("timestamptz", datetime(2024, 7, 1, 12, 0, tzinfo=BERLIN), "2024-07-01 10:00:00+00"),
    ("timestamptz", NAIVE, "2024-07-01 03:00:00+00"),
    ("json", {"b": [1, None, "x"], "a": Decimal("1.10")}, '{"a":"1.10","b":[1,null,"x"]}'),
    ("jsonb", {"b": [1, None, "x"], "a": 1.5}, '{"a": 1.5, "b": [1, null, "x"]}'),
    ("jsonb", '{"a": [1, "x"]}', None),
    ("json", "true", "true"),
    ("jsonb", [], "[]"),
    ("integer[]", [1, 2, None], "{1,2,NULL}"),
    ("text[]", ["a,b", 'c"d', ""], '{"a,b","c\\"d",""}'),
    ("numeric[]", (Decimal("1.10"), Decimal(2)), "{1.10,2}"),
    ("integer[][]", [[1, 2], [3, 4]], "{{1,2},{3,4}}"),
    ("integer", None, None),
]


def test_values_of_every_type_arrive_exactly(values: str, outbox_dir: Path) -> None:
    # What the zone is counts for naive times, as for any program that connects.
    query(values, f"ALTER DATABASE {values.rpartition('/')[2]} SET timezone = 'Asia/Tokyo'")
    for number, (column, _, _) in enumerate(VALUES):
        query(values, f"ALTER TABLE typed ADD COLUMN c{number} {column}")
    with Bench(outbox_dir, values, Operation("typed", table="typed")) as bench:
        bench.enqueue("typed", {f"c{number}": value for number, (_, value, _) in enumerate(VALUES)})
        outcome = bench.apply()
        assert (len(outcome.completed), outcome.rejected, outcome.interruption) == (1, [], None)
    columns = ", ".join(f"c{number}::text" for number in range(len(VALUES)))
    [found] = query(values, f"SET timezone = 'UTC'; SELECT {columns} FROM typed")
    expected = [value if text is None else text for _, value, text in VALUES]
    named = [f"{column} {value!r}" for column, value, _ in VALUES]
    assert dict(zip(named, found, strict=True)) == dict(zip(named, expected, strict=True))


@pytest.mark.parametrize(
    ("column", "value", "sqlstate"),
    [
        ("varchar(5)", "longer", "22001"),
        ("numeric(5,2)", Decimal(1000), "22003"),
        ("integer", 2**31, "22003"),
        ("integer", "seven", "22P02"),
        ("date", "2024-02-30", "22008"),
        ("integer NOT NULL", None, "23502"),
        ("integer CHECK (value > 0)", -1, "23514"),
        ("integer REFERENCES typed", 99, "23503"),
    ],
)
def test_a_value_that_does_not_fit_is_refused_for_good_and_never_cut(
    values: str, outbox_dir: Path, column: str, value: Any, sqlstate: str
) -> None:
    query(values, f"ALTER TABLE typed ADD COLUMN value {column}")
    with Bench(outbox_dir, values, Operation("typed", table="typed")) as bench:
        bench.enqueue("typed", {"value": value})
        outcome = bench.apply()
        [(_, error)] = outcome.rejected
        assert error.permanent
        assert str(error).startswith(sqlstate)
        assert (outcome.completed, outcome.interruption) == ([], None)
        assert bench.receipts() == []
        assert bench.query("SELECT * FROM typed") == []


def test_columns_that_are_not_given_get_their_defaults(values: str, outbox_dir: Path) -> None:
    query(values, "ALTER TABLE typed ADD COLUMN a text DEFAULT 'given', ADD COLUMN b text, ADD COLUMN c int DEFAULT 7")
    with Bench(outbox_dir, values, Operation("typed", table="typed")) as bench:
        bench.enqueue("typed", {"b": "x"})
        bench.enqueue("typed", {"a": None, "c": 1})
        bench.enqueue("typed", {})
        bench.enqueue("typed", {})
        assert len(bench.apply().completed) == 4
        assert bench.query("SELECT * FROM typed ORDER BY id") == [
            (1, "given", "x", 7),
            (2, None, None, 1),
            (3, "given", None, 7),
            (4, "given", None, 7),
        ]


def test_names_with_quotes_percents_spaces_and_capitals_work(postgres_url: str, outbox_dir: Path) -> None:
    columns = ['Quote"d', "per%cent", "%s", "%(x)s", "two words", "SELECT", "row", "ünï", "a:b"]
    definition = ", ".join('"' + column.replace('"', '""') + '" int' for column in columns)
    query(postgres_url, f'CREATE TABLE "Odd ""%s"" table" (id serial, {definition})')
    with Bench(outbox_dir, postgres_url, Operation("odd", table='Odd "%s" table')) as bench:
        bench.enqueue("odd", {column: number for number, column in enumerate(columns)})
        assert completed(bench.apply()) == [1]
        assert bench.query('SELECT * FROM "Odd ""%s"" table"') == [(1, *range(len(columns)))]


def test_a_name_that_looks_like_sql_is_a_name(postgres_url: str, outbox_dir: Path) -> None:
    query(postgres_url, "CREATE TABLE safe (value int)")
    name = 'value" int) ; DROP TABLE safe; --'
    with Bench(outbox_dir, postgres_url, Operation("safe", table="safe")) as bench:
        bench.enqueue("safe", {name: 1})
        assert "has no column" in parked(bench.apply())
        assert bench.query("SELECT count(*) FROM safe") == [(0,)]


def test_a_table_of_another_schema_and_one_of_sqlalchemy(postgres_url: str, outbox_dir: Path) -> None:
    query(postgres_url, "CREATE SCHEMA books; CREATE TABLE books.trades (n int); CREATE TABLE trades (n int)")
    declared = sqlalchemy.Table(
        "trades", sqlalchemy.MetaData(), sqlalchemy.Column("n", sqlalchemy.Integer), schema="books"
    )
    operations = [Operation("named", table="books.trades"), Operation("declared", table=declared)]
    with Bench(outbox_dir, postgres_url, *operations) as bench:
        bench.enqueue("named", {"n": 1})
        bench.enqueue("declared", {"n": 2})
        assert completed(bench.apply()) == [1, 2]
        assert bench.query("SELECT n FROM books.trades ORDER BY n") == [(1,), (2,)]
        assert bench.query("SELECT n FROM trades") == []


def test_serial_ids_follow_the_sequence_over_shapes_and_operations(postgres_url: str, outbox_dir: Path) -> None:
    query(postgres_url, "CREATE TABLE a (id serial, n int, x int); CREATE SEQUENCE both_ids; CREATE TABLE b (n int)")
    query(postgres_url, "ALTER TABLE a ADD COLUMN both_id int DEFAULT nextval('both_ids')")
    query(postgres_url, "ALTER TABLE b ADD COLUMN both_id int DEFAULT nextval('both_ids')")
    with Bench(outbox_dir, postgres_url, Operation("a", table="a"), Operation("b", table="b")) as bench:
        for number in range(300):
            args = {"n": number, "x": 1} if number % 3 else {"n": number}
            bench.enqueue("b" if number % 7 == 0 else "a", args if number % 7 else {"n": number})
        assert len(bench.apply().completed) == 300
        both = "SELECT n, both_id FROM a UNION ALL SELECT n, both_id FROM b ORDER BY 2"
        assert bench.query(both) == [(number, number + 1) for number in range(300)]
        assert bench.receipts() == list(range(1, 301))


PARTITIONED = "CREATE TABLE a (n int) PARTITION BY LIST (n); CREATE TABLE one PARTITION OF a DEFAULT"
LOOKS = "INSERT INTO seen SELECT count(*), sum(n) FROM a"
VIEW = "ALTER TABLE a RENAME TO b; CREATE VIEW a AS SELECT * FROM b"
TRIGGER = f"CREATE FUNCTION look() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {LOOKS}; RETURN NEW; END $$;"


@pytest.mark.parametrize(
    "what_runs",
    [
        f"{TRIGGER} CREATE TRIGGER t BEFORE INSERT ON a FOR EACH ROW EXECUTE FUNCTION look()",
        f"{TRIGGER} CREATE TRIGGER t AFTER INSERT ON a FOR EACH ROW EXECUTE FUNCTION look()",
        f"{TRIGGER} CREATE TRIGGER t BEFORE INSERT ON a FOR EACH STATEMENT EXECUTE FUNCTION look()",
        f"{TRIGGER} CREATE TRIGGER t AFTER INSERT OR UPDATE ON a FOR EACH STATEMENT EXECUTE FUNCTION look()",
        f"{TRIGGER} CREATE TRIGGER t AFTER INSERT ON one FOR EACH ROW EXECUTE FUNCTION look()",
        f"{TRIGGER} CREATE CONSTRAINT TRIGGER t AFTER INSERT ON a FOR EACH ROW EXECUTE FUNCTION look()",
        f"{TRIGGER} CREATE TRIGGER t AFTER INSERT ON a FOR EACH ROW EXECUTE FUNCTION look(); {VIEW}",
        f"CREATE RULE r AS ON INSERT TO a DO ALSO {LOOKS}",
    ],
)
def test_what_runs_for_a_row_sees_the_rows_before_it_only(postgres_url: str, outbox_dir: Path, what_runs: str) -> None:
    """A trigger that keeps a running total: a backlog must leave the rows of calls that came one by one."""
    query(postgres_url, PARTITIONED)
    query(postgres_url, f"CREATE TABLE seen (rows int, total int); {what_runs}")
    for number in range(1, 5):
        query(postgres_url, f"INSERT INTO a VALUES ({number})")
    plain = query(postgres_url, "SELECT * FROM seen ORDER BY 1")
    query(postgres_url, "TRUNCATE one, seen")
    with Bench(outbox_dir, postgres_url, Operation("a", table="a")) as bench:
        for number in range(1, 5):
            bench.enqueue("a", {"n": number})
        assert completed(bench.apply()) == [1, 2, 3, 4]
        assert bench.query("SELECT * FROM seen ORDER BY 1") == plain
    assert len({total for _, total in plain}) == 4


def test_large_group_is_inserted_by_several_statements(
    values: str, outbox_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    query(values, "ALTER TABLE typed ADD COLUMN v text")
    monkeypatch.setattr(rows, "_STATEMENT_BYTES", 3_000)
    with Bench(outbox_dir, values, Operation("row", table="typed")) as bench:
        with bench.box.transaction() as tx:
            for size in (1_400, 1_400, 1_400, 10, 5_000, 10):
                tx.enqueue("row", {"v": "x" * size})
        assert completed(bench.apply()) == [1, 2, 3, 4, 5, 6]
        found = bench.query("SELECT cmin::text, array_agg(id ORDER BY id) FROM typed GROUP BY cmin::text")
        assert sorted(ids for _, ids in found) == [[1, 2], [3, 4], [5], [6]]


def test_applied_again_nothing_is_doubled(postgres_url: str, outbox_dir: Path) -> None:
    query(postgres_url, "CREATE TABLE a (n int)")
    with Bench(outbox_dir, postgres_url, Operation("a", table="a")) as bench:
        for number in range(10):
            bench.enqueue("a", {"n": number})
        first = bench.apply(1, 2, 3, 4)
        again = bench.apply()
        assert completed(first) == [1, 2, 3, 4]
        assert completed(again) == list(range(1, 11))
        assert bench.query("SELECT n FROM a ORDER BY n") == [(number,) for number in range(10)]
        assert bench.receipts() == list(range(1, 11))


def test_a_receipt_tells_what_was_applied(postgres_url: str, outbox_dir: Path) -> None:
    query(postgres_url, "CREATE TABLE a (n int)")
    with Bench(outbox_dir, postgres_url, Operation("a", table="a")) as bench:
        entry = bench.box.enqueue("a", {"n": 1})
        record = bench.box.store.peek(0, 1).records[0]
        bench.apply()
        [(key, store, seq, operation, payload, result, applied)] = bench.query("SELECT * FROM outbox_receipts")
        assert UUID(key) == UUID(entry.key)
        assert UUID(store) == bench.box.store.identity.store_id
        assert (seq, operation, result) == (1, "a", None)
        assert UUID(payload).bytes == record.payload_hash
        assert abs(datetime.now(UTC) - applied) < timedelta(minutes=1)


def test_column_widened_while_connected_gets_the_whole_value(postgres_url: str, outbox_dir: Path) -> None:
    query(postgres_url, "CREATE TABLE a (price numeric(10,2))")
    with Bench(outbox_dir, postgres_url, Operation("a", table="a")) as bench:
        bench.settle(outcome := bench.apply(bench.enqueue("a", {"price": Decimal("1.23")})))
        assert completed(outcome) == [1]
        bench.query("ALTER TABLE a ALTER COLUMN price TYPE numeric(20,8)")
        assert completed(bench.apply(bench.enqueue("a", {"price": Decimal("1.23456789")}))) == [2]
        assert bench.query("SELECT max(price) FROM a") == [(Decimal("1.23456789"),)]


@pytest.mark.parametrize(("old", "new", "value"), [("int", "bigint", 2**40), ("varchar(3)", "varchar(9)", "longer")])
def test_a_column_that_was_widened_while_connected_refuses_nothing(
    postgres_url: str, outbox_dir: Path, old: str, new: str, value: Any
) -> None:
    query(postgres_url, f"CREATE TABLE a (value {old})")
    with Bench(outbox_dir, postgres_url, Operation("a", table="a")) as bench:
        bench.settle(bench.apply(bench.enqueue("a", {"value": None})))
        bench.query(f"ALTER TABLE a ALTER COLUMN value TYPE {new}")
        outcome = bench.apply(bench.enqueue("a", {"value": value}))
        assert rejected(outcome) == []
        assert completed(outcome) == [2]


@pytest.mark.parametrize(
    ("old", "new", "value"),
    [
        ("date", "timestamp", datetime.fromisoformat("2024-07-01 12:30")),
        ("real", "double precision", 0.123456789),
        ("double precision", "numeric", Decimal("0.12345678901234567890")),
    ],
)
def test_a_column_of_another_type_than_before_gets_the_whole_value(
    postgres_url: str, outbox_dir: Path, old: str, new: str, value: Any
) -> None:
    query(postgres_url, f"CREATE TABLE a (value {old})")
    with Bench(outbox_dir, postgres_url, Operation("a", table="a")) as bench:
        bench.settle(bench.apply(bench.enqueue("a", {"value": None})))
        bench.query(f"ALTER TABLE a ALTER COLUMN value TYPE {new}")
        assert completed(bench.apply(bench.enqueue("a", {"value": value}))) == [2]
        assert bench.query("SELECT max(value) FROM a") == [(value,)]


@pytest.mark.parametrize("column", ["pair", "pairs"])
def test_composite_type_altered_while_connected_takes_a_tuple(postgres_url: str, outbox_dir: Path, column: str) -> None:
    query(postgres_url, "CREATE TYPE pair AS (a int, b text); CREATE DOMAIN pairs AS pair")
    query(postgres_url, f"CREATE TABLE a (value {column})")
    with Bench(outbox_dir, postgres_url, Operation("a", table="a"), Operation("b", table="a")) as bench:
        bench.settle(bench.apply(bench.enqueue("a", {"value": (1, "x")})))
        bench.query("ALTER TYPE pair ADD ATTRIBUTE c numeric")
        outcome = bench.apply(bench.enqueue("a", {"value": (2, "y", Decimal("0.5"))}))
        assert (rejected(outcome), parked(outcome), completed(outcome)) == ([], "", [2])
        bench.settle(outcome)
        bench.query("ALTER TYPE pair DROP ATTRIBUTE b")
        outcome = bench.apply(bench.enqueue("b", {"value": (3, Decimal("0.5"))}))
        assert (rejected(outcome), parked(outcome), completed(outcome)) == ([], "", [3])
        assert bench.query("SELECT value::text FROM a") == [("(1,)",), ("(2,0.5)",), ("(3,0.5)",)]


@pytest.mark.parametrize(
    ("table", "column", "repair"),
    [
        ("absent", "n", "CREATE TABLE absent (n int)"),
        ("there", "absent", "ALTER TABLE there ADD COLUMN absent int"),
        ("absent.there", "n", "CREATE SCHEMA absent; CREATE TABLE absent.there (n int)"),
    ],
)
def test_missing_table_or_column_parks_its_operation_only(
    postgres_url: str, outbox_dir: Path, table: str, column: str, repair: str
) -> None:
    query(postgres_url, "CREATE TABLE there (n int)")
    operations = [Operation("broken", table=table), Operation("good", table="there")]
    with Bench(outbox_dir, postgres_url, *operations) as bench:
        bench.enqueue("broken", {column: 1})
        bench.enqueue("good", {"n": 2})
        for _ in range(2):
            outcome = bench.apply()
            assert "absent" in parked(outcome)
            assert (completed(outcome), outcome.rejected) == ([2], [])
        bench.query(repair)
        assert completed(bench.apply()) == [1, 2]


@pytest.mark.parametrize("name", ["typed", "public.typed"])
def test_new_column_that_must_not_be_null_parks_its_operation(values: str, outbox_dir: Path, name: str) -> None:
    query(values, "ALTER TABLE typed ADD value int")
    with Bench(outbox_dir, values, Operation("row", table=name)) as bench:
        bench.enqueue("row", {"value": 1})
        assert completed(bench.apply()) == [1]
        query(values, "ALTER TABLE typed ADD venue text; UPDATE typed SET venue = 'x'")
        query(values, "ALTER TABLE typed ALTER venue SET NOT NULL")
        outcome = bench.apply(bench.enqueue("row", {"value": 2}))
        assert f"column 'venue' of table '{name}' must not be null" in parked(outcome)
        assert outcome.rejected == []
        query(values, "ALTER TABLE typed ALTER venue SET DEFAULT 'y'")
        assert completed(bench.apply(2)) == [2]


def test_a_null_where_none_may_be_is_the_entrys_fault(values: str, outbox_dir: Path) -> None:
    query(values, "ALTER TABLE typed ADD value int NOT NULL")
    with Bench(outbox_dir, values, Operation("row", table="typed")) as bench:
        bad = bench.enqueue("row", {"value": None})
        outcome = bench.apply()
        assert outcome.interruption is None
        assert rejected(outcome) == [bad]
        assert outcome.rejected[0][1].permanent
