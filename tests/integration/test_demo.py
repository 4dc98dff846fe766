"""The demo, as a new user runs it."""

from __future__ import annotations

import os
import re
import subprocess
import sys


def test_the_fast_demo_loses_and_doubles_nothing_through_two_outages() -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith("OUTBOX_")}
    run = subprocess.run(
        [sys.executable, "-m", "outbox", "outbox", "demo", "--fast"],
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    last = run.stdout.strip().splitlines()[-1] if run.stdout.strip() else run.stderr
    found = re.fullmatch(r"demo: acknowledged=(\d+) applied=(\d+) lost=0 duplicated=0 outages=2", last)
    assert run.returncode == 0, run.stdout + run.stderr
    assert found, run.stdout + run.stderr
    assert int(found[1]) == int(found[2]) > 300
    assert "the engine was killed with SIGKILL while PostgreSQL is down" in run.stdout
