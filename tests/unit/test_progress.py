"""Waiting for a delivery ends when it has come, when it cannot come, or when the time is up."""

from __future__ import annotations

import threading

from outbox.clock import SystemClock
from outbox.progress import Progress


def test_what_is_there_needs_no_waiting() -> None:
    assert Progress(SystemClock()).wait(lambda: True, 0.0)


def test_waiting_ends_with_the_time() -> None:
    assert not Progress(SystemClock()).wait(lambda: False, 0.05)


def test_nobody_waits_while_deliveries_fail() -> None:
    progress = Progress(SystemClock())
    progress.report(delivering=False)
    assert progress.delivering is False
    assert not progress.wait(lambda: False, 3600.0)


def test_a_failure_ends_the_waiting() -> None:
    progress, asked = Progress(SystemClock()), threading.Event()
    progress.report(delivering=True)

    def reached() -> bool:
        asked.set()
        return False

    waiting = threading.Thread(target=progress.wait, args=(reached, 3600.0), kwargs={"poll_s": 3600.0})
    waiting.start()
    assert asked.wait(10)
    progress.report(delivering=False)
    waiting.join(10)
    assert not waiting.is_alive()


def test_a_step_wakes_those_who_wait() -> None:
    progress, arrived, asked = Progress(SystemClock()), threading.Event(), threading.Event()

    def reached() -> bool:
        asked.set()
        return arrived.is_set()

    waiting = threading.Thread(target=progress.wait, args=(reached, 3600.0), kwargs={"poll_s": 3600.0})
    waiting.start()
    assert asked.wait(10)
    arrived.set()
    progress.report(delivering=True)
    waiting.join(10)
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
