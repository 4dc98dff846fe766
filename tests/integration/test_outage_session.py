"""The server is there, but this session, this batch or this relay is not so lucky."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psycopg2
import pytest
from sqlalchemy import Connection, text

from outbox import Entry, Health, Operation, TargetUnavailable
from tests.unit.fakes.audit import book, query
from tests.unit.fakes.proxy import Proxy
from tests.unit.fakes.scene import Scene
from tests.unit.fakes.waiting import LONG, until

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def scene(postgres_url: str, outbox_dir: Path) -> Iterator[Scene]:
    with Scene(outbox_dir, postgres_url) as scene:
        scene.create()
        yield scene


def test_session_terminated_between_batches_loses_nothing(scene: Scene) -> None:
    scene.relay.start()
    for _ in range(3):
        scene.trade(5)
        assert scene.relay.drain(LONG)
        assert scene.terminate() == 1


def test_session_terminated_in_a_batch_is_an_outage(scene: Scene) -> None:
    with scene.batch_in_flight():
        assert scene.terminate() == 1
        scene.target.wait_for_interruptions(1)
        error = scene.target.interruptions()[0]
        assert isinstance(error, TargetUnavailable)
        # Not that of the rollback behind it, which finds the connection closed and knows no reason.
        assert str(error).startswith(("57P01: terminating", "OperationalError: server closed the connection"))


def test_batch_that_waits_too_long_for_a_lock_is_given_up_and_shrinks(postgres_url: str, outbox_dir: Path) -> None:
    with Scene(outbox_dir, postgres_url, stall_timeout=0.5) as scene:
        scene.create()
        with scene.batch_in_flight():
            scene.target.wait_for_interruptions(2)
            assert all(error.stalled for error in scene.target.interruptions())
            assert {entry.attempts for entry in scene.box.pending()} == {0}


def test_read_only_database_needs_an_operator_and_uses_no_attempt(scene: Scene) -> None:
    database = scene.url.rpartition("/")[2]
    query(scene.url, f"ALTER DATABASE {database} SET default_transaction_read_only = on")
    scene.trade(15)
    scene.relay.start()
    scene.target.wait_for_interruptions(3)
    # Not what a standby says: somebody has set it.
    assert "read-only by default_transaction_read_only" in str(scene.target.interruptions()[-1])
    assert {entry.attempts for entry in scene.box.pending()} == {0}
    until(lambda: scene.box.status().health is Health.NEEDS_OPERATOR)
    writable = f"{scene.url}?options=-cdefault_transaction_read_only%3Doff"
    query(writable, f"ALTER DATABASE {database} RESET default_transaction_read_only")


@pytest.mark.parametrize(
    ("sqlstate", "parks"),
    [
        ("53100", False),  # disk full
        ("53200", False),  # out of memory
        ("40001", False),  # serialisation failure
        ("55P03", False),  # lock not available
        ("57P03", False),  # cannot connect now
        ("58030", False),  # I/O error
        ("42501", True),  # insufficient privilege
        ("XX000", True),  # internal error, of every entry
    ],
)
def test_a_server_that_cannot_write_consumes_no_attempts(scene: Scene, sqlstate: str, parks: bool) -> None:
    query(
        scene.url,
        "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN RAISE EXCEPTION 'not now' USING ERRCODE = '{sqlstate}'; END $$;"
        "CREATE TRIGGER fail BEFORE INSERT ON trades FOR EACH ROW EXECUTE FUNCTION fail()",
    )
    scene.trade(7)
    scene.audit.group(scene.box, 3)
    scene.relay.start()
    if parks:
        until(lambda: sqlstate in scene.box.status().relay.parked.get("trade", ""))
    else:
        scene.target.wait_for_interruptions(3)
        assert {type(error) for error in scene.target.interruptions()} == {TargetUnavailable}
        assert sqlstate in str(scene.target.interruptions()[-1])
    assert not scene.box.status().relay.stopped
    assert {entry.attempts for entry in scene.box.pending()} == {0}
    query(scene.url, "DROP TRIGGER fail ON trades")


def test_a_deadlock_is_tried_again(postgres_url: str, outbox_dir: Path) -> None:
    holds_first, go = threading.Event(), threading.Event()

    def transfer(connection: Connection, entry: Entry) -> None:
        # The relay's session finds the deadlock, and is its victim.
        connection.execute(text("SET LOCAL deadlock_timeout = '50ms'"))
        connection.execute(text("UPDATE accounts SET n = n + 1 WHERE id = 1"))
        holds_first.set()
        assert go.wait(LONG)
        connection.execute(text("UPDATE accounts SET n = n + 1 WHERE id = 2"))
        book(connection, entry)

    operation = Operation("transfer", handler=transfer, order_by="account")
    with Scene(outbox_dir, postgres_url, operation) as scene, closing(psycopg2.connect(postgres_url)) as other:
        scene.create()
        query(
            postgres_url, "CREATE TABLE accounts (id int PRIMARY KEY, n int); INSERT INTO accounts VALUES (1,0), (2,0)"
        )
        scene.trade(1, operation="transfer")
        scene.relay.start()
        assert holds_first.wait(LONG)
        cursor = other.cursor()
        cursor.execute("SET deadlock_timeout = '1h'; UPDATE accounts SET n = n + 10 WHERE id = 2")
        waiting = threading.Thread(target=cursor.execute, args=("UPDATE accounts SET n = n + 10 WHERE id = 1",))
        waiting.start()
        until(lambda: bool(query(postgres_url, "SELECT 1 FROM pg_locks WHERE NOT granted")))
        go.set()
        scene.target.wait_for_interruptions(1)
        assert str(scene.target.interruptions()[0]).startswith("40P01")
        waiting.join(LONG)
        other.commit()
        scene.finish()
        # Once by the relay, although it began twice.
        assert query(postgres_url, "SELECT n FROM accounts ORDER BY id") == [(11,), (11,)]


def test_commit_with_a_lost_answer_is_not_repeated(postgres_url: str, outbox_dir: Path) -> None:
    # A connection that is slow to be made would be an interruption too.
    with (
        Proxy(postgres_url) as proxy,
        Scene(outbox_dir, postgres_url, relay_url=proxy.url, connect_timeout=LONG, stall_timeout=LONG) as scene,
    ):
        scene.create()
        scene.trade(3)
        assert scene.relay.drain(LONG)
        proxy.cut_at_commit.set()
        scene.trade(8, operation="booking")
        scene.relay.start()
        assert proxy.cut.wait(LONG)
        scene.finish()
        assert len(scene.target.interruptions()) == 1
        # What the handler returned the first time is kept, although the second try took it from the receipt.
        results = [entry.result for entry in scene.box.ledger() if entry.operation == "booking"]
        assert results == [row[0] for row in query(postgres_url, "SELECT id FROM trades ORDER BY id OFFSET 3")]


_RELAY = """
import os, signal, sys, time
from outbox.postgres.lane import Lane
from outbox import Outbox, OutboxConfig, PostgresTarget, Relay
from outbox.store.store import Store
from tests.unit.fakes.audit import OPERATIONS

def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)

if sys.argv[3] == "before the COMMIT":
    effects = Lane._effects
    Lane._effects = lambda *args: die(effects(*args))
else:
    # Recording the first batch and applying the second go on side by side: the second one waits for the kill.
    Store.settle = die
    batches, apply = iter([True]), PostgresTarget.apply
    PostgresTarget.apply = lambda *args: apply(*args) if next(batches, False) else time.sleep(60)
with Outbox.attach(sys.argv[1], OutboxConfig(batch_size=4)) as box:
    Relay(box, PostgresTarget(sys.argv[2], OPERATIONS)).drain(20)
"""


@pytest.mark.parametrize(("moment", "applied"), [("before the COMMIT", 0), ("between COMMIT and ledger", 4)])
def test_killed_relay_process_loses_and_doubles_nothing(
    scene: Scene, outbox_dir: Path, moment: str, applied: int
) -> None:
    scene.trade(10)
    for _ in range(2):
        command = [sys.executable, "-c", _RELAY, str(outbox_dir), scene.url, moment]
        done = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False, timeout=LONG)
        assert done.returncode == -signal.SIGKILL
        # PostgreSQL has them, or not, and the store knows of nothing.
        assert query(scene.url, "SELECT count(*) FROM trades") == [(applied,)]
        status = scene.box.status()
        assert (status.pending, status.completed) == (10, 0)
        assert not status.relay.alive
        assert scene.audit.problems(scene.box) == []
