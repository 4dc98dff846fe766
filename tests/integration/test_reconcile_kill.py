"""A reconciliation that is killed at any point is done again, and ends as if it had never been killed."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from outbox.store.reads import FORGOTTEN
from tests.faults import failpoints
from tests.unit.fakes.failover import Desk, Past
from tests.unit.fakes.waiting import LONG

ROOT = Path(__file__).resolve().parents[2]
# More than one commit's worth, with a group across what would be the border between two.
_SINGLE, _GROUP = 240, 40

VICTIM = """
import sys
from pathlib import Path
from tests.faults import failpoints
from tests.unit.fakes.failover import Desk

directory, url, name, times = sys.argv[1:]
with Desk(Path(directory), url, reconcile="auto", batch_size=500) as desk:
    failpoints.arm(name, int(times))
    desk.deliver()
"""


def die_at(name: str, times: int, directory: Path, url: str) -> None:
    """A process that delivers into PostgreSQL, and dies at a failpoint."""
    command = [sys.executable, "-c", VICTIM, str(directory), url, name, str(times)]
    assert subprocess.run(command, cwd=ROOT, check=False, timeout=LONG).returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("name", "times"),
    [(name, 1) for name in failpoints.NAMES if name.startswith("reconciliation")]
    + [(name, 2) for name in failpoints.NAMES if "that puts back" in name]
    + [("before COMMIT", 1), ("before the ledger commit", 1)],
)
def test_a_killed_reconciliation_is_done_again(name: str, times: int, past: Past, outbox_dir: Path) -> None:
    with Desk(outbox_dir, past.url, batch_size=500) as desk:
        desk.trade(10)
        desk.deliver()
        copy = past.remember()
        desk.trade(_SINGLE)
        desk.audit.group(desk.box, _GROUP)
        desk.trade(20)
        desk.deliver()
        past.set_back(copy)
        desk.trade(5)
        desk.close()
        die_at(name, times, outbox_dir, past.url)
        desk.open()
        if FORGOTTEN in desk.box.status().alarms:
            desk.relay.reconcile()
        desk.deliver()
        assert desk.problems() == []
        status = desk.box.status()
        assert (status.alarms, status.dead_letters) == ({}, 0)
