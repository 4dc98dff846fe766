"""The ways to the metrics: the command for a textfile, the relay's server, and a real Prometheus that scrapes it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from click.testing import CliRunner

from outbox import Operation, Outbox
from outbox.cli import atb
from tests.unit.fakes.audit import query
from tests.unit.fakes.ports import free_ports
from tests.unit.fakes.waiting import LONG, until

_DECLARED = """
from outbox import Operation
OPERATIONS = [Operation("note", table="notes")]
"""
PROMETHEUS = shutil.which("prometheus")


def outbox(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(atb, ["outbox", *arguments])
    return done.exit_code, done.output


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=LONG) as answer:  # noqa: S310 - an address of this test
        return str(answer.read().decode())


@pytest.fixture
def box(outbox_dir: Path) -> Iterator[Outbox]:
    with Outbox.open(outbox_dir, operations=[Operation("note", table="notes")]) as box:
        for number in range(3):
            box.enqueue("note", {"what": number})
        yield box


@pytest.fixture
def closed(outbox_dir: Path) -> Path:
    with Outbox.open(outbox_dir) as box:
        box.enqueue("note", {"what": 1})
    return outbox_dir


def test_metrics_command_prints_the_figures_whatever_the_health(closed: Path) -> None:
    code, said = outbox("metrics", "--dir", str(closed))
    assert code == 0
    assert f'\nlmdb_outbox_pending_entries{{store="{closed}"}} 1.0\n' in said
    assert f'\nlmdb_outbox_health{{store="{closed}"}} 1.0\n' in said
    assert "# TYPE lmdb_outbox_acknowledged_entries_total counter" in said


def test_a_file_is_replaced_as_a_whole_and_readable_by_the_collector(closed: Path, tmp_path: Path) -> None:
    file = tmp_path / "outbox.prom"
    file.write_text("before")
    before = file.open()
    assert outbox("metrics", "--dir", str(closed), "--output", str(file)) == (0, "")
    assert before.read() == "before"
    before.close()
    assert file.read_text().startswith("# HELP lmdb_outbox_up ")
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["outbox.prom"]


def test_a_store_that_is_not_there_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "outbox.prom"
    file.write_text("before")
    code, said = outbox("metrics", "--dir", str(tmp_path / "nowhere"), "--output", str(file))
    assert code == 2
    assert "nowhere" in said
    assert file.read_text() == "before"


def test_a_folder_that_is_not_there_is_named(closed: Path, tmp_path: Path) -> None:
    code, said = outbox("metrics", "--dir", str(closed), "--output", str(tmp_path / "none" / "outbox.prom"))
    assert code == 2
    assert "No such file or directory" in said
    assert len(said.splitlines()) == 1


@contextmanager
def relay(directory: Path, url: str, folder: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    folder = folder / "host"
    folder.mkdir()
    (folder / "declared.py").write_text(_DECLARED)
    env = {name: value for name, value in os.environ.items() if not name.startswith(("OUTBOX_", "DATABASE_URL"))}
    env |= {"OUTBOX_DIR": str(directory), "DATABASE_URL": url, "OUTBOX_OPERATIONS": "declared:OPERATIONS"}
    process = subprocess.Popen(
        [sys.executable, "-m", "outbox", "outbox", "relay", *arguments],
        env=env,
        cwd=folder,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def served_at(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    for line in process.stderr:
        if found := re.search(r"metrics at (http://\S+)\n", line):
            return found[1]
    pytest.fail("it ended without saying where its metrics are")


def test_the_relay_serves_its_metrics_until_it_stops(box: Outbox, postgres_url: str, tmp_path: Path) -> None:
    query(postgres_url, "CREATE TABLE notes (what int)")
    with relay(box.path, postgres_url, tmp_path, "--metrics", "127.0.0.1:0") as process:
        url = served_at(process)
        done = f'lmdb_outbox_completed_entries{{store="{box.path}"}} 3.0'
        until(lambda: done in get(url))
        assert f'lmdb_outbox_relay_running{{store="{box.path}"}} 1.0' in get(url)
        process.send_signal(signal.SIGTERM)
        assert process.wait(LONG) == 0


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("9464", "address of the metrics is '9464'"),
        ("{taken}", "metrics cannot be served at {taken}: Address already in use (choose a free port)"),
        ("192.0.2.1:9464", "192.0.2.1:9464: Cannot assign requested address (name an address of this machine, or"),
    ],
)
def test_a_relay_whose_metrics_cannot_be_served_does_not_begin(
    box: Outbox, postgres_url: str, tmp_path: Path, address: str, expected: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        at = f"127.0.0.1:{taken.getsockname()[1]}"
        with relay(box.path, postgres_url, tmp_path, "--metrics", address.format(taken=at)) as process:
            _, said = process.communicate(timeout=LONG)
    assert process.returncode == 2
    assert expected.format(taken=at) in said
    assert len(said.splitlines()) == 1


@pytest.mark.skipif(PROMETHEUS is None, reason="needs the program prometheus (Debian package prometheus)")
def test_a_real_prometheus_scrapes_it(box: Outbox, postgres_url: str, tmp_path: Path) -> None:
    query(postgres_url, "CREATE TABLE notes (what int)")
    [port] = free_ports(1)
    with relay(box.path, postgres_url, tmp_path, "--metrics", "127.0.0.1:0") as process:
        target = urllib.parse.urlsplit(served_at(process)).netloc
        scrape = {"job_name": "outbox", "scrape_interval": "1s", "static_configs": [{"targets": [target]}]}
        # JSON is YAML.
        (tmp_path / "prometheus.yml").write_text(json.dumps({"scrape_configs": [scrape]}))
        command = [str(PROMETHEUS), "--config.file=prometheus.yml", "--storage.tsdb.path=tsdb"]
        command.append(f"--web.listen-address=127.0.0.1:{port}")
        with (tmp_path / "prometheus.log").open("w") as log:
            prometheus = subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log)
        try:
            # Not before it was delivered and scraped.
            expected = [({"store": str(box.path)}, "3")]
            until(lambda: asked(port, "lmdb_outbox_completed_entries") == expected)
            # A scrape that takes more than a second fails, and the next one is as good.
            until(lambda: asked(port, "up") == [({"instance": target, "job": "outbox"}, "1")])
            until(lambda: len(asked(port, '{__name__=~"lmdb_outbox_.+"}')) > 25)
        finally:
            prometheus.kill()
            prometheus.wait(LONG)


def asked(port: int, expression: str) -> list[tuple[dict[str, str], str]]:
    """The samples of a query: labels that are not about the scraping, and the value; none while it starts."""
    with suppress(OSError):
        answer = get(f"http://127.0.0.1:{port}/api/v1/query?" + urllib.parse.urlencode({"query": expression}))
        samples = json.loads(answer)["data"]["result"]
        kept = {"instance", "job"} if expression == "up" else {"store"}
        return [({k: v for k, v in one["metric"].items() if k in kept}, one["value"][1]) for one in samples]
    return []
