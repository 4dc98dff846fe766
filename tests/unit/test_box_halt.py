"""When the disk cannot keep a promise: enqueueing halts and stays halted, draining goes on, nothing told is lost."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import lmdb
import pytest

from outbox import DurabilityError, Health, Outbox, OutboxConfig, StoreFull, StoreLocked
from outbox.monitoring import findings
from outbox.relay.reconcile_orders import ReconcileOrder, ordered, place_order, withdraw_order
from outbox.store import appending, envelope, quota, store
from outbox.store.environment import Environment
from outbox.store.ledger import Settlement
from outbox.store.reads import CHUNK, FORGOTTEN
from tests.unit.fakes.rig import FakeClock
from tests.unit.fakes.waiting import LONG, until

HALT = """
import json, os, resource, sys
from outbox import DurabilityError, Outbox, OutboxError, StoreFull
directory = sys.argv[1]
box = Outbox.open(directory)
told = [box.enqueue("log", {"number": number}).seq for number in range(20)]

def limit(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

limit(os.stat(directory + "/data.mdb").st_size)
for number in range(20, 500):
    try:
        told.append(box.enqueue("log", {"number": number, "text": "x" * 2000}).seq)
    except DurabilityError as exc:
        first = exc
        break
limit(resource.RLIM_INFINITY)
failed = {"number": number, "text": "x" * 2000}
again = []
for _ in range(3):
    try:
        box.enqueue("log", {})
    except DurabilityError as exc:
        again.append(str(exc))
print(json.dumps([str(first), type(first).__name__, first.key, again, told]), flush=True)
sys.stdin.readline()
box.close()
with Outbox.open(directory) as box:
    retried = [box.enqueue("log", failed, key=first.key).seq for _ in range(2)]
    found = [entry.args["number"] for entry in box.pending()]
    print(json.dumps([retried, found, box.status().halted]))
"""
DRAIN = """
import os, resource, sys
from outbox import Outbox
from outbox.store.environment import Environment
from outbox.store.ledger import Settlement
box = Outbox.open(sys.argv[1])
for number in range(300):
    box.enqueue("log", {"number": number, "text": "x" * 1500})
records = list(box.store.records("pending"))
resource.setrlimit(resource.RLIMIT_FSIZE, (os.stat(sys.argv[1] + "/data.mdb").st_size, resource.RLIM_INFINITY))
for first in range(0, 300, 100):
    box.store.settle(Settlement(completed=[(record, b"") for record in records[first : first + 100]]))
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
status = box.status()
print(status.pending, status.completed, status.unledgered > 0, status.ledger + status.unledgered, status.halted)
box.close()
"""


def failing_once(box: Outbox, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Let the next write into `pending` fail, and none after it."""
    pack = envelope.pack

    def fail(record: Any) -> bytes:
        monkeypatch.setattr(appending, "pack", pack)
        raise error

    monkeypatch.setattr(appending, "pack", fail)


@pytest.mark.slow
def test_a_real_failed_write_halts_until_the_store_is_opened_again(outbox_dir: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HALT, str(outbox_dir)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as engine:
        assert engine.stdout is not None
        first, kind, key, again, told = json.loads(engine.stdout.readline())
        # The limit was met: the file could not grow.
        assert kind == "DurabilityError"
        assert "could not enqueue: mdb_txn_commit" in first
        assert "restart: reopening verifies the store" in first
        assert len(again) == 3
        assert all("enqueueing is halted: the store could not enqueue" in message for message in again)
        with Outbox.attach(outbox_dir) as observer:
            status = observer.status()
            assert [entry.seq for entry in observer.pending()] == told
        assert status.halted
        assert status.engine_pid == engine.pid
        assert status.halt_reason is not None
        assert "could not enqueue: mdb_txn_commit" in status.halt_reason
        assert status.health is Health.NEEDS_OPERATOR
        assert any("enqueueing is halted" in said for said in status.needs_operator)
        rest, _ = engine.communicate("\n")
        assert engine.returncode == 0
    retried, found, halted = json.loads(rest)
    assert retried == [len(told) + 1] * 2
    assert found == [*range(len(told)), len(told)]
    assert key is not None
    assert not halted


def test_a_halted_store_still_takes_alarms_and_orders_to_reconcile(
    outbox_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Draining goes on while enqueueing is halted, and it begins with these where PostgreSQL has forgotten something.
    with Outbox.open(outbox_dir) as box:
        failing_once(box, monkeypatch, OSError(5, "Input/output error"))
        with pytest.raises(DurabilityError):
            box.enqueue("log", {})
        box.alarms.sound("disk", "it smells")
        placed = place_order(box, ReconcileOrder())
        assert box.alarms.sounds("disk")
        assert ordered(box)
        withdraw_order(box, placed)
        assert not ordered(box)
        assert box.alarms.acknowledge("disk")
        with pytest.raises(DurabilityError, match="enqueueing is halted"):
            box.enqueue("log", {})


@pytest.mark.slow
def test_a_store_on_a_full_disk_drains_without_ledger_copies(outbox_dir: Path) -> None:
    done = subprocess.run([sys.executable, "-c", DRAIN, str(outbox_dir)], capture_output=True, text=True, check=True)
    assert done.stdout == "0 300 True 300 True\n"
    with Outbox.open(outbox_dir) as box:
        assert not box.status().halted
        assert box.enqueue("log", {}).seq == 301


@pytest.mark.slow
@pytest.mark.parametrize(
    "error",
    [OSError(5, "Input/output error"), lmdb.Error("short write"), lmdb.DiskError("full"), lmdb.MapFullError("x")],
)
def test_the_first_failed_write_halts_though_the_next_would_succeed(
    outbox_dir: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    with Outbox.open(outbox_dir) as box:
        box.enqueue("log", {"number": 0})
        failing_once(box, monkeypatch, error)
        with pytest.raises(DurabilityError, match=f"could not enqueue: .*{re.escape(str(error))}") as caught:
            box.enqueue("log", {"number": 1}, key="mine")
        assert caught.value.key == "mine"
        assert caught.value.keys == ("mine",)
        for use in (lambda: box.enqueue("log", {}), lambda: box.store.put_meta("a", b"")):
            with pytest.raises(DurabilityError, match="enqueueing is halted"):
                use()
        with pytest.raises(DurabilityError, match="enqueueing is halted"), box.transaction() as tx:
            tx.enqueue("log", {})
        assert box.status().halted
        # Draining goes on.
        box.store.settle(Settlement(completed=[(next(box.store.records("pending")), b"")]))
        assert [entry.args for entry in box.ledger()] == [{"number": 0}]
    with Outbox.open(outbox_dir) as box:
        assert not box.status().halted
        assert box.enqueue("log", {"number": 1}, key="mine").seq == 2


@pytest.mark.slow
def test_a_call_without_a_key_is_given_the_one_to_retry_with(outbox_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Outbox.open(outbox_dir) as box:
        failing_once(box, monkeypatch, OSError("bad disk"))
        with pytest.raises(DurabilityError) as caught, box.transaction() as tx:
            tx.enqueue("log", {"number": 1})
            tx.enqueue("log", {"number": 2}, key="mine")
        first, second = caught.value.keys
    assert first is not None
    assert second == "mine"
    with Outbox.open(outbox_dir) as box:
        seqs = [box.enqueue("log", {"number": 1}, key=first).seq for _ in range(2)]
        assert seqs == [1, 1]


def test_a_call_that_was_stored_after_all_is_recognised_by_its_key(
    outbox_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = store.Store.append

    def doubtful(submissions: list[appending.Append], waits: Any) -> None:
        real(box.store, submissions, waits)
        raise DurabilityError("the flush was reported as failed")

    with Outbox.open(outbox_dir) as box, monkeypatch.context() as patch:
        patch.setattr(box.store.writer, "_commit", doubtful)
        with pytest.raises(DurabilityError) as caught:
            box.enqueue("log", {"number": 1})
    with Outbox.open(outbox_dir) as box:
        assert box.enqueue("log", {"number": 1}, key=caught.value.key).seq == 1
        assert len(list(box.pending())) == 1


def test_every_thread_of_a_failed_commit_gets_its_own_key(outbox_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    caught: dict[str, DurabilityError] = {}
    with Outbox.open(outbox_dir) as box:
        inside, go_on = threading.Event(), threading.Event()
        append = box.store.append
        writer = box.store.writer
        assert writer is not None

        def fail(submissions: Any, waits: Any) -> None:
            if not inside.is_set():
                inside.set()
                go_on.wait(LONG)
                append(submissions, waits)
                return
            raise DurabilityError("bad disk", hint="replace it")

        writer._commit = fail

        def work(name: str) -> None:
            try:
                box.enqueue("log", {}, key=name)
            except DurabilityError as exc:
                caught[name] = exc

        threads = [threading.Thread(target=work, args=(name,)) for name in ("first", "a", "b", "c")]
        threads[0].start()
        inside.wait(LONG)
        for thread in threads[1:]:
            thread.start()
        until(lambda: writer._queue.qsize() == 3)
        go_on.set()
        for thread in threads:
            thread.join(LONG)
    assert {name: exc.key for name, exc in caught.items()} == {"a": "a", "b": "b", "c": "c"}
    assert {(exc.message, exc.hint) for exc in caught.values()} == {("bad disk", "replace it")}


def test_reading_after_a_panic_is_a_durability_error(outbox_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Panicked:
        def begin(self, **_: object) -> None:
            raise lmdb.PanicError("update of meta page failed")

        def close(self) -> None:
            """Nothing."""

    with Outbox.open(outbox_dir) as box:
        box.enqueue("log", {})
        record = next(box.store.records("pending"))
        opened = box.store._environment
        assert opened is not None
        with monkeypatch.context() as patch:
            patch.setattr(opened, "env", Panicked())
            with pytest.raises(DurabilityError, match="could not be read: .*meta page failed"):
                box.status()
            with pytest.raises(DurabilityError, match="could not settle: .*meta page failed"):
                box.store.settle(Settlement(completed=[(record, b"")]))
        assert box.store.halt_reason is not None


def test_a_thread_that_waited_for_the_failing_write_is_halted_too(
    outbox_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Outbox.open(outbox_dir) as box:
        checked = []
        check = box.store.check_not_halted

        def halted_the_third_time() -> None:
            checked.append(1)
            if len(checked) == 3:
                box.store._latch("settle", OSError("bad disk"))
            check()

        monkeypatch.setattr(box.store, "check_not_halted", halted_the_third_time)
        with pytest.raises(DurabilityError, match="enqueueing is halted: the store could not settle"):
            box.enqueue("log", {})
        assert list(box.pending()) == []


class LetsTheNextWriterIn:
    """An LMDB environment of which one commit fails, as its fdatasync does: the error comes after the lock is free."""

    def __init__(self, env: Any, in_between: Callable[[], None]) -> None:
        self._env, self._in_between = env, in_between
        self._failed = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._env, name)

    @contextmanager
    def begin(self, **options: bool) -> Iterator[Any]:
        fails = options.get("write", False) and not self._failed
        self._failed |= fails
        with self._env.begin(**options) as txn:
            yield txn
        if fails:
            self._in_between()
            raise lmdb.Error("mdb_txn_commit: Input/output error")


@pytest.mark.slow
def test_enqueue_between_a_failed_commit_and_its_halt_is_refused(
    outbox_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    acknowledged = threading.Event()
    refused: list[DurabilityError] = []
    with Outbox.open(outbox_dir) as box:

        def enqueue() -> None:
            try:
                box.enqueue("log", {})
                acknowledged.set()
            except DurabilityError as exc:
                refused.append(exc)

        other = threading.Thread(target=enqueue)

        def in_between() -> None:
            other.start()
            # Time enough for a commit; where it must wait there is nothing to be seen.
            acknowledged.wait(0.3)

        opened = box.store._environment
        assert opened is not None
        monkeypatch.setattr(opened, "env", LetsTheNextWriterIn(opened.env, in_between))
        with pytest.raises(DurabilityError, match="could not store 'mine': .*Input/output error"):
            box.store.put_meta("mine", b"")
        other.join(LONG)
        assert not acknowledged.is_set()
        assert ["enqueueing is halted" in str(exc) for exc in refused] == [True]
        assert list(box.pending()) == []


def test_the_halt_is_logged_and_told_once(
    outbox_dir: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Outbox.open(outbox_dir) as box:
        told: list[str] = []
        publish = box.store.on_halt

        def tell(reason: str) -> None:
            told.append(reason)
            publish(reason)

        box.store.on_halt = tell
        box.store._latch("enqueue", OSError("bad disk"))
        box.store._latch("settle", OSError("worse disk"))
        assert told == ["could not enqueue: bad disk"]
        assert box.status().halt_reason == told[0]
    [logged] = [record.message for record in caplog.records if record.levelname == "CRITICAL"]
    assert logged.startswith("durable write failed, enqueueing is halted: could not enqueue: bad disk (")


def test_a_halt_that_cannot_be_published_is_still_a_halt(outbox_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Outbox.open(outbox_dir) as box:
        (outbox_dir / "engine.state").unlink()
        (outbox_dir / "engine.state").mkdir()
        box.store._latch("enqueue", OSError("bad disk"))
        assert "halt state could not be published" in caplog.text
        with pytest.raises(DurabilityError, match="enqueueing is halted"):
            box.enqueue("log", {})


@pytest.mark.slow
def test_halt_of_an_earlier_engine_is_no_halt_of_this_one(outbox_dir: Path) -> None:
    with Outbox.open(outbox_dir) as box:
        box.store._latch("enqueue", OSError("bad disk"))
    with Outbox.attach(outbox_dir) as observer:
        assert not observer.status().halted
    with Outbox.open(outbox_dir) as box:
        assert not box.status().halted


OBSERVER = """
import sys
from outbox import Outbox
with Outbox.attach(sys.argv[1]) as box:
    print(box.status().halted, flush=True)
    sys.stdin.read()
"""


@pytest.mark.slow
def test_halted_engine_returns_only_after_the_store_was_verified(outbox_dir: Path) -> None:
    box = Outbox.open(outbox_dir)
    box.enqueue("log", {})
    with subprocess.Popen(
        [sys.executable, "-c", OBSERVER, str(outbox_dir)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as observer:
        assert observer.stdout is not None
        assert observer.stdout.readline() == "False\n"
        # A proper shutdown needs no verification, a halt does.
        box.close()
        box = Outbox.open(outbox_dir)
        box.store._latch("enqueue", OSError("bad disk"))
        box.close()
        with pytest.raises(StoreLocked, match="must be verified after a write failed, and another process has it open"):
            Outbox.open(outbox_dir)
        observer.communicate()
    with Outbox.open(outbox_dir) as again:
        assert again.enqueue("log", {}).seq == 2


@pytest.mark.slow
def test_whoever_verifies_the_store_forgets_the_halt(outbox_dir: Path) -> None:
    box = Outbox.open(outbox_dir)
    box.store._latch("enqueue", OSError("bad disk"))
    box.close()
    with subprocess.Popen(
        [sys.executable, "-c", OBSERVER, str(outbox_dir)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as observer:
        assert observer.stdout is not None
        observer.stdout.readline()
        with Outbox.open(outbox_dir) as again:
            assert again.enqueue("log", {}).seq == 1
        observer.communicate()


# -- the files are taken away


def replace_by_a_copy(directory: Path) -> None:
    (directory / "copy").write_bytes((directory / "data.mdb").read_bytes())
    (directory / "copy").rename(directory / "data.mdb")


TAKEN_AWAY = {
    "deleted": lambda directory: (directory / "data.mdb").unlink(),
    "replaced": replace_by_a_copy,
    "directory deleted": shutil.rmtree,
    "directory moved": lambda directory: directory.rename(directory.with_name("elsewhere")),
}


@pytest.mark.parametrize("take_away", TAKEN_AWAY.values(), ids=TAKEN_AWAY)
def test_enqueue_into_a_removed_or_replaced_file_halts(outbox_dir: Path, take_away: Callable[[Path], None]) -> None:
    with Outbox.open(outbox_dir) as box:
        box.enqueue("log", {"number": 0})
        take_away(outbox_dir)
        with pytest.raises(DurabilityError, match=r"could not .*drain it first, then restore a backup"):
            box.enqueue("log", {"number": 1})
        for use in (lambda: box.enqueue("log", {}), lambda: box.store.put_meta("a", b"")):
            with pytest.raises(DurabilityError, match=r"enqueueing is halted.*drain it first"):
                use()
        assert box.status().halted
        # What this process still has can be delivered.
        box.store.settle(Settlement(completed=[(next(box.store.records("pending")), b"")]))
        assert box.status().completed == 1


def test_file_that_goes_during_a_commit_halts(outbox_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was there when the commit began, and what was written into it is lost with the process."""
    with Outbox.open(outbox_dir) as box:
        box.enqueue("log", {"number": 0})
        monkeypatch.setattr(
            Environment, "check_lock_in_place", lambda _: (outbox_dir / "data.mdb").unlink(missing_ok=True)
        )
        with pytest.raises(DurabilityError, match="removed or replaced while it was open"):
            box.enqueue("log", {"number": 1})
        assert box.status().halted


def test_small_record_is_not_acknowledged_into_a_deleted_file(outbox_dir: Path) -> None:
    with Outbox.open(outbox_dir) as box:
        (outbox_dir / "data.mdb").unlink()
        with pytest.raises(DurabilityError, match="could not store 'a': .*removed or replaced while it was open"):
            box.store.put_meta("a", b"")


def test_a_status_notices_that_the_file_is_gone(outbox_dir: Path) -> None:
    with Outbox.open(outbox_dir) as box:
        shutil.rmtree(outbox_dir)
        status = box.status()
        assert status.halted
        assert status.health is Health.NEEDS_OPERATOR
        assert "removed or replaced" in str(status.halt_reason)
        assert (status.file_bytes, status.free_disk_bytes) == (0, 0)


def test_closing_over_a_replaced_file_leaves_no_clean_mark(outbox_dir: Path) -> None:
    with Outbox.open(outbox_dir) as box:
        box.enqueue("log", {})
        replace_by_a_copy(outbox_dir)
    assert not (outbox_dir / "clean").exists()


def test_a_disk_that_cannot_be_asked_for_its_free_space_halts(
    outbox_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: str) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with Outbox.open(outbox_dir) as box:
        with monkeypatch.context() as patch:
            patch.setattr(os, "statvfs", fail)
            with pytest.raises(DurabilityError, match="could not learn how much disk is free: .*Input/output error"):
                box.enqueue("log", {}, key="mine")
        with pytest.raises(DurabilityError, match="enqueueing is halted"):
            box.enqueue("log", {})


# -- quota and reserve


def fill_up(box: Outbox) -> int:
    """Enqueue until the store is full; how many were taken."""
    for number in range(10_000):
        try:
            box.enqueue("log", {"number": number, "text": "x" * 1500})
        except StoreFull as exc:
            assert "enqueueing stops at 0 MiB, 85 % of max_size_mb=1" in str(exc)  # noqa: PT017 - in a loop
            assert exc.key is not None  # noqa: PT017 - in a loop
            return number
    raise AssertionError("the quota was never met")


@pytest.mark.slow
def test_full_store_refuses_entries_until_it_is_drained(outbox_dir: Path) -> None:
    with Outbox.open(outbox_dir, OutboxConfig(max_size_mb=1)) as box:
        taken = fill_up(box)
        assert 300 < taken < 600
        with pytest.raises(StoreFull):
            box.enqueue("log", {"text": "x" * 1500})
        status = box.status()
        assert (status.pending, status.halted) == (taken, False)
        while records := box.store.peek(0, 100).records:
            box.store.settle(Settlement(completed=[(record, b"") for record in records]))
        assert box.status().completed == taken
        assert box.status().unledgered == 0
        # The ledger's copies take the room until they are pruned.
        box.compact(timedelta(0))
        assert box.enqueue("log", {"text": "x" * 1500}).seq == taken + 1


@pytest.mark.slow
def test_a_full_store_is_an_operators_matter(outbox_dir: Path) -> None:
    with Outbox.open(outbox_dir, OutboxConfig(max_size_mb=1)) as box:
        fill_up(box)
        while box.status().live_bytes <= 0.85 * (1 << 20):
            box.store.put_meta("filler", b"")
            records = box.store.peek(0, 1 << 30).records
            box.store.settle(Settlement(retried=[(record, "y" * 1900) for record in records]))
        assert box.status().health is Health.NEEDS_OPERATOR


@pytest.fixture
def full_of_history(outbox_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Outbox, FakeClock]]:
    """A store that keeps settled entries for an hour and is full of them, and of a dead letter."""
    monkeypatch.setattr(quota, "KEPT_HISTORY", 20)
    monkeypatch.setattr(findings, "KEPT_HISTORY", 20)
    clock = FakeClock()
    with Outbox.open(outbox_dir, OutboxConfig(max_size_mb=1, retention_hours=1), clock=clock) as box:
        box.enqueue("log", {"text": "bad"})
        box.store.settle(Settlement(dead=[(next(box.store.records("pending")), "it is bad")]))
        while box.status().live_bytes < 0.84 * (1 << 20):
            enqueue_and_settle(box, 1)
        yield box, clock


def enqueue_and_settle(box: Outbox, count: int) -> None:
    for _ in range(count):
        box.enqueue("log", {"text": "x" * 1500})
        box.store.settle(Settlement(completed=[(next(box.store.records("pending")), b"")]))


@pytest.mark.slow
def test_history_makes_room_for_new_entries(
    full_of_history: tuple[Outbox, FakeClock], caplog: pytest.LogCaptureFixture
) -> None:
    box, _ = full_of_history
    before = box.status()
    said: list[str] = []
    for _ in range(1000):
        enqueue_and_settle(box, 1)
        after = box.status()
        said += after.degraded
        assert not any("full" in said for said in after.needs_operator)
    assert after.completed == before.completed + 1000
    # The limit is for enqueueing; settling may split a page of each tree after that, wherever the random keys lie.
    assert after.live_bytes <= 0.85 * (1 << 20) + 4 * 4096
    # The oldest has gone, with its key; the dead letter and the newest are there.
    kept = [entry.seq for entry in box.ledger()]
    assert kept == [1, *range(after.last_seq - len(kept) + 2, after.last_seq + 1)]
    assert [entry.seq for entry in box.dead_letters()] == [1]
    assert any("settled entries leave before retention_hours=1, to make room" in one for one in said)
    [warned] = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert warned.startswith("the store is full: settled entries leave early, to make room for new ones: ")
    assert " left before 1.0 hours were over (raise max_size_mb" in warned


@pytest.mark.slow
def test_expired_history_makes_room_without_a_warning(
    full_of_history: tuple[Outbox, FakeClock], caplog: pytest.LogCaptureFixture
) -> None:
    box, clock = full_of_history
    clock.advance(3601)
    enqueue_and_settle(box, 100)
    assert "history leaves" not in caplog.text


@pytest.mark.slow
def test_a_large_entry_makes_as_much_room_as_it_needs(full_of_history: tuple[Outbox, FakeClock]) -> None:
    box, _ = full_of_history
    before = box.status()
    box.enqueue("log", {"text": "x" * 200_000})
    after = box.status()
    assert (after.pending, after.last_seq) == (1, before.last_seq + 1)
    assert after.live_bytes <= 0.85 * (1 << 20) + 4 * 4096
    # It is as large as 100 settled entries, which leave by the chunk.
    assert 100 <= before.ledger - after.ledger <= CHUNK
    assert after.ledger > 100


@pytest.mark.slow
def test_history_that_leaves_early_is_logged_once(
    full_of_history: tuple[Outbox, FakeClock], caplog: pytest.LogCaptureFixture
) -> None:
    box, clock = full_of_history
    enqueue_and_settle(box, 100)
    said = len(caplog.records)
    assert said
    clock.advance(7200)
    box.compact(timedelta(0))
    enqueue_and_settle(box, 2)
    assert len(caplog.records) == said


@pytest.mark.slow
def test_dead_letters_make_room_as_soon_as_they_are_answered(outbox_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quota, "KEPT_HISTORY", 20)
    with Outbox.open(outbox_dir, OutboxConfig(max_size_mb=1)) as box:
        for _ in range(100):
            box.enqueue("log", {"text": "x" * 1500})
            box.store.settle(Settlement(dead=[(next(box.store.records("pending")), "it is bad")]))
        fill_up(box)
        for _ in range(2):
            with pytest.raises(StoreFull):
                box.enqueue("log", {"text": "x" * 1500})
        dead = [entry.seq for entry in box.dead_letters()]
        assert len(dead) == 100
        for seq in dead:
            box.discard(seq, "nobody wants it")
        box.enqueue("log", {"text": "x" * 1500})


@pytest.mark.slow
def test_pending_entries_never_make_room(full_of_history: tuple[Outbox, FakeClock]) -> None:
    box, _ = full_of_history
    seqs = [box.enqueue("log", {"text": "x" * 1500}).seq for _ in range(100)]
    with pytest.raises(StoreFull):
        for _ in range(1000):
            seqs += [box.enqueue("log", {"text": "x" * 1500}).seq]
    assert [entry.seq for entry in box.pending()] == seqs
    # The newest of the history stays all the same.
    assert box.status().ledger == 20
    assert box.status().health is Health.NEEDS_OPERATOR


@pytest.mark.slow
def test_history_is_kept_while_postgresql_lacks_something(full_of_history: tuple[Outbox, FakeClock]) -> None:
    box, _ = full_of_history
    box.alarms.sound(FORGOTTEN, "restored")
    before = box.status().ledger
    with pytest.raises(StoreFull):
        for _ in range(100):
            box.enqueue("log", {"text": "x" * 1500})
    assert box.status().ledger == before
    assert any("the store is full" in said for said in box.status().needs_operator)


@pytest.mark.slow
def test_history_that_cannot_be_read_is_reported_and_kept(
    full_of_history: tuple[Outbox, FakeClock], caplog: pytest.LogCaptureFixture
) -> None:
    box, _ = full_of_history
    opened = box.store._environment
    assert opened is not None
    with opened.env.begin(write=True) as txn:
        txn.put(envelope.seq_key(2), b"garbage", db=opened.ledger)
    with pytest.raises(StoreFull):
        for _ in range(100):
            box.enqueue("log", {"text": "x" * 1500})
    assert "the ledger cannot be pruned" in caplog.text


def test_one_entry_that_does_not_fit_takes_nobody_else_with_it(outbox_dir: Path) -> None:
    with Outbox.open(outbox_dir, OutboxConfig(max_size_mb=1)) as box:
        with pytest.raises(StoreFull), box.transaction() as tx:
            tx.enqueue("log", {"text": "small"})
            tx.enqueue("log", {"text": "x" * 1_000_000})
        assert list(box.pending()) == []
        assert box.enqueue("log", {"text": "small"}).seq == 1


def test_entry_that_does_not_fit_harms_no_other_in_its_commit(outbox_dir: Path) -> None:
    with Outbox.open(outbox_dir, OutboxConfig(max_size_mb=1)) as box:
        texts = ("small", "x" * 900_000, "small too")
        submissions = [appending.Append([box._prepare("log", {"text": text}, None, None)[0]]) for text in texts]
        box.store.append(submissions)
        assert [type(one.error) for one in submissions] == [type(None), StoreFull, type(None)]
        assert [entry.args["text"] for entry in box.pending()] == ["small", "small too"]


def test_a_neighbour_for_which_the_disk_has_no_room_harms_nobody_else(
    outbox_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Outbox.open(outbox_dir, OutboxConfig(min_free_mb=160)) as box:
        with_free_bytes(monkeypatch)(11 << 20)
        texts = ("small", "x" * 900_000)
        submissions = [appending.Append([box._prepare("log", {"text": text}, None, None)[0]]) for text in texts]
        box.store.append(submissions)
        assert [type(one.error) for one in submissions] == [type(None), StoreFull]
        assert [entry.args["text"] for entry in box.pending()] == ["small"]


def with_free_bytes(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets how many bytes of disk are free."""

    class Info:
        def __init__(self, free: int) -> None:
            self.f_bavail, self.f_frsize, self.f_blocks = free // 1024, 1024, 1 << 20

    def set_free(free: int) -> None:
        monkeypatch.setattr(os, "statvfs", lambda path: Info(free))

    return set_free


def test_the_free_space_for_draining_is_not_taken_by_entries(outbox_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_free = with_free_bytes(monkeypatch)
    with Outbox.open(outbox_dir, OutboxConfig(min_free_mb=160)) as box:
        set_free(11 << 20)
        box.enqueue("log", {})
        # A sixteenth of it is kept.
        for free in ((10 << 20) + 100, 10 << 20, 0):
            set_free(free)
            with pytest.raises(StoreFull, match=r"MiB are free at .*, 10 MiB are kept for draining.*free disk space"):
                box.enqueue("log", {})
            assert not box.status().halted
            assert box.status().free_disk_bytes == free // 1024 * 1024
        assert any("enqueueing is refused" in said for said in box.status().needs_operator)
        box.store.settle(Settlement(completed=[(next(box.store.records("pending")), b"")]))
        set_free(11 << 20)
        assert box.enqueue("log", {}).seq == 2


def test_a_large_entry_needs_more_free_space(outbox_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_free = with_free_bytes(monkeypatch)
    with Outbox.open(outbox_dir, OutboxConfig(min_free_mb=160)) as box:
        set_free(11 << 20)
        with pytest.raises(StoreFull):
            box.enqueue("log", {"text": "x" * 900_000})
        box.enqueue("log", {})


def test_without_a_reserve_the_disk_is_not_looked_at(outbox_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_free = with_free_bytes(monkeypatch)
    with Outbox.open(outbox_dir, OutboxConfig(min_free_mb=0)) as box:
        set_free(0)
        assert box.enqueue("log", {}).seq == 1


def refused(room: int, *sizes: int) -> list[int]:
    """The places of those for whom the disk has no room; an entry costs four times its size there."""
    limits = quota.Quota(Path("/store"), max_bytes=1 << 20, reserve_bytes=100, retention_us=0, now_us=lambda: 0)
    found = limits.admit_to_disk(100 + 4 * room, sizes)
    return [place for place, error in enumerate(found) if error is not None]


def test_quota_with_room_for_all_refuses_nothing() -> None:
    assert refused(10, 6, 4) == []
    assert refused(10) == []


def test_the_room_goes_to_the_first_who_come() -> None:
    assert refused(10, 6, 6) == [1]
    assert refused(10, 10, 1, 1) == [1, 2]


def test_refused_large_entry_leaves_its_room_to_smaller_ones() -> None:
    assert refused(10, 6, 5, 4) == [1]
    assert refused(10, 11, 10, 1) == [0, 2]


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (OutboxConfig(max_size_mb=8), "max_size_mb"),
        (OutboxConfig.from_env({"OUTBOX_MAX_SIZE_MB": "8"}), "OUTBOX_MAX_SIZE_MB"),
        (OutboxConfig.from_env({"OUTBOX_MAX_SIZE_MB": "9"}, max_size_mb=8), "max_size_mb"),
    ],
    ids=["program", "environment", "override"],
)
def test_refusal_of_a_full_store_names_the_space_and_the_remedy(
    outbox_dir: Path, config: OutboxConfig, name: str
) -> None:
    """A variable that the program does not read is no remedy."""
    limits = quota.Quota(Path("/store"), max_bytes=1, reserve_bytes=2 << 20, retention_us=0, now_us=lambda: 0)
    (error,) = limits.admit_to_disk(3 << 20, [10 << 20])
    assert error is not None
    assert error.message == "3 MiB are free at /store, 2 MiB are kept for draining"
    assert error.hint == "halt trading and free disk space"
    with Outbox.open(outbox_dir, config) as box:
        with pytest.raises(StoreFull) as caught:
            for _ in range(20):
                box.enqueue("log", {"text": "x" * 900_000})
        used = box.status().live_bytes >> 20
        said = f"the store uses {used} MiB, enqueueing stops at 6 MiB, 85 % of {name}=8"
        assert caught.value.message == said
        assert caught.value.hint == f"halt trading; drain and compact, or raise {name}"


def test_address_space_that_limits_the_store_is_named(outbox_dir: Path) -> None:
    with Outbox.open(outbox_dir) as box:
        opened = box.store._environment
        assert opened is not None
        size = opened.map_bytes
        limits = quota.Quota(outbox_dir, max_bytes=size, reserve_bytes=0, retention_us=0, now_us=lambda: 0)
        with opened.env.begin(write=True) as txn:
            (error,) = limits.admit(opened, txn, [size])
        assert error is not None
        assert error.message.endswith(f"85 % of the address space={size >> 20}")
        assert error.hint == "halt trading; drain and compact, or raise ulimit -v"
