"""`atb outbox relay`: the relay as a process of its own, as a service manager runs it."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from outbox import Health, Operation, Outbox, OutboxConfig
from outbox.testing import PostgresServer
from tests import atb as command_line
from tests.unit.fakes.audit import query
from tests.unit.fakes.waiting import LONG, until

OPERATIONS = (Operation("note", table="notes", order_by="who"),)
_DECLARED = """
from outbox import Operation
OPERATIONS = [Operation("note", table="notes", order_by="who")]
"""

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def url(postgres_url: str) -> str:
    query(postgres_url, "CREATE TABLE notes (id serial PRIMARY KEY, who text, what text NOT NULL)")
    return postgres_url


@pytest.fixture
def start(tmp_path: Path, outbox_dir: Path, url: str) -> Iterator[Start]:
    """Begins a relay in a process of its own; whatever is left of it is killed."""
    work = tmp_path / "host"
    work.mkdir()
    (work / "declared.py").write_text(_DECLARED)
    begun: list[subprocess.Popen[str]] = []

    def start(*arguments: str, **settings: str) -> subprocess.Popen[str]:
        given = {"OUTBOX_DIR": str(outbox_dir), "DATABASE_URL": url, "OUTBOX_OPERATIONS": "declared:OPERATIONS"}
        begun.append(command_line.begin("relay", *arguments, cwd=work, **{**given, **settings}))
        return begun[-1]

    yield start
    for process in begun:
        process.kill()
        process.communicate()


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, said = process.communicate(timeout=LONG)
    assert "Traceback" not in said, said
    return process.returncode, said


def say(box: Outbox, count: int) -> None:
    for number in range(count):
        box.enqueue("note", {"who": f"w{number % 3}", "what": str(number)})


def delivered(url: str) -> int:
    return int(query(url, "SELECT count(*) FROM notes")[0][0])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_relay_command_delivers_for_another_process_until_stopped(
    start: Start, outbox_dir: Path, url: str, number: int
) -> None:
    with Outbox.open(outbox_dir, operations=OPERATIONS) as box:
        say(box, 10)
        process = start()
        until(lambda: delivered(url) == 10)
        say(box, 10)
        until(lambda: delivered(url) == 20)
        assert box.status().relay.pid == process.pid
        process.send_signal(number)
        code, said = ended(process)
        assert code == 0
        assert "delivering from" in said
        assert said.rstrip().endswith("stopped, pending: 0")
        assert not box.status().relay.alive


def test_under_nohup_it_survives_its_terminal(start: Start, outbox_dir: Path, url: str) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does for what it starts
    try:
        with Outbox.open(outbox_dir, operations=OPERATIONS) as box:
            process = start()
            for count in (10, 20):
                say(box, 10)
                until(lambda expected=count: delivered(url) == expected)  # type: ignore[misc]
                process.send_signal(signal.SIGHUP)
            assert process.poll() is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_killed_relay_goes_on_where_it_was_when_it_is_started_again(start: Start, outbox_dir: Path, url: str) -> None:
    with Outbox.open(outbox_dir, operations=OPERATIONS) as box:
        say(box, 300)
        process = start(OUTBOX_BATCH_SIZE="7")
        until(lambda: delivered(url) > 0)
        process.kill()
        process.wait(LONG)
        say(box, 300)
        start(OUTBOX_BATCH_SIZE="7")
        until(lambda: not list(box.pending()), lambda: delivered(url))
    assert query(url, "SELECT count(*), count(DISTINCT what) FROM notes") == [(600, 300)]


def test_relay_command_waits_through_an_outage_and_logs_it(
    start: Start, outbox_dir: Path, postgres_server: PostgresServer, url: str
) -> None:
    del postgres_server
    with Outbox.open(outbox_dir, operations=OPERATIONS) as box:
        say(box, 3)
        away = "postgresql://trader:hunter2@127.0.0.1:1/postgres"
        process = start(DATABASE_URL=away)
        until(lambda: box.status().relay.last_error is not None)
        process.terminate()
        code, said = ended(process)
        assert code == 0
        assert "WARNING outbox.relay: delivery failed" in said
        assert "hunter2" not in said
        assert said.rstrip().endswith("stopped, pending: 3")
    assert delivered(url) == 0


def test_relay_without_entries_reports_a_wrong_database(start: Start, outbox_dir: Path, url: str) -> None:
    """A wrong address shows when the relay starts, not at the first entry that cannot be delivered."""
    with Outbox.open(outbox_dir, operations=OPERATIONS) as box:
        wrong = start(DATABASE_URL=url.rpartition("/")[0] + "/nowhere")
        until(lambda: box.status().health is Health.NEEDS_OPERATOR, lambda: box.status())
        assert "nowhere" in box.status().needs_operator[0]
        wrong.terminate()
        assert "ERROR outbox.relay: delivery failed" in ended(wrong)[1]
        start()
        until(lambda: box.status().health is Health.HEALTHY, lambda: box.status())


def test_relay_without_entries_reports_an_outage_and_its_end(
    start: Start, outbox_dir: Path, postgres_server: PostgresServer, url: str
) -> None:
    settings = {"OUTBOX_BACKOFF_CAP": "0.2", "DATABASE_URL": url}
    with Outbox.open(outbox_dir, operations=OPERATIONS) as box:
        try:
            postgres_server.kill()
            start(**settings)
            until(lambda: box.status().breaker == "open", lambda: box.status())
            assert box.status().health is Health.DEGRADED
        finally:
            postgres_server.start()
        until(lambda: box.status().health is Health.HEALTHY, lambda: box.status())


def test_every_line_of_a_json_log_is_an_object(start: Start, outbox_dir: Path, url: str) -> None:
    with Outbox.open(outbox_dir, operations=OPERATIONS) as box:
        process = start("--log-format", "json", "--verbose")
        say(box, 10)
        until(lambda: delivered(url) == 10)
        process.terminate()
        code, said = ended(process)
    lines = [json.loads(line) for line in said.splitlines()]
    assert code == 0
    assert sum(line["delivered"] for line in lines if line["message"].startswith("batch of ")) == 10
    assert (lines[-1]["message"], lines[-1]["pending"]) == ("stopped, pending: 0", 0)


def test_a_second_relay_is_refused_and_names_the_first(start: Start, outbox_dir: Path) -> None:
    with Outbox.open(outbox_dir, operations=OPERATIONS) as box:
        first = start()
        until(lambda: box.status().relay.alive)
        code, said = ended(start())
        assert code == 2
        assert f"held by process {first.pid}" in said


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"OUTBOX_OPERATIONS": "declared:NOTHING"}, "has no NOTHING"),
        ({"DATABASE_URL": "mysql://host/db"}, "DATABASE_URL"),
        ({"OUTBOX_DIR": "nowhere"}, "nowhere"),
    ],
)
def test_relay_command_that_cannot_begin_fails_with_one_sentence(
    start: Start, outbox_dir: Path, settings: dict[str, str], expected: str
) -> None:
    with Outbox.open(outbox_dir, operations=OPERATIONS):
        code, said = ended(start(**settings))
    assert code == 2
    assert expected in said
    assert len(said.splitlines()) == 1


def test_an_engine_starts_stops_and_starts_beside_it(start: Start, outbox_dir: Path, url: str) -> None:
    with Outbox.open(outbox_dir, operations=OPERATIONS) as box:
        say(box, 5)
    start()
    until(lambda: delivered(url) == 5)
    for round_ in range(2, 4):
        with Outbox.open(outbox_dir, OutboxConfig(), OPERATIONS) as box:
            threads = [threading.Thread(target=say, args=(box, 5)) for _ in range(2)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        until(lambda expected=5 + (round_ - 1) * 10: delivered(url) == expected)  # type: ignore[misc]
