"""The target away for hours, stalled, or the store unable to settle: nothing is consumed, lost, doubled or hammered."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest

from outbox import DurabilityError, Health, TargetMisconfigured, TargetUnavailable
from outbox.store.envelope import Record
from outbox.target import Outcome
from tests.unit.fakes.rig import Rig

DOWN = TargetUnavailable("connection refused")


@pytest.mark.slow
def test_outage_of_six_hours_uses_no_attempt_and_bounds_the_tries(outbox_dir: Path) -> None:
    with Rig(outbox_dir, max_retries=0) as rig:
        rig.target.down = DOWN
        seqs = rig.enqueue(*(f"k{number}" for number in range(20)))
        rig.run(6 * 3600.0)
        # Full jitter below a cap of 15 s: 7.5 s on average.
        assert 21_600 / 9 < len(rig.target.calls) < 21_600 / 6
        assert {entry.attempts for entry in rig.box.pending()} == {0}
        assert rig.dead() == []
        assert rig.box.status().breaker == "open"
        rig.target.down = None
        rig.run(15.0)
        assert rig.target.applied == seqs
        assert rig.box.status().health is Health.HEALTHY


def test_backoff_doubles_up_to_the_cap(outbox_dir: Path) -> None:
    with Rig(outbox_dir, backoff_base=0.1, backoff_cap=15.0) as rig:
        rig.clock.jitter = 0.999
        rig.target.down = DOWN
        rig.enqueue(None)
        waits = []
        for _ in range(11):
            waits.append(rig.step())
            rig.clock.advance(waits[-1])
        ceilings = [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 15, 15, 15]
        assert waits == pytest.approx([0.999 * ceiling for ceiling in ceilings])


def test_backoff_has_full_jitter(outbox_dir: Path) -> None:
    with Rig(outbox_dir, backoff_base=10.0, backoff_cap=10.0) as rig:
        rig.target.down = DOWN
        rig.enqueue(None)
        waits = []
        for _ in range(400):
            waits.append(rig.step())
            rig.clock.advance(waits[-1])
        assert min(waits) < 0.5
        assert max(waits) > 9.5
        assert 4 < sum(waits) / len(waits) < 6


def test_before_the_retry_is_due_the_target_is_left_alone(outbox_dir: Path) -> None:
    with Rig(outbox_dir) as rig:
        rig.clock.jitter = 0.5
        rig.target.down = DOWN
        rig.enqueue(None)
        wait = rig.step()
        rig.clock.advance(wait / 2)
        assert rig.step() == pytest.approx(wait / 2)
        assert len(rig.target.calls) == 1


def test_breaker_opens_at_the_third_failure_probes_and_closes(outbox_dir: Path) -> None:
    with Rig(outbox_dir) as rig:
        rig.clock.jitter = 0.5
        rig.target.down = DOWN
        rig.enqueue(None)
        states = []

        def probe(records: Sequence[Record]) -> None:
            states.append(rig.relay._delivery.link.breaker.state)

        rig.target.before = probe
        for _ in range(4):
            rig.clock.advance(rig.step())
            states.append(rig.box.status().breaker)
        assert states == ["closed", "closed", "closed", "closed", "closed", "open", "half-open", "open"]
        rig.target.down = None
        rig.step()
        assert states[-1] == "half-open"
        assert rig.box.status().breaker == "closed"


def test_an_outage_degrades_the_status_and_names_the_error(outbox_dir: Path) -> None:
    with Rig(outbox_dir) as rig:
        rig.target.down = DOWN
        rig.enqueue(None)
        rig.run(60.0)
        status = rig.box.status()
        assert status.health is Health.DEGRADED
        assert status.relay.last_error == "connection refused"
        assert not status.relay.stopped
        # Waiting for PostgreSQL is no progress, and no stuck relay either.
        assert not status.relay.stuck


def test_a_misconfigured_target_stops_the_line_and_calls_an_operator(
    outbox_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Rig(outbox_dir) as rig:
        rig.target.down = TargetMisconfigured("table 'rows' does not exist", hint="create it; the entries wait")
        seqs = rig.enqueue("a", "b")
        rig.run(3600.0)
        status = rig.box.status()
        assert status.health is Health.NEEDS_OPERATOR
        assert status.relay.stopped
        assert "table 'rows' does not exist" in status.needs_operator[0]
        assert rig.dead() == []
        # Said once, not once per try.
        assert len([line for line in caplog.records if line.message.startswith("delivery failed: ")]) == 1
        rig.target.down = None
        rig.run(15.0)
        assert rig.target.applied == seqs
        assert rig.box.status().health is Health.HEALTHY


def test_entry_completed_before_an_interruption_stays_completed(
    outbox_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Rig(outbox_dir) as rig:
        rig.clock.jitter = 0.5
        seqs = rig.enqueue("a", "a", "a")
        apply = rig.target.apply

        def half(store_id: object, records: Sequence[Record]) -> Outcome:
            outcome = apply(rig.box.store.identity.store_id, records[:1])
            outcome.interruption = DOWN
            return outcome

        monkeypatch.setattr(rig.target, "apply", half)
        assert rig.step() == pytest.approx(0.05)
        assert rig.pending() == seqs[1:]
        monkeypatch.undo()
        rig.run(5.0)
        assert rig.target.applied == seqs


def test_the_batch_halves_after_each_stall_and_recovers(outbox_dir: Path) -> None:
    with Rig(outbox_dir, batch_size=15) as rig:
        rig.enqueue(*[None] * 200)
        rig.target.down = TargetUnavailable("57014: statement timeout", stalled=True)
        rig.run(60.0)
        sizes = [len(call) for call in rig.target.calls]
        assert sizes[:5] == [15, 7, 3, 1, 1]
        rig.target.down = None
        before = len(sizes)
        rig.run(30.0)
        assert [len(call) for call in rig.target.calls[before:]][:6] == [1, 2, 4, 8, 15, 15]
        assert rig.pending() == []


def test_an_ordinary_outage_does_not_shrink_the_batch(outbox_dir: Path) -> None:
    with Rig(outbox_dir, batch_size=16) as rig:
        rig.enqueue(*[None] * 20)
        rig.target.down = DOWN
        rig.run(60.0)
        assert {len(call) for call in rig.target.calls} == {16}


def test_failed_settlement_is_retried_without_a_second_effect(
    outbox_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Rig(outbox_dir, batch_size=2) as rig:
        seqs = rig.enqueue("a", "a", "b")

        def broken(settlement: object) -> None:
            raise DurabilityError("the store could not settle: input/output error")

        with monkeypatch.context() as patched:
            patched.setattr(rig.box.store, "settle", broken)
            rig.run(30.0)
            assert rig.target.applied == seqs
            assert rig.pending() == seqs
            status = rig.box.status()
            assert status.breaker == "open"
            assert "could not settle" in (status.relay.last_error or "")
            assert len(rig.target.calls) > 2
        rig.run(30.0)
        assert rig.target.applied == seqs
        assert rig.pending() == []
        assert rig.box.status().completed == 3
        assert rig.box.status().breaker == "closed"


def test_a_rejection_whose_settlement_failed_is_settled_later(
    outbox_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from outbox import EntryRejected

    with Rig(outbox_dir) as rig:
        bad, behind = rig.enqueue("a", "a")
        rig.target.refuse[bad] = EntryRejected("22001: too long", permanent=True)

        def broken(settlement: object) -> None:
            raise DurabilityError("the store could not settle: input/output error")

        with monkeypatch.context() as patched:
            patched.setattr(rig.box.store, "settle", broken)
            rig.step()
            assert rig.dead() == []
        rig.run(30.0)
        assert rig.dead() == [bad]
        assert rig.pending() == [behind]
        assert rig.target.applied == []


def test_enqueueing_goes_on_during_the_outage_and_order_is_kept(outbox_dir: Path) -> None:
    with Rig(outbox_dir, batch_size=10) as rig:
        rig.target.down = DOWN
        seqs: list[int] = []
        for _ in range(20):
            seqs += rig.enqueue("a", "b", None)
            rig.run(60.0)
        rig.target.down = None
        rig.run(60.0)
        assert rig.target.applied == seqs
        assert rig.box.status().acknowledged == rig.box.status().completed == 60


def test_a_recovery_is_told_when_all_is_delivered_and_not_before(outbox_dir: Path) -> None:
    with Rig(outbox_dir, batch_size=1) as rig:
        told: list[list[int]] = []
        rig.box.progress.on_recovered(lambda: told.append(rig.pending()))
        rig.enqueue(None, None)
        rig.settle()
        assert told == [[]]
        rig.target.down = DOWN
        rig.enqueue(None, None)
        for _ in range(3):
            rig.relay.drain(0.0)
            rig.clock.advance(100.0)
        assert told == [[]]
        rig.target.down = None
        assert rig.relay.drain(5.0)
        assert told == [[], []]


def test_delivering_is_known_while_drained_and_false_in_an_outage(outbox_dir: Path) -> None:
    with Rig(outbox_dir, batch_size=1) as rig:
        said: list[bool | None] = []
        rig.target.before = lambda records: said.append(rig.box.progress.delivering)
        rig.enqueue(None, None, None)
        rig.step()
        assert rig.box.progress.delivering is None
        assert rig.relay.drain(5.0)
        assert said == [None, None, True]
        rig.target.down = DOWN
        rig.enqueue(None)
        for _ in range(3):
            rig.relay.drain(0.0)
            rig.clock.advance(100.0)
        assert rig.box.progress.delivering is False


def test_ledger_is_not_pruned_in_an_outage(outbox_dir: Path) -> None:
    with Rig(outbox_dir, retention_hours=1) as rig:
        rig.enqueue(None)
        rig.settle()
        rig.target.down = DOWN
        rig.enqueue(None)
        rig.clock.advance(7200.0)
        rig.run(300.0)
        assert rig.box.status().ledger == 1
        rig.target.down = None
        rig.run(300.0)
        assert rig.pending() == []
        assert [entry.seq for entry in rig.box.ledger()] == [2]


@pytest.mark.parametrize(
    ("takes_s", "pauses"),
    [(8, [8, 16, 24, 40, 72, 88, 88]), (0, [0, 1, 2, 4, 8, 10, 10])],
    ids=["timeout", "lost connection"],
)
def test_slow_entry_is_tried_alone_and_ever_later_behind_the_others(
    outbox_dir: Path, takes_s: float, pauses: list[float]
) -> None:
    with Rig(outbox_dir, batch_size=4, stall_timeout=8) as rig:
        rig.clock.jitter = 0.0
        slow, behind, other = rig.enqueue("a", "a", "b")
        rig.target.stalls = {slow}
        tried: list[float] = []

        def note(records: Sequence[Record]) -> None:
            if [record.seq for record in records] == [slow]:
                tried.append(rig.clock.monotonic())
                # At the first time it may have been bad luck.
                assert rig.box.status().relay.slow == (slow if len(tried) > 2 else None)
                rig.clock.advance(takes_s)
            else:
                assert not tried or slow not in {record.seq for record in records}

        rig.target.before = note
        rig.run(400.0)
        assert [later - before for before, later in pairwise(tried)][:7] == pauses
        assert rig.target.applied == [other]
        assert rig.pending() == [slow, behind]
        rig.target.stalls.clear()
        rig.target.before = None
        rig.run(80.0)
        assert rig.target.applied == [other, slow, behind]
        assert rig.box.status().relay.slow is None


def test_of_several_entries_that_take_too_long_the_oldest_is_named(outbox_dir: Path) -> None:
    with Rig(outbox_dir, batch_size=1, stall_timeout=8) as rig:
        rig.clock.jitter = 0.0
        first, second, last = rig.enqueue("a", "b", "c")
        rig.target.stalls = {first, second}
        rig.run(5.0)
        assert rig.target.applied == [last]
        assert rig.box.status().relay.slow == first
        # Twice at once, after one second and after two more: neither makes the other one's pauses shorter.
        assert [rig.target.calls.count([seq]) for seq in (first, second)] == [4, 4]
        rig.target.stalls = {second}
        rig.run(80.0)
        assert rig.target.applied == [last, first]
        assert rig.box.status().relay.slow == second


def test_a_group_that_takes_too_long_waits_as_a_whole(outbox_dir: Path) -> None:
    with Rig(outbox_dir, batch_size=1, stall_timeout=8) as rig:
        rig.clock.jitter = 0.0
        group = rig.group("a", "b")
        behind, other = rig.enqueue("b", "c")
        rig.target.stalls = {group[1]}
        rig.run(30.0)
        assert rig.target.applied == [other]
        rig.target.stalls.clear()
        rig.run(80.0)
        assert rig.target.applied == [other, *group, behind]
