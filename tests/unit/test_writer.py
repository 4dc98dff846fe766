"""One thread writes for all: nobody's exception or signal reaches another, and nothing that was handed over is lost."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
import warnings
from asyncio import CancelledError
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from outbox import DurabilityError, Entry, IdempotencyConflict, InvalidEntry, Outbox, OutboxConfig, StoreClosed
from outbox.store.appending import Append
from outbox.store.writer import Rank, Writer
from tests.unit.fakes.waiting import LONG, until


class Rig:
    """A writer whose commits stop when told, and what it committed."""

    def __init__(self) -> None:
        self.commits: list[list[Any]] = []
        self.failures: list[BaseException | None] = []
        self.entered, self.go_on = threading.Event(), threading.Event()
        self.go_on.set()
        self.told = 0
        self.writer: Writer[Any] = Writer("test-writer", self._commit, self._tell)
        self.threads: list[threading.Thread] = []
        self.ends: dict[Any, BaseException | None] = {}

    def _commit(self, items: list[Any], waits: Callable[[], None]) -> None:
        waits()
        self.entered.set()
        assert self.go_on.wait(LONG)
        self.commits.append(items)
        failure = self.failures.pop(0) if self.failures else None
        if failure is not None:
            raise failure

    def _tell(self) -> None:
        self.told += 1

    def submit(self, item: Any) -> None:
        try:
            self.writer.submit(item)
        except BaseException as exc:  # noqa: BLE001 - it is what the test looks at
            self.ends[item] = exc
        else:
            self.ends[item] = None

    def start(self, item: Any) -> None:
        """Submit on a thread of its own, and wait until it is handed over."""
        before = self.writer._queue.qsize()
        thread = threading.Thread(target=self.submit, args=(item,))
        self.threads.append(thread)
        held = not self.go_on.is_set() and self.entered.is_set()
        thread.start()
        until(lambda: self.writer._queue.qsize() > before if held else self.entered.is_set())

    def hold(self) -> None:
        """Submit `first` and keep its commit from ending."""
        self.go_on.clear()
        self.start("first")

    def release(self) -> None:
        self.go_on.set()
        for thread in self.threads:
            thread.join(LONG)
            assert not thread.is_alive()


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    yield rig
    rig.release()
    rig.failures.clear()
    rig.writer.submit("after")
    assert rig.commits[-1] == ["after"]
    rig.writer.stop()
    assert not rig.writer._thread.is_alive()


@pytest.fixture
def box(outbox_dir: Path) -> Iterator[Outbox]:
    with Outbox.open(outbox_dir, OutboxConfig(min_free_mb=0)) as box:
        yield box


# -- sharing


def test_items_that_wait_share_a_commit_in_order(rig: Rig) -> None:
    rig.hold()
    for item in range(31):
        rig.start(item)
    rig.release()
    assert rig.commits == [["first"], list(range(31))]
    assert rig.ends == dict.fromkeys(["first", *range(31)])
    # It is told after the callers are woken.
    until(lambda: rig.told == 2)


def test_failed_commit_is_raised_in_its_callers_only(rig: Rig) -> None:
    rig.hold()
    for item in "ab":
        rig.start(item)
    rig.failures = [None, OSError("bad disk"), None]
    rig.go_on.set()
    until(lambda: len(rig.ends) == 3)
    rig.submit("c")
    assert {item: type(error) for item, error in rig.ends.items()} == {
        "first": type(None), "a": OSError, "b": OSError, "c": type(None)
    }  # fmt: skip


def test_exit_raised_in_a_commit_does_not_end_the_writer(rig: Rig) -> None:
    rig.failures = [SystemExit(3)]
    rig.submit("a")
    assert isinstance(rig.ends["a"], SystemExit)
    rig.submit("b")
    assert rig.ends["b"] is None


@pytest.mark.parametrize("error", [SystemExit, CancelledError, GeneratorExit, KeyboardInterrupt, ValueError])
def test_callback_that_raises_anything_does_not_end_the_writer(error: type[BaseException]) -> None:
    def then(_: BaseException | None) -> None:
        raise error("of a host")

    writer = Rig().writer
    writer.hand_over("a", then)
    caller = threading.Thread(target=writer.submit, args=("b",), daemon=True)
    caller.start()
    caller.join(LONG)
    assert not caller.is_alive()
    writer.stop()


def test_end_of_the_interpreter_is_not_waited_for(outbox_dir: Path) -> None:
    """`__del__` of a module's object runs when the interpreter has stopped all other threads for good."""
    program = f"""
        import os, sys
        from outbox import DurabilityError, Outbox, Relay
        from outbox.testing import InMemoryTarget

        class Last:
            def __del__(self):
                handed_over = box.enqueue_nowait("note", {{}})
                for call in (
                    lambda: box.enqueue("note", {{}}),
                    lambda: box.enqueue_async("note", {{}}).send(None),
                    lambda: handed_over.result(0),
                    lambda: Outbox.open({str(outbox_dir / "other")!r}),
                    lambda: Outbox.attach({str(outbox_dir)!r}),
                    box.compact,
                    relay.start,
                    relay.drain,
                    lambda: relay.step(0.0),
                    relay.reconcile,
                    running.drain,
                ):
                    try:
                        call()
                    except DurabilityError as exc:
                        os.write(1, b"refused ")
                os.write(1, b"%d pending, " % box.status().pending)
                running.stop()
                box.close()
                os.write(1, b"ended")

        box = Outbox.open({str(outbox_dir)!r})
        relay, running = (Relay(box, InMemoryTarget([])) for _ in range(2))
        running.start()
        sys.modules["last"] = Last()
    """
    ended = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, timeout=LONG)
    assert ended.stdout == b"refused " * 11 + b"0 pending, ended"
    assert b"Error" not in ended.stderr


def test_appends_go_before_settlements_before_maintenance(rig: Rig) -> None:
    order: list[str] = []
    rig.hold()

    def run(rank: Rank, name: str) -> None:
        before = rig.writer._queue.qsize()
        thread = threading.Thread(target=lambda: rig.writer.run(rank, lambda: order.append(name)))
        rig.threads.append(thread)
        thread.start()
        until(lambda: rig.writer._queue.qsize() > before)

    run(Rank.MAINTAIN, "prune")
    run(Rank.SETTLE, "settle one")
    run(Rank.SETTLE, "settle two")
    rig._tell = lambda: order.append("append")  # type: ignore[method-assign]
    rig.writer._committed = rig._tell
    rig.start("append")
    rig.release()
    assert order == ["append", "append", "settle one", "settle two", "prune"]


def test_caller_looks_by_itself_where_it_is_not_woken(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The writer may wait for another process's commit before it wakes those of its last one."""
    monkeypatch.setattr(rig.writer, "_wake", lambda: None)
    rig.submit("a")
    assert rig.ends == {"a": None}


def test_work_raises_where_it_was_asked_for(rig: Rig) -> None:
    with pytest.raises(ZeroDivisionError):
        rig.writer.run(Rank.MAINTAIN, lambda: 1 / 0)
    assert rig.writer.run(Rank.MAINTAIN, lambda: 5) == 5
    assert rig.writer.run(Rank.MAINTAIN, lambda: rig.writer.run(Rank.SETTLE, lambda: 6)) == 6


# -- dying


def test_listener_that_raises_stops_no_later_enqueue(box: Outbox) -> None:
    """It ended the writer's thread, and every later enqueue waited for ever."""

    def raising() -> None:
        raise SystemExit("a defect of the host")

    box.on_enqueue(raising)
    ended: list[Entry] = []
    for number in range(2):
        thread = threading.Thread(target=lambda n=number: ended.append(box.enqueue("note", {"n": n})), daemon=True)
        thread.start()
        thread.join(LONG / 2)
        assert [entry.args["n"] for entry in ended] == list(range(number + 1))


def test_thread_without_memory_ends_all_callers_in_doubt(outbox_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    box = Outbox.open(outbox_dir)
    writer = box.store.writer
    assert writer is not None
    entered, go_on = threading.Event(), threading.Event()

    def without_memory(_: Any) -> None:
        entered.set()
        assert go_on.wait(LONG)
        raise MemoryError

    monkeypatch.setattr(writer, "_append", without_memory)
    raised: list[BaseException] = []

    def call(work: Callable[[], object]) -> threading.Thread:
        def run() -> None:
            try:
                work()
            except BaseException as exc:  # noqa: BLE001 - it is what the test looks at
                raised.append(exc)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        return thread

    threads = [call(lambda: box.enqueue("note", {"n": 1}))]
    assert entered.wait(LONG)
    futures = [box.enqueue_nowait("note", {"n": 2})]
    threads += [call(lambda: box.enqueue("note", {"n": 3})), call(lambda: box.compact())]
    until(lambda: writer._queue.qsize() == 3)
    go_on.set()
    for thread in threads:
        thread.join(LONG / 2)
        assert not thread.is_alive()
    for exc in (*raised, futures[0].exception(LONG)):
        assert isinstance(exc, DurabilityError)
        assert "the thread that writes has died: MemoryError" in str(exc)
    assert len(raised) == 3
    with pytest.raises(DurabilityError, match="enqueueing is halted"):
        box.enqueue("note", {"n": 4})
    assert "enqueueing is halted: the store could not go on writing" in box.status().needs_operator[0]
    box.close()
    with Outbox.open(outbox_dir) as again:
        assert again.enqueue("note", {"n": 5}).args == {"n": 5}


# -- stopping


def test_stop_does_what_was_handed_over_before(rig: Rig) -> None:
    writer: Writer[Any] = Writer("other", rig._commit, lambda: None)
    done: list[Any] = []
    rig.go_on.clear()
    writer.hand_over("a", done.append)
    until(rig.entered.is_set)
    writer.hand_over("b", done.append)
    stopping = threading.Thread(target=writer.stop)
    stopping.start()
    rig.go_on.set()
    stopping.join(LONG)
    assert done == [None, None]
    with pytest.raises(StoreClosed):
        writer.submit("c")
    with pytest.raises(StoreClosed):
        writer.run(Rank.SETTLE, lambda: None)
    writer.stop()


def test_threads_that_enqueue_during_close_are_answered(outbox_dir: Path) -> None:
    """Each call ends: with an entry that is in the store, or with `StoreClosed`."""
    stored: set[str] = set()
    refused: list[str] = []
    box = Outbox.open(outbox_dir, OutboxConfig(min_free_mb=0))

    def work(name: int) -> None:
        for number in count():
            try:
                box.enqueue("log", {}, key=f"{name}-{number}")
            except StoreClosed:
                refused.append(f"{name}-{number}")
                return
            stored.add(f"{name}-{number}")

    threads = [threading.Thread(target=work, args=(name,), daemon=True) for name in range(8)]
    for thread in threads:
        thread.start()
    until(lambda: len(stored) > 50)
    box.close()
    for thread in threads:
        thread.join(LONG)
        assert not thread.is_alive()
    assert len(refused) == 8
    with Outbox.open(outbox_dir, OutboxConfig(min_free_mb=0)) as again:
        assert again.status().pending == len(stored)


# -- signals


def in_main(code: str, directory: Path) -> str:
    """Run a program whose main thread gets signals; what it printed."""
    program = "import sys, signal, threading, os, time\nfrom outbox import *\n" + textwrap.dedent(code)
    done = subprocess.run(
        [sys.executable, "-c", program, str(directory)], capture_output=True, text=True, timeout=LONG, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_handler_can_enqueue_inside_an_enqueue(outbox_dir: Path) -> None:
    said = in_main(
        """
        box = Outbox.open(sys.argv[1])
        made = []
        signal.signal(signal.SIGALRM, lambda *_: made.append(box.enqueue("log", {"by": "handler"}).seq))
        for number in range(300):
            signal.setitimer(signal.ITIMER_REAL, 0.0002 + number % 20 * 0.0001)
            box.enqueue("log", {"by": "loop"})
            signal.setitimer(signal.ITIMER_REAL, 0)
        seqs = [entry.seq for entry in box.pending()]
        assert made and seqs == list(range(1, 301 + len(made))), (made, len(seqs))
        box.close()
        print("well")
        """,
        outbox_dir,
    )
    assert said == "well\n"


@pytest.mark.slow
def test_raising_handlers_reach_no_other_thread(outbox_dir: Path) -> None:
    """Every entry that was acknowledged is stored once; every interrupted call tells its key; nothing hangs."""
    said = in_main(
        """
        import itertools, json
        box = Outbox.open(sys.argv[1])
        class Alarm(Exception):
            pass
        def ring(*_):
            raise Alarm
        others, wrong, stop = set(), [], threading.Event()
        def work(name):
            for number in itertools.count():
                if stop.is_set():
                    return
                try:
                    box.enqueue("log", {}, key=f"{name}-{number}")
                except BaseException as exc:
                    wrong.append(repr(exc))
                    return
                others.add(f"{name}-{number}")
        threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
        for thread in threads:
            thread.start()
        signal.signal(signal.SIGALRM, ring)
        mine, doubt = set(), set()
        for number in range(400):
            key = f"main-{number}"
            try:
                try:
                    signal.setitimer(signal.ITIMER_REAL, 0.0002 + number % 20 * 0.0001)
                    box.enqueue("log", {}, key=key)
                    mine.add(key)
                finally:
                    signal.setitimer(signal.ITIMER_REAL, 0)
            except Alarm as exc:
                doubt.add(key)
                if hasattr(exc, "outbox_keys"):
                    assert exc.outbox_keys == (key,) and key in exc.__notes__[0]
        stop.set()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
        assert not wrong, wrong
        assert len(doubt) > 20, len(doubt)
        for key in sorted(doubt):
            box.enqueue("log", {}, key=key)
        assert box.status().pending == len(others) + 400
        assert not box.status().halted
        box.close()
        print("well")
        """,
        outbox_dir,
    )
    assert said == "well\n"


@pytest.mark.slow
def test_interrupted_maintenance_is_done_all_the_same(outbox_dir: Path) -> None:
    said = in_main(
        """
        box = Outbox.open(sys.argv[1])
        interrupted, inside = 0, False

        def interrupt(*_):
            if inside:
                raise KeyboardInterrupt

        signal.signal(signal.SIGALRM, interrupt)
        for number in range(100):
            signal.setitimer(signal.ITIMER_REAL, 0.00005 * (1 + number % 10))  # however fast the disk is
            try:
                inside = True
                box.store.put_meta("name", str(number).encode())
                inside = False
            except KeyboardInterrupt:
                inside = False
                interrupted += 1
        box.store.put_meta("name", b"last")
        assert box.store.get_meta("name") == b"last"
        box.close()
        print("well", interrupted > 0)
        """,
        outbox_dir,
    )
    assert said == "well True\n"


@pytest.mark.slow
def test_program_that_ends_while_threads_enqueue_loses_nothing(outbox_dir: Path) -> None:
    said = in_main(
        """
        box = Outbox.open(sys.argv[1])
        told = threading.Event()
        def work():
            while True:
                seq = box.enqueue("log", {}).seq
                os.write(1, f"{seq}\\n".encode())
                told.set()
        for _ in range(4):
            threading.Thread(target=work, daemon=True).start()
        told.wait()
        time.sleep(0.3)
        """,
        outbox_dir,
    )
    told = {int(line) for line in said.split("\n")[:-1]}
    with Outbox.open(outbox_dir) as box:
        assert told <= {entry.seq for entry in box.pending()}
    assert told


def test_forked_copy_is_refused_without_waiting(box: Outbox) -> None:
    box.enqueue("log", {})
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn of threads
        pid = os.fork()
    if pid == 0:
        try:
            box.enqueue("log", {})
        except BaseException as exc:  # noqa: BLE001 - told to the parent
            os.write(write, type(exc).__name__.encode())
        os._exit(0)
    os.close(write)
    os.waitpid(pid, 0)
    with os.fdopen(read) as pipe:
        assert pipe.read() == "StoreClosed"
    assert box.enqueue("log", {}).seq == 2


# -- futures


def test_nowait_stores_in_the_order_of_the_calls(box: Outbox) -> None:
    futures = [box.enqueue_nowait("log", {"number": number}) for number in range(500)]
    assert [future.result(LONG).seq for future in futures] == list(range(1, 501))
    assert [entry.args["number"] for entry in box.pending()] == list(range(500))


def test_nowait_raises_at_once_what_cannot_be_stored(box: Outbox) -> None:
    with pytest.raises(InvalidEntry):
        box.enqueue_nowait("log", {"number": float("nan")})
    box.enqueue_nowait("log", {"number": 1}, key="a").result(LONG)
    with pytest.raises(IdempotencyConflict):
        box.enqueue_nowait("log", {"number": 2}, key="a").result(LONG)


def test_nowait_tells_its_own_key_when_a_write_fails(box: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(submissions: list[Append], waits: Callable[[], None]) -> None:
        raise DurabilityError("bad disk")

    monkeypatch.setattr(box.store.writer, "_commit", fail)
    futures = [box.enqueue_nowait("log", {}, key=key) for key in "ab"]
    errors = [future.exception(LONG) for future in futures]
    assert [error.keys for error in errors if isinstance(error, DurabilityError)] == [("a",), ("b",)]


def test_callback_of_a_future_can_enqueue_and_may_raise(box: Outbox) -> None:
    later: Future[Entry] = Future()

    def follow(done: Future[Entry]) -> None:
        later.set_result(box.enqueue("log", {"after": done.result().seq}))
        raise ValueError("a host's mistake")

    box.enqueue_nowait("log", {}).add_done_callback(follow)
    assert later.result(LONG).args == {"after": 1}
    assert box.enqueue("log", {}).seq == 3
