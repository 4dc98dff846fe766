"""`atb outbox status --watch` in a process of its own, beside an engine: on a terminal, in a pipe, until a signal."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import struct
import subprocess
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

from outbox import Outbox
from tests import atb as command_line
from tests.unit.fakes.waiting import LONG


@pytest.fixture
def box(outbox_dir: Path) -> Iterator[Outbox]:
    with Outbox.open(outbox_dir) as box:
        yield box


@pytest.fixture
def watching(outbox_dir: Path, box: Outbox) -> Iterator[subprocess.Popen[str]]:
    del box
    arguments = ("status", "--watch", "--interval", "0.1")
    process = command_line.begin(*arguments, cwd="/", OUTBOX_DIR=str(outbox_dir))
    yield process
    process.kill()
    process.communicate()


def read_until(process: subprocess.Popen[str], words: str) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if words in line:
            return
    pytest.fail(f"it ended without saying {words!r}: {process.communicate()[1]}")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_with_the_code_of_the_last_status(
    watching: subprocess.Popen[str], box: Outbox, number: signal.Signals
) -> None:
    read_until(watching, ": healthy")
    box.enqueue("note", {"n": 1})
    read_until(watching, ": degraded")
    watching.send_signal(number)
    _, said = watching.communicate(timeout=LONG)
    assert (watching.returncode, said) == (1, "")


def test_a_store_that_is_away_and_back_is_watched_on(watching: subprocess.Popen[str], outbox_dir: Path) -> None:
    away = outbox_dir.with_name("away")
    read_until(watching, ": healthy")
    outbox_dir.rename(away)
    read_until(watching, "cannot be read: ")
    away.rename(outbox_dir)
    read_until(watching, ": healthy")


def test_watching_keeps_out_neither_a_vacuum_nor_the_next_engine(
    watching: subprocess.Popen[str], box: Outbox, outbox_dir: Path
) -> None:
    read_until(watching, ": healthy")
    box.close()
    for _ in range(3):
        with Outbox.open(outbox_dir) as again:
            again.enqueue("note", {"n": 1})
    read_until(watching, "engine          not running")
    with Outbox.attach(outbox_dir) as alone:
        alone.compact(vacuum=True)
    read_until(watching, ": degraded")


def test_a_halted_store_is_shown(watching: subprocess.Popen[str], box: Outbox) -> None:
    read_until(watching, ": healthy")
    box._publish_halt("could not be written: no space left on device")
    read_until(watching, "!! enqueueing is halted")
    watching.send_signal(signal.SIGINT)
    watching.communicate(timeout=LONG)
    assert watching.returncode == 2


def test_a_reader_that_leaves_ends_it_without_a_traceback(watching: subprocess.Popen[str]) -> None:
    read_until(watching, ": healthy")
    assert watching.stdout is not None
    assert watching.stderr is not None
    watching.stdout.close()
    assert watching.stderr.read() == ""
    assert watching.wait(LONG) == 141


def test_a_terminal_gets_its_cursor_and_its_screen_back(box: Outbox, outbox_dir: Path) -> None:
    box.enqueue("note", {"n": 1})
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 40, 0, 0))
    settings = command_line.environment(OUTBOX_DIR=str(outbox_dir), TERM="xterm-256color")
    unset = ("COLUMNS", "LINES", "NO_COLOR", "TTY_COMPATIBLE")
    process = subprocess.Popen(
        [*command_line.COMMAND, "status", "--watch", "--interval", "0.1"],
        env={name: value for name, value in settings.items() if name not in unset},
        stdin=subprocess.DEVNULL,
        stdout=follower,
        stderr=follower,
    )
    os.close(follower)
    shown = b""
    try:
        while b"the last 5 min" not in shown:
            shown += os.read(leader, 65536)
        process.send_signal(signal.SIGINT)
        while True:
            try:
                more = os.read(leader, 65536)
            except OSError:  # EIO: the other end is closed
                break
            if not more:
                break
            shown += more
        assert process.wait(LONG) == 1
    finally:
        process.kill()
        process.wait()
        os.close(leader)
    in_place, kept = shown.decode().split("\x1b[?25h\x1b[?1049l")
    assert "\x1b[?1049h" in in_place
    assert "no relay is running" in in_place
    assert ": degraded" in kept
    assert "Traceback" not in kept
