"""The paper engine's process, killed where its record and PostgreSQL differ, goes on and agrees in the end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from outbox.integrations.paper import DatabaseManager
from outbox.integrations.paper.check import compare, read_record
from tests import atb
from tests.unit.fakes.waiting import LONG

_BARS = 110

# The engine's process, but for a gate: SIGKILL between the return of a call and its line in the record, where the
# call replaces an acknowledged stop that no later call replaces again.
_KILLED_IN_AN_UPDATE = """
import os, signal, sys
from outbox.integrations.paper import process
from outbox.integrations.paper import DatabaseManager
from outbox.integrations.paper.check import Recorder

class Gate(Recorder):
    def __call__(self, kind, record):
        if kind == "position_update" and record["stop_loss"] == "109.85100000":
            os.kill(os.getpid(), signal.SIGKILL)
        super().__call__(kind, record)

process.Recorder = Gate
sys.exit(process.main(sys.argv[1:]))
"""


def test_a_kill_between_an_update_and_its_record_loses_nothing(postgres_url: str, tmp_path: Path) -> None:
    record = tmp_path / "record.jsonl"
    env = {name: value for name, value in os.environ.items() if not name.startswith("OUTBOX_")}
    env |= {"DATABASE_URL": postgres_url, "OUTBOX_DIR": str(tmp_path / "outbox")}

    def trade(*how: str) -> int:
        options = ["--record", str(record), "--bars", str(_BARS), "--finish"]
        done = subprocess.run([sys.executable, *how, *options], env=env, timeout=5 * LONG, check=False)
        return done.returncode

    killed = trade("-c", _KILLED_IN_AN_UPDATE)
    ended = trade("-m", "outbox.integrations.paper.process")
    # The process waits 10 s for the delivery of what is left.
    operations = "outbox.integrations.paper.process:paper_operations"
    drained = atb.run("drain", "--operations", operations, "--dir", env["OUTBOX_DIR"], DATABASE_URL=postgres_url)

    manager = DatabaseManager(postgres_url)
    try:
        report = compare(read_record(record), manager.engine)
    finally:
        manager.close()
    assert (killed, ended, drained.returncode) == (-signal.SIGKILL, 0, 0), drained.stderr
    assert (report.lost, report.duplicated, report.findings) == (0, 0, [])
    stops = [line["stop_loss"] for line in read_record(record) if line["kind"] == "position_update"]
    assert "110.31300000" in stops
    assert "109.85100000" not in stops
