"""Roles: one holder each, named by its pid, let go whenever its process ends, and never disturbed by observers."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from outbox import Outbox, StoreLocked
from outbox.store import locks
from outbox.store.locks import Role, RoleLock, died_holding, forget_holders, holder
from tests.unit.fakes.waiting import LONG

HOLD = """
import sys
from pathlib import Path
from outbox.store.locks import Role, RoleLock
lock = RoleLock(Path(sys.argv[1]), Role[sys.argv[2]], shared=sys.argv[3:] == ["shared"])
print("held", flush=True)
sys.stdin.read()
"""
HOLD_AND_FORK = """
import os, sys
from pathlib import Path
from outbox.store.locks import Role, RoleLock
lock = RoleLock(Path(sys.argv[1]), Role.ENGINE)
if os.fork() == 0:
    print(os.getpid(), flush=True)
sys.stdin.read()
"""


@contextmanager
def process(code: str, *args: str | Path) -> Iterator[subprocess.Popen[str]]:
    """A child that runs `code` until the end of its input; killed at the latest when the block ends."""
    child = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, args)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with child:
        try:
            yield child
        finally:
            child.kill()


def said(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    return child.stdout.readline().strip()


@pytest.mark.parametrize("role", [Role.ENGINE, Role.RELAY])
def test_a_role_has_one_holder_whose_pid_is_told(tmp_path: Path, role: Role) -> None:
    with process(HOLD, tmp_path, role.name) as other:
        assert said(other) == "held"
        with pytest.raises(
            StoreLocked, match=f"{role.value} role of {tmp_path} is held by process {other.pid}"
        ) as caught:
            RoleLock(tmp_path, role)
        assert caught.value.holder_pid == other.pid
        assert holder(tmp_path, role) == other.pid


def test_a_role_excludes_a_second_object_of_the_same_process(tmp_path: Path) -> None:
    lock = RoleLock(tmp_path, Role.ENGINE)
    with pytest.raises(StoreLocked, match=f"held by process {os.getpid()}, the caller itself .share its Outbox"):
        RoleLock(tmp_path, Role.ENGINE)
    lock.release()
    lock.release()
    RoleLock(tmp_path, Role.ENGINE).release()


def test_roles_do_not_exclude_each_other(tmp_path: Path) -> None:
    taken = [RoleLock(tmp_path, role) for role in Role]
    for lock, role in zip(taken, Role, strict=True):
        with pytest.raises(StoreLocked):
            RoleLock(tmp_path, role)
        lock.release()
        RoleLock(tmp_path, role).release()


def test_a_refused_lock_leaves_no_descriptor_behind(tmp_path: Path) -> None:
    lock = RoleLock(tmp_path, Role.ENGINE)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with pytest.raises(StoreLocked):
            RoleLock(tmp_path, Role.ENGINE)
    assert len(os.listdir("/proc/self/fd")) == before
    lock.release()


def test_a_killed_holder_lets_go(tmp_path: Path) -> None:
    with process(HOLD, tmp_path, "ENGINE") as other:
        said(other)
        other.send_signal(signal.SIGKILL)
        other.wait()
        assert holder(tmp_path, Role.ENGINE) is None
        RoleLock(tmp_path, Role.ENGINE).release()


def test_only_a_clean_release_hides_who_held_a_role(tmp_path: Path) -> None:
    assert not died_holding(tmp_path, Role.ENGINE)
    forget_holders(tmp_path, Role.ENGINE)
    lock = RoleLock(tmp_path, Role.ENGINE)
    lock.release(clean=True)
    lock.release(clean=True)
    assert not died_holding(tmp_path, Role.ENGINE)
    RoleLock(tmp_path, Role.ENGINE).release()
    RoleLock(tmp_path, Role.RELAY).release()
    assert died_holding(tmp_path, Role.ENGINE)
    assert died_holding(tmp_path, Role.RELAY)
    forget_holders(tmp_path, Role.ENGINE)
    assert died_holding(tmp_path, Role.RELAY)
    forget_holders(tmp_path, Role.RELAY)
    assert not died_holding(tmp_path, Role.ENGINE)
    assert not died_holding(tmp_path, Role.RELAY)


def test_forked_child_that_outlives_the_holder_does_not_keep_the_role(tmp_path: Path) -> None:
    with process(HOLD_AND_FORK, tmp_path) as other:
        child = int(said(other))
        assert holder(tmp_path, Role.ENGINE) == other.pid
        other.kill()
        other.wait()
        os.kill(child, 0)
        RoleLock(tmp_path, Role.ENGINE).release()
        # The end of its input ends the orphan; it closes the pipe when it is gone.
        assert other.stdin is not None
        assert other.stdout is not None
        other.stdin.close()
        assert other.stdout.read() == ""


def test_a_second_engine_is_told_who_is_first(outbox_dir: Path) -> None:
    with Outbox.open(outbox_dir) as box:
        mine = f"engine role .* process {os.getpid()}, the caller itself .share its Outbox"
        with pytest.raises(StoreLocked, match=mine):
            Outbox.open(outbox_dir)
        assert box.enqueue("log", {"a": 1}).seq == 1
    Outbox.open(outbox_dir).close()


def test_observers_of_a_free_role_see_nobody(tmp_path: Path) -> None:
    assert holder(tmp_path, Role.ENGINE) is None
    assert os.listdir(tmp_path) == []
    RoleLock(tmp_path, Role.ENGINE).release()
    assert holder(tmp_path, Role.ENGINE) is None


def test_observers_do_not_see_each_other(tmp_path: Path) -> None:
    RoleLock(tmp_path, Role.RELAY).release()
    with open(tmp_path / "relay.lock") as other:
        fcntl.flock(other, fcntl.LOCK_SH)
        assert holder(tmp_path, Role.RELAY) is None


def test_a_holder_that_wrote_no_pid_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "Event", Pause())
    with open(tmp_path / "relay.lock", "w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert holder(tmp_path, Role.RELAY) == 0
        with pytest.raises(StoreLocked, match="held by another process") as caught:
            RoleLock(tmp_path, Role.RELAY)
        assert caught.value.holder_pid is None


class Pause:
    """Stands for the pause between two tries to take a lock, during which something happens."""

    def __init__(self, at: int = 2) -> None:
        self.waits, self._at = 0, at

    def __call__(self) -> Pause:
        return self

    def wait(self, seconds: float) -> None:
        self.waits += 1
        if self.waits == self._at:
            self.meanwhile()

    def meanwhile(self) -> None:
        """Nothing."""


def test_observer_that_looks_does_not_keep_an_engine_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pause = Pause()
    monkeypatch.setattr(locks, "Event", pause)
    RoleLock(tmp_path, Role.ENGINE).release()
    with open(tmp_path / "engine.lock") as observer:
        fcntl.flock(observer, fcntl.LOCK_SH)
        monkeypatch.setattr(pause, "meanwhile", observer.close)
        RoleLock(tmp_path, Role.ENGINE).release()
    assert pause.waits == 2


@pytest.mark.parametrize("clean", [True, False])
def test_slow_observer_does_not_keep_an_engine_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clean: bool
) -> None:
    pause = Pause(at=60)
    monkeypatch.setattr(locks, "Event", pause)
    with process(HOLD, tmp_path, "ENGINE") as dead:
        assert said(dead) == "held"
    if clean:
        RoleLock(tmp_path, Role.ENGINE).release(clean=True)
    with open(tmp_path / "engine.lock") as observer:
        fcntl.flock(observer, fcntl.LOCK_SH)
        monkeypatch.setattr(pause, "meanwhile", observer.close)
        RoleLock(tmp_path, Role.ENGINE).release()
    assert pause.waits == 60


def test_an_opener_waits_while_another_one_verifies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pause = Pause()
    monkeypatch.setattr(locks, "Event", pause)
    verifying = RoleLock(tmp_path, Role.ACCESS)
    monkeypatch.setattr(pause, "meanwhile", verifying.release)
    RoleLock(tmp_path, Role.ACCESS, shared=True).release()
    assert pause.waits == 2


@pytest.mark.parametrize(
    ("role", "shared", "patient"),
    [(Role.ACCESS, True, True), (Role.OPENING, False, True), (Role.ENGINE, False, False), (Role.RELAY, False, False)],
)
def test_opening_waits_longer_for_its_lock_than_an_engine_or_a_relay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, role: Role, shared: bool, patient: bool
) -> None:
    pause = Pause(at=100)
    monkeypatch.setattr(locks, "Event", pause)
    lock = RoleLock(tmp_path, role)
    monkeypatch.setattr(pause, "meanwhile", lock.release)
    if patient:
        RoleLock(tmp_path, role, shared=shared).release()
        assert pause.waits == 100
    else:
        with pytest.raises(StoreLocked):
            RoleLock(tmp_path, role)
        assert pause.waits == 5


def test_a_second_release_closes_nothing_else(tmp_path: Path) -> None:
    lock = RoleLock(tmp_path, Role.ENGINE)
    lock.release()
    before = os.listdir("/proc/self/fd")
    lock.release()
    assert os.listdir("/proc/self/fd") == before


def test_an_opener_waits_for_as_long_as_another_one_is_at_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(locks, "_OPEN_RETRIES", 4)
    monkeypatch.setattr(locks, "_SAID_AFTER", 20)
    verifying = RoleLock(tmp_path, Role.OPENING)

    class Busy:
        """Stands for the pauses of the waiting one: every third time the other one shows that it is at work."""

        waits = 0

        def wait(self, seconds: float) -> None:
            Busy.waits += 1
            if Busy.waits == 30:
                verifying.release()
            elif Busy.waits % 3 == 0:
                os.utime(tmp_path / "opening.lock", ns=(Busy.waits, Busy.waits))

    monkeypatch.setattr(locks, "Event", Busy)
    RoleLock(tmp_path, Role.OPENING).release()
    assert Busy.waits == 30
    [said] = [record.message for record in caplog.records]
    assert said == f"waiting for process {os.getpid()}, which opens or verifies {tmp_path} (role: opening)"


def test_an_opener_does_not_wait_for_ever_for_one_that_stands_still(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "_OPEN_RETRIES", 4)
    opening = RoleLock(tmp_path, Role.OPENING)
    with pytest.raises(StoreLocked, match=f"opening role of {tmp_path} is held by process {os.getpid()}"):
        RoleLock(tmp_path, Role.OPENING)
    opening.release()


def test_lock_at_work_renews_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = threading.Event()
    real = os.utime

    def utime(fd: int) -> None:
        real(fd)
        shown.set()

    monkeypatch.setattr(locks, "_BEAT_S", 0.001)
    monkeypatch.setattr(os, "utime", utime)
    lock = RoleLock(tmp_path, Role.OPENING)
    real(tmp_path / "opening.lock", ns=(1, 1))
    with lock.at_work():
        assert shown.wait(LONG)
    assert (tmp_path / "opening.lock").stat().st_mtime_ns > 1
    lock.release()


def test_shared_access_becomes_whole_only_when_nobody_else_has_it(tmp_path: Path) -> None:
    mine, other = (RoleLock(tmp_path, Role.ACCESS, shared=True) for _ in range(2))
    with pytest.raises(StoreLocked):
        mine.make_exclusive()
    # It is still shared: a third opener gets in, and so does the other one of the two alone.
    RoleLock(tmp_path, Role.ACCESS, shared=True).release()
    with pytest.raises(StoreLocked):
        other.make_exclusive()
    other.release()
    mine.make_exclusive()
    assert holder(tmp_path, Role.ACCESS) is not None
    mine.make_shared()
    assert holder(tmp_path, Role.ACCESS) is None
    mine.release()


def test_another_failure_of_the_lock_is_raised_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(fd: int, mode: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", fail)
    with pytest.raises(OSError, match="No locks available"):
        RoleLock(tmp_path, Role.ENGINE)


def test_lock_files_are_private(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        RoleLock(tmp_path, Role.ENGINE).release()
    finally:
        os.umask(before)
    assert (tmp_path / "engine.lock").stat().st_mode & 0o777 == 0o600


def test_a_full_disk_keeps_nobody_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    monkeypatch.setattr(locks, "Event", Pause())
    lock = RoleLock(tmp_path, Role.RELAY)
    # Who it is could not be written down, but that it is somebody shows.
    assert holder(tmp_path, Role.RELAY) == 0
    with pytest.raises(StoreLocked, match="held by another process"):
        RoleLock(tmp_path, Role.RELAY)
    assert died_holding(tmp_path, Role.RELAY)
    lock.release(clean=True)
    assert not died_holding(tmp_path, Role.RELAY)


def test_a_role_whose_file_cannot_be_truncated_is_let_go_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    lock = RoleLock(tmp_path, Role.RELAY)
    with monkeypatch.context() as patch:
        patch.setattr(os, "ftruncate", fail)
        lock.release(clean=True)
    RoleLock(tmp_path, Role.RELAY).release()


def test_holder_that_lets_go_in_time_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine, other = (RoleLock(tmp_path, Role.ACCESS, shared=True) for _ in range(2))
    pauses: list[float] = []

    class Pause:
        def wait(self, seconds: float) -> None:
            pauses.append(seconds)
            # It is shared meanwhile.
            RoleLock(tmp_path, Role.ACCESS, shared=True).release()
            if len(pauses) == 2:
                other.release()

    monkeypatch.setattr(locks, "Event", Pause)
    with pytest.raises(StoreLocked):
        mine.make_exclusive(tries=2)
    assert len(pauses) == 1
    mine.make_exclusive(tries=2)
    assert len(pauses) == 2
    assert holder(tmp_path, Role.ACCESS) is not None
    mine.release()
