"""An operator pauses the deliveries: what relays, waiting callers and the status make of it."""

from __future__ import annotations

import threading
from datetime import timedelta
from pathlib import Path

import pytest

from outbox import InvalidEntry, Outbox
from outbox.monitoring import pause
from outbox.monitoring.pause import Pauses
from outbox.store.reads import PAUSE
from tests.unit.fakes.rig import Rig, TurnedClock
from tests.unit.fakes.waiting import LONG


def test_a_paused_relay_delivers_nothing_and_goes_on_when_told(outbox_dir: Path) -> None:
    with Rig(outbox_dir) as rig:
        rig.enqueue("a")
        rig.settle()
        rig.box.pauses.begin("migration 42")
        rig.enqueue("a", "b")
        assert rig.settle() == 1.0
        assert rig.target.applied == [1]
        assert rig.target.closed == 1
        assert rig.box.progress.delivering is not True
        rig.clock.advance(3600)
        rig.step()
        status = rig.box.status()
        assert not status.relay.stuck
        assert status.degraded[0] == (
            "delivery is paused since 2024-01-01 00:16:40 UTC: migration 42 (`atb outbox resume` ends it)"
        )
        assert status.as_dict()["paused"]["reason"] == "migration 42"
        assert rig.box.pauses.end()
        assert not rig.box.pauses.end()
        rig.settle()
        assert rig.target.applied == [1, 2, 3]
        assert rig.box.status().paused is None


def test_pause_that_begins_as_another_ends_lasts(outbox_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The relay has read the old one, and an operator begins a new one before the relay takes it out of the store."""
    with Rig(outbox_dir) as rig:
        pauses, get_meta = rig.box.pauses, rig.box.store.get_meta
        pauses.begin("first", 10)
        rig.clock.advance(11)

        def get_then_begin(name: str) -> bytes | None:
            found = get_meta(name)
            monkeypatch.setattr(rig.box.store, "get_meta", get_meta)
            pauses.begin("second")
            return found

        monkeypatch.setattr(rig.box.store, "get_meta", get_then_begin)
        assert pauses.current(forget=True) is None
        found = pauses.current()
        assert found is not None
        assert found.reason == "second"


def test_drain_does_not_wait_for_the_end_of_a_pause(outbox_dir: Path) -> None:
    with Rig(outbox_dir) as rig:
        rig.box.pauses.begin("migration 42")
        assert rig.relay.drain(1e9)
        rig.enqueue("a")
        assert not rig.relay.drain(1e9)
        rig.relay.start()
        assert not rig.relay.drain(1e9)
        assert rig.target.applied == []


def test_pause_ends_the_wait_of_a_caller_in_the_same_process(outbox_dir: Path) -> None:
    with Rig(outbox_dir) as rig:
        rig.relay.start()
        rig.box.pauses.begin("migration 42")
        waited: list[bool] = []
        waiter = threading.Thread(target=lambda: waited.append(rig.box.progress.wait(lambda: False, 1e9)))
        waiter.start()
        rig.enqueue("a")
        waiter.join(LONG)
        assert waited == [False]


def test_a_pause_ends_by_itself_and_leaves_nothing(outbox_dir: Path) -> None:
    with Rig(outbox_dir) as rig:
        rig.enqueue("a")
        made = rig.box.pauses.begin("migration 42", 1800)
        assert made.until == made.since + timedelta(minutes=30)
        rig.run(1799)
        assert rig.target.applied == []
        rig.run(2)
        assert rig.target.applied == [1]
        assert rig.box.store.get_meta(PAUSE) is None


@pytest.mark.parametrize("jump", [timedelta(days=-400), timedelta(days=400)], ids=str)
def test_a_wall_clock_that_jumps_neither_ends_nor_extends_a_pause(outbox_dir: Path, jump: timedelta) -> None:
    clock = TurnedClock()
    with Outbox.open(outbox_dir, clock=clock) as box:
        box.pauses.begin("migration 42", 60)
        clock.turn(jump)
        clock.advance(59)
        assert box.pauses.current() is not None
        clock.advance(2)
        assert box.pauses.current() is None


def test_after_a_restart_of_the_machine_the_wall_clock_decides(
    outbox_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = TurnedClock()
    with Outbox.open(outbox_dir, clock=clock) as box:
        box.pauses.begin("migration 42", 60)
        monkeypatch.setattr(pause, "boot_id", lambda: "another")
        clock.advance(30)
        assert box.pauses.current() is not None
        clock.turn(timedelta(hours=-1))
        assert box.pauses.current() is None
        box.pauses.begin("for ever")
        clock.turn(timedelta(days=-400))
        assert box.pauses.current() is not None


def test_a_pause_needs_a_reason_and_a_length(outbox_dir: Path) -> None:
    with Outbox.open(outbox_dir) as box:
        pauses = Pauses(box.store, box.clock)
        with pytest.raises(InvalidEntry, match="reason is ' '"):
            pauses.begin(" ")
        for length in (0.0, -1.0, float("nan"), 1e9):
            with pytest.raises(InvalidEntry, match="at most a year"):
                pauses.begin("x", length)
        assert pauses.current() is None
