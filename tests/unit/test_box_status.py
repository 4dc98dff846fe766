"""What `status` tells from this and other processes, and at what cost."""

from __future__ import annotations

import errno
import json
import os
import resource
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from outbox import Health, Outbox, OutboxConfig, Relay, StoreLocked, TargetUnavailable
from outbox.errors import StoreUnavailable
from outbox.monitoring import findings
from outbox.store import envelope, reads
from outbox.store.ledger import Settlement
from outbox.store.locks import Role, RoleLock
from outbox.store.own_files import StateFile
from outbox.testing import InMemoryTarget
from tests.unit.fakes.rig import FakeClock, Rig, TurnedClock, passing
from tests.unit.fakes.waiting import LONG

STATUS = """
import json, sys
from outbox import Outbox
with Outbox.attach(sys.argv[1]) as box:
    print(json.dumps(box.status().as_dict()))
"""


def fill(box: Outbox, count: int) -> None:
    for _ in range(0, count, 5000):
        with box.transaction() as tx:
            for number in range(min(count, 5000)):
                tx.enqueue("log", {"number": number})


@contextmanager
def no_more_files() -> Iterator[None]:
    """Within the block the process can open no file."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(map(int, os.listdir("/proc/self/fd")))
    taken: list[int] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, before[1]))
    try:
        while True:
            try:
                taken.append(os.open(os.devnull, os.O_RDONLY))
            except OSError:
                break
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        for one in taken:
            os.close(one)


CALLS: dict[str, Callable[[Outbox, Relay], object]] = {
    "status": lambda box, _: box.status(),
    "discard": lambda box, _: box.discard(1, "given up"),
    "drain": lambda _, relay: relay.drain(0),
    "start": lambda _, relay: relay.start(),
    "compact": lambda box, _: box.compact(vacuum=True),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_call_without_a_free_descriptor_raises_an_outbox_error(outbox_dir: Path, call: Any) -> None:
    """A trading loop that asks for the status catches `OutboxError`; a bare OSError ended it."""
    with Outbox.open(outbox_dir) as box:
        box.enqueue("log", {"n": 1})
        box.status()
        relay = Relay(box, InMemoryTarget([]))
        with no_more_files():
            # What needs no file goes on.
            box.enqueue("log", {"n": 2})
            with pytest.raises(StoreUnavailable, match="Too many open files") as raised:
                call(box, relay)
        assert raised.value.errno == errno.EMFILE
        relay.stop()
        assert (box.status().pending, box.status().halted) == (2, False)


def test_an_empty_store_is_healthy(outbox_dir: Path) -> None:
    with Outbox.open(outbox_dir) as box:
        status = box.status()
    assert status.path == str(outbox_dir)
    assert (status.pending, status.acknowledged, status.watermark, status.last_seq) == (0, 0, 0, 0)
    assert (status.engine_pid, status.halted, status.health) == (os.getpid(), False, Health.HEALTHY)
    assert (status.relay.alive, status.relay.pid, status.breaker) == (False, None, "unknown")
    assert status.max_bytes == 8192 << 20
    assert status.file_bytes == (outbox_dir / "data.mdb").stat().st_size
    assert 0 <= status.live_bytes <= status.file_bytes
    assert status.map_bytes >= 1 << 30
    assert status.free_disk_bytes > 0


def test_a_relative_directory_is_logged_and_shown_in_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Another folder of the program means another, empty store."""
    monkeypatch.chdir(tmp_path)
    with caplog.at_level("INFO"), Outbox.open(config=OutboxConfig(dir="data/outbox")) as box:
        assert f"outbox opened at {tmp_path}/data/outbox, given as data/outbox" in caplog.messages
        assert box.status().path == box.status().as_dict()["path"] == f"{tmp_path}/data/outbox"


def test_without_pending_entries_there_is_no_lag(outbox_dir: Path) -> None:
    with Outbox.open(outbox_dir) as box:
        assert box.status().lag_s == 0.0


def test_lag_is_the_age_of_the_oldest_pending_entry(outbox_dir: Path) -> None:
    clock = FakeClock()
    with Outbox.open(outbox_dir, clock=clock) as box:
        box.enqueue("log", {})
        clock.advance(10)
        box.enqueue("log", {})
        clock.advance(5)
        assert box.status().lag_s == 15.0
        box.store.settle(Settlement(completed=[(next(box.store.records("pending")), b"")]))
        assert box.status().lag_s == 5.0
        assert box.status().watermark == 1
        clock.advance(-60)
        assert box.status().lag_s == 0.0


class CountingTransaction:
    """A read transaction that counts what is asked of it, cursors included."""

    def __init__(self, inner: Any, calls: Counter[str]) -> None:
        self._inner, self._calls = inner, calls

    def __enter__(self) -> CountingTransaction:
        self._inner.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        self._inner.__exit__(*exc)

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **keywords: Any) -> Any:
            self._calls[name] += 1
            found = getattr(self._inner, name)(*args, **keywords)
            return CountingTransaction(found, self._calls) if name == "cursor" else found

        return call


class CountingEnvironment:
    """An LMDB environment whose transactions count what is asked of them."""

    def __init__(self, inner: Any, calls: Counter[str]) -> None:
        self._inner, self._calls = inner, calls

    def begin(self) -> CountingTransaction:
        self._calls["begin"] += 1
        return CountingTransaction(self._inner.begin(), self._calls)

    def info(self) -> Any:
        return self._inner.info()

    def readers(self) -> Any:
        return self._inner.readers()


def cost_of_status(box: Outbox, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    calls: Counter[str] = Counter()
    opened = box.store._environment
    assert opened is not None
    unpack = envelope.unpack

    def counted(seq: int, data: bytes) -> Any:
        calls["unpack"] += 1
        return unpack(seq, data)

    with monkeypatch.context() as patch:
        patch.setattr(opened, "env", CountingEnvironment(opened.env, calls))
        patch.setattr(reads, "unpack", counted)
        box.status()
    return calls


@pytest.mark.slow
def test_status_costs_the_same_with_ten_and_twenty_thousand_entries(
    outbox_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Outbox.open(outbox_dir) as box:
        fill(box, 10)
        box.store.settle(Settlement(completed=[(next(box.store.records("pending")), b"")]))
        few = cost_of_status(box, monkeypatch)
        fill(box, 20_000)
        many = cost_of_status(box, monkeypatch)
        assert box.status().pending == 20_009
    assert few == many
    assert few["begin"] == few["unpack"] == few["get"] == 1
    assert few.total() < 20


@pytest.mark.slow
def test_another_process_sees_the_same(outbox_dir: Path) -> None:
    with Outbox.open(outbox_dir) as box:
        fill(box, 3)
        mine = box.status().as_dict()
        seen = subprocess.run(
            [sys.executable, "-c", STATUS, str(outbox_dir)], capture_output=True, text=True, check=True
        ).stdout
    theirs = json.loads(seen)
    for name in ("path", "store_id", "pending", "acknowledged", "engine_pid", "last_seq", "health", "halted", "relay"):
        assert theirs[name] == mine[name], name
    assert theirs["engine_pid"] == os.getpid()


def test_no_engine_is_none(outbox_dir: Path) -> None:
    Outbox.open(outbox_dir).close()
    with Outbox.attach(outbox_dir) as box:
        assert box.status().engine_pid is None


# -- the relay as it described itself


def test_the_relays_own_account_is_shown(outbox_dir: Path) -> None:
    clock = FakeClock()
    with Outbox.open(outbox_dir, OutboxConfig(stuck_after=30), clock=clock) as box:
        fill(box, 2)
        StateFile(outbox_dir / "relay.state").write(
            {
                "moved_at": clock.monotonic(),
                "breaker": "open",
                "last_error": "connection refused",
                "last_applied_at": "2024-03-01T00:00:00+00:00",
                "stopped": True,
                "held_back": 7,
            }
        )
        lock = RoleLock(outbox_dir, Role.RELAY)
        clock.advance(4)
        relay = box.status().relay
        assert (relay.alive, relay.pid, relay.breaker, relay.stopped) == (True, os.getpid(), "open", True)
        assert (relay.last_error, relay.idle_s, relay.stuck, relay.died) == ("connection refused", 4.0, False, None)
        assert relay.last_applied_at is not None
        assert relay.last_applied_at.isoformat() == "2024-03-01T00:00:00+00:00"
        # Nothing is held back where no dead letter is.
        StateFile(outbox_dir / "relay.state").write(
            {"moved_at": clock.monotonic(), "breaker": "closed", "held_back": 7}
        )
        assert box.status().held_back == 0
        box.store.settle(Settlement(dead=[(next(box.store.records("pending")), "refused")]))
        assert box.status().held_back == 1
        lock.release()
        assert not box.status().relay.alive


@pytest.mark.parametrize(
    ("waiting", "breaker", "idle", "alive", "stuck"),
    [
        (1, "closed", 30.1, True, True),
        (1, "closed", 30.0, True, False),
        (0, "closed", 99.0, True, False),
        (1, "open", 99.0, True, False),
        (1, "closed", 99.0, False, False),
    ],
)
def test_a_relay_is_stuck_when_entries_wait_and_nothing_moves(
    outbox_dir: Path, waiting: int, breaker: str, idle: float, alive: bool, stuck: bool
) -> None:
    clock = FakeClock()
    with Outbox.open(outbox_dir, OutboxConfig(stuck_after=30), clock=clock) as box:
        fill(box, waiting)
        StateFile(outbox_dir / "relay.state").write({"moved_at": clock.monotonic(), "breaker": breaker})
        lock = RoleLock(outbox_dir, Role.RELAY)
        if not alive:
            lock.release()
        clock.advance(idle)
        assert box.status().relay.stuck == stuck
        lock.release()


def test_relay_whose_deliveries_fail_is_late_and_not_stuck(outbox_dir: Path) -> None:
    """A server that is frozen lets each try wait for long: an operator was told to restart the relay."""
    clock = FakeClock()
    with Outbox.open(outbox_dir, OutboxConfig(stuck_after=40), clock=clock) as box:
        fill(box, 1)
        moved_at, lock = clock.monotonic(), RoleLock(outbox_dir, Role.RELAY)
        clock.advance(30)
        state = {"moved_at": moved_at, "failed_at": clock.monotonic(), "breaker": "closed", "last_error": "gone"}
        StateFile(outbox_dir / "relay.state").write(state)
        clock.advance(35)
        status = box.status()
        assert (status.relay.stuck, status.relay.late_s, status.health) == (False, 65.0, Health.DEGRADED)
        clock.advance(6)
        assert box.status().relay.stuck
        lock.release()


def test_relay_whose_try_failed_just_now_after_long_is_not_stuck(outbox_dir: Path) -> None:
    with Rig(outbox_dir, stuck_after=60) as rig:
        rig.enqueue(None)
        rig.target.down = TargetUnavailable("no answer")
        rig.target.before = lambda _: rig.clock.advance(75.0)
        rig.step()
        status = rig.box.status()
        assert (status.breaker, status.relay.late_s, status.relay.stuck) == ("closed", 75.0, False)


@pytest.mark.parametrize("cap", [15.0, 300.0])
def test_entry_that_waits_for_its_next_try_makes_no_relay_late(outbox_dir: Path, cap: float) -> None:
    with Rig(outbox_dir, backoff_cap=cap, max_retries=100) as rig:
        rig.clock.jitter = 0.999
        rig.target.refuse = {seq: passing() for seq in rig.enqueue(None)}
        for _ in range(500):
            rig.clock.advance(min(rig.step(), 1.0))
            assert rig.box.status().health is Health.HEALTHY
        assert rig.pending()


def test_entries_that_are_held_back_do_not_make_a_relay_stuck(outbox_dir: Path) -> None:
    clock = FakeClock()
    with Outbox.open(outbox_dir, OutboxConfig(stuck_after=30), clock=clock) as box:
        fill(box, 2)
        box.store.settle(Settlement(dead=[(next(box.store.records("pending")), "refused")]))
        StateFile(outbox_dir / "relay.state").write(
            {"moved_at": clock.monotonic(), "breaker": "closed", "held_back": 1}
        )
        lock = RoleLock(outbox_dir, Role.RELAY)
        clock.advance(100)
        assert not box.status().relay.stuck
        fill(box, 1)
        assert box.status().relay.stuck
        lock.release()


def test_relay_is_reported_stuck_though_the_clock_was_ahead(outbox_dir: Path) -> None:
    clock = TurnedClock()
    with Outbox.open(outbox_dir, OutboxConfig(stuck_after=30), clock=clock) as box:
        clock.turn(timedelta(days=400))
        fill(box, 1)
        clock.turn(timedelta(days=-400))
        StateFile(outbox_dir / "relay.state").write({"moved_at": clock.monotonic(), "breaker": "closed"})
        lock = RoleLock(outbox_dir, Role.RELAY)
        assert not box.status().relay.stuck
        clock.advance(31)
        assert box.status().relay.stuck
        lock.release()


def test_a_clock_that_was_set_back_is_told_and_the_order_is_kept(
    outbox_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock = TurnedClock()
    with Outbox.open(outbox_dir, clock=clock) as box:
        fill(box, 1)
        clock.turn(timedelta(hours=1))
        fill(box, 1)
        clock.turn(timedelta(hours=-1))
        assert box.status().ahead_s == 3600
        fill(box, 2)
        stamps = [entry.captured_at for entry in box.pending()]
        assert stamps == sorted(set(stamps))
        status = box.status()
        assert status.ahead_s == pytest.approx(3600, abs=0.001)
        assert any("the clock was set back: entries are stamped 3600 s ahead of it" in said for said in status.degraded)
        assert [record.message for record in caplog.records if record.name == "outbox.store"] == [
            "the clock was set back: entries are stamped ahead of it to keep their order: 3600.0 s"
        ]
        # By and by it catches up.
        clock.advance(3601)
        fill(box, 1)
        assert box.status().ahead_s == 0
        assert not any("clock" in said for said in box.status().degraded)


def test_a_relay_that_never_moved_is_not_stuck(outbox_dir: Path) -> None:
    with Outbox.open(outbox_dir) as box:
        fill(box, 1)
        lock = RoleLock(outbox_dir, Role.RELAY)
        relay = box.status().relay
        lock.release()
    assert (relay.idle_s, relay.stuck) == (None, False)


def test_readonly_observer_cannot_write(outbox_dir: Path) -> None:
    with Outbox.open(outbox_dir) as box:
        box.enqueue("log", {})
    with Outbox.attach(outbox_dir, readonly=True) as observer:
        assert observer.status().pending == 1
        assert [entry.seq for entry in observer.pending()] == [1]
        for use in (lambda: observer.store.put_meta("a", b""), observer.compact, lambda: observer.compact(vacuum=True)):
            with pytest.raises(StoreLocked, match="attached read-only"):
                use()
        assert not observer.status().halted
    # It leaves the store as clean as it was.
    assert (outbox_dir / "clean").exists()


def test_reader_that_hangs_is_counted(outbox_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its snapshot keeps freed pages from being used again."""
    monkeypatch.setattr(findings, "_PINNED_COMMITS", 5)
    began, done = threading.Event(), threading.Event()

    def hang() -> None:
        with box.store._read():
            began.set()
            done.wait()

    with Outbox.open(outbox_dir) as box:
        box.enqueue("log", {})
        assert box.status().pinned_commits == 0
        reader = threading.Thread(target=hang)
        reader.start()
        try:
            assert began.wait(LONG)
            for number in range(8):
                box.enqueue("log", {"number": number})
            found = box.status()
        finally:
            done.set()
            reader.join()
        assert found.pinned_commits == 8
        assert [said for said in found.degraded if "a reader that is 8 commits behind" in said]
        assert box.status().pinned_commits == 0
