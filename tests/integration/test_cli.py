"""The command line under wrong input, odd moments and other processes; what is ordinary is in `test_commands.py`."""

from __future__ import annotations

import importlib.metadata
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from threading import Event
from uuid import UUID

import click
import pytest
from click.testing import CliRunner

from outbox import Clock, Operation, Outbox, PostgresTarget, Relay, SystemClock, TargetUnavailable
from outbox.cli import atb as group
from outbox.cli.common import without_password
from outbox.operation import operations_by_name
from outbox.relay.delivery import Delivery
from outbox.store.envelope import Record
from outbox.store.locks import Role, RoleLock
from outbox.store.own_files import StateFile
from outbox.target import Outcome
from outbox.testing import PostgresServer
from tests import atb as command_line
from tests.unit.fakes.database import query
from tests.unit.fakes.waiting import LONG

OPERATIONS = (Operation("note", table="notes", order_by="who"),)
NOWHERE = "postgresql://trader:s3cret@127.0.0.1:1/x"

Begin = Callable[..., "subprocess.Popen[str]"]
Atb = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """A host's folder, where the commands are run."""
    folder = tmp_path / "host"
    folder.mkdir()
    declared = 'from outbox import Operation\nOPERATIONS = [Operation("note", table="notes", order_by="who")]\n'
    (folder / "host_declared.py").write_text(declared)
    return folder


@pytest.fixture
def begin(host: Path, outbox_dir: Path) -> Iterator[Begin]:
    """Start a command; it is killed when the test ends."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str, **settings: str) -> subprocess.Popen[str]:
        settings = {"OUTBOX_OPERATIONS": "host_declared:OPERATIONS", **settings}
        process = command_line.begin(*arguments, cwd=host, OUTBOX_DIR=str(outbox_dir), **settings)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def atb(begin: Begin) -> Atb:
    def run(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
        process = begin(*arguments, **settings)
        stdout, stderr = process.communicate(timeout=LONG)
        assert "Traceback" not in stderr, stderr
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)

    return run


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, host: Path, outbox_dir: Path) -> Iterator[Atb]:
    """The same command inside this process, for stores that it does not have open itself."""
    for name in [name for name in os.environ if name.startswith(("OUTBOX_", "DATABASE_URL"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("OUTBOX_DIR", str(outbox_dir))
    monkeypatch.setenv("DATABASE_URL", NOWHERE)
    monkeypatch.chdir(host)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def run(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
        done = command_line.invoke(*arguments)
        return subprocess.CompletedProcess(arguments, done.exit_code, done.stdout, done.stderr)

    yield run
    for name in [name for name in sys.modules if name.startswith("host_")]:
        del sys.modules[name]


class Earlier(SystemClock):
    """An hour ago."""

    def now(self) -> datetime:
        return super().now() - timedelta(hours=1)


def _fill(folder: Path, count: int = 3, clock: Clock | None = None) -> None:
    with Outbox.open(folder, operations=OPERATIONS, clock=clock) as box:
        for number in range(count):
            box.enqueue("note", {"who": "a", "what": str(number)})


def _line(process: subprocess.Popen[str], words: str) -> str:
    """The next line of stderr that holds `words`."""
    assert process.stderr is not None
    for line in process.stderr:
        if words in line:
            return line
    pytest.fail(f"the command ended without saying {words!r}")


@pytest.fixture
def database(postgres_url: str) -> str:
    query(postgres_url, "CREATE TABLE notes (id serial PRIMARY KEY, who text, what text NOT NULL)")
    return postgres_url


def _assert_one_sentence(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert done.stderr.startswith("Error: ")
    assert done.stderr.count("\n") == 1, done.stderr
    for word in words:
        assert word in done.stderr


# -- the command line itself


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nonsense"], "'nonsense'"),
        (["status", "--nonsense"], "--nonsense"),
        (["status", "nonsense"], "nonsense"),
        (["status", "--dir"], "--dir"),
        (["status", "--dir", ""], "dir is ''"),
        (["drain", "--timeout", "soon"], "'--timeout': 'soon'"),
        (["drain", "--timeout", "nan"], "'nan' (allowed: a number, 0 or more)"),
        (["drain", "--timeout", "inf"], "'inf' (allowed"),
        (["drain", "--timeout", "-1"], "'-1' (allowed"),
        (["drain", "--database-url", "mysql://u:s3cret@h/d"], "'mysql' (allowed: postgresql://"),
        (["compact", "--retention-hours", "-1"], "--retention-hours is -1.0 (allowed: a number from 0"),
        (["compact", "--retention-hours", "nan"], "'nan' (allowed: a number)"),
        (["compact", "--retention-hours", "long"], "'--retention-hours': 'long'"),
    ],
)
def test_a_wrong_argument_is_one_sentence_and_changes_nothing(
    quick: Atb, outbox_dir: Path, arguments: list[str], words: str
) -> None:
    _fill(outbox_dir)
    before = {path.name: path.read_bytes() for path in outbox_dir.iterdir()}
    done = quick(*arguments)
    _assert_one_sentence(done, words)
    assert "s3cret" not in done.stderr
    assert {path.name: path.read_bytes() for path in outbox_dir.iterdir()} == before


def test_no_line_of_the_help_is_cut(quick: Atb) -> None:
    lines = quick("--help").stdout.splitlines()
    assert [line for line in lines if line.startswith("  ") and line.endswith("...")] == []
    assert max(map(len, lines)) <= 80


def test_help_without_docstrings_is_the_same() -> None:
    for command in ([], ["status"], ["list"]):
        shown = [
            subprocess.run(
                [sys.executable, *flags, "-m", "outbox", "outbox", *command, "--help"],
                capture_output=True,
                text=True,
                check=True,
            ).stdout
            for flags in ([], ["-OO"])
        ]
        assert shown[0] == shown[1]


def test_without_a_command_the_help_is_shown(quick: Atb) -> None:
    done = quick()
    assert all(command in done.stdout + done.stderr for command in ("status", "drain", "compact", "demo"))


def test_the_script_and_the_module_are_the_same_program() -> None:
    script = shutil.which("atb", path=str(Path(sys.executable).parent))
    if script is None:
        pytest.skip("the package is not installed beside this interpreter")
    version = importlib.metadata.version("lmdb-outbox")
    for command in ([script], [sys.executable, "-m", "outbox"]):
        done = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True)
        assert done.stdout == f"atb, version {version}\n"


@pytest.mark.parametrize("command", ["status", "drain", "compact"])
def test_an_interruption_at_any_moment_is_one_sentence(
    quick: Atb, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Outbox, "attach", interrupted)
    done = quick(command)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted: nothing is lost\n")


LOADS = """
import os, signal, sys

command, module = sys.argv[1:]

class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == module:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupting())
from outbox.cli import main
sys.argv[1:] = ["outbox", command]
main()
"""


@pytest.mark.parametrize(
    ("command", "module"),
    [("status", "click"), ("status", "orjson"), ("status", "outbox.cli.status"), ("audit", "outbox.audit")],
)
def test_an_interruption_while_modules_load_is_one_sentence(command: str, module: str) -> None:
    """It was a traceback, or exit code 1 for "degraded" and "with findings", and crashed orjson's import."""
    done = subprocess.run([sys.executable, "-c", LOADS, command, module], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted: nothing is lost\n")


def test_a_reader_that_leaves_early_is_no_error(begin: Begin, outbox_dir: Path) -> None:
    _fill(outbox_dir)
    process = begin("status")
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == ""


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://u:p@h/d and more", "postgresql://u:***@h/d and more"),
        ("postgresql://u:p@ss:w/rd@h/d", "postgresql://u:***@h/d"),
        ("postgresql://h/d?user=u&password=p&sslmode=x", "postgresql://h/d?user=u&password=***&sslmode=x"),
        ("host=h password='p w' dbname=d", "host=h password=*** dbname=d"),
        ("http://h:80/path", "http://h:80/path"),
        ("http://h:80/path?to=a@b.example", "http://h:80/path?to=a@b.example"),
        ("http://h:80/?db=postgresql://u:p@h/d", "http://h:80/?db=postgresql://u:***@h/d"),
        ("https://u:80@h/path", "https://u:***@h/path"),
        ("postgresql://u:80/p@h/d", "postgresql://u:***@h/d"),
        ("nothing of that kind", "nothing of that kind"),
    ],
)
def test_passwords_are_blotted_out(text: str, shown: str) -> None:
    assert without_password(text) == shown


# -- directories that are none


def test_a_file_or_an_empty_directory_is_one_sentence(quick: Atb, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    for name, words in (("file", "is not a directory"), ("file/below", "is not a directory"), ("empty", "it is empty")):
        _assert_one_sentence(quick("status", "--dir", str(tmp_path / name)), words, str(tmp_path / name))
    assert list((tmp_path / "empty").iterdir()) == []


@pytest.mark.parametrize("damage", ["missing", "empty", "noise", "no identity", "another identity"])
@pytest.mark.parametrize("command", ["status", "compact"])
def test_a_damaged_store_is_one_sentence(quick: Atb, outbox_dir: Path, command: str, damage: str) -> None:
    _fill(outbox_dir)
    data, identity = outbox_dir / "data.mdb", outbox_dir / "outbox.json"
    if damage == "missing":
        data.unlink()
    elif damage == "empty":
        data.write_bytes(b"")
    elif damage == "noise":
        data.write_bytes(os.urandom(50_000))
    elif damage == "no identity":
        identity.write_bytes(b"hello")
    else:
        identity.write_text(re.sub("[0-9a-f]{4}-", "0000-", identity.read_text()))
    _assert_one_sentence(quick(command), str(outbox_dir))


# -- status


def test_piped_status_is_plain_and_has_one_fact_per_line(quick: Atb, outbox_dir: Path) -> None:
    _fill(outbox_dir)
    lines = quick("status", COLUMNS="20").stdout.splitlines()
    names = [line[:16].strip() for line in lines[1:-1]]
    assert names == [
        *("pending", "rates", "runway", "dead letters", "completed", "watermark", "breaker", "relay"),
        *("engine", "halt latch", "store", "file", "disk free"),
    ]
    assert all(line == line.rstrip() and line.isprintable() for line in lines)


@pytest.fixture
def relay_says(outbox_dir: Path) -> Iterator[Callable[..., None]]:
    """Hold the relay's role and publish what a relay would say of itself."""
    _fill(outbox_dir, clock=Earlier())
    role = RoleLock(outbox_dir, Role.RELAY)

    def say(**state: object) -> None:
        fresh = {"pid": os.getpid(), "breaker": "closed", "moved_at": time.monotonic(), "held_back": 0}
        StateFile(outbox_dir / "relay.state").write({**fresh, **state})

    yield say
    role.release()


def test_a_stopped_line_is_shown_as_it_was_said_but_for_passwords(quick: Atb, relay_says: Callable[..., None]) -> None:
    relay_says(stopped=True, last_error=f"[/oops] no table [bold]notes[/bold] at {NOWHERE}")
    done = quick("status")
    assert done.returncode == 2
    assert f"relay           line stopped, process {os.getpid()}" in done.stdout
    assert "[/oops] no table [bold]notes[/bold] at postgresql://trader:***@127.0.0.1:1/x" in done.stdout
    assert "s3cret" not in done.stdout + quick("status", "--json").stdout


def test_a_stuck_relay_needs_an_operator(quick: Atb, relay_says: Callable[..., None]) -> None:
    relay_says(moved_at=time.monotonic() - 1000)
    done = quick("status")
    assert done.returncode == 2
    assert "pending         3 (lag 60 min)" in done.stdout
    assert f"relay           stuck, process {os.getpid()}, last progress 16 min ago" in done.stdout


def test_a_dead_relay_needs_an_operator(quick: Atb, outbox_dir: Path) -> None:
    _fill(outbox_dir)
    StateFile(outbox_dir / "relay.state").write({"pid": 1, "breaker": "closed", "died": "MemoryError: [1]"})
    done = quick("status")
    assert done.returncode == 2
    assert "relay           died: MemoryError: [1]" in done.stdout


def test_a_relay_with_nothing_to_do_is_idle(atb: Atb, outbox_dir: Path, database: str) -> None:
    with (
        Outbox.open(outbox_dir, operations=OPERATIONS) as box,
        Relay(box, PostgresTarget(database, OPERATIONS)) as relay,
    ):
        box.enqueue("note", {"who": "a", "what": "x"})
        assert relay.drain(LONG)
        done = atb("status")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"relay           idle, process {os.getpid()}" in done.stdout
    assert f"engine          process {os.getpid()}" in done.stdout


def test_a_halted_engine_is_seen_from_outside_with_the_reason(atb: Atb, outbox_dir: Path) -> None:
    program = """
        import resource, sys
        from outbox import DurabilityError, Outbox
        box = Outbox.open(sys.argv[1])
        box.enqueue("note", {"what": "x"})
        size = box.status().file_bytes
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        try:
            for _ in range(10_000):
                box.enqueue("note", {"what": "x" * 1000})
        except DurabilityError:
            print("halted", flush=True)
        sys.stdin.read()
    """
    engine = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program), str(outbox_dir)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with engine:
        assert engine.stdout is not None
        assert engine.stdout.readline() == "halted\n"
        done = atb("status")
        found = json.loads(atb("status", "--json").stdout)
        engine.kill()
    assert done.returncode == 2
    assert "halt latch      SET: could not enqueue: " in done.stdout
    assert (found["halted"], found["health"], found["engine_pid"]) == (True, "needs_operator", engine.pid)


# -- drain: where operations come from


@pytest.mark.parametrize(
    ("source", "name", "words"),
    [
        ("def (", "X", "SyntaxError: invalid syntax"),
        ("raise RuntimeError('no engine here\\nand more')", "X", "RuntimeError: no engine here"),
        ("import host_lacks_this", "X", "No module named 'host_lacks_this'"),
        ("import sys; sys.exit(3)", "X", "SystemExit: 3"),
        ("def X(): raise OSError('no config')", "X", "OSError: no config"),
        ("def X(one): return []", "X", "TypeError: X() missing 1 required positional argument"),
        ("def X():\n    yield 7", "X", "with an int (allowed: an iterable of Operation)"),
        ("X = None", "X", "with None (allowed: an iterable of Operation)"),
        ("Y = []", "X", "host_broken has no X"),
        (
            "from outbox.integrations.durable import ManagerRead\nX = [ManagerRead('kept', keep_last=True)]",
            "X",
            "for an engine's DatabaseManager give a callable that returns bind(OPERATIONS, factory)",
        ),
    ],
)
def test_wrong_operations_of_the_host_are_refused_in_one_sentence(
    quick: Atb, host: Path, outbox_dir: Path, source: str, name: str, words: str
) -> None:
    _fill(outbox_dir)
    (host / "host_broken.py").write_text(source)
    _assert_one_sentence(quick("drain", "--operations", f"host_broken:{name}"), f"'host_broken:{name}'", words)


@pytest.mark.parametrize("where", ["", ":", "module", "module:", ":NAME", ".module:NAME"])
def test_operations_must_be_named_as_module_and_name(quick: Atb, outbox_dir: Path, where: str) -> None:
    _fill(outbox_dir)
    _assert_one_sentence(quick("drain", "--operations", where), repr(where), "MODULE:NAME")


# -- drain: moments


def test_drain_waits_for_a_stopped_server_and_says_why(
    begin: Begin, outbox_dir: Path, own_postgres: PostgresServer
) -> None:
    url = own_postgres.url()
    query(url, "CREATE TABLE notes (who text, what text)")
    own_postgres.kill()
    _fill(outbox_dir)
    process = begin("drain", "--timeout", str(LONG), DATABASE_URL=url)
    assert "Connection refused" in _line(process, "delivery fails and is tried again")
    own_postgres.start()
    stdout, _ = process.communicate(timeout=LONG)
    assert (process.returncode, stdout) == (0, "drained: 3 entries completed, none pending\n")
    assert query(url, "SELECT count(*) FROM notes") == [(3,)]


def test_a_second_drain_still_tells_of_the_dead_letter(quick: Atb, outbox_dir: Path, database: str) -> None:
    with Outbox.open(outbox_dir, operations=OPERATIONS) as box:
        box.enqueue("note", {"who": "a", "what": None})
    for words in ("1 dead letter needs an operator", "nothing is pending"):
        done = quick("drain", DATABASE_URL=database, OUTBOX_OPERATIONS="host_declared:OPERATIONS")
        assert done.returncode == 1
        assert words in done.stdout
    assert "1 dead letter needs an operator" in done.stdout


def test_a_relay_that_dies_is_one_sentence(
    quick: Atb, host: Path, outbox_dir: Path, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise RuntimeError("enough")

    _fill(outbox_dir)
    monkeypatch.setattr(Delivery, "step", die)
    _assert_one_sentence(
        quick("drain", DATABASE_URL=database, OUTBOX_OPERATIONS="host_declared:OPERATIONS"),
        "the relay died: RuntimeError: enough",
    )
    with Outbox.attach(outbox_dir) as box:
        assert box.status().pending == 3


def test_on_a_terminal_drain_shows_a_bar(begin: Begin, host: Path, outbox_dir: Path, database: str) -> None:
    _fill(outbox_dir)
    ours, theirs = pty.openpty()
    env = command_line.environment(OUTBOX_DIR=str(outbox_dir), DATABASE_URL=database, TERM="xterm")
    drain = [*command_line.COMMAND, "drain", "--operations", "host_declared:OPERATIONS"]
    with subprocess.Popen(drain, env=env, cwd=host, stderr=theirs, stdout=subprocess.PIPE, text=True) as process:
        os.close(theirs)
        assert process.stdout is not None
        raw = b""
        # A slow drain shows more than a terminal holds.  EIO: the other end is closed.
        with suppress(OSError):
            while more := os.read(ours, 65536):
                raw += more
        said = process.stdout.read()
    os.close(ours)
    shown = raw.decode()
    assert (process.returncode, said) == (0, "drained: 3 entries completed, none pending\n")
    assert "draining" in shown
    assert "3/3" in shown


# -- drain: beside another relay


class GatedTarget:
    """Delivers nothing until it is let, and then only entries up to a sequence number."""

    def __init__(self, up_to: int) -> None:
        self.operations = operations_by_name(OPERATIONS)
        self.lanes = 1
        self.open = Event()
        self._up_to = up_to

    def apply(self, store_id: UUID, records: Sequence[Record]) -> Outcome:
        passed = [(record, b"") for record in records if self.open.is_set() and record.seq <= self._up_to]
        return Outcome(passed, interruption=None if len(passed) == len(records) else TargetUnavailable("gate closed"))

    def interrupt(self) -> None: ...

    def close(self) -> None: ...


@pytest.fixture
def busy(outbox_dir: Path) -> Iterator[tuple[Outbox, Relay, GatedTarget]]:
    """An engine with three pending entries and a relay that waits to be let."""
    target = GatedTarget(up_to=3)
    with Outbox.open(outbox_dir, operations=OPERATIONS) as box:
        for number in range(3):
            box.enqueue("note", {"who": "a", "what": str(number)})
        with Relay(box, target) as relay:
            yield box, relay, target


def test_drain_beside_a_relay_waits_only_for_entries_pending_before(
    begin: Begin, busy: tuple[Outbox, Relay, GatedTarget]
) -> None:
    box, relay, target = busy
    process = begin("drain")
    assert f"the relay of process {os.getpid()} is at work" in _line(process, "waiting for it")
    box.enqueue("note", {"who": "a", "what": "newer"})
    target.open.set()
    relay.drain(timeout=0.1)
    stdout, _ = process.communicate(timeout=LONG)
    assert (process.returncode, stdout) == (0, "drained: 3 entries completed, 1 newer one is pending\n")


def test_drain_goes_on_by_itself_when_the_other_relay_ends(
    begin: Begin, busy: tuple[Outbox, Relay, GatedTarget], database: str
) -> None:
    _, relay, _ = busy
    process = begin("drain", DATABASE_URL=database)
    _line(process, "waiting for it")
    relay.stop()
    _line(process, "that relay has ended, this command continues")
    stdout, _ = process.communicate(timeout=LONG)
    assert (process.returncode, stdout) == (0, "drained: 3 entries completed, none pending\n")
    assert query(database, "SELECT what FROM notes ORDER BY id") == [("0",), ("1",), ("2",)]


def test_drain_that_cannot_go_on_by_itself_says_what_to_give(
    begin: Begin, busy: tuple[Outbox, Relay, GatedTarget]
) -> None:
    _, relay, _ = busy
    process = begin("drain")
    _line(process, "waiting for it")
    relay.stop()
    assert "DATABASE_URL is not set" in _line(process, "Error:")
    assert process.wait(LONG) == 2


def test_drain_beside_a_relay_can_be_interrupted(begin: Begin, busy: tuple[Outbox, Relay, GatedTarget]) -> None:
    process = begin("drain")
    _line(process, "waiting for it")
    process.send_signal(signal.SIGINT)
    _line(process, "interrupted: 3 entries are still pending, nothing is lost")
    assert process.wait(LONG) == 130
    assert busy[1].running


# -- compact


def test_compact_works_beside_an_engine_and_vacuum_does_not(atb: Atb, busy: tuple[Outbox, Relay, GatedTarget]) -> None:
    box, relay, target = busy
    target.open.set()
    assert relay.drain(LONG)
    refused = atb("compact", "--vacuum", "--retention-hours", "0")
    _assert_one_sentence(refused, "nothing was changed", f"process {os.getpid()}")
    assert box.status().ledger == 3
    done = atb("compact", "--retention-hours", "0")
    assert done.stdout.splitlines()[0] == "pruned 3 of 3 settled entries older than 0 hours"
    assert (done.returncode, box.status().ledger) == (0, 0)


def test_the_group_can_be_mounted_by_a_host(outbox_dir: Path) -> None:
    @click.group()
    def host_program() -> None:
        """A host's own command line."""

    host_program.add_command(group.commands["outbox"])
    done = CliRunner().invoke(host_program, ["outbox", "status", "--dir", str(outbox_dir)])
    assert (done.exit_code, done.stderr) == (
        2,
        f"Error: there is no outbox at {outbox_dir} (check OUTBOX_DIR or --dir; the engine makes it when it starts)\n",
    )


def test_unknown_variable_is_a_warning_beside_the_answer(outbox_dir: Path) -> None:
    Outbox.open(outbox_dir).close()
    done = command_line.invoke("status", "--dir", str(outbox_dir), "--json", OUTBOX_LOG_LEVEL="s3cret")
    assert done.exit_code == 0
    assert done.stderr == "Warning: OUTBOX_LOG_LEVEL is set, and no setting has this name: it is ignored\n"
    assert json.loads(done.stdout)["pending"] == 0
