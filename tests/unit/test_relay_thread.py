"""The relay's thread: starting, waking, stopping, draining, dying, and being seen to hang."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from outbox import ConfigError, Health, Outbox, OutboxConfig, Relay, StoreLocked, TargetMisconfigured, TargetUnavailable
from outbox.relay.reconcile_orders import Reconciliation
from outbox.relay.upkeep import Publication
from outbox.store.envelope import Record
from outbox.store.gate import Guarded
from outbox.store.locks import Role, died_holding
from outbox.store.reads import Peeked
from outbox.store.writer import Rank
from outbox.testing import InMemoryTarget
from outbox.worker import Wake
from tests.unit.fakes.rig import OPERATIONS, FakeClock, passing, permanent
from tests.unit.fakes.waiting import LONG, until


class Signals:
    """Says when `apply` is entered, and keeps it inside while `gate` is shut."""

    def __init__(self, target: InMemoryTarget) -> None:
        self.entered = threading.Semaphore(0)
        self.gate = threading.Event()
        self.gate.set()
        target.before = self.enter

    def enter(self, _: Sequence[Record]) -> None:
        self.entered.release()
        assert self.gate.wait(LONG)

    def wait(self) -> None:
        assert self.entered.acquire(timeout=LONG), "apply was not called"


@pytest.fixture
def box(outbox_dir: Path) -> Iterator[Outbox]:
    # Nothing may happen here because a long pause ended.
    with Outbox.open(outbox_dir, OutboxConfig(sync_interval=3600), OPERATIONS) as box:
        yield box


@pytest.fixture
def target() -> InMemoryTarget:
    return InMemoryTarget(OPERATIONS)


@pytest.fixture
def relay(box: Outbox, target: InMemoryTarget) -> Iterator[Relay]:
    relay = Relay(box, target)
    yield relay
    assert relay.stop(LONG)


def write(box: Outbox, number: int, order_by: str | None = None) -> int:
    return box.enqueue("write", {"number": number}, order_by=order_by).seq


def test_an_enqueue_wakes_the_thread_long_before_the_sync_interval(
    box: Outbox, target: InMemoryTarget, relay: Relay
) -> None:
    signals = Signals(target)
    relay.start()
    assert relay.drain(LONG)
    for number in range(3):
        write(box, number)
        signals.wait()
    assert relay.drain(LONG)
    assert target.applied == [1, 2, 3]


def test_work_of_another_process_is_noticed_after_the_sync_interval(outbox_dir: Path, target: InMemoryTarget) -> None:
    with Outbox.open(outbox_dir, OutboxConfig(sync_interval=0.01), OPERATIONS) as box:
        signals = Signals(target)
        with Relay(box, target) as relay:
            assert relay.drain(LONG)
            # An enqueue in another process calls no listener of ours.
            box.off_enqueue(relay._wake.set)
            write(box, 1)
            signals.wait()
            box.on_enqueue(relay._wake.set)


def test_stop_is_fast_and_may_be_called_twice(box: Outbox, target: InMemoryTarget, relay: Relay) -> None:
    relay.start()
    assert relay.drain(LONG)
    assert relay.stop(LONG)
    assert relay.stop()
    assert not relay.running
    # After half of the time it would have been interrupted.
    assert target.interrupted == 0
    assert target.closed == 2
    assert not box.status().relay.alive


def test_stop_before_start_does_no_harm(relay: Relay, target: InMemoryTarget) -> None:
    assert relay.stop()
    assert target.interrupted == 0


def test_stop_during_an_outage_does_not_wait_for_the_backoff(outbox_dir: Path, target: InMemoryTarget) -> None:
    with Outbox.open(outbox_dir, OutboxConfig(backoff_base=3600, backoff_cap=3600), OPERATIONS) as box:
        signals = Signals(target)
        target.down = TargetUnavailable("connection refused")
        write(box, 1)
        relay = Relay(box, target)
        relay.start()
        signals.wait()
        assert relay.stop(LONG)
        # After half of the time it would have been interrupted.
        assert target.interrupted == 0


def test_signal_handler_may_stop_a_relay_that_is_being_stopped(
    box: Outbox, target: InMemoryTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    relay = Relay(box, target)
    relay.start()
    assert relay.drain(LONG)
    answers: list[bool] = []
    # As a handler does that interrupts the wait for the thread.
    thread = relay._thread
    assert thread is not None
    join = thread.join

    def interrupted(timeout: float | None = None) -> None:
        monkeypatch.undo()
        answers.append(relay.stop())
        join(timeout)

    monkeypatch.setattr(thread, "join", interrupted)
    stopper = threading.Thread(target=lambda: answers.append(relay.stop()), daemon=True)
    stopper.start()
    stopper.join(LONG)
    assert answers == [True, True]
    assert not relay.running


def test_stop_lets_a_batch_in_flight_end(box: Outbox, target: InMemoryTarget, relay: Relay) -> None:
    signals = Signals(target)
    signals.gate.clear()
    write(box, 1)
    relay.start()
    signals.wait()
    stopper = threading.Thread(target=relay.stop, args=(LONG,))
    stopper.start()
    signals.gate.set()
    stopper.join(LONG)
    assert target.applied == [1]
    assert list(box.pending()) == []
    assert target.interrupted == 0


@pytest.mark.slow
def test_stop_interrupts_a_batch_that_does_not_end(
    box: Outbox, target: InMemoryTarget, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    signals = Signals(target)
    signals.gate.clear()
    monkeypatch.setattr(target, "interrupt", signals.gate.set)
    write(box, 1)
    relay.start()
    signals.wait()
    until(lambda: relay.stop(timeout=2.0))
    assert not relay.running


def test_stop_says_so_when_the_thread_cannot_be_ended(box: Outbox, target: InMemoryTarget) -> None:
    relay = Relay(box, target)
    signals = Signals(target)
    signals.gate.clear()
    write(box, 1)
    relay.start()
    signals.wait()
    assert not relay.stop(timeout=0.1)
    assert relay.running
    assert target.interrupted == 1
    # It still holds its role: nobody else may work on the same batch.
    with pytest.raises(StoreLocked):
        Relay(box, InMemoryTarget(OPERATIONS)).start()
    signals.gate.set()
    until(lambda: not relay.running)


def test_stop_may_be_repeated_after_it_gave_up(box: Outbox, target: InMemoryTarget) -> None:
    relay = Relay(box, target)
    signals = Signals(target)
    signals.gate.clear()
    write(box, 1)
    relay.start()
    signals.wait()
    assert not relay.stop(timeout=0.1)
    signals.gate.set()
    until(lambda: not relay.running)
    assert relay.stop()
    assert not box.status().relay.alive


def test_start_twice_has_one_thread(box: Outbox, target: InMemoryTarget, relay: Relay) -> None:
    relay.start()
    relay.start()
    assert [thread.name for thread in threading.enumerate()].count("outbox-relay") == 1


def test_start_after_stop_goes_on(box: Outbox, target: InMemoryTarget, relay: Relay) -> None:
    relay.start()
    relay.stop()
    write(box, 1)
    relay.start()
    assert relay.drain(LONG)
    assert target.applied == [1]


def test_a_second_relay_is_refused_and_names_the_holder(box: Outbox, relay: Relay) -> None:
    relay.start()
    other = Relay(box, InMemoryTarget(OPERATIONS))
    with pytest.raises(StoreLocked, match="relay role"):
        other.start()
    with pytest.raises(StoreLocked):
        other.drain(1.0)
    assert not other.running
    relay.stop()
    other.start()
    assert other.stop()


def test_drain_without_a_thread_uses_the_calling_one_and_lets_go(
    box: Outbox, target: InMemoryTarget, relay: Relay
) -> None:
    for number in range(5):
        write(box, number)
    assert relay.drain(LONG)
    assert target.applied == [1, 2, 3, 4, 5]
    assert target.closed == 1
    assert not box.status().relay.alive
    # Callers that wait for their results would wait in vain.
    assert box.progress.delivering is None


def test_drain_without_a_thread_keeps_a_role_that_was_taken_before(
    box: Outbox, target: InMemoryTarget, relay: Relay
) -> None:
    relay.step(0.0)
    assert relay.drain(LONG)
    assert target.closed == 0
    assert box.status().relay.alive
    assert box.progress.delivering is None


def test_relay_without_a_target_says_so(box: Outbox) -> None:
    wrong: Any = "postgresql://engine:secret@db/trading"
    with pytest.raises(ConfigError, match="a relay needs a target, and got a str"):
        Relay(box, wrong)


def test_drain_of_an_empty_outbox_is_done_at_once(relay: Relay, target: InMemoryTarget) -> None:
    assert relay.drain(0.0)
    relay.start()
    assert relay.drain(LONG)
    assert target.calls == []


@pytest.mark.parametrize("threaded", [True, False])
def test_drain_does_not_wait_for_what_is_enqueued_after_it(
    box: Outbox, target: InMemoryTarget, relay: Relay, threaded: bool
) -> None:
    seqs = [write(box, number) for number in range(3)]

    def enqueue_more(records: Sequence[Record]) -> None:
        write(box, records[-1].seq)

    # An engine that never stops enqueueing.
    target.before = enqueue_more
    if threaded:
        relay.start()
    assert relay.drain(LONG)
    assert target.applied[:3] == seqs
    target.before = None


@pytest.mark.slow
@pytest.mark.parametrize("threaded", [True, False])
def test_drain_gives_up_at_its_timeout(box: Outbox, target: InMemoryTarget, relay: Relay, threaded: bool) -> None:
    target.down = TargetUnavailable("connection refused")
    write(box, 1)
    if threaded:
        relay.start()
    began = time.monotonic()
    assert not relay.drain(0.3)
    assert 0.3 <= time.monotonic() - began < LONG


@pytest.mark.parametrize("threaded", [True, False])
def test_drain_does_not_wait_for_what_is_held_back(
    box: Outbox, target: InMemoryTarget, relay: Relay, threaded: bool
) -> None:
    bad, behind = write(box, 1, "a"), write(box, 2, "a")
    target.refuse[bad] = permanent()
    if threaded:
        relay.start()
    assert relay.drain(LONG)
    assert [entry.seq for entry in box.pending()] == [behind]


@pytest.mark.parametrize("threaded", [True, False])
def test_drain_waits_for_the_retries_of_a_rejection_that_may_pass(
    box: Outbox, target: InMemoryTarget, relay: Relay, threaded: bool
) -> None:
    bad = write(box, 1, "a")
    target.refuse[bad] = passing()

    def heal(records: Sequence[Record]) -> None:
        if len(target.calls) == 3:
            target.refuse.clear()

    target.before = heal
    if threaded:
        relay.start()
    assert relay.drain(LONG)
    assert target.applied == [bad]


@pytest.mark.parametrize("threaded", [True, False])
def test_drain_hurries_a_long_backoff(outbox_dir: Path, target: InMemoryTarget, threaded: bool) -> None:
    with Outbox.open(outbox_dir, OutboxConfig(backoff_base=600, backoff_cap=600), OPERATIONS) as box:
        signals = Signals(target)
        target.down = TargetUnavailable("connection refused")
        write(box, 1)
        relay = Relay(box, target)
        if threaded:
            relay.start()
            signals.wait()
            until(lambda: box.status().relay.last_error is not None)
        else:
            relay.step(box.clock.monotonic())
        target.down = None
        assert relay.drain(LONG)
        assert target.applied == [1]
        assert relay.stop()


@pytest.mark.parametrize("threaded", [False, True], ids=["here", "thread"])
def test_drain_hurries_a_rejected_entry_of_a_long_backoff(
    outbox_dir: Path, target: InMemoryTarget, threaded: bool
) -> None:
    settings = OutboxConfig(backoff_base=600, backoff_cap=600, max_retries=1, sync_interval=3600)
    with Outbox.open(outbox_dir, settings, OPERATIONS) as box:
        target.refuse[1] = passing()
        # By the fourth try it has passed; the second and the third are no retries.
        target.before = lambda _: target.refuse.clear() if len(target.calls) == 4 else None
        write(box, 1)
        relay = Relay(box, target)
        if threaded:
            relay.start()
            until(lambda: next(iter(box.pending())).attempts == 1)
        assert relay.drain(LONG)
        assert (target.applied, len(target.calls)) == ([1], 4)
        assert relay.stop()


def test_stop_that_comes_before_the_first_step_ends_a_drain(box: Outbox, target: InMemoryTarget, relay: Relay) -> None:
    target.down = TargetUnavailable("connection refused")
    write(box, 1)

    class Late(threading.Event):
        def clear(self) -> None:
            """Let another thread, or a signal handler, stop the relay just before."""
            assert not relay.stop(0.0)
            super().clear()

    relay._stop = Late()
    drained: list[bool] = []
    draining = threading.Thread(target=lambda: drained.append(relay.drain(3600.0)), daemon=True)
    draining.start()
    draining.join(LONG)
    assert drained == [False]
    relay._stop = threading.Event()
    target.down = None
    assert relay.drain(LONG)


@pytest.mark.parametrize("moment", ["before the thread is made", "before the thread runs"])
def test_signal_handler_that_stops_a_relay_ends_its_start(
    box: Outbox, target: InMemoryTarget, relay: Relay, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    class Late(threading.Event):
        def clear(self) -> None:
            assert relay.stop(LONG)
            super().clear()

    def interrupted(listener: Any) -> None:
        assert relay.stop(LONG)

    write(box, 1)
    if moment == "before the thread is made":
        relay._stop = Late()
    else:
        monkeypatch.setattr(box.progress, "on_asked", interrupted)
    relay.start()
    until(lambda: not any(thread.name == "outbox-relay" for thread in threading.enumerate()))
    assert not relay.running
    assert box.progress.delivering is None
    assert box.status().relay.pid is None
    assert target.applied == []


def test_a_target_that_raises_stops_the_line_and_not_the_thread(
    box: Outbox, target: InMemoryTarget, relay: Relay, caplog: pytest.LogCaptureFixture
) -> None:
    signals = Signals(target)

    def boom(records: Sequence[Record]) -> None:
        signals.enter(records)
        raise RuntimeError("boom")

    target.before = boom
    seq = write(box, 1)
    relay.start()
    signals.wait()
    until(lambda: box.status().relay.stopped)
    status = box.status()
    assert relay.running
    assert status.health is Health.NEEDS_OPERATOR
    assert "RuntimeError: boom" in status.needs_operator[0]
    assert "target failed unexpectedly" in caplog.text
    assert [(entry.seq, entry.attempts) for entry in box.pending()] == [(seq, 0)]
    target.before = None
    assert relay.drain(LONG)
    assert target.applied == [seq]
    assert box.status().health is Health.HEALTHY


def broken_peek(*args: object, **kwargs: object) -> None:
    raise RuntimeError("boom")


def test_the_death_of_the_thread_is_visible_and_a_new_start_goes_on(
    box: Outbox, target: InMemoryTarget, relay: Relay, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(box.store, "peek", broken_peek)
        seq = write(box, 1)
        relay.start()
        until(lambda: not relay.running)
    assert relay.died == "RuntimeError: boom"
    status = box.status()
    assert status.relay.died == "RuntimeError: boom"
    assert not status.relay.alive
    assert status.health is Health.NEEDS_OPERATOR
    assert "the relay died: RuntimeError: boom; restart the engine or its relay" in status.needs_operator
    assert "relay thread died, restart" in caplog.text
    relay.start()
    assert relay.drain(LONG)
    assert target.applied == [seq]
    assert box.status().relay.died is None
    assert box.status().health is Health.HEALTHY


@pytest.mark.parametrize("error", [TargetUnavailable, TargetMisconfigured, ValueError], ids=str)
def test_error_whose_text_is_no_valid_unicode_is_published(
    box: Outbox, target: InMemoryTarget, relay: Relay, error: type[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    """It ended the thread, in silence: the relay counted as alive, and nothing was delivered any more."""
    # A traceback in the log cannot be handed over to another process of the run.
    caplog.set_level(logging.CRITICAL + 1, "outbox")

    def fail(_: Sequence[Record]) -> None:
        raise error("no such file: caf\udce9")

    target.before = fail
    box.enqueue("write", {"n": 1})
    relay.start()
    until(lambda: box.status().relay.last_error is not None)
    assert relay.running
    assert "caf\\udce9" in str(box.status().relay.last_error)


def test_thread_that_cannot_report_its_end_lets_go(
    box: Outbox, target: InMemoryTarget, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise TypeError("a report that cannot be written")

    relay.start()
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    monkeypatch.setattr(Publication, "tell", fail)
    box.enqueue("write", {"n": 1})
    until(lambda: not relay.running)
    assert box.status().relay.alive is False
    assert box.progress.delivering is None


def test_drain_says_no_when_the_thread_dies_meanwhile(
    box: Outbox, target: InMemoryTarget, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    signals = Signals(target)
    signals.gate.clear()
    write(box, 1)
    relay.start()
    signals.wait()
    monkeypatch.setattr(box.store, "settle", broken_peek)
    answers: list[bool] = []
    waits = threading.Event()
    wait_for_the_thread = relay._await

    def waiting(goal: int, question: int, deadline: float) -> bool:
        waits.set()
        return wait_for_the_thread(goal, question, deadline)

    monkeypatch.setattr(relay, "_await", waiting)
    drainer = threading.Thread(target=lambda: answers.append(relay.drain(LONG)))
    drainer.start()
    # Else it would find no thread, and drain by itself.
    assert waits.wait(LONG)
    signals.gate.set()
    drainer.join(LONG)
    assert answers == [False]
    assert not relay.running
    monkeypatch.undo()
    assert relay.drain(LONG)
    assert target.applied == [1]


def test_another_relay_may_take_over_from_a_dead_one(
    box: Outbox, target: InMemoryTarget, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(box.store, "peek", broken_peek)
        relay.start()
        until(lambda: not relay.running)
    write(box, 1)
    healthy = InMemoryTarget(OPERATIONS)
    with Relay(box, healthy) as other:
        assert other.drain(LONG)
    assert healthy.applied == [1]


def test_a_batch_that_hangs_is_shown_as_stuck(outbox_dir: Path, target: InMemoryTarget) -> None:
    clock = FakeClock()
    config = OutboxConfig(sync_interval=3600, stuck_after=60)
    with Outbox.open(outbox_dir, config, OPERATIONS, clock=clock) as box:
        signals = Signals(target)
        with Relay(box, target) as relay:
            write(box, 1)
            signals.wait()
            until(lambda: relay._last.caught_up and box.status().completed == 1)
            signals.gate.clear()
            write(box, 2)
            signals.wait()
            clock.advance(59)
            assert not box.status().relay.stuck
            clock.advance(2)
            status = box.status()
            assert status.relay.stuck
            assert status.health is Health.NEEDS_OPERATOR
            assert "stuck" in status.needs_operator[0]
            signals.gate.set()
            until(lambda: box.status().completed == 2)
            # The relay publishes its progress behind that.
            until(lambda: not box.status().relay.stuck)


def test_a_relay_whose_first_batch_hangs_is_shown_as_stuck(outbox_dir: Path, target: InMemoryTarget) -> None:
    clock = FakeClock()
    with Outbox.open(outbox_dir, OutboxConfig(stuck_after=60), OPERATIONS, clock=clock) as box:
        signals = Signals(target)
        signals.gate.clear()
        write(box, 1)
        with Relay(box, target):
            signals.wait()
            clock.advance(3600)
            try:
                assert box.status().relay.stuck
            finally:
                signals.gate.set()


def test_a_caught_up_relay_is_not_stuck(outbox_dir: Path, target: InMemoryTarget) -> None:
    clock = FakeClock()
    with (
        Outbox.open(outbox_dir, OutboxConfig(sync_interval=3600), OPERATIONS, clock=clock) as box,
        Relay(box, target) as relay,
    ):
        write(box, 1)
        assert relay.drain(LONG)
        clock.advance(7200)
        assert not box.status().relay.stuck
        assert box.status().health is Health.HEALTHY


def test_a_restart_is_told_at_once_though_nothing_else_has_changed(outbox_dir: Path, target: InMemoryTarget) -> None:
    with Outbox.open(outbox_dir, OutboxConfig(), OPERATIONS, clock=FakeClock()) as box:
        relay = Relay(box, target)
        relay.start()
        assert relay.drain(LONG)
        assert relay.stop()
        (outbox_dir / "relay.state").unlink()
        relay.start()
        assert (outbox_dir / "relay.state").exists()
        assert relay.stop()


def test_starting_relay_counts_as_delivering_during_its_first_batch(
    box: Outbox, target: InMemoryTarget, relay: Relay
) -> None:
    signals = Signals(target)
    signals.gate.clear()
    write(box, 1)
    relay.start()
    assert box.progress.delivering is True
    signals.wait()
    assert box.progress.delivering is True
    signals.gate.set()
    assert relay.drain(LONG)
    assert relay.stop()
    assert box.progress.delivering is None


def test_the_start_says_nothing_after_the_thread_has_begun_to_tell(
    box: Outbox, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[bool | None] = []
    start = threading.Thread.start

    def noting(thread: threading.Thread) -> None:
        told.append(box.progress.delivering)
        start(thread)

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", noting)
        relay.start()
    assert told[0] is True


def test_a_thread_that_cannot_be_started_leaves_nothing_behind(
    box: Outbox, target: InMemoryTarget, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            relay.start()
    assert not relay.running
    assert box.progress.delivering is None
    assert not box.status().relay.alive
    write(box, 1)
    assert not relay._wake.is_set()
    assert relay.stop()
    relay.start()
    assert relay.drain(LONG)
    assert target.applied == [1]


def test_the_thread_keeps_no_process_from_ending(relay: Relay) -> None:
    relay.start()
    (thread,) = [one for one in threading.enumerate() if one.name == "outbox-relay"]
    assert thread.daemon


def test_reconcile_without_a_loss_leaves_the_relay_as_it_was(box: Outbox, target: InMemoryTarget, relay: Relay) -> None:
    assert relay.reconcile() == Reconciliation(needed=False)
    assert target.closed == 1
    assert not box.status().relay.alive
    relay.step(0.0)
    assert not relay.reconcile().needed
    assert target.closed == 1
    assert box.status().relay.alive


def test_no_reconciliation_beside_the_thread(relay: Relay, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = threading.Event()
    drive = relay._run

    def late() -> None:
        assert begun.wait(LONG)
        drive()

    # A thread that has been started may not drive yet.
    monkeypatch.setattr(relay, "_run", late)
    relay.start()
    with pytest.raises(StoreLocked, match="the relay's thread runs"):
        relay.reconcile()
    begun.set()
    assert relay.drain(LONG)
    with pytest.raises(StoreLocked, match="the relay's thread runs"):
        relay.reconcile()


def test_no_reconciliation_beside_a_drain(box: Outbox, target: InMemoryTarget, relay: Relay) -> None:
    signals = Signals(target)
    signals.gate.clear()
    write(box, 1)
    drainer = threading.Thread(target=relay.drain, args=(LONG,))
    drainer.start()
    signals.wait()
    # It does not wait for the drain, which would not end.
    with pytest.raises(StoreLocked, match="another call drains"):
        relay.reconcile()
    signals.gate.set()
    drainer.join(LONG)
    assert target.applied == [1]


def test_the_thread_works_through_a_backlog_of_many_batches(outbox_dir: Path, target: InMemoryTarget) -> None:
    with Outbox.open(outbox_dir, OutboxConfig(batch_size=2, sync_interval=3600), OPERATIONS) as box:
        seqs = [write(box, number) for number in range(9)]
        with Relay(box, target) as relay:
            assert relay.drain(LONG)
            assert target.applied == seqs
            assert relay.running


def test_the_thread_outlives_an_outage(outbox_dir: Path, target: InMemoryTarget) -> None:
    config = OutboxConfig(backoff_base=0.01, backoff_cap=0.02, sync_interval=3600)
    with Outbox.open(outbox_dir, config, OPERATIONS) as box:
        signals = Signals(target)
        target.down = TargetUnavailable("away")
        write(box, 1)
        with Relay(box, target) as relay:
            for _ in range(5):
                signals.wait()
            target.down = None
            until(lambda: target.applied == [1])
            assert relay.running


def test_drain_does_not_believe_what_was_so_before_the_last_batch(
    box: Outbox, target: InMemoryTarget, relay: Relay
) -> None:
    signals = Signals(target)
    relay.start()
    assert relay.drain(LONG)
    signals.gate.clear()
    write(box, 1)
    signals.wait()
    assert not relay.drain(0.1)
    signals.gate.set()
    assert relay.drain(LONG)
    assert target.applied == [1]


def listens(relay: Relay, box: Outbox) -> bool:
    """Whether an enqueue wakes the relay."""
    relay._wake.clear()
    write(box, 1)
    return relay._wake.is_set()


def test_a_stopped_relay_listens_to_nobody(box: Outbox, relay: Relay) -> None:
    relay.start()
    assert relay.drain(LONG)
    assert relay.stop()
    assert not listens(relay, box)


def test_a_relay_that_stopped_is_not_taken_for_one_that_died(box: Outbox, relay: Relay) -> None:
    relay.start()
    assert died_holding(box.path, Role.RELAY)
    assert relay.stop()
    assert not died_holding(box.path, Role.RELAY)
    assert relay.drain(LONG)
    assert not died_holding(box.path, Role.RELAY)


def test_dead_thread_stops_listening_once_its_successor_has_stopped(
    box: Outbox, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(box.store, "peek", broken_peek)
        relay.start()
        until(lambda: not relay.running)
    relay.start()
    assert relay.drain(LONG)
    assert relay.stop()
    assert not listens(relay, box)


def test_stop_waits_as_long_as_it_was_told(
    box: Outbox, target: InMemoryTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    relay = Relay(box, target)
    signals = Signals(target)
    signals.gate.clear()
    write(box, 1)
    relay.start()
    signals.wait()
    waits: list[float] = []
    with monkeypatch.context() as patched:
        patched.setattr(relay._thread, "join", waits.append)
        assert not relay.stop(timeout=1.0)
    # Half of the time before the interrupt, half behind it.
    assert waits == [0.5, 0.5]
    signals.gate.set()
    assert relay.stop(LONG)


class Stops(threading.Event):
    """An event that notes how long somebody means to wait for it."""

    def __init__(self) -> None:
        super().__init__()
        self.noted: list[float | None] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.noted.append(timeout)
        return super().wait(timeout)


class Naps(Wake):
    """The same of the relay's naps."""

    def __init__(self) -> None:
        super().__init__()
        self.noted: list[float] = []

    def wait(self, timeout: float) -> bool:
        self.noted.append(timeout)
        return super().wait(timeout)


def test_signal_handler_may_enqueue_while_a_caller_wakes_the_relay(box: Outbox, target: InMemoryTarget) -> None:
    """The writer waited for the lock of an event that the interrupted thread was setting."""
    relay = Relay(box, target)
    relay.start()
    left = [True]

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        # As a signal handler that comes in the middle of `set`.
        caller = "" if frame.f_back is None else frame.f_back.f_code.co_name
        if left and event == "call" and caller == "set" and frame.f_code.co_name not in ("__init__", "__enter__"):
            left.clear()
            for number in range(3):
                write(box, number)
        return trace

    def call() -> None:
        sys.settrace(trace)
        try:
            relay._asked()
        finally:
            sys.settrace(None)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(LONG / 2)
    assert not thread.is_alive(), "the handler waits for the writer, and the writer for the caller"
    assert not left
    assert relay.stop(LONG)


def test_an_idle_thread_waits_for_work_as_long_as_its_step_said(outbox_dir: Path, target: InMemoryTarget) -> None:
    for interval in (0.5, 3600):
        with Outbox.open(outbox_dir, OutboxConfig(sync_interval=interval), OPERATIONS) as box:
            relay = Relay(box, target)
            relay._wake = naps = Naps()
            with relay:
                until(lambda naps=naps: bool(naps.noted))  # type: ignore[misc]
                assert naps.noted[0] == interval


@pytest.mark.slow
def test_new_entry_in_an_outage_brings_no_early_try_but_a_drain_does(outbox_dir: Path, target: InMemoryTarget) -> None:
    clock = FakeClock()
    clock.jitter = 0.0
    config = OutboxConfig(backoff_base=3600, backoff_cap=3600)
    with Outbox.open(outbox_dir, config, OPERATIONS, clock=clock) as box:

        def open_at_the_third(_: Sequence[Record]) -> None:
            clock.jitter = float(len(target.calls) >= 3)

        target.before = open_at_the_third
        target.down = TargetUnavailable("connection refused")
        relay = Relay(box, target)
        relay._wake, relay._stop = wakes, stops = Naps(), Stops()
        write(box, 1)
        with relay:
            until(lambda: bool(stops.noted))
            assert box.progress.delivering is False
            # Not the whole pause: somebody may begin to wait meanwhile.
            assert stops.noted[0] == 1.0
            assert wakes.noted == []
            drained: list[bool] = []
            drainer = threading.Thread(target=lambda: drained.append(relay.drain(LONG)))
            drainer.start()
            until(lambda: bool(wakes.noted))
            target.down = None
            clock.advance(2.0)
            drainer.join(LONG)
            assert drained == [True]


def test_a_drain_does_not_end_with_a_look_from_before_the_last_entry(
    box: Outbox, target: InMemoryTarget, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    signals = Signals(target)
    signals.gate.clear()
    looked, go_on = threading.Event(), threading.Event()
    peek = box.store.peek

    def slow_peek(after: int, limit: int, *, max_bytes: int) -> Peeked:
        found = peek(after, limit, max_bytes=max_bytes)
        looked.set()
        assert go_on.wait(LONG)
        return found

    monkeypatch.setattr(box.store, "peek", slow_peek)
    relay.start()
    assert looked.wait(LONG)
    # The relay has looked and found nothing, and will say that everything is delivered.
    write(box, 1)
    drained: list[bool] = []
    drainer = threading.Thread(target=lambda: drained.append(relay.drain(LONG)))
    drainer.start()
    until(lambda: relay._delivery.awaited == 1)
    go_on.set()
    signals.wait()
    drainer.join(0.2)
    assert drained == []
    signals.gate.set()
    drainer.join(LONG)
    assert drained == [True]
    assert target.applied == [1]


@pytest.mark.parametrize("threaded", [True, False])
def test_drain_with_a_distant_retry_ends_at_its_timeout(
    outbox_dir: Path, target: InMemoryTarget, threaded: bool
) -> None:
    with Outbox.open(outbox_dir, OutboxConfig(backoff_base=3600, backoff_cap=3600), OPERATIONS) as box:
        bad = write(box, 1)
        target.refuse[bad] = passing()
        relay = Relay(box, target)
        if threaded:
            relay.start()
        drained: list[bool] = []
        drainer = threading.Thread(target=lambda: drained.append(relay.drain(0.2)))
        drainer.start()
        drainer.join(LONG)
        assert drained == [False]
        assert relay.stop()


@pytest.mark.slow
def test_write_that_does_not_end_is_shown_by_an_idle_relay(outbox_dir: Path) -> None:
    config = OutboxConfig(sync_interval=0.02, stuck_after=0.05)
    with Outbox.open(outbox_dir, config, OPERATIONS) as box, Relay(box, InMemoryTarget(OPERATIONS)) as relay:
        assert relay.drain(timeout=LONG)
        assert box.status().health is Health.HEALTHY
        disk, writer = threading.Event(), box.store.writer
        assert writer is not None
        writing = threading.Thread(target=lambda: writer.run(Rank.MAINTAIN, lambda: disk.wait(LONG)))
        writing.start()
        try:
            until(lambda: box.status().health is Health.NEEDS_OPERATOR)
            (said,) = box.status().needs_operator
            assert said.startswith(f"the disk hangs: a write to {outbox_dir} has not ended for ")
        finally:
            disk.set()
            writing.join(LONG)
        until(lambda: box.status().health is Health.HEALTHY)
        assert box.status().disk_waits_s == 0.0


def test_relay_that_looks_at_a_busy_writer_sees_no_hang(outbox_dir: Path) -> None:
    publication = Publication(outbox_dir, FakeClock())
    publication.look_at_writer(1, 0.0)
    # Perhaps it hangs: nothing that needs the writer is begun before the next look.
    assert publication.writer_may_hang
    for number in range(3, 2000, 2):
        publication.look_at_writer(number, float(number))
        assert not publication.writer_may_hang
    publication.look_at_writer(1999, 2500.0)
    assert publication.writer_may_hang
    publication.look_at_writer(2000, 2600.0)
    assert not publication.writer_may_hang


@pytest.mark.parametrize("between", [False, True])
def test_outbox_closed_under_its_relay_leaves_no_death_behind(
    outbox_dir: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, between: bool
) -> None:
    """A program whose `with` block ended by an exception left a store that needed an operator.

    `between`: the relay meets the end of the writer, behind which the environment is closed.
    """
    target, ended, close = InMemoryTarget(OPERATIONS), threading.Event(), Guarded.close

    def wait(_: Sequence[Record]) -> None:
        assert ended.wait(LONG)

    with Outbox.open(outbox_dir, OutboxConfig(sync_interval=0.01), OPERATIONS) as box:
        fails = Relay(box, target)
        fails.start()

        def close_late(gate: Guarded) -> None:
            ended.set()
            until(lambda: not fails.running)
            close(gate)

        if between:
            target.before = wait
            monkeypatch.setattr(Guarded, "close", close_late)
            box.enqueue(OPERATIONS[0].name, {"n": 1})
    monkeypatch.undo()
    until(lambda: not fails.running)
    assert fails.died is None
    assert "closed before its relay was stopped" in caplog.text
    with Outbox.open(outbox_dir, OutboxConfig(sync_interval=0.01), OPERATIONS) as box:
        assert box.status().needs_operator == []
        with Relay(box, InMemoryTarget(OPERATIONS)) as later:
            box.enqueue(OPERATIONS[0].name, {"n": 2})
            assert later.drain(LONG)
        assert box.status().health is Health.HEALTHY


def test_target_that_meets_another_closed_outbox_is_a_death(outbox_dir: Path, tmp_path: Path) -> None:
    """Its own outbox is open, and nothing is delivered any more: an operator must know."""
    other = Outbox.open(tmp_path / "other", OutboxConfig(), OPERATIONS)
    other.close()

    def forward(_: Sequence[Record]) -> None:
        other.enqueue(OPERATIONS[0].name, {"n": 1})

    target = InMemoryTarget(OPERATIONS)
    target.before = forward
    with Outbox.open(outbox_dir, OutboxConfig(sync_interval=0.01), OPERATIONS) as box:
        relay = Relay(box, target)
        relay.start()
        box.enqueue(OPERATIONS[0].name, {"n": 1})
        until(lambda: not relay.running)
        assert "StoreClosed" in (relay.died or "")
        assert box.status().needs_operator
