"""Wrong input and awkward outputs of every command: a sentence with a way out, never a traceback."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import termios
from pathlib import Path

import pytest

from outbox import Outbox, OutboxConfig
from tests import atb as command_line
from tests.unit.fakes.waiting import LONG

_AWAY = "postgresql://u:s3cret@127.0.0.1:1/x"


@pytest.fixture
def store(outbox_dir: Path) -> Path:
    with Outbox.open(outbox_dir, OutboxConfig(min_free_mb=0)) as box:
        for number in range(3):
            box.enqueue("note", {"n": number})
    return outbox_dir


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("healthy", "--max-lag", "nan"), "'nan' (allowed: a number, 0 or more)"),
        (("healthy", "--max-lag", "1e999"), "'1e999' (allowed: a number, 0 or more)"),
        (("healthy", "--max-pending", "1.5"), "'1.5' (allowed: a whole number, 0 or more)"),
        (("relay", "--interval", "0"), "'0' (allowed: a number from 0.001 to 3600)"),
        (("list", "--since", "99999999999d"), "'99999999999d' (allowed: 90m, 24h, 7d, or"),
        (("list", "--since", "9999999d"), "'9999999d' (allowed: 90m, 24h, 7d, or"),
        (("list", "--limit", "9" * 5000), "(allowed: a whole number from 1 to 1000000000)"),
        (("acknowledge", "ü\udc80"), "is not valid text"),
        (("pause", "--reason", "\udc80"), "is not valid text"),
        (("drain", "--database-url", "postgresql://u:s3cret@h:99999999/x"), "--database-url has port 99999999"),
        (("drain", "--database-url", "mysql://u:s3cret@h/x"), "--database-url has scheme 'mysql'"),
        (("compact", "--retention-hours", "1e9"), "--retention-hours is 1000000000.0 (allowed: a number from 0"),
        (("status", "--dir", ""), "--dir is ''"),
        (("export", "/nowhere/x"), "No such file or directory (/nowhere/x)"),
        (("metrics", "--output", "/nowhere/x.prom"), "No such file or directory (/nowhere/x.prom)"),
        (("show", "--key", "k" * 5000), "allowed: text of 1 to 1024 characters"),
    ],
)
def test_wrong_value_is_one_sentence(store: Path, arguments: tuple[str, ...], words: str) -> None:
    done = command_line.invoke(*arguments, OUTBOX_DIR=str(store), DATABASE_URL=_AWAY, OUTBOX_OPERATIONS="os:sep")
    assert (done.exit_code, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.output
    assert done.stderr.startswith("Error: ")
    assert words in done.stderr
    assert len(done.stderr) < 400
    assert "s3cret" not in done.stderr


def test_entries_answered_before_a_wrong_one_are_named(store: Path) -> None:
    done = command_line.invoke("discard", "2", "9", "--reason", "x", "--yes", OUTBOX_DIR=str(store))
    assert (done.exit_code, done.stdout) == (2, "discarded: 2\n")
    assert "entry 9 is not" in done.stderr


def begin(store: Path, *arguments: str, stdout: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*command_line.COMMAND, *arguments],
        env=command_line.environment(OUTBOX_DIR=str(store), DATABASE_URL=_AWAY),
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ("status",),
        ("healthy",),
        ("list", "--pending"),
        ("show", "1"),
        ("audit",),
        ("compact",),
        ("export", "-"),
        ("check", "decimal:Decimal"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_reader_that_has_ended_is_no_health(store: Path, arguments: tuple[str, ...]) -> None:
    """The code is that of SIGPIPE: 1 would be read as degraded, or as lost."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        process = begin(store, *arguments, stdout=writing)
    finally:
        os.close(writing)
    _, said = process.communicate(timeout=LONG)
    assert (process.returncode, said) == (141, "")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("list", "--pending"), 0, ""),
        (("status",), 1, ""),
        (("export", "-"), 2, "Error: the standard output is closed: name a file\n"),
    ],
    ids=["list", "status", "export"],
)
def test_closed_output_is_no_traceback(store: Path, arguments: tuple[str, ...], code: int, said: str) -> None:
    script = 'exec "$@" >&-'
    done = subprocess.run(
        ["/bin/sh", "-c", script, "sh", *command_line.COMMAND, *arguments],
        env=command_line.environment(OUTBOX_DIR=str(store)),
        cwd="/",
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (code, said)


def test_status_fits_a_narrow_terminal(store: Path) -> None:
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 40, 0, 0))
    settings = command_line.environment(OUTBOX_DIR=str(store), NO_COLOR="1")
    process = subprocess.Popen(
        [*command_line.COMMAND, "status"],
        env={name: value for name, value in settings.items() if name not in ("COLUMNS", "LINES")},
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=follower,
    )
    os.close(follower)
    shown = b""
    try:
        while True:
            try:
                more = os.read(leader, 65536)
            except OSError:  # EIO: the other end is closed
                break
            if not more:
                break
            shown += more
    finally:
        process.wait(LONG)
        os.close(leader)
    first, *lines = shown.decode().replace("\r\n", "\n").splitlines()
    assert process.returncode == 1
    assert first.startswith("outbox ")
    facts = "\n".join(lines)
    # The path is one word of any length.
    facts = facts[facts.index("pending ") :]
    assert max(map(len, facts.splitlines())) <= 40
    assert "\ndead letters    0 (held back behind\n                them: 0)\n" in facts
    assert "\n!  no relay is running and 3 entries\n   wait" in facts
