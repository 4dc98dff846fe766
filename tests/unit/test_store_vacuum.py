"""Rewriting the file: smaller, complete, swapped in one rename, and only by one who is alone."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from outbox import DurabilityError, Outbox, StoreClosed, StoreCorrupt, StoreLocked, StoreUnavailable
from outbox.store import environment, filesystem, gate, locks
from outbox.store.ledger import Settlement
from outbox.store.locks import Role, RoleLock
from tests.unit.fakes.waiting import LONG, until

OBSERVER = """
import sys
from outbox import Outbox
with Outbox.attach(sys.argv[1]) as box:
    print("open", flush=True)
    sys.stdin.read()
"""


def grown(directory: Path) -> Outbox:
    """An open store whose file is mostly free pages."""
    box = Outbox.open(directory)
    with box.transaction() as tx:
        for number in range(500):
            tx.enqueue("log", {"number": number, "text": "x" * 1500}, key=f"k{number}")
    records = list(box.store.records("pending"))
    box.store.settle(Settlement(completed=[(record, b"") for record in records[:400]]))
    box.store.settle(Settlement(dead=[(record, "refused") for record in records[400:402]]))
    box.store.put_meta("ids", b"42")
    box.compact(timedelta(0))
    return box


def content(box: Outbox) -> Any:
    return (
        list(box.store.records("pending")),
        list(box.store.records("ledger")),
        box.store.figures().counters,
        box.store.figures().idempotency,
        box.store.dead(),
        box.store.get_meta("ids"),
        box.status().store_id,
    )


@pytest.fixture
def box(outbox_dir: Path) -> Iterator[Outbox]:
    with grown(outbox_dir) as box:
        yield box


def test_vacuum_gives_up_where_a_reader_waits_for_it(box: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "_SWAP_WAIT_S", 0.3)
    before, refused = content(box), []

    def vacuum() -> None:
        with pytest.raises(StoreLocked, match="is being read"):
            box.compact(timedelta(0), vacuum=True)
        refused.append(True)

    with box.store._read():
        thread = threading.Thread(target=vacuum)
        thread.start()
        until(lambda: box.store._swapping)
        # As a signal handler does that has interrupted the read.
        stored = box.enqueue("log", {})
    thread.join(LONG)
    assert refused
    assert content(box)[0][:-1] == before[0]
    box.compact(timedelta(0), vacuum=True)
    assert box.entry(stored.seq).status == stored.status


def test_the_file_shrinks_and_everything_is_kept(box: Outbox, outbox_dir: Path) -> None:
    before, size = content(box), box.status().file_bytes
    box.compact(timedelta(0), vacuum=True)
    assert box.status().file_bytes < size / 2
    assert content(box) == before
    info = (outbox_dir / "data.mdb").stat()
    assert info.st_mode & 0o777 == 0o600
    assert not list(outbox_dir.glob(".vacuum-*"))
    # The store goes on as before, in this process and after it.
    assert box.enqueue("log", {}).seq == 501
    assert box.enqueue("log", {"number": 450, "text": "x" * 1500}, key="k450").seq == 451
    box.close()
    with Outbox.open(outbox_dir) as again:
        assert len(list(again.pending())) == 99


def test_vacuum_prunes_first(box: Outbox) -> None:
    records = list(box.store.records("pending"))
    box.store.settle(Settlement(completed=[(record, b"") for record in records]))
    assert box.compact(timedelta(0), vacuum=True) == 98
    assert [entry.seq for entry in box.ledger()] == [401, 402]


def test_an_observer_that_is_alone_may_do_it(box: Outbox, outbox_dir: Path) -> None:
    before, size = content(box), box.status().file_bytes
    box.close()
    with Outbox.attach(outbox_dir) as observer:
        observer.compact(timedelta(0), vacuum=True)
        assert content(observer) == before
        assert observer.status().file_bytes < size / 2
        assert observer.status().engine_pid is None
    Outbox.open(outbox_dir).close()


def unchanged(box: Outbox, directory: Path) -> Any:
    info = (directory / "data.mdb").stat()
    return content(box), info.st_ino, info.st_size, sorted(os.listdir(directory))


@pytest.mark.slow
def test_beside_another_process_it_refuses_and_changes_nothing(box: Outbox, outbox_dir: Path) -> None:
    records = list(box.store.records("pending"))
    box.store.settle(Settlement(completed=[(record, b"") for record in records[:10]]))
    with subprocess.Popen(
        [sys.executable, "-c", OBSERVER, str(outbox_dir)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "open\n"
        RoleLock(outbox_dir, Role.RELAY).release()
        before = unchanged(box, outbox_dir)
        with pytest.raises(StoreLocked, match=f"the access role of {outbox_dir} is held by"):
            box.compact(timedelta(0), vacuum=True)
        assert unchanged(box, outbox_dir) == before
        assert box.enqueue("log", {}).seq == 501
        other.communicate()
        assert other.returncode == 0
    assert box.compact(timedelta(0), vacuum=True) == 10


def test_a_look_at_the_status_is_waited_for(box: Outbox, outbox_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `atb outbox status --watch` does again and again."""
    looking = RoleLock(outbox_dir, Role.ACCESS, shared=True)

    class Pause:
        def wait(self, seconds: float) -> None:
            looking.release()

    monkeypatch.setattr(locks, "Event", Pause)
    assert box.compact(timedelta(0), vacuum=True) == 0
    assert box.status().ledger == 2


@pytest.mark.parametrize("role", [Role.RELAY, Role.ENGINE])
def test_beside_a_relay_or_an_engine_it_refuses_and_changes_nothing(box: Outbox, outbox_dir: Path, role: Role) -> None:
    box.close()
    opener = Outbox.open if role is Role.RELAY else Outbox.attach
    with opener(outbox_dir) as mine:
        lock = RoleLock(outbox_dir, role)
        RoleLock(outbox_dir, Role.RELAY).release() if role is Role.ENGINE else None
        before = unchanged(mine, outbox_dir)
        with pytest.raises(StoreLocked, match=f"{role.value} role .* process {os.getpid()}") as caught:
            mine.compact(timedelta(0), vacuum=True)
        assert caught.value.holder_pid == os.getpid()
        assert unchanged(mine, outbox_dir) == before
        lock.release()
        mine.compact(timedelta(0), vacuum=True)


def test_roles_are_free_again_afterwards(box: Outbox, outbox_dir: Path) -> None:
    box.compact(timedelta(0), vacuum=True)
    RoleLock(outbox_dir, Role.RELAY).release()
    with pytest.raises(StoreLocked):
        RoleLock(outbox_dir, Role.ENGINE)
    RoleLock(outbox_dir, Role.ACCESS, shared=True).release()


def test_a_damaged_copy_is_not_swapped_in(box: Outbox, outbox_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, inode = content(box), (outbox_dir / "data.mdb").stat().st_ino
    with monkeypatch.context() as patch:
        patch.setattr(environment, "structural_problems", lambda directory: ["page 3 is odd"])
        with pytest.raises(StoreCorrupt, match="the compact copy is damaged: page 3 is odd.*left as it was"):
            box.compact(timedelta(0), vacuum=True)
    assert (outbox_dir / "data.mdb").stat().st_ino == inode
    assert content(box) == before
    assert not list(outbox_dir.glob(".vacuum-*"))


def test_a_copy_that_runs_out_of_room_leaves_the_store_as_it_was(
    box: Outbox, outbox_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: Path, target: Path) -> None:
        (target / "data.mdb").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    before = content(box)
    with monkeypatch.context() as patch:
        patch.setattr(environment, "copy_compact", full)
        with pytest.raises(OSError, match="No space left"):
            box.compact(timedelta(0), vacuum=True)
    assert content(box) == before
    assert box.enqueue("log", {}).seq == 501
    assert not list(outbox_dir.glob(".vacuum-*"))


@pytest.mark.slow
def test_a_swap_that_may_not_survive_a_power_cut_halts(
    box: Outbox, outbox_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(directory: Path) -> None:
        raise OSError(5, "Input/output error")

    before = content(box)
    with monkeypatch.context() as patch:
        patch.setattr(filesystem, "flush_directory", fail)
        with pytest.raises(DurabilityError, match="could not be flushed: .*Input/output error"):
            box.compact(timedelta(0), vacuum=True)
    assert content(box) == before
    with pytest.raises(DurabilityError, match="enqueueing is halted: the store could not swap the file"):
        box.enqueue("log", {})
    box.close()
    with Outbox.open(outbox_dir) as again:
        assert content(again) == before
        assert again.enqueue("log", {}).seq == 501


def test_the_leftover_of_a_killed_vacuum_is_cleared_away(box: Outbox, outbox_dir: Path) -> None:
    (outbox_dir / ".vacuum-x").mkdir()
    (outbox_dir / ".vacuum-x" / "data.mdb").write_bytes(b"half")
    before = content(box)
    box.close()
    with Outbox.open(outbox_dir) as again:
        assert content(again) == before
        again.compact(timedelta(0), vacuum=True)
    assert not (outbox_dir / ".vacuum-x").exists()


def test_other_threads_wait_meanwhile_and_go_on_in_the_new_file(box: Outbox) -> None:
    swapping, done = threading.Event(), threading.Event()
    seen: list[int] = []

    def action() -> None:
        other.start()
        # The other thread cannot get in before this ends.
        assert not done.wait(0.05)
        swapping.set()

    def look() -> None:
        seen.append(box.enqueue("log", {}).seq)
        assert swapping.is_set()
        done.set()

    other = threading.Thread(target=look)
    box.store.swap(action)
    other.join(LONG)
    assert seen == [501]
    assert done.is_set()


def test_a_swap_waits_for_those_who_are_inside(box: Outbox) -> None:
    order: list[str] = []
    inside, leave = threading.Event(), threading.Event()

    def read() -> None:
        with box.store._read():
            inside.set()
            leave.wait(LONG)
            order.append("read")

    reader = threading.Thread(target=read)
    reader.start()
    inside.wait(LONG)
    swapper = threading.Thread(target=box.store.swap, args=(lambda: order.append("swapped"),))
    swapper.start()
    leave.set()
    reader.join(LONG)
    swapper.join(LONG)
    assert order == ["read", "swapped"]


def test_a_vacuum_needs_no_room_outside_of_the_stores_folder(
    outbox_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A copy on another file system could not be moved into place.
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "absent"))
    with Outbox.open(outbox_dir) as box:
        box.enqueue("log", {"a": 1})
        box.compact(vacuum=True)
        assert [entry.args for entry in box.pending()] == [{"a": 1}]


@pytest.mark.slow
@pytest.mark.parametrize("code", [errno.EMFILE, errno.EIO, errno.ENOMEM])
def test_vacuum_that_cannot_reopen_halts(outbox_dir: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def refuse(directory: Path) -> None:
        raise StoreUnavailable(f"{directory} cannot be used now", hint="mend it", errno=code)

    box = Outbox.open(outbox_dir)
    box.enqueue("log", {})
    with monkeypatch.context() as patch:
        patch.setattr(gate, "Environment", refuse)
        with pytest.raises(DurabilityError, match="could not open its file again: .*cannot be used now"):
            box.compact(vacuum=True)
    for use in (lambda: box.enqueue("log", {}), box.status, lambda: list(box.pending())):
        with pytest.raises(DurabilityError, match="could not open its file again"):
            use()
    box.close()
    with pytest.raises(StoreClosed):
        box.enqueue("log", {})
    assert not (outbox_dir / "clean").exists()
    with Outbox.open(outbox_dir) as again:
        assert again.enqueue("log", {}).seq == 2


def test_disk_error_while_the_copy_is_read_is_no_damage(outbox_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreadable(_: str) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with Outbox.open(outbox_dir) as box:
        with monkeypatch.context() as patch:
            patch.setattr(environment, "_verify_structure", unreadable)
            with pytest.raises(StoreUnavailable, match="Input/output error"):
                box.compact(vacuum=True)
        assert box.enqueue("log", {}).seq == 1
