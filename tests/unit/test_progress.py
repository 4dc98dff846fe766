"""Waiting for a delivery ends when it has come, when it cannot come, or when the time is up."""

from __future__ import annotations

import threading

import pytest

from outbox.clock import SystemClock
from outbox.monitoring.progress import Progress
from outbox.worker import waited_for
from tests.unit.fakes.rig import FakeClock
from tests.unit.fakes.waiting import LONG


def test_wait_for_a_delivered_entry_ends_at_once() -> None:
    assert Progress(SystemClock()).wait(lambda: True, 0.0)


def test_waiting_ends_with_the_time() -> None:
    assert not Progress(SystemClock()).wait(lambda: False, 0.05)


def test_wait_ends_at_once_while_deliveries_fail() -> None:
    progress = Progress(SystemClock())
    progress.report(delivering=False)
    assert progress.delivering is False
    assert not progress.wait(lambda: False, 3600.0)


def test_wait_ends_at_once_in_a_thread_that_delivers() -> None:
    """A logging handler of the host runs in the relay's thread, and writes by the manager."""
    progress, looks = Progress(SystemClock()), 0

    def reached() -> bool:
        nonlocal looks
        looks += 1
        return False

    progress.report(delivering=True)
    with waited_for():
        assert not progress.wait(reached, 0.5)
    assert looks == 1
    assert not progress.wait(reached, 0.05)
    assert looks > 2


def test_a_failure_ends_the_waiting() -> None:
    progress, asked = Progress(SystemClock()), threading.Event()
    progress.report(delivering=True)

    def reached() -> bool:
        asked.set()
        return False

    waiting = threading.Thread(target=progress.wait, args=(reached, 3600.0), kwargs={"poll_s": 3600.0})
    waiting.start()
    assert asked.wait(LONG)
    progress.report(delivering=False)
    waiting.join(LONG)
    assert not waiting.is_alive()


def test_a_step_wakes_those_who_wait() -> None:
    progress, arrived, asked = Progress(SystemClock()), threading.Event(), threading.Event()

    def reached() -> bool:
        asked.set()
        return arrived.is_set()

    waiting = threading.Thread(target=progress.wait, args=(reached, 3600.0), kwargs={"poll_s": 3600.0})
    waiting.start()
    assert asked.wait(LONG)
    arrived.set()
    progress.report(delivering=True)
    waiting.join(LONG)
    assert not waiting.is_alive()


@pytest.mark.parametrize(("delivering", "often"), [(None, True), (True, False)], ids=["other process", "own"])
def test_wait_polls_only_for_the_relay_of_another_process(delivering: bool | None, often: bool) -> None:
    """Each look reads the store."""
    progress, looks = Progress(SystemClock()), 0

    def reached() -> bool:
        nonlocal looks
        looks += 1
        return False

    progress.report(delivering=delivering)
    assert not progress.wait(reached, 0.3)
    assert looks > 3 if often else looks == 2


def test_change_without_a_step_is_noticed_beside_the_relay() -> None:
    """An operator's `discard` tells no waiting caller."""
    progress, looks = Progress(SystemClock()), 0

    def reached() -> bool:
        nonlocal looks
        looks += 1
        return looks == 3

    progress.report(delivering=True)
    assert progress.wait(reached, LONG)


def test_a_step_between_asking_and_waiting_is_not_missed() -> None:
    progress, asked = Progress(SystemClock()), 0

    def reached() -> bool:
        nonlocal asked
        asked += 1
        progress.report(delivering=True)
        return asked == 4

    waiting = threading.Thread(target=progress.wait, args=(reached, 3600.0), kwargs={"poll_s": 3600.0}, daemon=True)
    waiting.start()
    waiting.join(LONG)
    assert not waiting.is_alive()


def test_recoveries_are_told_first_and_after_each_outage() -> None:
    progress = Progress(SystemClock())
    told: list[int] = []
    listener = lambda: told.append(len(told))  # noqa: E731 - the same object is taken off again
    progress.on_recovered(listener)
    for delivering, caught_up in ((True, False), (True, True), (True, True), (False, False), (True, False)):
        progress.report(delivering=delivering, caught_up=caught_up)
    assert told == [0]
    progress.report(delivering=True, caught_up=True)
    assert told == [0, 1]
    progress.off_recovered(listener)
    progress.off_recovered(listener)
    progress.report(delivering=False)
    progress.report(delivering=True, caught_up=True)
    assert told == [0, 1]


def test_a_rewound_database_is_told_to_all_who_listen() -> None:
    progress = Progress(SystemClock())
    told: list[str] = []
    first, second = (lambda: told.append("first")), (lambda: told.append("second"))
    progress.off_rewound(first)
    progress.on_rewound(first)
    progress.on_rewound(second)
    progress.rewound()
    assert told == ["first", "second"]
    progress.off_rewound(first)
    progress.off_rewound(first)
    progress.rewound()
    assert told == ["first", "second", "second"]


def test_listener_that_removes_itself_while_called_disturbs_no_other() -> None:
    progress = Progress(SystemClock())
    told: list[str] = []

    def once() -> None:
        told.append("once")
        progress.off_recovered(once)

    progress.on_recovered(once)
    progress.on_recovered(lambda: told.append("always"))
    for delivering in (True, False, True):
        progress.report(delivering=delivering, caught_up=delivering)
    assert told == ["once", "always", "always"]


def test_a_relay_that_leaves_does_not_count_as_a_failure() -> None:
    progress = Progress(SystemClock())
    assert progress.delivering is None
    told: list[int] = []
    progress.on_recovered(lambda: told.append(1))
    progress.report(delivering=True)
    assert told == []
    progress.report(delivering=True, caught_up=True)
    progress.report(delivering=None)
    assert progress.delivering is None
    progress.report(delivering=True, caught_up=True)
    assert told == [1]


def test_waiting_lasts_as_long_as_was_said_and_asks_again_meanwhile() -> None:
    clock = FakeClock()
    progress, asked = Progress(clock), 0

    def reached() -> bool:
        nonlocal asked
        asked += 1
        clock.advance(2.0)
        return asked == 4

    assert not progress.wait(reached, 5.0, poll_s=0.0)
    assert asked == 3
    assert progress.wait(reached, 6.0, poll_s=0.0)


def test_relay_hears_a_question_until_it_leaves() -> None:
    progress, heard = Progress(SystemClock()), list[str]()

    def asked() -> None:
        heard.append("asked")

    progress.ask()
    progress.on_asked(asked)
    progress.ask()
    progress.off_asked(asked)
    progress.off_asked(asked)
    progress.ask()
    assert heard == ["asked"]


def test_first_failure_is_told_before_deliveries_count_as_failing() -> None:
    progress = Progress(SystemClock())
    progress.report(delivering=True, unreachable=True)
    assert (progress.delivering, progress.unreachable) == (True, True)
    progress.report(delivering=True)
    assert not progress.unreachable
