"""Wrong input and awkward outputs of every command: a sentence with a way out, never a traceback."""

from __future__ import annotations

import errno
import fcntl
import os
import pty
import pwd
import stat
import struct
import subprocess
import sys
import termios
from contextlib import closing
from pathlib import Path

import lmdb
import pytest

from outbox import Outbox, OutboxConfig
from outbox.cli.common import no_permission
from outbox.store.identity import IDENTITY_KEY
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
    "arguments",
    [
        ("show", "--where", "name=Zürich"),
        ("show", "--key", "schlüssel"),
        ("show", "schlüssel"),
        ("list", "--pending", "--order-by", "börse"),
        ("discard", "4", "--yes", "--reason", "für immer"),
    ],
    ids=str,
)
def test_text_under_an_ascii_locale_is_compared_as_utf_8(store: Path, arguments: tuple[str, ...]) -> None:
    with Outbox.open(store, OutboxConfig(min_free_mb=0)) as box:
        box.enqueue("note", {"name": "Zürich"}, key="schlüssel", order_by="börse")
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = command_line.run(*arguments, "--dir", str(store), **ascii_only)
    assert (done.returncode, done.stderr) == (0, "")
    if arguments[0] == "discard":
        with Outbox.open(store, OutboxConfig(min_free_mb=0)) as box:
            assert str(box.entry(4).error).startswith("discarded: für immer")
    else:
        assert "note" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("reconcile", "--all", "--accept", "x"), "give --all or --accept, not both"),
        (("list", "--dead", "--pending"), "give one of --dead, --pending and --held-back"),
        (("healthy", "--max-lag", "nan"), "'nan' (allowed: a number, 0 or more)"),
        (("healthy", "--max-lag", "1e999"), "'1e999' (allowed: a number, 0 or more)"),
        (("healthy", "--max-pending", "1.5"), "'1.5' (allowed: a whole number, 0 or more)"),
        (("relay", "--interval", "0"), "'0' (allowed: a number from 0.001 to 3600)"),
        (("list", "--since", "99999999999d"), "'99999999999d' (allowed: 90s, 30m, 2h, 7d, or"),
        (("list", "--since", "9999999d"), "'9999999d' (allowed: 90s, 30m, 2h, 7d, or"),
        (("list", "--limit", "9" * 5000), "(allowed: a whole number from 1 to 1000000000)"),
        (("acknowledge", "ü\udc80"), "is not valid text"),
        (("pause", "--reason", "\udc80"), "is not valid text"),
        (("drain", "--database-url", "postgresql://u:s3cret@h:99999999/x"), "--database-url has port 99999999"),
        (("drain", "--database-url", "mysql://u:s3cret@h/x"), "--database-url has scheme 'mysql'"),
        (("compact", "--retention-hours", "1e9"), "--retention-hours is 1000000000.0 (allowed: a number from 0"),
        (("status", "--dir", ""), "--dir is ''"),
        (("status", "--dir", "/nowhere"), "no outbox at /nowhere (check OUTBOX_DIR or --dir; the engine makes it"),
        (("export", "-", "--dir", "/etc/hostname"), "/etc/hostname is not a directory (name another directory, by"),
        (("export", "/nowhere/x"), "/nowhere/x cannot be written: No such file or directory (make the directory"),
        (("export", ""), ". cannot be written: it is a directory (name a file in it)"),
        (("export", "--force", "/etc"), "/etc cannot be written: it is a directory (name a file in it)"),
        (("metrics", "--output", "/nowhere/x.prom"), "/nowhere/x.prom cannot be written: No such file or directory"),
        (("metrics", "--output", ""), ". cannot be written: it is a directory (name a file in it)"),
        (("import", "/nowhere/x"), "/nowhere/x cannot be read: No such file or directory (give a file that `atb"),
        (("import", "/etc"), "/etc cannot be read: Is a directory (give a file that `atb outbox export` wrote)"),
        (("import", sys.executable), "is no export of an outbox (give a file that `atb outbox export` wrote)"),
        (
            ("reconcile", "--all", "--operations", "tests.unit.fakes.rig:OPERATIONS"),
            "Connection refused (start PostgreSQL or correct DATABASE_URL, then run it again",
        ),
        (
            ("drain", "--database-url", "h"),
            "--database-url has no scheme (allowed: postgresql://user@host:port/database)",
        ),
        (("drain",), "--operations is 'os:sep', with a str (allowed: an iterable of Operation)"),
        (("drain", "--operations", "no_such:X"), "No module named 'no_such' (run it where your program is, or set"),
        (
            ("check", "outbox:Outbox", "--operations", "os:path", "--database-url", "h"),
            "--operations is 'os:path', with a",
        ),
        (
            ("check", "decimal:Decimal", "--operations", "list:X"),
            "No module named 'list' (run it where your program is",
        ),
        (
            ("check", "outbox:Outbox", "--operations", "tests.unit.fakes.rig:OPERATIONS", "--database-url", "x"),
            "--database-url has no scheme",
        ),
        (("pause", "--reason", "x", "--for", "9" * 400 + "d"), "(allowed: 90s, 30m, 2h, 7d; at most a year)"),
        (("list", "--since", "9" * 400), "(allowed: 90s, 30m, 2h, 7d, or"),
        (("show", "9" * 400), "it never existed, or its retention has ended"),
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


@pytest.mark.parametrize("command", [("status",), ("verify",), ("export", "-"), ("compact",)])
def test_an_empty_directory_is_no_damaged_store(tmp_path: Path, command: tuple[str, ...]) -> None:
    done = command_line.invoke(*command, OUTBOX_DIR=str(tmp_path))
    assert done.exit_code == 2
    assert done.stderr == (
        f"Error: there is no outbox in {tmp_path}, it is empty "
        "(check OUTBOX_DIR or --dir; the engine makes it when it starts)\n"
    )


def test_a_value_of_any_length_is_cut(store: Path) -> None:
    done = command_line.invoke("status", OUTBOX_DIR=str(store), OUTBOX_NAMESPACE="n" * 5000)
    assert done.exit_code == 2
    assert "OUTBOX_NAMESPACE is 'nnn" in done.stderr
    assert done.stderr.endswith("(allowed: 1 to 200 characters)\n")
    assert len(done.stderr) < 250


@pytest.mark.parametrize(("arguments"), [("export", "--force"), ("metrics", "--output")])
def test_output_into_a_link_writes_the_file_behind_it(store: Path, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    file, link = tmp_path / "file", tmp_path / "link"
    file.touch()
    link.symlink_to(file)
    assert command_line.invoke(*arguments, str(link), OUTBOX_DIR=str(store)).exit_code == 0
    assert link.is_symlink()
    assert file.stat().st_size > 0


@pytest.mark.parametrize(("arguments"), [("export", "--force"), ("metrics", "--output")])
def test_a_pipe_or_device_is_never_replaced(store: Path, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """As root the rename would replace /dev/null by a file that nobody else may write to."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    done = command_line.invoke(*arguments, str(pipe), OUTBOX_DIR=str(store))
    assert (done.exit_code, stat.S_ISFIFO(pipe.stat().st_mode)) == (2, True)
    assert "it is no regular file" in done.stderr


@pytest.mark.parametrize("name", ["data.mdb", "outbox.json", "lock.mdb", "engine.lock", "clean"])
@pytest.mark.parametrize(("arguments"), [("export", "--force"), ("metrics", "--output")])
def test_file_of_a_store_is_never_replaced(store: Path, tmp_path: Path, arguments: tuple[str, ...], name: str) -> None:
    """A slip of the pen in an incident would end the only copy of what waits."""
    link = tmp_path / "link"
    link.symlink_to(store / name)
    for path in (store / name, link):
        done = command_line.invoke(*arguments, str(path), OUTBOX_DIR=str(store))
        assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
        assert "it is a store's own file (name another file)" in done.stderr
    with Outbox.attach(store) as box:
        assert box.status().pending == 3
    assert command_line.invoke(*arguments, str(store / "out.txt"), OUTBOX_DIR=str(store)).exit_code == 0


def test_an_export_onto_a_full_disk_names_the_file(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = store.parent / "out.jsonl"

    def refuse(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", refuse)
    done = command_line.invoke("export", str(file), OUTBOX_DIR=str(store))
    assert done.exit_code == 2
    assert f"{file} cannot be written: No space left on device (free space there, or name another file)" in done.stderr
    assert sorted(path.name for path in store.parent.glob("*out.jsonl*")) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("status",),
        ("status", "--json"),
        ("healthy",),
        ("list", "--pending"),
        ("show", "1"),
        ("audit",),
        ("compact",),
        ("export", "-"),
        ("metrics",),
        ("verify",),
        ("pause", "--reason", "x"),
        ("check", "decimal:Decimal"),
        ("--help",),
        ("drain", "--help"),
    ],
    ids=lambda arguments: "-".join(arguments),
)
def test_full_output_is_named_and_is_not_the_store(store: Path, postgres_url: str, arguments: tuple[str, ...]) -> None:
    with open("/dev/full", "w") as full:
        process = begin(store, *arguments, stdout=full.fileno(), database_url=postgres_url)
        _, said = process.communicate(timeout=LONG)
    assert process.returncode == 2
    assert said == "Error: the output cannot be written: No space left on device (send it elsewhere, or free space)\n"


@pytest.mark.parametrize("arguments", [("--help",), ("status", "--help")], ids=lambda arguments: arguments[0])
def test_a_help_whose_reader_has_ended_is_quiet(store: Path, arguments: tuple[str, ...]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    process = begin(store, *arguments, stdout=writing)
    os.close(writing)
    _, said = process.communicate(timeout=LONG)
    assert (process.returncode, said) == (141, "")


def test_an_owner_without_access_is_told_how_to_get_it(store: Path) -> None:
    error = PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(store / "clean"))
    assert no_permission(error, os.stat(store).st_uid) == (
        f"no permission for {store / 'clean'} (it is yours: chmod -R u+rwX {store})"
    )


@pytest.mark.parametrize("below", ["", "gone/data.mdb"])
def test_another_user_is_told_whose_it_is(store: Path, below: str) -> None:
    error = PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(store / below))
    owner = pwd.getpwuid(os.stat(store).st_uid).pw_name
    assert no_permission(error, 12345) == (
        f"no permission for {store / below} ({store} belongs to {owner}: run it as that user)"
    )


def test_entries_answered_before_a_wrong_one_are_named(store: Path) -> None:
    done = command_line.invoke("discard", "2", "9", "--reason", "x", "--yes", OUTBOX_DIR=str(store))
    assert (done.exit_code, done.stdout) == (2, "discarded: 2\n")
    assert "entry 9 is not" in done.stderr


def begin(store: Path, *arguments: str, stdout: int, database_url: str = _AWAY) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*command_line.COMMAND, *arguments],
        env=command_line.environment(OUTBOX_DIR=str(store), DATABASE_URL=database_url),
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
def test_a_reader_that_has_ended_is_no_health(store: Path, postgres_url: str, arguments: tuple[str, ...]) -> None:
    """The code is that of SIGPIPE: 1 would be read as degraded, or as lost."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        process = begin(store, *arguments, stdout=writing, database_url=postgres_url)
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


def on_a_terminal(store: Path, columns: int, *arguments: str) -> tuple[int, str]:
    """The exit code, and what a terminal of that width is shown."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    settings = command_line.environment(OUTBOX_DIR=str(store), DATABASE_URL=_AWAY, NO_COLOR="1")
    process = subprocess.Popen(
        [*command_line.COMMAND, *arguments],
        env={name: value for name, value in settings.items() if name not in ("COLUMNS", "LINES")},
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=follower,
        stderr=follower,
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
    return process.returncode, shown.decode().replace("\r\n", "\n")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("audit", "--since", "garbage"), 2, "'garbage' (allowed: 90s, 30m, 2h, 7d, or"),
        (("export", "/nowhere/x"), 2, "(make the directory first, or name another file)"),
        (("reconcile", "--all"), 2, "(start PostgreSQL or correct DATABASE_URL, then run it again; nothing is lost)"),
        (("pause", "--reason", "the schema is being changed this night"), 0, "the schema is being changed this night"),
        (("healthy", "--relay", "--max-pending", "1"), 1, "no relay is running; 3 entries pending, more than 1"),
        (("compact",), 0, "pruned 0 of 0 settled entries older than 168 hours"),
        (("show", "1"), 0, "captured_at"),
        (
            ("check", "no_such:X"),
            2,
            "run it where your program is, or set PYTHONPATH to that directory",
        ),
    ],
    ids=lambda arguments: arguments[0] if isinstance(arguments, tuple) else None,
)
def test_sentences_are_folded_between_words(store: Path, arguments: tuple[str, ...], code: int, words: str) -> None:
    returned, shown = on_a_terminal(store, 40, *arguments)
    assert returned == code
    # A time or a path is one word of any length.
    assert [line for line in shown.splitlines() if len(line) > 40 and " " in line.strip()] == []
    assert words in " ".join(shown.split())


def test_status_fits_a_narrow_terminal(store: Path) -> None:
    returned, shown = on_a_terminal(store, 40, "status")
    first, *lines = shown.splitlines()
    assert returned == 1
    assert first.startswith("outbox ")
    facts = "\n".join(lines)
    # The path is one word of any length.
    facts = facts[facts.index("pending ") :]
    assert max(map(len, facts.splitlines())) <= 40
    assert "\ndead letters    0 (entries held back: 0)\n" in facts
    assert "\n!  no relay is running and 3 entries\n   wait" in facts


def test_store_of_a_newer_version_is_not_called_damaged(store: Path, tmp_path: Path) -> None:
    """`verify` said so, and `export` wrote what this version may misread."""
    identity = store / "outbox.json"
    text = identity.read_bytes().replace(b'"format":1', b'"format":2')
    with closing(lmdb.open(str(store), max_dbs=3)) as environment, environment.begin(write=True) as txn:
        txn.put(IDENTITY_KEY, text)
    damaged = command_line.run("verify", "--dir", str(store))
    assert (damaged.returncode, damaged.stdout.splitlines()[0]) == (1, f"outbox {store}: damaged")
    identity.write_bytes(text)
    for arguments in (("verify",), ("export", str(tmp_path / "export")), ("status",)):
        done = command_line.run(*arguments, "--dir", str(store))
        assert (done.returncode, done.stdout) == (2, "")
        assert "has format 2, this version reads 1 (use the version of lmdb-outbox that wrote it)" in done.stderr
    assert not (tmp_path / "export").exists()
