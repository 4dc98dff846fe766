"""`atb outbox pause` and `resume` beside a relay of another process and a real PostgreSQL."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from outbox import Operation, Outbox, OutboxConfig, PostgresTarget, Relay
from tests import atb as command_line
from tests.unit.fakes.audit import query
from tests.unit.fakes.waiting import LONG, until

OPERATIONS = (Operation("note", table="notes"),)
_DECLARED = 'from outbox import Operation\nOPERATIONS = [Operation("note", table="notes")]\n'


class Shell:
    """Commands in processes of their own."""

    def __init__(self, outbox_dir: Path, work: Path, url: str) -> None:
        self._work = work
        self._settings = {
            "OUTBOX_DIR": str(outbox_dir),
            "DATABASE_URL": url,
            "OUTBOX_OPERATIONS": "declared:OPERATIONS",
        }
        self.begun: list[subprocess.Popen[str]] = []

    def begin(self, *arguments: str) -> subprocess.Popen[str]:
        self.begun.append(command_line.begin(*arguments, cwd=self._work, **self._settings))
        return self.begun[-1]

    def run(self, *arguments: str) -> tuple[int, str]:
        done = command_line.run(*arguments, cwd=self._work, **self._settings)
        return done.returncode, done.stdout + done.stderr


@pytest.fixture
def url(postgres_url: str) -> str:
    query(postgres_url, "CREATE TABLE notes (n int)")
    return postgres_url


@pytest.fixture
def shell(outbox_dir: Path, tmp_path: Path, url: str) -> Iterator[Shell]:
    work = tmp_path / "host"
    work.mkdir()
    (work / "declared.py").write_text(_DECLARED)
    shell = Shell(outbox_dir, work, url)
    yield shell
    for process in shell.begun:
        process.kill()
        process.communicate()


def delivered(url: str) -> int:
    return int(query(url, "SELECT count(*) FROM notes")[0][0])


def test_pause_from_another_process_survives_the_kill_of_the_relay(shell: Shell, outbox_dir: Path, url: str) -> None:
    with Outbox.open(outbox_dir, operations=OPERATIONS) as box:
        relay = shell.begin("relay")
        box.enqueue("note", {"n": 1})
        until(lambda: delivered(url) == 1)
        code, said = shell.run("pause", "--reason", "migration 42")
        assert code == 0
        assert "migration 42" in said
        box.enqueue("note", {"n": 2})
        # The relay says so by letting go of its connection.
        ours = "application_name LIKE '%outbox%' AND datname = current_database()"
        until(lambda: not query(url, f"SELECT 1 FROM pg_stat_activity WHERE {ours}"))
        relay.kill()
        relay.communicate()
        shell.begin("relay")
        until(lambda: box.status().relay.alive)
        code, said = shell.run("drain", "--timeout", "1000")
        assert code == 1
        assert "delivery is paused since" in said
        assert "pending: 1" in said
        code, said = shell.run("status", "--json")
        found = json.loads(said)
        assert (code, found["paused"]["reason"], found["paused"]["until"]) == (1, "migration 42", None)
        assert delivered(url) == 1
        assert shell.run("resume") == (0, "delivery goes on\n")
        until(lambda: delivered(url) == 2)
        assert shell.run("resume") == (0, "delivery was not paused\n")


def test_the_relay_of_a_running_engine_obeys(shell: Shell, outbox_dir: Path, url: str) -> None:
    with (
        Outbox.open(outbox_dir, OutboxConfig(), OPERATIONS) as box,
        Relay(box, PostgresTarget(url, OPERATIONS, config=box.config)) as relay,
    ):
        box.enqueue("note", {"n": 1})
        assert relay.drain(LONG)
        assert shell.run("pause", "--reason", "failover", "--for", "1h")[0] == 0
        box.enqueue("note", {"n": 2})
        assert not relay.drain(1000)
        assert delivered(url) == 1
        assert shell.run("resume")[0] == 0
        assert relay.drain(LONG)
        assert delivered(url) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("pause",), "Missing option '--reason'"),
        (("pause", "--reason", " "), "reason is ' '"),
        (("pause", "--reason", "x", "--for", "soon"), "'soon' (allowed: 90s, 30m, 2h, 7d; at most a year)"),
        (("pause", "--reason", "x", "--for", "400d"), "'400d' (allowed: 90s, 30m, 2h, 7d; at most a year)"),
        (("pause", "--reason", "x", "--for", "0m"), "'0m' (allowed: 90s, 30m, 2h, 7d; at most a year)"),
    ],
)
def test_a_wrong_pause_is_refused_in_one_sentence(
    shell: Shell, outbox_dir: Path, arguments: tuple[str, ...], words: str
) -> None:
    Outbox.open(outbox_dir).close()
    code, said = shell.run(*arguments)
    assert code == 2
    assert words in said
    assert len(said.splitlines()) == 1
