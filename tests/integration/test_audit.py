"""`atb outbox audit` finds what something else did to the rows and receipts, and accepts what is sound."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from contextlib import closing
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from psycopg2 import connect

from outbox import Operation, Outbox, OutboxConfig, PostgresTarget, Relay
from outbox.audit import RowAudit, audit
from outbox.postgres import receipts
from outbox.testing import PostgresServer
from tests import atb as command_line
from tests.unit.fakes.failover import Past
from tests.unit.fakes.waiting import LONG

OPERATIONS = (
    Operation("trade", table="desk.trades", identity=("id",)),
    Operation("fee", table="fees"),
    Operation("ping", handler=lambda connection, entry: None),
)
TABLES = """
CREATE SCHEMA desk;
CREATE TABLE desk.trades (id text, price numeric(18,8), at timestamptz, tags jsonb, note text, raw json);
CREATE TABLE fees (amount numeric(10,2), reason varchar(20));
"""


@pytest.fixture
def database(postgres_url: str, postgres_server: PostgresServer) -> Any:
    """`execute(sql)` in a database with the tables."""
    name = postgres_url.rpartition("/")[2]

    def execute(sql: str) -> Any:
        return postgres_server.execute(sql, database=name)

    execute(TABLES)
    return execute


@pytest.fixture
def store(tmp_path: Path, postgres_url: str, database: Any) -> Path:
    """A store whose 5 trades, 3 fees of which 2 are equal, and handled entry are delivered."""
    folder = tmp_path / "outbox"
    config = OutboxConfig(dir=str(folder))
    with Outbox.open(folder, config, OPERATIONS) as box:
        for number in range(5):
            args = {
                "id": f"T{number}",
                "price": Decimal("1.5") + number,
                "at": datetime(2026, 1, 1, number, tzinfo=UTC),
                "tags": {"a": [1, None]},
                "note": None if number % 2 else "it's, (odd)",
                "raw": '{"b":  1}',
            }
            box.enqueue("trade", args)
        for amount in ("1.25", "1.25", "2.5"):
            box.enqueue("fee", {"amount": Decimal(amount), "reason": "exchange"})
        box.enqueue("ping", {})
        relay = Relay(box, PostgresTarget(postgres_url, OPERATIONS))
        assert relay.drain(timeout=LONG)
    return folder


def run(store: Path, url: str, *options: str) -> Result:
    declared = f"{__name__}:OPERATIONS"
    arguments = ["audit", "--dir", str(store), "--database-url", url, *options]
    return command_line.invoke(*arguments, OUTBOX_OPERATIONS=declared)


def test_sound_database_is_accepted(store: Path, postgres_url: str) -> None:
    done = run(store, postgres_url)
    assert done.exit_code == 0, done.output
    assert done.output.endswith("Each delivered entry has its receipt; the compared rows are unchanged.\n")
    report = json.loads(run(store, postgres_url, "--json").output)
    assert (report["acknowledged"], report["delivered"], report["applied"], report["rows_compared"]) == (9, 9, 9, 8)
    assert report["problems"] == {}
    assert list(report["not_compared"]) == ["ping"]


def test_audit_without_operations_claims_receipts_only(store: Path, postgres_url: str) -> None:
    done = command_line.invoke("audit", "--dir", str(store), "--database-url", postgres_url)
    assert done.exit_code == 0, done.output
    assert done.output.endswith("Each delivered entry has its receipt; no rows were compared.\n")


def test_audit_of_compared_rows_only_claims_their_contents(database: Any, outbox_dir: Path, postgres_url: str) -> None:
    del database
    with Outbox.open(outbox_dir, operations=OPERATIONS) as box:
        box.enqueue("fee", {"amount": Decimal("0.5"), "reason": "x"})
        assert Relay(box, PostgresTarget(postgres_url, OPERATIONS)).drain(LONG)
    assert run(outbox_dir, postgres_url).output.endswith("Nothing delivered is lost, doubled or changed.\n")


@pytest.mark.parametrize(
    ("change", "problems", "seqs"),
    [
        ("DELETE FROM desk.trades WHERE id = 'T2'", {"row missing": 1}, [3]),
        ("UPDATE desk.trades SET price = price + 0.00000001 WHERE id = 'T1'", {"row changed": 1}, [2]),
        ("UPDATE desk.trades SET note = '' WHERE id = 'T1'", {"row changed": 1}, [2]),
        ("UPDATE desk.trades SET raw = '{\"b\": 1}' WHERE id = 'T3'", {"row changed": 1}, [4]),
        ("INSERT INTO desk.trades SELECT * FROM desk.trades WHERE id = 'T4'", {"row doubled": 1}, [5]),
        ("INSERT INTO fees VALUES (1.25, 'exchange')", {"row doubled": 2}, [6, 7]),
        ("DELETE FROM fees WHERE amount = 2.5", {"row missing": 1}, [8]),
        ("DELETE FROM fees WHERE ctid = (SELECT min(ctid) FROM fees)", {"row missing": 2}, [6, 7]),
        ("DELETE FROM outbox_receipts WHERE seq = 9", {"no receipt": 1}, [9]),
        (
            "UPDATE outbox_receipts SET payload_hash = idempotency_key WHERE seq = 9",
            {"the receipt has other arguments": 1},
            [9],
        ),
    ],
)
def test_foreign_change_is_found(
    store: Path, postgres_url: str, database: Any, change: str, problems: dict[str, int], seqs: list[int]
) -> None:
    database(change)
    done = run(store, postgres_url, "--json")
    assert done.exit_code == 1, done.output
    report = json.loads(done.output)
    assert report["problems"] == problems
    assert [finding["seq"] for finding in report["findings"]] == seqs
    shown = run(store, postgres_url).output
    assert all(f"entry {seq} " in shown for seq in seqs)
    assert "FOUND: " in shown


def test_missing_column_is_told(store: Path, postgres_url: str, database: Any) -> None:
    database("ALTER TABLE desk.trades DROP COLUMN note")
    done = run(store, postgres_url)
    assert "rows of trade were not compared: table 'desk.trades' has no column 'note'" in done.output


def test_audit_changes_nothing(store: Path, postgres_url: str, database: Any) -> None:
    database("ALTER TABLE fees ADD COLUMN touched timestamptz")
    database("CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE ''touched''; END'")
    for table in ("fees", "desk.trades", "outbox_receipts", "outbox_watermarks"):
        database(f"CREATE TRIGGER t BEFORE INSERT OR UPDATE OR DELETE ON {table} EXECUTE FUNCTION refuse()")
    before = (store / "data.mdb").read_bytes()
    assert run(store, postgres_url).exit_code == 0
    assert (store / "data.mdb").read_bytes() == before


def test_audit_of_another_database_makes_no_table_there(store: Path, past: Past) -> None:
    done = run(store, past.url)
    assert done.exit_code == 2
    assert "this database has no table outbox_receipts" in done.output
    assert past.execute("SELECT count(*) FROM pg_class WHERE relname LIKE 'outbox%'") == [(0,)]


def test_since_leaves_out_older_entries(store: Path, postgres_url: str, database: Any) -> None:
    database("DELETE FROM fees")
    assert run(store, postgres_url, "--since", "2100-01-01").exit_code == 0
    assert run(store, postgres_url, "--since", "24h").exit_code == 1
    wrong = run(store, postgres_url, "--since", "yesterday")
    assert wrong.exit_code == 2
    assert "'yesterday' (allowed: 90s, 30m, 2h, 7d, or 2026-11-27T08:00)" in wrong.output


def test_refused_best_effort_entry_is_audited_as_status_counts_it(
    database: Any, outbox_dir: Path, postgres_url: str
) -> None:
    operations = (Operation("fee", table="fees"), Operation("note", table="fees", best_effort=True))
    with Outbox.open(outbox_dir, operations=operations) as box:
        for name in ("note", "fee"):
            box.enqueue(name, {"amount": Decimal(1), "reason": "longer than twenty characters"})
        assert Relay(box, PostgresTarget(postgres_url, operations)).drain(timeout=LONG)
        status = box.status()
        assert (status.dead_letters, status.discarded) == (1, 1)
        done = audit(box, postgres_url, operations)
        assert (done.dead_letters, done.discarded) == (1, 1)


def test_audit_reads_all_receipts_once_for_many_entries(
    store: Path, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once for each chunk of 1,000 entries it took days for 100 million receipts."""
    read: list[int] = []
    counts = receipts.counts

    def counted(cursor: Any, hashes: set[bytes], part: str) -> dict[bytes, int]:
        read.append(len(hashes))
        return counts(cursor, hashes, part)

    monkeypatch.setattr(receipts, "counts", counted)
    monkeypatch.setattr("outbox.audit._CHUNK", 2)
    with Outbox.attach(store, readonly=True) as box:
        done = audit(box, postgres_url, OPERATIONS)
        assert (done.sound, done.rows_compared, read) == (True, 8, [7])
        # Without table operations nothing is counted.
        assert audit(box, postgres_url, ()).sound
        assert read == [7]


def test_rows_of_a_stretch_are_compared_by_one_statement_each(
    store: Path, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each statement may read a whole table: 200,000 entries without an identity took two minutes, now nine seconds."""
    compared: list[tuple[str, int]] = []
    compare = RowAudit.compare

    def counted(self: RowAudit, *given: Any) -> Any:
        compared.append((given[1].name, len(given[3])))
        return compare(self, *given)

    monkeypatch.setattr(RowAudit, "compare", counted)
    monkeypatch.setattr("outbox.audit._CHUNK", 2)
    with Outbox.attach(store, readonly=True) as box:
        done = audit(box, postgres_url, OPERATIONS)
    assert (done.sound, done.applied, done.delivered) == (True, 9, 9)
    assert compared == [("fee", 3), ("trade", 5)]


def test_equal_entries_of_different_stretches_are_no_finding(
    store: Path, postgres_url: str, database: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("outbox.audit._STRETCH", 3)
    with Outbox.attach(store, readonly=True) as box:
        assert audit(box, postgres_url, OPERATIONS).sound
        database("DELETE FROM fees WHERE ctid = (SELECT min(ctid) FROM fees)")
        assert audit(box, postgres_url, OPERATIONS).problems == {"row missing": 2}


def test_parts_of_the_receipts_are_the_whole_table(
    postgres_url: str, database: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receipts, "_PART_PAGES", 7)
    store_id = "11111111-1111-1111-1111-111111111111"
    with closing(connect(postgres_url)) as connection, connection.cursor() as cursor:
        receipts.ensure_table(cursor)
        assert receipts.parts(cursor) == ["true"]
        cursor.execute(
            "INSERT INTO outbox_receipts SELECT gen_random_uuid(), %s, number, 'fee', md5((number %% 100)::text)::uuid "
            "FROM generate_series(1, 5000) number ORDER BY random()",
            (store_id,),
        )
        parts = receipts.parts(cursor)
        assert len(parts) > 5
        assert max(receipts.highest_seq(cursor, store_id, part) for part in parts) == 5000
        hashes = [hashlib.md5(str(number).encode()).digest() for number in (1, 2)]  # noqa: S324 - no secret
        found: Counter[bytes] = Counter()
        for part in parts:
            found.update(receipts.counts(cursor, hashes, part))
        assert found == dict.fromkeys(hashes, 50)
        cursor.execute(f"EXPLAIN SELECT max(seq) FROM outbox_receipts WHERE {parts[1]}")
        assert any("Tid Range Scan" in line for (line,) in cursor.fetchall())


def test_empty_ledger_is_no_proof(tmp_path: Path, postgres_url: str) -> None:
    """A ledger without delivered entries, as after a compaction, must not read as a clean audit of PostgreSQL."""
    folder = tmp_path / "empty"
    Outbox.open(folder, OutboxConfig(dir=str(folder))).close()
    done = command_line.invoke("audit", "--dir", str(folder), "--database-url", postgres_url)
    assert done.exit_code == 0
    assert done.output.endswith("\nNothing was compared: the ledger has no delivered entry.\n")
    away = command_line.invoke("audit", "--dir", str(folder), "--database-url", "postgresql://u@127.0.0.1:1/x")
    assert away.exit_code == 2
    assert "Connection refused" in away.output


def test_server_that_is_away_gives_no_verdict(store: Path) -> None:
    done = run(store, "postgresql://trader:s3cret@127.0.0.1:1/x")
    assert done.exit_code == 2
    assert "s3cret" not in done.output
    assert "refused" in done.output
