"""A caller in `drain`: what waits is tried once a second, and no sooner a dead letter for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from outbox import Entry, RetryLater, TargetMisconfigured, TargetUnavailable
from tests.unit.fakes.rig import Rig, passing


@pytest.fixture
def rig(outbox_dir: Path) -> Iterator[Rig]:
    """With ten minutes between two tries."""
    with Rig(outbox_dir, backoff_base=600, backoff_cap=600, max_retries=2) as rig:
        rig.clock.jitter = 1.0
        yield rig


def tries(rig: Rig, seq: int) -> int:
    return sum(seq in call for call in rig.target.calls)


def seconds(rig: Rig, count: int) -> None:
    """So many seconds in which a relay steps often, as where the program enqueues."""
    for _ in range(10 * count):
        rig.step()
        rig.clock.advance(0.1)


def not_yet(entry: Entry) -> None:
    raise RetryLater("the exchange is closed")


def test_drain_delivers_a_rejected_entry_that_passes_meanwhile(rig: Rig) -> None:
    bad, behind = rig.enqueue("a", "a")
    rig.target.refuse[bad] = passing()
    rig.settle()
    with rig.relay._hurrying():
        assert rig.settle() <= 1.0
        del rig.target.refuse[bad]
        seconds(rig, 2)
    assert rig.target.applied == [bad, behind]


def test_drain_tries_a_rejected_entry_each_second_and_counts_none(rig: Rig) -> None:
    """A rejection that needs a minute to pass became a dead letter within ten seconds, would each try count."""
    bad, behind, other = rig.enqueue("a", "a", "b")
    rig.target.refuse[bad] = passing()
    with rig.relay._hurrying():
        seconds(rig, 60)
    assert 55 <= tries(rig, bad) <= 61
    assert rig.attempts(bad) == 1
    assert rig.pending() == [bad, behind]
    assert rig.target.applied == [other]
    assert rig.dead() == []


def test_tries_of_a_drain_leave_the_entry_due_when_it_was(rig: Rig) -> None:
    [bad] = rig.enqueue("a")
    rig.target.refuse[bad] = passing()
    with rig.relay._hurrying():
        seconds(rig, 60)
    before = tries(rig, bad)
    rig.run(530)
    # One more that was brought forward.
    assert tries(rig, bad) <= before + 1
    rig.run(20)
    assert rig.attempts(bad) == 2
    rig.run(610)
    assert rig.dead() == [bad]


def test_try_that_is_due_counts_also_while_a_caller_waits(rig: Rig) -> None:
    [bad] = rig.enqueue("a")
    rig.target.refuse[bad] = passing()
    with rig.relay._hurrying():
        seconds(rig, 610)
        assert rig.attempts(bad) == 2
        seconds(rig, 610)
    assert rig.dead() == [bad]
    [letter] = rig.box.dead_letters()
    assert letter.attempts == 3


def test_group_that_is_rejected_is_hurried_as_one(rig: Rig) -> None:
    first, second = rig.group("a", "b")
    rig.target.refuse[second] = passing()
    rig.settle()
    with rig.relay._hurrying():
        seconds(rig, 3)
        assert (rig.attempts(first), rig.attempts(second)) == (1, 1)
        del rig.target.refuse[second]
        seconds(rig, 2)
    assert rig.target.applied == [first, second]


@pytest.mark.parametrize("why", ["RetryLater", "parked"])
def test_drain_hurries_what_waited_before_it_was_called(rig: Rig, why: str) -> None:
    [entry] = rig.enqueue("a")
    if why == "RetryLater":
        rig.target.effect = not_yet
    else:
        rig.target.broken["write"] = TargetMisconfigured("42P01: no such table")
    rig.settle()
    rig.run(5)
    assert tries(rig, entry) == 1
    with rig.relay._hurrying():
        seconds(rig, 5)
        assert 4 <= tries(rig, entry) <= 6
        rig.target.effect = None
        rig.target.broken.clear()
        seconds(rig, 2)
    assert rig.target.applied == [entry]


def test_drain_does_not_hurry_an_entry_that_takes_too_long(rig: Rig) -> None:
    """The others would wait for it each time."""
    [slow] = rig.enqueue("a")
    rig.target.stalls.add(slow)
    with rig.relay._hurrying():
        seconds(rig, 60)
        before = tries(rig, slow)
        seconds(rig, 60)
    assert 1 <= tries(rig, slow) - before <= 8


def test_drains_one_after_the_other_try_once_a_second(rig: Rig) -> None:
    """A command that looks in between, five times a second, would call a server in an outage as often."""
    rig.enqueue("a")
    rig.target.down = TargetUnavailable("no route to host")
    for _ in range(300):
        rig.relay.drain(0.0)
        rig.clock.advance(0.2)
    assert 55 <= len(rig.target.calls) <= 62


def test_first_drain_after_a_while_tries_at_once(rig: Rig) -> None:
    [entry] = rig.enqueue("a")
    rig.target.down = TargetUnavailable("no route to host")
    rig.settle()
    rig.clock.advance(2)
    rig.target.down = None
    assert rig.relay.drain(0.0)
    assert rig.target.applied == [entry]
