"""A table operation stores what a parameterised INSERT stores: every type of column against every type of value."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import psycopg2
import psycopg2.extras
import pytest
from psycopg2.extensions import AsIs, register_adapter

from outbox import codec
from outbox.postgres.rows import RowWriter, quote
from outbox.testing import PostgresServer, wheel

TYPES = """
    smallint; integer; bigint; oid; real; double precision; numeric; numeric(12,3); money; boolean;
    text; varchar; varchar(200); char(40); name; "char"; citext_like; bytea; uuid; json; jsonb; xml;
    date; time; time(3); timetz; timestamp; timestamp(0); timestamptz; interval; interval day to second;
    bit(8); bit varying; inet; cidr; macaddr; point; box; tsvector; pg_lsn; xid8; regclass; jsonpath;
    int4range; numrange; tstzrange; int4multirange;
    mood; whole; price; moment; document; pair; moods; "Odd {} %s type";
    smallint[]; integer[]; bigint[]; numeric[]; numeric(12,3)[]; money[]; double precision[]; text[]; varchar(9)[];
    boolean[]; date[]; timestamp[]; timestamptz[]; interval[]; uuid[]; mood[]; whole[]; json[]; jsonb[]; bytea[]
"""
SCHEMA = """
CREATE TYPE mood AS ENUM ('happy', 'sad');
CREATE DOMAIN whole AS integer CHECK (value > -1000000);
CREATE DOMAIN price AS numeric(12,3);
CREATE DOMAIN moment AS timestamptz;
CREATE DOMAIN document AS jsonb;
CREATE DOMAIN moods AS mood[];
CREATE DOMAIN citext_like AS text;
CREATE TYPE pair AS (a integer, b text);
CREATE TYPE "Odd {} %s type" AS ENUM ('happy');
"""
PLUS2 = timezone(timedelta(hours=2))
NAIVE = datetime.fromisoformat("2024-07-01 12:30:15")
VALUES: list[Any] = [
    None, True, False,
    0, 1, -1, 5, 40000, 2**31, 2**53 + 1, 2**63 - 1, -(2**63), 2**63, 10**30, 20240501,
    0.0, -0.0, 0.1, 5.0, 2.5, -2.5, 3.5, 1e16, 1e-7, 1.5e300, 0.30000000000000004, 1234.56,
    Decimal("1234.56"), Decimal("5.00"), Decimal("2.5"), Decimal("0E-10"), Decimal("1E+3"), Decimal("-0.5"),
    Decimal("0.12345678901234567890"), Decimal(10) ** 20,
    "", "text", "5", "5.0", "true", "1e3", "NaN", "null", '{"a": 1.50}', "[1, 2]", '"quoted"', "{1,2}", "{a,b}",
    "[1,5)", "2024-05-01", "2024-05-01 10:00", "2024-05-01T10:00:00+02", "10:00", "1 day -02:00", "-1 days 5 seconds",
    "infinity", "happy", "(7,seven)", "\\x00ff", "00000000-0000-0000-0000-000000000007", "10.0.0.1", "ümlaut 🚀",
    "10101010", "01/02/2024",
    NAIVE.replace(microsecond=123456), NAIVE, NAIVE.replace(month=11, day=3, hour=1, fold=1),
    datetime(2024, 7, 1, 12, 30, 15, 600000, tzinfo=UTC), datetime(2024, 7, 1, 23, 30, tzinfo=PLUS2),
    date(2024, 2, 29), date(1, 1, 1), time(1, 2, 3, 4567), time(23, 30, tzinfo=PLUS2),
    timedelta(0), timedelta(seconds=-1), timedelta(days=-1), timedelta(days=3, seconds=5, microseconds=7),
    timedelta(days=-400, seconds=1),
    UUID(int=7), b"", b"\x00\xff'\\",
    [], [None], [1, 2, None], [1.0, 2.0], [1, 2.5], [Decimal("5.00"), 1], [[1, 2], [3, 4]], ["a,b", 'c"d', ""],
    ["1", "2"],
    ["happy"], [True, None], [date(2024, 2, 29)], [NAIVE, None],
    [datetime(2024, 7, 1, 12, tzinfo=PLUS2)], [timedelta(seconds=-1), None], [UUID(int=7)], [b"\x00"], [2**40],
    (7, "seven"), (None, "x"),
    {"a": 1, "b": [None, "x"]}, {"a": 7, "b": "seven"},
    {"id": 2**64, "wei": [10**30, -(10**19)]}, {1: 2, 3: {4: [{5: None}]}}, {1.5: 2, None: 0, True: 1},
]  # fmt: skip
# Time zone, locale of money, style of intervals, order of dates.
SETTINGS = [
    ("UTC", "C", "postgres", "ISO, MDY"),
    ("America/New_York", "de_DE.UTF-8", "sql_standard", "ISO, DMY"),
    ("Asia/Kathmandu", "en_US.UTF-8", "iso_8601", "ISO, YMD"),
    ("America/New_York", "C", "postgres_verbose", "ISO, MDY"),
]


def interval(value: timedelta) -> AsIs:
    """Without the fault that the driver's own text has under `sql_standard`."""
    seconds = value.seconds + Decimal(value.microseconds) / 1_000_000
    return AsIs(f"make_interval(days => {value.days}, secs => {seconds})")


@pytest.fixture(scope="module")
def locales() -> Iterator[Path]:
    """A folder with the locales of `SETTINGS`, made from the system's definitions."""
    if shutil.which("localedef") is None:
        pytest.skip("locales cannot be made (apt-get install locales)")
    with tempfile.TemporaryDirectory(prefix="outbox-locales-") as folder:
        os.chmod(folder, 0o755)  # noqa: S103 - the server's user reads it
        for _, money, _, _ in SETTINGS:
            if money != "C":
                name, charmap = money.split(".")
                command = ["localedef", "-i", name, "-f", charmap, f"{folder}/{money}"]
                made = subprocess.run(command, capture_output=True, text=True, check=False)
                if not Path(folder, money).exists():
                    pytest.skip(f"the locale {money} cannot be made (apt-get install locales): {made.stderr.strip()}")
        yield Path(folder)


@pytest.fixture(scope="module")
def connection(no_leftovers: None, locales: Path) -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        plain = wheel.environment()
        patch.setattr(wheel, "environment", lambda: {**plain, "LOCPATH": str(locales)})
        with PostgresServer(fsync=False) as server, closing(psycopg2.connect(server.url())) as connection:
            psycopg2.extras.register_uuid(conn_or_curs=connection)  # type: ignore[no-untyped-call]
            with connection.cursor() as cursor:
                cursor.execute(SCHEMA)
                for number, name in enumerate(type_names()):
                    cursor.execute(f"CREATE TABLE t{number} (value {name})")
            connection.commit()
            yield connection


def type_names() -> list[str]:
    return [name.strip() for name in TYPES.replace("\n", " ").split(";")]


def attempt(cursor: Any, number: int, insert: Callable[..., Any], *args: Any) -> str | None:
    """What `insert` stores, as text; None where PostgreSQL refuses it."""
    cursor.execute("SAVEPOINT before")
    try:
        insert(*args)
        cursor.execute(f"SELECT value::text FROM t{number}")
        [(stored,)] = cursor.fetchall()
        return f"stored {stored}"
    except psycopg2.Error:
        return None
    finally:
        cursor.execute("ROLLBACK TO before")


def parameter(value: Any) -> Any:
    """What the driver takes; for a dict, which it does not know, its own way to write JSON, spaced like ours."""
    if type(value) is dict:
        return psycopg2.extras.Json(value, dumps=lambda value: json.dumps(value, separators=(",", ":")))
    return value


@pytest.mark.parametrize(("zone", "money", "style", "dates"), SETTINGS, ids=lambda value: value.split("/")[-1])
def test_table_operation_stores_what_parameters_store(
    connection: Any, zone: str, money: str, style: str, dates: str
) -> None:
    adapter = psycopg2.extensions.adapters[(timedelta, psycopg2.extensions.ISQLQuote)]
    wrong, stored = [], 0
    with connection.cursor() as cursor:
        cursor.execute(f"SET lc_monetary = '{money}'")
        cursor.execute(f"SET timezone = '{zone}'; SET intervalstyle = '{style}'; SET datestyle = '{dates}'")
        writer = RowWriter()
        try:
            register_adapter(timedelta, interval)
            for number, name in enumerate(type_names()):
                for value in VALUES:
                    plain, types = codec.encode({"value": value})
                    record: Any = SimpleNamespace(args=plain, types=types)
                    statement = f"INSERT INTO t{number} VALUES (%s)"
                    expected = attempt(cursor, number, cursor.execute, statement, [parameter(value)])
                    if expected is None or (value == [] and name in ("json", "jsonb", "document")):
                        # The driver writes an empty list as "{}", which JSON takes for an object.
                        continue
                    stored += 1
                    found = attempt(cursor, number, writer.insert, cursor, (f"t{number}",), ("value",), [record])
                    if found != expected:
                        wrong.append(f"{value!r} into {name}: {found}, with a parameter {expected}")
        finally:
            register_adapter(timedelta, adapter)
            connection.rollback()
    assert not wrong, "\n".join(wrong)
    assert stored > 900


def test_value_beside_values_of_other_types_is_stored_alike(connection: Any) -> None:
    values = [1, None, 2.5, Decimal("3.50"), "4", None, True, 5]
    with connection.cursor() as cursor:
        cursor.execute("CREATE TEMP TABLE mixed (id serial, value text, other numeric)")
        records: list[Any] = []
        for value in values:
            plain, types = codec.encode({"value": value, "other": None if value is True else value})
            records.append(SimpleNamespace(args=plain, types=types))
        names = codec.field_names(records[0].args)
        assert RowWriter().insert(cursor, ("mixed",), names, records) == len(values)
        cursor.execute("SELECT value, other::text FROM mixed ORDER BY id")
        texts = ["1", None, "2.5", "3.50", "4", None, "true", "5"]
        assert cursor.fetchall() == [(text, None if text == "true" else text) for text in texts]
    connection.rollback()


def test_dict_whose_keys_have_no_text_is_a_list_of_pairs(connection: Any) -> None:
    values = [{(1, 2): 2**64, "b": 1}, {1: "number", "1": "text"}, {Decimal("1.50"): 1, date(2024, 2, 29): 2}, {}]
    with connection.cursor() as cursor:
        cursor.execute("CREATE TEMP TABLE documents (id serial, value json)")
        encoded = [codec.encode({"value": value}) for value in values]
        records: list[Any] = [SimpleNamespace(args=plain, types=types) for plain, types in encoded]
        RowWriter().insert(cursor, ("documents",), ("value",), records)
        cursor.execute("SELECT value FROM documents ORDER BY id")
        stored = [row[0] for row in cursor.fetchall()]
        pairs = [sorted(one, key=str) for one in stored[:2]]
        assert pairs == [[["b", 1], [[1, 2], 2**64]], [["1", "text"], [1, "number"]]]
        assert stored[2:] == [{"1.50": 1, "2024-02-29": 2}, {}]
    connection.rollback()


def test_name_with_a_quote_is_quoted() -> None:
    assert quote('a"b') == '"a""b"'
