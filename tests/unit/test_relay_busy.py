"""While the program enqueues, the relay takes small batches, and does one thing after the other."""

from __future__ import annotations

from pathlib import Path

from outbox import Relay, TargetUnavailable
from tests.unit.fakes.rig import Rig


def sizes(rig: Rig) -> list[int]:
    return [len(call) for call in rig.target.calls]


def test_batches_are_small_until_a_minute_after_the_last_new_entry(outbox_dir: Path) -> None:
    with Rig(outbox_dir, batch_size=5, busy_batch_size=2) as rig:
        rig.enqueue(*[None] * 35)
        rig.step()
        rig.enqueue(None)
        # What these two take was read before.
        rig.step()
        rig.step()
        rig.step()
        rig.clock.advance(59)
        rig.enqueue(None)
        rig.step()
        rig.clock.advance(59)
        rig.step()
        rig.clock.advance(2)
        rig.step()
        assert sizes(rig) == [5, 5, 5, 2, 2, 2, 5]
        rig.settle()
        assert rig.target.applied == list(range(1, 38))
        assert rig.pending() == []


def test_a_busy_batch_is_recorded_in_its_own_step(outbox_dir: Path) -> None:
    with Rig(outbox_dir, batch_size=4, busy_batch_size=2) as rig:
        rig.enqueue(*[None] * 20)
        rig.step()
        # Otherwise that is left to the next step.
        assert rig.pending() == list(range(1, 21))
        rig.enqueue(None)
        rig.step()
        rig.step()
        assert rig.target.calls[-1] == [9, 10, 11, 12]
        assert rig.pending() == list(range(13, 22))
        rig.step()
        assert rig.target.calls[-1] == [13, 14]
        assert rig.pending() == list(range(15, 22))


def test_backlog_older_than_the_relay_does_not_count_as_busy(outbox_dir: Path) -> None:
    with Rig(outbox_dir, batch_size=4, busy_batch_size=1) as rig:
        rig.enqueue(*[None] * 9)
        rig.settle()
        assert sizes(rig) == [4, 4, 1]


def test_a_busy_size_that_is_not_below_the_batch_size_changes_nothing(outbox_dir: Path) -> None:
    with Rig(outbox_dir, batch_size=2, busy_batch_size=2) as rig:
        rig.enqueue(*[None] * 6)
        rig.step()
        rig.enqueue(None)
        rig.step()
        rig.enqueue(None)
        rig.step()
        assert sizes(rig) == [2, 2, 2]
        # The third is still owed.
        assert rig.pending() == [5, 6, 7, 8]


def test_entries_of_an_outage_count_as_the_program_at_work(outbox_dir: Path) -> None:
    with Rig(outbox_dir, batch_size=4, busy_batch_size=1, backoff_base=0.1, backoff_cap=0.1) as rig:
        rig.enqueue(None)
        rig.target.down = TargetUnavailable("away")
        rig.step()
        rig.enqueue(*[None] * 9)
        rig.target.down = None
        rig.clock.advance(0.2)
        rig.step()
        rig.step()
        rig.clock.advance(60)
        rig.step()
        assert sizes(rig) == [1, 4, 1, 4]


def test_the_busy_size_is_for_each_lane(outbox_dir: Path) -> None:
    with Rig(outbox_dir, batch_size=3, busy_batch_size=2) as rig:
        rig.target.lanes = 2
        rig.enqueue(*[None] * 30)
        rig.step()
        rig.enqueue(None)
        rig.step()
        rig.step()
        rig.step()
        assert sizes(rig) == [6, 6, 6, 4]


def test_another_relay_begins_with_full_batches(outbox_dir: Path) -> None:
    with Rig(outbox_dir, batch_size=3, busy_batch_size=1) as rig:
        rig.enqueue(*[None] * 9)
        rig.step()
        rig.relay.stop()
        rig.relay = Relay(rig.box, rig.target)
        rig.target.calls.clear()
        rig.step()
        assert sizes(rig) == [3]
