"""A file of the store that is removed or replaced beside a running engine halts it; so does a latch nobody noted."""

from __future__ import annotations

import shutil
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from outbox import DurabilityError, Operation, Outbox, Relay, StoreLocked
from outbox.rescue import verify
from outbox.store.ledger import Settlement
from outbox.store.own_files import StateFile
from outbox.testing import InMemoryTarget
from tests.unit.fakes.waiting import LONG

WRITER = """
import sys
from outbox import Outbox, OutboxError
try:
    with Outbox.attach(sys.argv[1]) as box:
        for number in range(30):
            box.alarms.sound(f"x{number}", "hello")
            box.alarms.acknowledge(f"x{number}")
except OutboxError as exc:
    print(exc)
"""
KILLED = """
import os, sys
from outbox import Outbox
Outbox.open(sys.argv[1]).enqueue("log", {})
os.kill(os.getpid(), 9)
"""
OBSERVER = """
import sys
from outbox import Outbox
with Outbox.attach(sys.argv[1]) as box:
    print("attached", flush=True)
    sys.stdin.read()
"""

# As a library for daemons does, and then opens files of its own, which get the numbers of the store's.
DAEMON = """
import os, sys
from outbox import DurabilityError, Outbox
box = Outbox.open(sys.argv[1])
box.enqueue("log", {"number": 1})
os.closerange(3, 256)
own = [open(f"{sys.argv[2]}/{number}", "w+b", buffering=0) for number in range(40)]
try:
    box.enqueue("log", {"number": 2})
except DurabilityError as exc:
    print(exc)
box.close()
for file in own:
    file.write(b"own")
"""


def remove(path: Path) -> None:
    path.unlink()


def replace(path: Path) -> None:
    copy = path.with_suffix(".copy")
    copy.write_bytes(path.read_bytes())
    copy.rename(path)


@pytest.fixture
def verified(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The directories that were verified, in order."""
    done: list[Path] = []
    real = verify.check

    def check(directory: Path) -> None:
        done.append(directory)
        real(directory)

    monkeypatch.setattr(verify, "check", check)
    return done


@pytest.mark.slow
@pytest.mark.parametrize("change", [remove, replace])
@pytest.mark.parametrize("name", ["lock.mdb", "engine.lock", "access.lock", "data.mdb"])
def test_file_that_is_gone_halts_at_the_next_write(
    outbox_dir: Path, verified: list[Path], name: str, change: Any
) -> None:
    box = Outbox.open(outbox_dir)
    box.enqueue("log", {"number": 0})
    change(outbox_dir / name)
    with pytest.raises(DurabilityError, match=f"removed or replaced while it was open.*{name}"):
        box.enqueue("log", {"number": 1})
    with pytest.raises(DurabilityError, match="enqueueing is halted"):
        box.enqueue("log", {"number": 2})
    assert box.status().halted
    box.close()
    assert not (outbox_dir / "clean").exists()
    if not (outbox_dir / "data.mdb").exists():
        return
    with Outbox.open(outbox_dir) as again:
        assert verified == [outbox_dir]
        assert again.enqueue("log", {"number": 3}).seq >= 2


@pytest.mark.slow
def test_removed_lock_file_loses_no_acknowledged_entry(outbox_dir: Path, verified: list[Path]) -> None:
    """The reflex against "stale locks", with a second process that writes."""
    box = Outbox.open(outbox_dir)
    acknowledged = [box.enqueue("log", {"number": number}).seq for number in range(20)]
    (outbox_dir / "lock.mdb").unlink()
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(outbox_dir)])
    with pytest.raises(DurabilityError):
        while True:
            acknowledged.append(box.enqueue("log", {"number": 99}).seq)
    # What drains would write beside the other process, too.
    with pytest.raises(DurabilityError, match="lock.mdb"):
        box.store.settle(Settlement(completed=[(next(box.store.records("pending")), b"")]))
    status = box.status()
    assert status.free_disk_bytes > 0
    assert "stop every process" in box.store._way_out
    assert writer.wait(LONG) == 0
    box.close()
    with Outbox.open(outbox_dir) as again:
        assert verified[-1:] == [outbox_dir]
        assert {entry.seq for entry in again.pending()} >= set(acknowledged)


def test_pending_entries_leave_a_directory_that_was_removed(outbox_dir: Path) -> None:
    """They are lost with this process."""
    target = InMemoryTarget([Operation("log", table="log")])
    box = Outbox.open(outbox_dir)
    with Relay(box, target) as relay:
        box.enqueue("log", {"number": 0})
        assert relay.drain(LONG)
        with target.outage():
            for number in (1, 2, 3):
                box.enqueue("log", {"number": number})
            shutil.rmtree(outbox_dir)
            with pytest.raises(DurabilityError, match="drain it first"):
                box.enqueue("log", {"number": 4})
        assert relay.drain(LONG)
    assert [entry.args["number"] for entry in target.delivered] == [0, 1, 2, 3]
    box.close()


def test_switched_link_leaves_a_running_engine_its_store(tmp_path: Path) -> None:
    """As deployments do with `current -> releases/7`."""
    (tmp_path / "first").mkdir()
    (tmp_path / "second").mkdir()
    (tmp_path / "current").symlink_to("first")
    target = InMemoryTarget([Operation("log", table="log")])
    with Outbox.open(tmp_path / "current" / "outbox") as box, Relay(box, target) as relay:
        box.enqueue("log", {"number": 1})
        (tmp_path / "next").symlink_to("second")
        (tmp_path / "next").rename(tmp_path / "current")
        box.enqueue("log", {"number": 2})
        assert relay.drain(LONG)
        box.compact(timedelta(0))
        assert (box.status().path, box.status().needs_operator) == (str(tmp_path / "first" / "outbox"), [])
    assert [entry.args["number"] for entry in target.delivered] == [1, 2]
    assert list((tmp_path / "second").iterdir()) == []


def test_files_are_watched_after_a_vacuum(outbox_dir: Path) -> None:
    with Outbox.open(outbox_dir) as box:
        box.compact(timedelta(0), vacuum=True)
        box.enqueue("log", {})
        (outbox_dir / "engine.lock").unlink()
        with pytest.raises(DurabilityError, match="engine.lock"):
            box.enqueue("log", {})


@pytest.mark.slow
@pytest.mark.parametrize("noted", [True, False])
def test_halt_is_remembered_beside_an_attached_process(
    outbox_dir: Path, monkeypatch: pytest.MonkeyPatch, verified: list[Path], noted: bool
) -> None:
    """The disk that refuses the commit refuses to note the halt as well."""
    Outbox.open(outbox_dir).close()
    observer = subprocess.Popen(
        [sys.executable, "-c", OBSERVER, str(outbox_dir)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert observer.stdout is not None
        observer.stdout.readline()
        box = Outbox.open(outbox_dir)
        with monkeypatch.context() as patch:
            if not noted:
                patch.setattr(StateFile, "write", refused)
            patch.setattr(box.store._environment, "check_in_place", refused)
            with pytest.raises(DurabilityError):
                box.enqueue("log", {})
            box.close()
        assert verified == []
        if noted:
            with pytest.raises(StoreLocked, match="must be verified after a write failed"):
                Outbox.open(outbox_dir)
            return
        with Outbox.open(outbox_dir):
            assert verified == [outbox_dir]
    finally:
        observer.communicate(b"", timeout=LONG)


def refused(*_: Any) -> None:
    raise OSError(30, "Read-only file system")


@pytest.mark.slow
def test_killed_engine_is_verified_beside_an_attached_process(outbox_dir: Path, verified: list[Path]) -> None:
    """And is served: a relay in a process of its own does not keep the next engine out."""
    Outbox.open(outbox_dir).close()
    observer = subprocess.Popen(
        [sys.executable, "-c", OBSERVER, str(outbox_dir)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert observer.stdout is not None
        observer.stdout.readline()
        assert subprocess.run([sys.executable, "-c", KILLED, str(outbox_dir)], check=False).returncode == -9
        with Outbox.open(outbox_dir) as box:
            assert box.enqueue("log", {}).seq == 2
        assert verified == [outbox_dir]
    finally:
        observer.communicate(b"", timeout=LONG)


def test_closed_descriptors_halt_and_spare_what_has_their_numbers(outbox_dir: Path, tmp_path: Path) -> None:
    """LMDB wrote its pages into the file that had got the number, and acknowledged the entry."""
    (tmp_path / "own").mkdir()
    command = [sys.executable, "-c", DAEMON, str(outbox_dir), str(tmp_path / "own")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=LONG, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "its descriptors were closed by the program" in ended.stdout
    assert [file.read_bytes() for file in (tmp_path / "own").iterdir()] == [b"own"] * 40
    with Outbox.open(outbox_dir) as box:
        assert [entry.args for entry in box.pending()] == [{"number": 1}]
