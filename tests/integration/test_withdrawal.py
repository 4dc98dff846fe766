"""Discarding pending entries beside relays of other processes, and with PostgreSQL as the judge of what was applied."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from outbox import EntryInDelivery, EntryNotFound, EntryStatus, Operation, Outbox, OutboxConfig, Relay
from outbox.rescue.verify import check_all
from tests import atb as command_line
from tests.unit.fakes.audit import query
from tests.unit.fakes.bench import Bench
from tests.unit.fakes.waiting import LONG, until

NOTE = Operation("note", table="notes", order_by="k")
QUICK: dict[str, Any] = {"backoff_base": 0.01, "backoff_cap": 0.05}
_DECLARED = """
from outbox import Operation
OPERATIONS = [Operation("note", table="notes", order_by="k")]
"""
_ENTRIES = 400
# Holds up every entry whose number begins with a digit that the test has locked, so that no relay is done too soon.
_GATES = """
CREATE FUNCTION pass_gate() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN PERFORM pg_advisory_xact_lock(new.n / 100); RETURN new; END $$;
CREATE TRIGGER gate BEFORE INSERT ON notes FOR EACH ROW EXECUTE FUNCTION pass_gate()
"""


@pytest.fixture
def url(postgres_url: str) -> str:
    query(postgres_url, "CREATE TABLE notes (k text, n int)")
    return postgres_url


@pytest.fixture
def bench(url: str, outbox_dir: Path) -> Iterator[Bench]:
    with Bench(outbox_dir, url, NOTE, **QUICK) as made:
        yield made


def _drain(bench: Bench) -> None:
    with Relay(bench.box, bench.target) as relay:
        assert relay.drain(timeout=LONG)


def test_entry_applied_by_a_relay_that_died_is_completed(bench: Bench) -> None:
    applied = bench.enqueue("note", {"k": "a", "n": 1})
    bench.apply(applied)
    never = bench.enqueue("note", {"k": "a", "n": 2})
    for seq in (applied, never):
        bench.box.discard(seq, "not wanted")
    assert bench.box.status().discarded == 2

    _drain(bench)

    assert bench.query("SELECT n FROM notes") == [(1,)]
    assert bench.box.entry(applied).status is EntryStatus.COMPLETED
    assert bench.box.entry(applied).error is None
    assert bench.box.entry(never).status is EntryStatus.FAILED
    status = bench.box.status()
    assert (status.completed, status.discarded, status.pending) == (1, 1, 0)
    assert bench.box.store.withdrawn() == []
    assert bench.receipts() == [applied]
    bench.box.close()
    check_all(bench.box.path)


def test_transaction_that_still_runs_in_postgresql_is_waited_for(bench: Bench) -> None:
    seq = bench.enqueue("note", {"k": "a", "n": 1})
    first = bench.enqueue("note", {"k": "b", "n": 2})
    bench.apply(first)  # makes the tables
    [record] = [record for record in bench.box.store.records("pending") if record.seq == seq]
    straggler = psycopg2.connect(bench.url)
    with straggler.cursor() as cursor:
        columns = "(idempotency_key, store_id, seq, operation, payload_hash)"
        values = (record.key.hex(), str(bench.box.store.identity.store_id), seq, "note", record.payload_hash.hex())
        cursor.execute(f"INSERT INTO outbox_receipts {columns} VALUES (%s, %s, %s, %s, %s)", values)
        cursor.execute("INSERT INTO notes VALUES ('a', 1)")
    bench.box.discard(seq, "the relay was killed")
    with Relay(bench.box, bench.target):
        until(lambda: bench.box.entry(first).status is EntryStatus.COMPLETED)
        assert bench.box.store.withdrawn() == [seq]
        straggler.commit()
        until(lambda: bench.box.entry(seq).status is EntryStatus.COMPLETED)
    straggler.close()


def test_freed_key_of_an_applied_entry_has_one_effect(bench: Bench) -> None:
    seq = bench.enqueue("note", {"k": "a", "n": 1}, key="k")
    bench.apply(seq)
    bench.box.discard(seq, "not wanted", free_key=True)
    bench.enqueue("note", {"k": "a", "n": 1}, key="k")
    _drain(bench)
    assert bench.query("SELECT n FROM notes") == [(1,)]


class Relays:
    """Relays of their own processes, one after the other."""

    def __init__(self, url: str, directory: Path, work: Path) -> None:
        (work / "declared.py").write_text(_DECLARED)
        env = {"OUTBOX_DIR": str(directory), "DATABASE_URL": url, "OUTBOX_OPERATIONS": "declared:OPERATIONS"}
        env |= {"OUTBOX_BATCH_SIZE": "5", "OUTBOX_BUSY_BATCH_SIZE": "5", "OUTBOX_BACKOFF_CAP": "0.2"}
        self._env, self._work = command_line.environment(**env), work
        self._now: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        relay = [*command_line.COMMAND, "relay", "--interval", "0.01"]
        self._now = subprocess.Popen(relay, env=self._env, cwd=self._work, stderr=subprocess.DEVNULL)

    def kill(self) -> None:
        if self._now is not None:
            self._now.kill()
            self._now.wait()


@pytest.fixture
def relays(url: str, outbox_dir: Path, tmp_path: Path) -> Iterator[Relays]:
    work = tmp_path / "host"
    work.mkdir()
    made = Relays(url, outbox_dir, work)
    yield made
    made.kill()


def _discard(box: Outbox, wanted: list[int]) -> set[int]:
    """Those of `wanted` that were discarded; the others were delivered first."""
    done = set()
    for seq in wanted:
        try:
            box.discard(seq, "by the operator")
            done.add(seq)
        except (EntryInDelivery, EntryNotFound):
            continue
    return done


@contextmanager
def _gates(url: str, *numbers: int) -> Iterator[Callable[[int], None]]:
    """Lock the gates of entries from 100, 200 and so on; what is yielded opens one."""
    query(url, _GATES)
    with closing(psycopg2.connect(url)) as holder, holder.cursor() as cursor:
        holder.autocommit = True

        def turn(function: str, number: int) -> None:
            cursor.execute(f"SELECT {function}(%s)", [number])

        for number in numbers:
            turn("pg_advisory_lock", number)
        yield partial(turn, "pg_advisory_unlock")


def _check(box: Outbox, url: str, discarded: set[int], *, kills: int) -> None:
    until(lambda: box.status().pending == 0 and not box.store.withdrawn())
    notes = [entry for entry in box.ledger() if entry.operation == "note"]
    completed = {entry.seq for entry in notes if entry.status is EntryStatus.COMPLETED}
    failed = {entry.seq for entry in notes if entry.status is EntryStatus.FAILED}
    assert sorted(n for (n,) in query(url, "SELECT n FROM notes")) == sorted(completed)
    assert len(completed) + len(failed) == _ENTRIES
    assert failed <= discarded
    assert kills or failed == discarded
    assert failed, "no entry was discarded"


def test_entry_beside_a_relay_process_is_discarded_or_applied(url: str, outbox_dir: Path, relays: Relays) -> None:
    with Outbox.open(outbox_dir, OutboxConfig(), [NOTE]) as box, _gates(url, 2) as open_gate:
        seqs = [box.enqueue("note", {"k": f"k{n % 7}", "n": n + 1}).seq for n in range(_ENTRIES)]
        relays.start()
        until(lambda: box.status().completed > 0)
        # The newest first, towards the relay.
        newest, *others = seqs[::-3]
        discarded = _discard(box, [newest])
        open_gate(2)
        discarded |= _discard(box, others)
        _check(box, url, discarded, kills=0)


def test_killed_relay_processes_leave_no_discarded_row(url: str, outbox_dir: Path, relays: Relays) -> None:
    draw = random.Random(11)
    with Outbox.open(outbox_dir, OutboxConfig(), [NOTE]) as box, _gates(url, 1, 2, 3) as open_gate:
        seqs = [box.enqueue("note", {"k": f"k{n % 7}", "n": n + 1}).seq for n in range(_ENTRIES)]
        discarded: set[int] = set()
        for gate in (1, 2, 3):
            before = box.status().completed
            relays.start()
            until(lambda known=before: box.status().completed > known)  # type: ignore[misc]
            relays.kill()
            # What it had in its batch is the oldest of what is pending.
            oldest = [entry.seq for entry, _ in zip(box.pending(), range(10), strict=False)]
            discarded |= _discard(box, [*oldest[::2], *draw.sample(seqs, 20)])
            open_gate(gate)
        relays.start()
        _check(box, url, discarded, kills=3)
