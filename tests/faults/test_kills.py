"""Processes that kill themselves at named points: nothing acknowledged is lost, nothing is doubled."""

from __future__ import annotations

from pathlib import Path

import pytest

from outbox import Outbox
from tests.faults import failpoints
from tests.faults.drill import Drill, Steps
from tests.faults.invariants import check
from tests.unit.fakes.audit import OPERATIONS

# A store with some entries, some delivered and some not.
_BEFORE: Steps = [("open",), ("enqueue", 0, 6), ("group", 6, 3), ("drain",), ("enqueue", 10, 3)]
# What each victim does, by the beginning of the failpoint's name, and at which time it dies.
_LIFE: Steps = [("open",), ("enqueue", 20, 3), ("group", 24, 3), ("drain",), ("enqueue", 30, 3), ("drain",)]
_VACUUM: Steps = [("open",), ("enqueue", 20, 3), ("drain",)]


def steps(name: str, times: int) -> Steps:
    """A victim that comes past the point `name`."""
    if name.startswith("vacuum"):
        return [*_VACUUM, ("arm", name, times), ("vacuum",), ("enqueue", 30, 3)]
    return [("arm", name, times), *_LIFE]


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("name", [name for name in failpoints.NAMES if ":" not in name])
def test_kill_in_the_middle_of_work_loses_and_doubles_nothing(
    name: str, times: int, outbox_dir: Path, postgres_url: str
) -> None:
    drill = Drill(outbox_dir, postgres_url).create()
    drill.run(_BEFORE)
    assert drill.run(steps(name, times)).killed
    drill.finish()


@pytest.mark.parametrize("name", [name for name in failpoints.NAMES if name.startswith("creation")])
def test_kill_during_creation_loses_and_doubles_nothing(name: str, outbox_dir: Path, postgres_url: str) -> None:
    drill = Drill(outbox_dir, postgres_url).create()
    assert drill.run(steps(name, 1)).killed
    drill.finish()


@pytest.mark.parametrize("name", [name for name in failpoints.NAMES if name.startswith("vacuum")])
def test_kill_during_a_vacuum_loses_and_doubles_nothing(name: str, outbox_dir: Path, postgres_url: str) -> None:
    drill = Drill(outbox_dir, postgres_url).create()
    drill.run(_BEFORE)
    assert drill.run(steps(name, 1)).killed
    drill.finish()


@pytest.mark.parametrize("name", [name for name in failpoints.NAMES if name.startswith("recovery")])
def test_kill_during_recovery_from_a_kill_loses_and_doubles_nothing(
    name: str, outbox_dir: Path, postgres_url: str
) -> None:
    drill = Drill(outbox_dir, postgres_url).create()
    drill.run(_BEFORE)
    assert drill.run(steps("before the ledger commit", 1)).killed
    assert drill.run(steps(name, 1)).killed
    drill.finish()


def test_killed_relay_is_reported_by_the_engine(outbox_dir: Path, postgres_url: str) -> None:
    drill = Drill(outbox_dir, postgres_url).create()
    with Outbox.open(outbox_dir, operations=OPERATIONS) as box:
        engine = box.enqueue("trade", {"number": 0, "account": "account-0"}, key="trade-0")
        drill.note([("opened", True), ("acknowledged", 0, 1, [engine.seq])])
        assert drill.run([("arm", "before COMMIT"), ("attach",), ("drain",)]).killed
        seen = drill.observe(box, relay_runs=False)
        assert seen.findings == ["no relay is running and 1 entry waits; start the engine or its relay"]
        assert check(seen) == []
    drill.finish()
