"""`atb outbox drain` gives up for want of progress, never for want of time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from outbox import TargetUnavailable
from outbox.cli.drain import _Progress, _until
from outbox.cli.pace import DrainPace
from outbox.clock import Patience
from tests.unit.fakes.rig import Rig


def stepping(rig: Rig, *, enqueueing: bool = False) -> Callable[[], bool]:
    """A relay that needs 4 seconds for each step; whether nothing is pending."""

    def step() -> bool:
        if enqueueing:
            rig.enqueue("a")
        rig.clock.advance(4)
        rig.step()
        return not rig.pending()

    return step


@pytest.fixture
def rig(outbox_dir: Path) -> Rig:
    return Rig(outbox_dir, batch_size=1)


def test_drain_goes_on_while_entries_are_delivered(rig: Rig) -> None:
    with rig:
        rig.enqueue(*"a" * 20)
        patience = Patience(60, rig.clock.monotonic)
        assert _until(stepping(rig), rig.box, patience, _Progress(20))
        assert rig.target.applied == list(range(1, 21))


def test_drain_gives_up_without_progress_beside_a_busy_engine(rig: Rig) -> None:
    """An engine that goes on enqueueing is no progress of the relay."""
    with rig:
        rig.target.down = TargetUnavailable("connection refused")
        patience = Patience(12, rig.clock.monotonic)
        assert not _until(stepping(rig, enqueueing=True), rig.box, patience, _Progress(1))
        assert patience.lost


def test_error_of_an_earlier_relay_is_not_shown_as_this_ones(
    rig: Rig, outbox_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """PostgreSQL may be back: the first line of a drain after an outage named an error that was over."""
    with rig:
        rig.enqueue("a")
        rig.target.down = TargetUnavailable("connection refused")
        rig.step()
        left = rig.box.status()
        assert left.relay.last_error is not None
    progress = _Progress(1, since=left.relay.since)
    relay = replace(left.relay, alive=True)
    progress.show(replace(left, relay=relay))
    assert capsys.readouterr().err == ""
    assert left.relay.since is not None
    later = replace(relay, since=left.relay.since + timedelta(seconds=1))
    progress.show(replace(left, relay=later))
    assert "delivery fails and is tried again: " in capsys.readouterr().err


def test_pace_says_speed_and_time_left() -> None:
    pace = DrainPace()
    for second in range(11):
        pace.look(float(second), 100 * second, 1500 - 100 * second)
    assert pace.sentence() == "100/s, 5 s left"


def test_pace_names_no_end_while_the_backlog_grows() -> None:
    pace = DrainPace()
    for second in range(5):
        pace.look(float(second), 100 * second, 1500 + 50 * second)
    assert pace.sentence() == "100/s"


def test_pace_forgets_what_is_long_past() -> None:
    pace = DrainPace()
    for second in range(60):
        pace.look(float(second), min(second, 30) * 100, 7000 - min(second, 30) * 100)
    assert pace.sentence() == ""
