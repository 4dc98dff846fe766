"""The demo, as a new user runs it."""

from __future__ import annotations

import re

from tests import atb as command_line


def test_the_fast_demo_loses_and_doubles_nothing_through_two_outages() -> None:
    run = command_line.run("demo", "--fast", FORCE_COLOR="1")

    last = run.stdout.strip().splitlines()[-1] if run.stdout.strip() else run.stderr
    found = re.fullmatch(r"demo: acknowledged=(\d+) applied=(\d+) lost=0 duplicated=0 outages=2", last)
    assert run.returncode == 0, run.stdout + run.stderr
    assert found, run.stdout + run.stderr
    assert int(found[1]) == int(found[2]) > 300
    assert "the engine was killed with SIGKILL while PostgreSQL is down" in run.stdout
    first, *_, sentence, _ = run.stdout.strip().splitlines()
    assert first.startswith("A paper engine trades real prices into a PostgreSQL of its own, for about 12 seconds")
    assert sentence.startswith(f"Nothing lost, nothing doubled: {int(found[1]):,} of {int(found[1]):,} acknowledged")
    assert "\x1b" not in run.stdout
