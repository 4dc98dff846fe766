"""The writer logs by another thread, so that a caller who holds a handler's lock cannot keep it waiting."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from queue import SimpleQueue

import pytest

from outbox import DurabilityError, Outbox
from outbox.log import Log, _LeftMessages, leaving_messages
from tests.unit.fakes.rig import TurnedClock
from tests.unit.fakes.waiting import LONG

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = LONG / 2


class IntoTheOutbox(logging.Handler):
    """Writes what the program logs into the outbox, and of the outbox's own messages only a list."""

    def __init__(self, box: Outbox) -> None:
        super().__init__()
        self.box = box
        self.own: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.startswith("outbox."):
            self.own.append(record)
        else:
            self.box.enqueue("log_event", {"message": record.getMessage()})


def in_time(call: Callable[[], object]) -> list[BaseException]:
    """Run `call` in a thread of its own, which must end; what it raised."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            call()
        except BaseException as exc:  # noqa: BLE001 - it is what the test looks at
            raised.append(exc)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(PATIENCE_S)
    assert not thread.is_alive(), "the caller waits for the writer, and the writer for the caller's handler"
    return raised


def test_handler_that_enqueues_does_not_hang_at_a_warning(outbox_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = TurnedClock()
    box = Outbox.open(outbox_dir, clock=clock)
    handler = IntoTheOutbox(box)
    program = logging.getLogger("program")
    for logger in (program, logging.getLogger("outbox.store")):
        monkeypatch.setattr(logger, "handlers", [handler])
    in_time(lambda: program.error("first"))
    clock.turn(-timedelta(hours=1))
    assert in_time(lambda: program.error("second")) == []
    assert [entry.args["message"] for entry in box.pending()] == ["first", "second"]
    box.close()
    assert ["the clock was set back" in record.getMessage() for record in handler.own] == [True]


def test_handler_that_enqueues_does_not_hang_at_a_broken_disk(
    outbox_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = Outbox.open(outbox_dir)
    handler = IntoTheOutbox(box)
    program = logging.getLogger("program")
    monkeypatch.setattr(logging, "raiseExceptions", False)
    for logger in (program, logging.getLogger("outbox.store")):
        monkeypatch.setattr(logger, "handlers", [handler])
    (outbox_dir / "data.mdb").unlink()
    [error] = in_time(lambda: program.error("lost"))
    assert isinstance(error, DurabilityError)
    with pytest.raises(DurabilityError, match="halted"):
        box.enqueue("log_event", {})
    box.close()
    assert ["enqueueing is halted" in record.getMessage() for record in handler.own] == [True]


def test_message_of_the_writer_is_logged_when_the_call_returns(
    outbox_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock = TurnedClock()
    with Outbox.open(outbox_dir, clock=clock) as box:
        box.enqueue("note", {"n": 1})
        clock.turn(-timedelta(hours=1))
        box.enqueue("note", {"n": 2})
        [record] = [one for one in caplog.records if "set back" in one.getMessage()]
    assert (record.filename, record.funcName, record.threadName) == ("store.py", "_say_ahead", "outbox-writer")
    assert record.__dict__["ahead_s"] == pytest.approx(3600, abs=1)


def test_message_left_with_a_trace_has_the_traceback(caplog: pytest.LogCaptureFixture) -> None:
    with leaving_messages():
        try:
            raise ValueError("the cause")
        except ValueError:
            Log("outbox.test").error("it failed", trace=True)
    Log("outbox.test").info("a later one")
    until_said(caplog, "it failed")
    assert "the cause" in caplog.text


def until_said(caplog: pytest.LogCaptureFixture, text: str) -> None:
    """Wait until a message of another thread is there."""
    done = threading.Event()
    for _ in range(int(PATIENCE_S / 0.01)):
        if text in caplog.text:
            return
        done.wait(0.01)
    raise AssertionError(f"{text!r} was not logged")


def test_message_left_at_the_end_of_the_program_is_logged() -> None:
    program = """
        import logging, os
        from outbox.log import _LeftMessages, leaving_messages
        from outbox.log import Log
        logging.basicConfig()
        with leaving_messages():
            Log("outbox.test").error("before the fork")
        child = os.fork()
        if child == 0:
            with leaving_messages():
                Log("outbox.test").error("of the child")
            raise SystemExit
        os.waitpid(child, 0)
        with leaving_messages():
            Log("outbox.test").error("the last one")
    """
    # Python 3.12 and newer warn of a fork beside threads.
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", textwrap.dedent(program)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, check=True, env=dict(os.environ)
    )
    assert sorted(done.stderr.split("\n")) == [
        "",
        "ERROR:outbox.test:before the fork",
        "ERROR:outbox.test:of the child",
        "ERROR:outbox.test:the last one",
    ]


def test_message_left_while_another_ends_is_awaited(monkeypatch: pytest.MonkeyPatch) -> None:
    """It came just when the thread had found nothing more to say."""
    left, said = _LeftMessages(), list[int]()
    begun, gate = threading.Event(), threading.Event()

    def second() -> None:
        begun.set()
        gate.wait(LONG)
        said.append(2)

    class Watched(SimpleQueue[Callable[[], object]]):
        def empty(self) -> bool:
            found = super().empty()
            if said == [1]:
                left.leave(second)
            return found

    monkeypatch.setattr(left, "_queue", Watched())
    left.leave(lambda: said.append(1))
    assert begun.wait(LONG)
    assert left._busy
    gate.set()
    left.await_said()
    assert said == [1, 2]
