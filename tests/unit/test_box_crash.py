"""Processes that are killed, forked or beside each other: what was acknowledged is there, and roles hold."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from outbox import Outbox, StoreClosed, StoreLocked
from outbox.rescue import verify
from outbox.store import identity
from outbox.store.ledger import Settlement
from outbox.store.locks import Role, RoleLock
from outbox.transfer import exporting
from tests.unit.fakes.waiting import LONG, until

ENGINE = """
import os, sys, threading
from outbox import Outbox
box = Outbox.open(sys.argv[1])
def trade(name):
    number = 0
    while True:
        entry = box.enqueue("log", {"by": name, "number": number, "text": "x" * 500})
        os.write(1, f"{entry.seq} {name} {number}\\n".encode())
        number += 1
for name in "ab":
    threading.Thread(target=trade, args=(name,), daemon=True).start()
sys.stdin.read()
"""
GROUPS = """
import os, sys
from outbox import Outbox
from outbox.store.ledger import Settlement
box = Outbox.open(sys.argv[1])
while True:
    with box.transaction() as tx:
        for member in range(5):
            tx.enqueue("log", {"member": member})
    os.write(1, f"{tx.entries[0].seq}\\n".encode())
    if tx.entries[0].seq % 2:
        box.store.settle(Settlement(completed=[(record, b"") for record in box.store.peek(0, 1).records]))
"""
OBSERVER = """
import sys
from outbox import Outbox
with Outbox.attach(sys.argv[1]) as box:
    print(box.status().pending, flush=True)
    sys.stdin.read()
"""
FORK = """
import os, sys
from outbox import Outbox, StoreClosed
box = Outbox.open(sys.argv[1])
box.enqueue("log", {"by": "parent"})
child = os.fork()
if child == 0:
    uses = [lambda: box.enqueue("log", {}), box.status, lambda: list(box.pending()), lambda: box.compact(vacuum=True)]
    for use in uses:
        try:
            use()
        except StoreClosed as exc:
            assert "cannot be used after a fork" in str(exc), exc
        else:
            os._exit(1)
    box.close()
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
box.enqueue("log", {"by": "parent again"})
print(box.status().engine_pid == os.getpid(), box.status().pending)
box.close()
"""
FORK_AND_ATTACH = """
import os, sys
from outbox import Outbox, StoreLocked
box = Outbox.open(sys.argv[1])
child = os.fork()
if child == 0:
    try:
        Outbox.attach(sys.argv[1])
    except StoreLocked as exc:
        print(exc.holder_pid == os.getppid(), str(exc).removeprefix(sys.argv[1]), flush=True)
    os._exit(0)
os.waitpid(child, 0)
box.enqueue("log", {})
box.close()
"""
FORK_DURING_A_COMMIT = """
import os, signal, sys, threading
from outbox import Outbox, StoreClosed
box = Outbox.open(sys.argv[1])
inside, go_on = threading.Event(), threading.Event()
def held():
    inside.set()
    go_on.wait()
    return 1 << 40
box.store.free_disk_bytes = held
other = threading.Thread(target=box.enqueue, args=("log", {}))
other.start()
inside.wait()
child = os.fork()
if child == 0:
    signal.alarm(60)
    try:
        box.enqueue("log", {})
    except StoreClosed:
        os._exit(0)
    os._exit(1)
code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
go_on.set()
other.join()
box.close()
print(code)
"""


@contextmanager
def process(code: str, directory: Path) -> Iterator[subprocess.Popen[str]]:
    """A child that runs `code`; killed at the latest when the block ends."""
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(directory)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with child:
        try:
            yield child
        finally:
            child.kill()


def killed_after(child: subprocess.Popen[str], lines: int) -> list[str]:
    """Kill the child in the middle of its work, after so many lines; all that it said."""
    assert child.stdout is not None
    said = [child.stdout.readline() for _ in range(lines)]
    child.send_signal(signal.SIGKILL)
    return said + child.stdout.readlines()


@pytest.mark.slow
def test_all_that_a_killed_engine_was_told_is_there(outbox_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with process(ENGINE, outbox_dir) as engine:
        said = killed_after(engine, 200)
    told = {int(seq): (by, int(number)) for seq, by, number in (line.split() for line in said)}
    checked: list[Path] = []
    check = verify.check

    def noted(directory: Path) -> None:
        checked.append(directory)
        check(directory)

    monkeypatch.setattr(verify, "check", noted)
    with Outbox.open(outbox_dir) as box:
        assert checked == [outbox_dir]
        there = {entry.seq: (entry.args["by"], entry.args["number"]) for entry in box.pending()}
        assert len(told) >= 200
        assert told.items() <= there.items()
        # One for each thread may be recorded without having been told.
        assert len(there) <= len(told) + 2
        assert list(there) == list(range(1, len(there) + 1))
        assert box.enqueue("log", {}).seq == len(there) + 1
        assert box.status().acknowledged == len(there) + 1


@pytest.mark.slow
def test_a_group_of_a_killed_engine_is_whole_or_absent(outbox_dir: Path) -> None:
    with process(GROUPS, outbox_dir) as engine:
        told = [int(line) for line in killed_after(engine, 30)]
    with Outbox.open(outbox_dir) as box:
        settled, pending = list(box.ledger()), list(box.pending())
        found = [entry.group for entry in settled + pending]
        assert set(told) <= set(found)
        assert len(set(found)) <= len(told) + 1
        assert all(found.count(group) == 5 for group in set(found))
        # Nothing is in both places or in none.
        seqs = [entry.seq for entry in settled + pending]
        assert sorted(seqs) == list(range(1, len(seqs) + 1))


@pytest.mark.slow
def test_store_stays_usable_when_an_observer_process_is_killed(outbox_dir: Path) -> None:
    with Outbox.open(outbox_dir) as box:
        box.enqueue("log", {})
        with process(OBSERVER, outbox_dir) as observer:
            assert observer.stdout is not None
            assert observer.stdout.readline() == "1\n"
            observer.send_signal(signal.SIGKILL)
            observer.wait()
        box.store.reader_check()
        assert box.enqueue("log", {}).seq == 2


@pytest.mark.slow
def test_the_last_one_who_closes_leaves_the_clean_mark(outbox_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    box = Outbox.open(outbox_dir)
    box.enqueue("log", {})
    with process(OBSERVER, outbox_dir) as observer:
        assert observer.stdout is not None
        observer.stdout.readline()
        box.close()
        assert not identity.take_clean_mark(outbox_dir, keep=True)
        # Opened beside a user who verified it, it need not be verified.
        with monkeypatch.context() as patch:
            patch.setattr(verify, "check", lambda directory: pytest.fail("verified beside a user"))
            Outbox.open(outbox_dir).close()
        observer.communicate()
        assert observer.returncode == 0
    assert identity.take_clean_mark(outbox_dir, keep=True)


@pytest.mark.slow
def test_an_observer_does_not_call_the_store_of_a_killed_engine_clean(
    outbox_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[Path] = []
    with process(ENGINE, outbox_dir) as engine:
        assert engine.stdout is not None
        engine.stdout.readline()
        with Outbox.attach(outbox_dir):
            engine.kill()
            engine.wait()
    assert not identity.take_clean_mark(outbox_dir, keep=True)
    monkeypatch.setattr(verify, "check", checked.append)
    # Once it was verified, by whomever, the crash is forgotten.
    Outbox.attach(outbox_dir).close()
    Outbox.attach(outbox_dir).close()
    Outbox.open(outbox_dir).close()
    assert checked == [outbox_dir]


def test_after_the_death_of_a_relay_the_engine_verifies_once(outbox_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Outbox.open(outbox_dir).close()
    identity.take_clean_mark(outbox_dir)
    RoleLock(outbox_dir, Role.RELAY).release()
    checked: list[Path] = []
    monkeypatch.setattr(verify, "check", checked.append)
    for _ in range(3):
        Outbox.open(outbox_dir).close()
    assert checked == [outbox_dir]


@pytest.mark.slow
@pytest.mark.parametrize("second", [Outbox.attach, exporting.examine])
def test_of_two_openings_at_once_after_a_crash_one_verifies(
    outbox_dir: Path, monkeypatch: pytest.MonkeyPatch, second: Callable[[Path], Any]
) -> None:
    Outbox.open(outbox_dir).close()
    identity.take_clean_mark(outbox_dir)
    checked: list[Path] = []
    both, one_at_a_time = threading.Barrier(2), threading.Lock()
    make_exclusive = RoleLock.make_exclusive

    def at_once(lock: RoleLock) -> None:
        with suppress(threading.BrokenBarrierError):
            both.wait(0.5)  # in vain where the other one is kept waiting
        with one_at_a_time:
            make_exclusive(lock)

    def open_and_close(opener: Callable[[Path], Any]) -> None:
        with suppress(StoreLocked):
            opened = opener(outbox_dir)
            if isinstance(opened, Outbox):
                opened.close()

    monkeypatch.setattr(verify, "check", checked.append)
    monkeypatch.setattr(RoleLock, "make_exclusive", at_once)
    other = threading.Thread(target=open_and_close, args=(second,))
    other.start()
    open_and_close(Outbox.open)
    other.join(LONG)
    assert checked


def test_a_halted_store_is_not_marked_clean(outbox_dir: Path) -> None:
    with Outbox.open(outbox_dir) as box:
        box.store._latch("enqueue", OSError("bad disk"))
    assert not identity.take_clean_mark(outbox_dir)


@pytest.mark.slow
def test_a_forked_child_is_refused_and_harms_nobody(outbox_dir: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORK, str(outbox_dir)], capture_output=True, text=True, timeout=LONG, check=True
    )
    assert done.stdout == "True 2\n"
    with Outbox.open(outbox_dir) as box:
        assert [entry.args["by"] for entry in box.pending()] == ["parent", "parent again"]


@pytest.mark.slow
def test_forked_child_that_attaches_is_told_of_the_fork(outbox_dir: Path) -> None:
    """As a worker of a server that opened the outbox before it forked: it was told to share an Outbox that it had."""
    done = subprocess.run(
        [sys.executable, "-c", FORK_AND_ATTACH, str(outbox_dir)],
        capture_output=True,
        text=True,
        timeout=LONG,
        check=True,
    )
    assert done.stdout.startswith("True  was open in process ")
    assert "when it forked this one (fork before you open it" in done.stdout


@pytest.mark.slow
def test_a_child_forked_during_a_commit_is_refused_too(outbox_dir: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORK_DURING_A_COMMIT, str(outbox_dir)],
        capture_output=True,
        text=True,
        timeout=LONG,
        check=True,
    )
    assert done.stdout == "0\n"


@pytest.mark.slow
def test_a_failed_opening_lets_go_of_everything(outbox_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Outbox.open(outbox_dir).close()

    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr("outbox.opening.Store.__init__", fail)
        with pytest.raises(MemoryError) as caught:
            Outbox.open(outbox_dir)
    Outbox.open(outbox_dir).close()
    assert caught.type is MemoryError


def test_observer_in_the_process_of_the_engine_is_refused_with_reason(outbox_dir: Path) -> None:
    with Outbox.open(outbox_dir) as box:
        box.enqueue("log", {})
        with pytest.raises(StoreLocked, match="this process"):
            Outbox.attach(outbox_dir)
        box.enqueue("log", {})


def test_threads_of_one_engine_lose_and_double_nothing(outbox_dir: Path) -> None:
    with Outbox.open(outbox_dir) as box:
        commits: list[int] = []
        append = box.store.append
        writer = box.store.writer
        assert writer is not None

        def counted(submissions: list, waits: Callable[[], None]) -> None:  # type: ignore[type-arg]
            commits.append(len(submissions))
            if len(commits) == 1:
                # A quick disk would be done before the next one comes, and a slow thread after all the others have.
                until(lambda: len(submissions) > 1 or writer._queue.qsize() > 1)
            append(submissions, waits)

        writer._commit = counted
        barrier = threading.Barrier(16)

        def work(name: int) -> None:
            barrier.wait(LONG)
            for number in range(20):
                box.enqueue("log", {"by": name, "number": number}, order_by=name)

        threads = [threading.Thread(target=work, args=(name,)) for name in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LONG)
        entries = list(box.pending())
        stamps = [entry.captured_at for entry in entries]
    for name in range(16):
        assert [entry.args["number"] for entry in entries if entry.args["by"] == name] == list(range(20))
    assert len(entries) == sum(commits) == 320
    assert len(commits) < 320
    assert stamps == sorted(set(stamps))


def test_closing_waits_for_those_who_are_inside(outbox_dir: Path) -> None:
    box = Outbox.open(outbox_dir)
    box.enqueue("log", {})
    inside, leave = threading.Event(), threading.Event()

    def read() -> None:
        with box.store._read():
            inside.set()
            leave.wait(LONG)

    reader = threading.Thread(target=read)
    reader.start()
    inside.wait(LONG)
    closer = threading.Thread(target=box.close)
    closer.start()
    until(lambda: box.store._environment is None)
    # Nobody else gets in, and it is not closed yet.
    with pytest.raises(StoreClosed):
        box.status()
    assert closer.is_alive()
    leave.set()
    closer.join(LONG)
    reader.join(LONG)
    assert not closer.is_alive()
    with Outbox.open(outbox_dir) as again:
        again.store.settle(Settlement(completed=[(next(again.store.records("pending")), b"")]))
        assert os.listdir(outbox_dir.parent) == [outbox_dir.name]
