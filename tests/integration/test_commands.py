"""The commands as an operator meets them: real processes, real stores, real PostgreSQL."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from outbox import Operation, Outbox, OutboxConfig, PostgresTarget, Relay
from outbox.testing import PostgresServer
from tests import atb as command_line
from tests.unit.fakes.database import query
from tests.unit.fakes.waiting import LONG, until

OPERATIONS = (Operation("note", table="notes", order_by="who"),)
_DECLARED = """
from outbox import Operation
OPERATIONS = [Operation("note", table="notes", order_by="who")]
NOT_SOME = 7
def declare():
    return OPERATIONS
def raising():
    raise ConnectionError("the database is away")
"""

Atb = Callable[..., subprocess.CompletedProcess[str]]


def _declare(tmp_path: Path) -> Path:
    """A host's folder with its declarations, where the commands are run."""
    work = tmp_path / "host"
    work.mkdir()
    (work / "declared.py").write_text(_DECLARED)
    return work


@pytest.fixture
def atb(tmp_path: Path, outbox_dir: Path) -> Atb:
    work = _declare(tmp_path)

    def run(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
        return command_line.run(*arguments, cwd=work, **{"OUTBOX_DIR": str(outbox_dir), **settings})

    return run


@pytest.fixture
def database(postgres_url: str) -> str:
    query(postgres_url, "CREATE TABLE notes (id serial PRIMARY KEY, who text, what text NOT NULL)")
    return postgres_url


def _fill(folder: Path, count: int = 3) -> None:
    with Outbox.open(folder, operations=OPERATIONS) as box:
        for number in range(count):
            box.enqueue("note", {"who": "a", "what": str(number)})


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name in ("data.mdb", "outbox.json")}


# -- status


def test_an_empty_outbox_is_healthy(atb: Atb, outbox_dir: Path) -> None:
    Outbox.open(outbox_dir).close()
    done = atb("status")
    assert done.returncode == 0
    for word in ("healthy", "pending", "dead letters", "watermark", "breaker", "relay", "halt latch", "disk free"):
        assert word in done.stdout


def test_status_shows_a_relative_directory_in_full(atb: Atb, outbox_dir: Path, tmp_path: Path) -> None:
    Outbox.open(outbox_dir).close()
    relative = os.path.relpath(outbox_dir, tmp_path / "host")
    assert atb("status", OUTBOX_DIR=relative).stdout.startswith(f"outbox {outbox_dir}: healthy")
    assert json.loads(atb("status", "--json", OUTBOX_DIR=relative).stdout)["path"] == str(outbox_dir)


def test_a_backlog_without_a_relay_is_degraded_and_json_says_why(atb: Atb, outbox_dir: Path) -> None:
    _fill(outbox_dir)
    done = atb("status", "--json")
    found = json.loads(done.stdout)
    assert done.returncode == 1
    assert (found["pending"], found["acknowledged"], found["health"], found["halted"]) == (3, 3, "degraded", False)
    assert found["degraded"] == ["no relay is running and 3 entries wait; start the engine or its relay"]


def test_a_dead_letter_needs_an_operator(atb: Atb, outbox_dir: Path, database: str) -> None:
    with Outbox.open(outbox_dir, operations=OPERATIONS) as box:
        box.enqueue("note", {"who": "a", "what": None})
        box.enqueue("note", {"who": "a", "what": "x"})
        assert Relay(box, PostgresTarget(database, OPERATIONS)).drain(LONG)
    done = atb("status")
    assert done.returncode == 2
    assert "needs an operator" in done.stdout
    assert "1 (entries held back: 1)" in done.stdout


@pytest.fixture
def engine(outbox_dir: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that enqueues, has a relay against a dead server, and waits for its end."""
    program = (
        "import sys\n"
        "from outbox import *\n"
        "ops = [Operation('note', table='notes')]\n"
        "box = Outbox.open(sys.argv[1], operations=ops)\n"
        "relay = Relay(box, PostgresTarget('postgresql://trader:s3cret@127.0.0.1:1/x', ops)); relay.start()\n"
        "box.enqueue('note', {'who': 'a', 'what': 'x'})\n"
        "while not box.status().relay.last_error: relay.drain(timeout=0.1)\n"
        "print('ready', flush=True); sys.stdin.read()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(outbox_dir)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    yield process
    process.kill()
    process.communicate()


def test_status_works_beside_a_running_engine_and_shows_the_outage(atb: Atb, engine: subprocess.Popen[str]) -> None:
    done = atb("status", "--json")
    found = json.loads(done.stdout)
    assert done.returncode == 1
    assert found["engine_pid"] == found["relay"]["pid"] == engine.pid
    assert found["relay"]["alive"]
    assert found["breaker"] in ("open", "half-open", "closed")
    assert "Connection refused" in found["relay"]["last_error"]
    assert "s3cret" not in done.stdout + done.stderr


def test_store_of_a_killed_engine_is_verified_and_shown_by_status(atb: Atb, engine: subprocess.Popen[str]) -> None:
    engine.send_signal(signal.SIGKILL)
    engine.wait()
    found = json.loads(atb("status", "--json").stdout)
    assert (found["pending"], found["engine_pid"], found["relay"]["alive"]) == (1, None, False)


@pytest.mark.parametrize("command", ["status", "drain", "compact"])
def test_an_absent_or_foreign_directory_is_one_sentence(atb: Atb, tmp_path: Path, command: str) -> None:
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "something").write_text("else")
    for where, words in ((tmp_path / "absent", "there is no outbox"), (foreign, "is not an outbox store")):
        done = atb(command, "--dir", str(where))
        assert (done.returncode, done.stdout) == (2, "")
        assert words in done.stderr
        assert done.stderr.count("\n") == 1
    assert not (tmp_path / "absent").exists()
    assert [path.name for path in foreign.iterdir()] == ["something"]


def test_a_truncated_store_is_one_sentence(atb: Atb, outbox_dir: Path) -> None:
    _fill(outbox_dir, 200)
    os.truncate(outbox_dir / "data.mdb", 20_000)
    done = atb("status")
    assert done.returncode == 2
    assert "is damaged" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_users_directory_is_one_sentence(tmp_path: Path, outbox_dir: Path) -> None:
    _fill(outbox_dir)
    tmp_path.chmod(0o755)
    # The other user may not write where coverage is measured.
    env = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    env["OUTBOX_DIR"] = str(outbox_dir)
    # The interpreter's own imports must be done before the rights are given up.
    program = "from outbox.cli import atb, main\nimport os\nos.setgid(65534); os.setuid(65534)\nmain()"
    done = subprocess.run(
        [sys.executable, "-c", program, "outbox", "status"], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    assert "no permission" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("variable", "value", "allowed"),
    [
        ("OUTBOX_BATCH_SIZE", "many", "a whole number"),
        ("OUTBOX_ENABLED", "perhaps", "true or false"),
        ("OUTBOX_RETENTION_HOURS", "-1", "0 to"),
        ("OUTBOX_MAX_RETRY", "1", "OUTBOX_MAX_RETRIES"),
        ("DATABASE_URL", "mysql://u:s3cret@h/d", "postgresql://"),
    ],
)
def test_a_bad_setting_names_itself_its_value_and_what_is_allowed(
    atb: Atb, outbox_dir: Path, variable: str, value: str, allowed: str
) -> None:
    _fill(outbox_dir)
    before = _files(outbox_dir)
    done = atb("status", **{variable: value})
    assert done.returncode == 2
    assert allowed in done.stderr
    assert "s3cret" not in done.stderr
    assert variable in done.stderr
    assert _files(outbox_dir) == before


# -- drain


@pytest.mark.parametrize("declared", ["declared:OPERATIONS", "declared:declare"])
def test_drain_delivers_everything(atb: Atb, outbox_dir: Path, database: str, declared: str) -> None:
    _fill(outbox_dir)
    done = atb("drain", "--operations", declared, DATABASE_URL=database)
    assert done.returncode == 0, done.stderr
    assert "drained: 3 entries completed, none pending" in done.stdout
    assert query(database, "SELECT what FROM notes ORDER BY id") == [("0",), ("1",), ("2",)]
    assert "nothing is pending" in atb("drain").stdout


def test_drain_against_a_stopped_server_says_so_in_time(atb: Atb, outbox_dir: Path) -> None:
    _fill(outbox_dir)
    url = "postgresql://trader:s3cret@127.0.0.1:1/x"
    done = atb("drain", "--operations", "declared:OPERATIONS", "--timeout", "6", "--database-url", url)
    assert done.returncode == 1
    assert "not drained: 3 entries are pending, nothing was delivered for 6 s" in done.stderr
    assert "(nothing is lost; `atb outbox status` shows what to do, then drain again)" in done.stderr
    assert "Connection refused" in done.stderr
    assert "s3cret" not in done.stdout + done.stderr


def test_drain_with_a_wrong_password_rejects_nothing_and_hides_it(atb: Atb, outbox_dir: Path) -> None:
    _fill(outbox_dir)
    with PostgresServer(fsync=False, password="right") as server:
        url = server.url(password="wr0ng")
        done = atb("drain", "--operations", "declared:OPERATIONS", "--timeout", "3", "--database-url", url)
    assert done.returncode == 1
    assert "3 entries are pending" in done.stderr
    assert "wr0ng" not in done.stdout + done.stderr
    assert json.loads(atb("status", "--json").stdout)["dead_letters"] == 0


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("nonsense", "MODULE:NAME"),
        ("no_such_module:X", "no_such_module"),
        ("declared:MISSING", "has no MISSING"),
        ("declared:NOT_SOME", "an iterable of Operation"),
    ],
)
def test_drain_names_what_is_wrong_with_the_operations(atb: Atb, outbox_dir: Path, where: str, words: str) -> None:
    _fill(outbox_dir)
    done = atb("drain", "--operations", where, "--database-url", "postgresql://127.0.0.1:1/x")
    assert done.returncode == 2
    assert words in done.stderr


@pytest.mark.parametrize("command", ["drain", "reconcile"])
def test_operations_that_do_not_exist_are_refused_unneeded(atb: Atb, outbox_dir: Path, command: str) -> None:
    Outbox.open(outbox_dir).close()
    url = ("--database-url", "postgresql://127.0.0.1:1/x")
    done = atb(command, "--operations", "declared:MISSING", *url)
    assert done.returncode == 2
    assert "has no MISSING" in done.stderr
    if command == "drain":
        # Without anything to deliver they are not asked for: what they connect to may be away.
        assert atb(command, "--operations", "declared:raising", *url).returncode == 0
        assert atb(command).returncode == 0


def test_character_that_the_locale_lacks_is_shown_as_its_code(atb: Atb, outbox_dir: Path) -> None:
    """The pause was in force, and the command called it an error; a status could not be shown at all."""
    with Outbox.open(outbox_dir) as box:
        box.enqueue("note", {"who": "\u6f22"})
    done = atb("pause", "--reason", "for \u20ac", PYTHONIOENCODING="latin-1")
    assert (done.returncode, done.stderr) == (0, "")
    assert "for \\u20ac" in done.stdout
    assert "for \\u20ac" in atb("status", PYTHONIOENCODING="latin-1").stdout
    assert "\\u6f22" in atb("list", "--pending", PYTHONIOENCODING="latin-1").stdout


def test_drain_without_operations_or_database_says_what_to_give(atb: Atb, outbox_dir: Path) -> None:
    _fill(outbox_dir)
    assert "--operations" in atb("drain").stderr
    assert "DATABASE_URL" in atb("drain", "--operations", "declared:OPERATIONS").stderr


def test_drain_reports_what_an_operator_must_answer(atb: Atb, outbox_dir: Path, database: str) -> None:
    with Outbox.open(outbox_dir, operations=OPERATIONS) as box:
        box.enqueue("note", {"who": "a", "what": None})
        box.enqueue("note", {"who": "a", "what": "behind"})
        box.enqueue("note", {"who": "b", "what": "free"})
    done = atb("drain", "--operations", "declared:OPERATIONS", DATABASE_URL=database)
    assert done.returncode == 1
    assert "1 dead letter needs an operator; 1 entry held back" in done.stdout
    assert query(database, "SELECT what FROM notes") == [("free",)]


def test_drain_waits_for_the_relay_of_a_running_engine(atb: Atb, engine: subprocess.Popen[str]) -> None:
    done = atb("drain", "--timeout", "0.5")
    assert done.returncode == 1
    assert f"the relay of process {engine.pid} is at work" in done.stderr
    assert "1 entry is pending" in done.stderr


def test_interrupting_drain_is_safe(outbox_dir: Path, tmp_path: Path) -> None:
    _fill(outbox_dir)
    work = _declare(tmp_path)
    settings = {"OUTBOX_DIR": str(outbox_dir), "DATABASE_URL": "postgresql://127.0.0.1:1/x"}
    process = command_line.begin("drain", "--operations", "declared:OPERATIONS", cwd=work, **settings)
    state = outbox_dir / "relay.state"
    until(lambda: state.exists() and b"Connection refused" in state.read_bytes())
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=LONG)
    assert process.returncode == 130, stderr
    assert "3 entries are still pending, nothing is lost" in stderr


# -- compact


def test_compact_prunes_and_vacuum_shrinks_the_file(atb: Atb, outbox_dir: Path, database: str) -> None:
    _fill(outbox_dir, 2000)
    assert atb("drain", "--operations", "declared:OPERATIONS", DATABASE_URL=database).returncode == 0
    before = (outbox_dir / "data.mdb").stat().st_size

    done = atb("compact", "--retention-hours", "0", "--vacuum")

    assert done.returncode == 0, done.stderr
    assert "pruned 2000 of 2000 settled entries" in done.stdout
    assert (outbox_dir / "data.mdb").stat().st_size < before / 4
    assert (outbox_dir / "data.mdb").stat().st_mode & 0o777 == 0o600
    assert json.loads(atb("status", "--json").stdout)["completed"] == 2000


def test_vacuum_beside_a_running_engine_changes_nothing_and_says_so(
    atb: Atb, engine: subprocess.Popen[str], outbox_dir: Path
) -> None:
    inode = (outbox_dir / "data.mdb").stat().st_ino
    done = atb("compact", "--vacuum")
    assert done.returncode == 2
    assert "nothing was changed" in done.stderr
    assert str(engine.pid) in done.stderr
    assert (outbox_dir / "data.mdb").stat().st_ino == inode
    assert atb("compact").returncode == 0


_PAUSED = """
import sys
from outbox import Outbox
with Outbox.attach(sys.argv[1]) as box, box.store._write("pause"):
    print("writing", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("command", [("status",), ("list",), ("show", "1")])
def test_looking_does_not_wait_for_a_writer_that_stands_still(atb: Atb, outbox_dir: Path, command: list[str]) -> None:
    with Outbox.open(outbox_dir) as box:
        box.enqueue("note", {"who": "a", "n": 1})
    with subprocess.Popen(
        [sys.executable, "-c", _PAUSED, str(outbox_dir)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as paused:
        try:
            assert paused.stdout is not None
            assert paused.stdout.readline() == "writing\n"
            done = atb(*command)
            assert (done.returncode, done.stderr) == (1 if command[0] == "status" else 0, "")
        finally:
            paused.communicate()


def test_settings_reach_the_store(outbox_dir: Path) -> None:
    config = OutboxConfig.from_env({"OUTBOX_DIR": str(outbox_dir), "OUTBOX_MAX_SIZE_MB": "5"})
    with Outbox.open(config=config) as box:
        assert (box.path, box.status().max_bytes) == (outbox_dir, 5 << 20)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act for another user")
def test_root_looking_at_a_store_does_not_lock_its_owner_out(atb: Atb, outbox_dir: Path) -> None:
    _fill(outbox_dir)
    for path in (outbox_dir, *outbox_dir.iterdir()):
        os.chown(path, 65534, 65534)
    for name in ("access.lock", "relay.lock", "clean"):
        (outbox_dir / name).unlink(missing_ok=True)
    assert atb("status").returncode == 1
    assert atb("compact", "--vacuum").returncode == 0
    assert {path.name: path.stat().st_uid for path in outbox_dir.iterdir() if path.stat().st_uid != 65534} == {}


@pytest.mark.parametrize("authority", ["u:s3cret", "u:s3@cret@127.0.0.1:1", "u:s3/cret@127.0.0.1:1"])
def test_a_malformed_url_does_not_show_its_password(atb: Atb, outbox_dir: Path, authority: str) -> None:
    _fill(outbox_dir)
    url = f"postgresql://{authority}/d"
    done = atb("drain", "--operations", "declared:OPERATIONS", "--timeout", "1", DATABASE_URL=url)
    assert done.returncode == 2
    assert "host or port" in done.stderr
    assert "s3" not in done.stdout + done.stderr
    assert "cret" not in done.stdout + done.stderr


def test_an_alarm_stays_until_it_is_acknowledged(atb: Atb, outbox_dir: Path) -> None:
    with Outbox.open(outbox_dir) as box:
        box.alarms.sound("diverged-balance-1", "another writer")
        box.alarms.sound("diverged-balance-1", "a later message does not hide the first")
    seen = atb("status")
    assert seen.returncode == 2
    assert "diverged-balance-1: another writer" in " ".join(seen.stdout.split())
    assert atb("acknowledge", "else").stderr == "Error: no alarm is named 'else' (alarms: diverged-balance-1)\n"
    assert atb("acknowledge", "diverged-balance-1").stdout == "acknowledged: diverged-balance-1\n"
    assert atb("status").returncode == 0
    assert atb("acknowledge", "diverged-balance-1").stderr.endswith("(alarms: there is none)\n")


def test_several_alarms_are_acknowledged_at_once(atb: Atb, outbox_dir: Path) -> None:
    """A table whose ids another program gives out sounds an alarm for each id."""
    with Outbox.open(outbox_dir) as box:
        for name in ("diverged-id-trades-1", "diverged-id-trades-2", "diverged-balance-1", "store-copied"):
            box.alarms.sound(name, "it is so")
    done = atb("acknowledge", "diverged-id-*", "store-copied", "diverged-id-trades-1", "else-*")
    assert done.stdout.splitlines() == [
        "acknowledged: diverged-id-trades-1", "acknowledged: diverged-id-trades-2", "acknowledged: store-copied",
    ]  # fmt: skip
    assert done.stderr == "Error: no alarm is named 'else-*' (alarms: diverged-balance-1)\n"
    assert done.returncode == 2
    assert atb("acknowledge", "*").stdout == "acknowledged: diverged-balance-1\n"
