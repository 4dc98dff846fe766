"""While the target has one batch, the one before it is recorded and the one behind it is read."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from uuid import UUID

import pytest

from outbox import DurabilityError, Health, Outbox, OutboxConfig, OutboxError, Relay, StoreLocked, TargetMisconfigured
from outbox.errors import HistoryRewound
from outbox.store.continuity import Mark, Memory
from outbox.store.envelope import Record
from outbox.store.ledger import Settlement
from outbox.store.reads import FORGOTTEN
from outbox.testing import InMemoryTarget
from tests.unit.fakes.rig import OPERATIONS, Rig, passing, permanent
from tests.unit.fakes.waiting import LONG, until


def test_a_batch_is_recorded_while_the_target_has_the_next_one(
    outbox_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = InMemoryTarget(OPERATIONS)
    recorded = threading.Event()
    with Outbox.open(outbox_dir, OutboxConfig(batch_size=1), OPERATIONS) as box:
        entries = [box.enqueue("write", {"number": number}) for number in range(2)]
        settle = box.store.settle

        def noting(settlement: Settlement) -> None:
            settle(settlement)
            if settlement.completed[0][0].seq == entries[0].seq:
                recorded.set()

        def wait_for_the_first(records: Sequence[Record]) -> None:
            if records[0].seq == entries[1].seq:
                assert recorded.wait(LONG), "the first batch was not recorded meanwhile"

        monkeypatch.setattr(box.store, "settle", noting)
        target.before = wait_for_the_first
        assert Relay(box, target).drain(timeout=LONG)
        assert target.applied == [entry.seq for entry in entries]
        assert not list(box.pending())


def test_batches_are_recorded_without_a_thread_where_none_starts(
    outbox_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No thread starts at the limit of a process, nor in `atexit` from Python 3.12 on."""

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with Outbox.open(outbox_dir, OutboxConfig(batch_size=1), OPERATIONS) as box:
        for number in range(3):
            box.enqueue("write", {"number": number})
        monkeypatch.setattr(threading.Thread, "start", refuse)
        assert Relay(box, InMemoryTarget(OPERATIONS)).drain(timeout=LONG)
        monkeypatch.undo()
        assert not list(box.pending())


def test_relay_lost_before_it_recorded_a_batch_applies_it_once(outbox_dir: Path) -> None:
    with Rig(outbox_dir, batch_size=2) as rig:
        seqs = rig.enqueue(*"aabb", None)
        rig.step()
        rig.step()
        # Two batches are applied, one is recorded; another relay begins with what the store knows.
        assert rig.target.applied == seqs[:4]
        assert rig.pending() == seqs[2:]
        rig.relay._delivery._settling._owed = None
        rig.relay.stop()
        rig.relay = Relay(rig.box, rig.target)
        rig.settle()
        assert rig.target.applied == seqs
        assert rig.pending() == []


def test_entry_after_the_batch_read_ahead_is_noticed_at_once(outbox_dir: Path) -> None:
    with Rig(outbox_dir, batch_size=1, sync_interval=3600) as rig:
        rig.enqueue(None, None)
        assert rig.step() == 0
        # The second entry has been read already, as the newest.
        rig.enqueue(None)
        assert rig.step() == 0
        until(lambda: rig.step() > 0)
        assert rig.target.applied == [1, 2, 3]


def test_the_last_batch_is_recorded_in_its_own_step(outbox_dir: Path) -> None:
    with Rig(outbox_dir, batch_size=2) as rig:
        rig.enqueue(None, None)
        rig.step()
        assert rig.pending() == []


def test_walking_over_what_is_held_back_writes_nothing(outbox_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Rig(outbox_dir, batch_size=2) as rig:
        [bad] = rig.enqueue("a")
        rig.target.refuse[bad] = permanent()
        rig.settle()
        rig.enqueue(*"aaaaaaaa")
        monkeypatch.setattr(rig.box.store, "settle", lambda settlement: pytest.fail("there is nothing to record"))
        rig.settle()
        assert rig.box.status().pending == 8


@pytest.mark.parametrize("what", ["dead", "dropped", "retried"])
def test_batch_that_is_not_all_success_is_recorded_in_its_own_step(outbox_dir: Path, what: str) -> None:
    with Rig(outbox_dir, batch_size=2) as rig:
        [bad] = rig.enqueue("a", operation="note" if what == "dropped" else "write")
        rig.enqueue("b", "c", "d")
        rig.target.refuse[bad] = passing() if what == "retried" else permanent()
        rig.step()
        assert rig.target.applied == [2]
        assert rig.pending() == ([1, 3, 4] if what == "retried" else [3, 4])
        assert rig.dead() == ([1] if what == "dead" else [])
        if what == "retried":
            assert rig.attempts(1) == 1


class Comparing:
    """What the target has forgotten, if anything; it lacks nothing of what is asked for."""

    failover = False
    places: frozenset[str] = frozenset()

    def __init__(self, loss: HistoryRewound | None) -> None:
        self.loss = loss

    def missing(self, records: Sequence[Record]) -> list[Record]:
        return []

    def accept(self) -> Mark:
        raise AssertionError("nobody accepts anything here")


class RememberingTarget(InMemoryTarget):
    """Follows the store's memory, and notes what that says as a batch comes."""

    def __init__(self) -> None:
        super().__init__(OPERATIONS)
        self.loss: HistoryRewound | None = None
        self.told: list[tuple[list[Mark], int]] = []
        self.compared = 0
        self.refuses: OutboxError | None = None

    def follow(self, memory: Memory) -> None:
        self.before = lambda records: self.told.append((memory.marks(), memory.watermark()))

    def compare(self, store_id: UUID) -> Comparing:
        self.compared += 1
        if self.refuses is not None:
            raise self.refuses
        return Comparing(self.loss)


MARK = Mark(UUID(int=1), UUID(int=2), 7)
LOSS = HistoryRewound("it lacks something", settled_seq=0, same_database=True)


def remembering(rig: Rig) -> RememberingTarget:
    """Let the rig's relay deliver to a target that remembers."""
    rig.target = target = RememberingTarget()
    rig.relay = Relay(rig.box, target)
    return target


def test_the_target_knows_what_was_acknowledged_before_it_is_recorded(outbox_dir: Path) -> None:
    with Rig(outbox_dir, batch_size=1) as rig:
        target = remembering(rig)
        target.mark = MARK
        rig.enqueue("a", "b", "c")
        rig.step()
        assert rig.box.store.marks() == []
        rig.settle()
        assert target.told == [([], 0), ([MARK], 1), ([MARK], 2)]
        assert rig.box.store.marks() == [MARK]


def test_entry_held_back_keeps_the_watermark_below_it(outbox_dir: Path) -> None:
    with Rig(outbox_dir, batch_size=3) as rig:
        target = remembering(rig)
        [bad] = rig.enqueue("a")
        target.refuse[bad] = permanent()
        rig.settle()
        rig.enqueue("b", "a", "b", "b", "b")
        rig.settle()
        assert target.calls == [[1], [2, 4], [5, 6]]
        assert [watermark for _, watermark in target.told] == [0, 1, 1]


def test_loss_that_ends_a_batch_stops_delivery_until_it_is_settled(outbox_dir: Path) -> None:
    with Rig(outbox_dir) as rig:
        target = remembering(rig)
        target.down = target.loss = LOSS
        seqs = rig.enqueue("a", "b")
        rig.step()
        target.down = None
        rig.run(60.0)
        assert target.applied == []
        assert FORGOTTEN in rig.box.status().alarms
        target.loss = None
        rig.run(60.0)
        assert target.applied == seqs
        assert rig.box.status().alarms == {}


def test_loss_met_while_idle_is_forgotten_with_the_right_database(outbox_dir: Path) -> None:
    with Rig(outbox_dir) as rig:
        target = remembering(rig)
        target.mark = MARK
        rig.enqueue("a")
        rig.settle()
        target.loss = LOSS
        rig.run(120.0)
        assert rig.box.status().relay.stopped
        target.loss = None
        rig.run(60.0)
        relay = rig.box.status().relay
        assert (relay.stopped, relay.last_error) == (False, None)


def test_idle_relay_that_is_refused_needs_an_operator(outbox_dir: Path) -> None:
    with Rig(outbox_dir) as rig:
        target = remembering(rig)
        target.refuses = TargetMisconfigured("28P01: the password is wrong")
        rig.run(5.0)
        assert "the line is stopped: 28P01: the password is wrong" in rig.box.status().needs_operator
        target.refuses = None
        rig.run(60.0)
        assert rig.box.status().health is Health.HEALTHY


def test_an_idle_relay_asks_once_a_minute_and_a_busy_one_never(outbox_dir: Path) -> None:
    with Rig(outbox_dir, batch_size=1, sync_interval=5) as rig:
        target = remembering(rig)
        target.mark = MARK
        rig.enqueue("a", "b", "c")
        rig.step()
        rig.step()
        assert target.compared == 0
        rig.run(299.0)
        assert target.compared == 5


def test_stopping_records_what_was_applied(outbox_dir: Path) -> None:
    with Rig(outbox_dir, batch_size=1) as rig:
        rig.enqueue(None, None)
        rig.step()
        assert rig.relay.stop()
        assert rig.pending() == [2]


def test_a_drain_that_runs_out_of_time_records_what_was_applied(outbox_dir: Path) -> None:
    with Rig(outbox_dir, batch_size=1) as rig:
        seqs = rig.enqueue(None, None, None)
        rig.target.before = lambda records: rig.clock.advance(6.0)
        assert not rig.relay.drain(timeout=10.0)
        assert rig.target.applied == seqs[:2]
        assert rig.pending() == seqs[2:]


def test_batch_not_recorded_at_the_end_of_a_drain_comes_again(
    outbox_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(settlement: Settlement) -> None:
        raise DurabilityError("the store could not settle: input/output error")

    with Rig(outbox_dir, batch_size=1) as rig:
        seqs = rig.enqueue(None, None)
        rig.target.before = lambda records: rig.clock.advance(6.0)
        with monkeypatch.context() as patched:
            patched.setattr(rig.box.store, "settle", broken)
            assert not rig.relay.drain(timeout=5.0)
        assert rig.pending() == seqs
        assert "could not settle" in (rig.box.status().relay.last_error or "")
        rig.target.before = None
        rig.run(30.0)
        assert rig.target.applied == seqs
        assert rig.pending() == []


def test_two_threads_that_drain_at_once_take_turns(outbox_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = InMemoryTarget(OPERATIONS)
    inside = threading.Lock()
    with Outbox.open(outbox_dir, OutboxConfig(batch_size=1), OPERATIONS) as box:
        for number in range(50):
            box.enqueue("write", {"number": number})
        relay = Relay(box, target)
        step = relay.step

        def alone(now: float) -> float:
            assert inside.acquire(blocking=False), "two threads drive the relay"
            try:
                return step(now)
            finally:
                inside.release()

        monkeypatch.setattr(relay, "step", alone)
        drained: list[bool] = []
        threads = [threading.Thread(target=lambda: drained.append(relay.drain(timeout=LONG))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert drained == [True] * 4
        assert target.applied == sorted(target.applied)
        assert not list(box.pending())


def test_starting_a_relay_that_has_not_stopped_yet_is_refused(outbox_dir: Path) -> None:
    target = InMemoryTarget(OPERATIONS)
    entered, gate = threading.Event(), threading.Event()

    def hang(records: Sequence[Record]) -> None:
        entered.set()
        assert gate.wait(LONG)

    target.before = hang
    with Outbox.open(outbox_dir, OutboxConfig(), OPERATIONS) as box:
        relay = Relay(box, target)
        box.enqueue("write", {"number": 1})
        relay.start()
        assert entered.wait(LONG)
        assert not relay.stop(timeout=0.01)
        with pytest.raises(StoreLocked, match="has not ended yet"):
            relay.start()
        gate.set()
        assert relay.stop(timeout=LONG)
        relay.start()
        assert relay.running
        assert relay.stop(timeout=LONG)


def many(box: Outbox, count: int) -> None:
    for number in range(count):
        box.enqueue("write", {"number": number})


@pytest.mark.slow
def test_stopping_ends_a_drain_of_another_thread(outbox_dir: Path) -> None:
    target = InMemoryTarget(OPERATIONS)
    entered = threading.Event()
    with Outbox.open(outbox_dir, OutboxConfig(batch_size=1), OPERATIONS) as box:
        many(box, 50)
        relay = Relay(box, target)

        def wait_for_the_stop(records: Sequence[Record]) -> None:
            entered.set()
            assert relay._stop.wait(LONG)

        target.before = wait_for_the_stop
        drained: list[bool] = []
        thread = threading.Thread(target=lambda: drained.append(relay.drain(timeout=LONG)))
        thread.start()
        assert entered.wait(LONG)
        assert relay.stop(timeout=LONG)
        thread.join(LONG)
        assert drained == [False]
        # What was applied is recorded, the rest waits, and the relay may be used again.
        assert [entry.seq for entry in box.pending()] == list(range(len(target.applied) + 1, 51))
        target.before = None
        assert relay.drain(timeout=LONG)
        assert target.applied == list(range(1, 51))


def test_stopping_in_the_middle_of_ones_own_drain_ends_it(outbox_dir: Path) -> None:
    """As a signal handler does that has interrupted it."""
    target = InMemoryTarget(OPERATIONS)
    said: list[bool] = []
    with Outbox.open(outbox_dir, OutboxConfig(batch_size=1), OPERATIONS) as box:
        many(box, 10)
        relay = Relay(box, target)
        target.before = lambda records: said.append(relay.stop(timeout=LONG)) if records[0].seq == 3 else None
        assert not relay.drain(timeout=LONG)
        assert said == [False]
        assert target.applied == [1, 2, 3]
        assert len(list(box.pending())) == 7
        assert relay.stop()


@pytest.mark.parametrize("at", [1, 2, 5])
def test_a_drain_that_is_interrupted_can_be_repeated(outbox_dir: Path, at: int) -> None:
    target = InMemoryTarget(OPERATIONS)
    with Outbox.open(outbox_dir, OutboxConfig(batch_size=1), OPERATIONS) as box:
        many(box, 10)
        relay = Relay(box, target)

        def interrupt(records: Sequence[Record]) -> None:
            if records[0].seq == at:
                raise KeyboardInterrupt

        target.before = interrupt
        with pytest.raises(KeyboardInterrupt):
            relay.drain(timeout=LONG)
        target.before = None
        assert relay.drain(timeout=LONG)
        assert target.applied == list(range(1, 11))
        assert "outbox-settle" not in {thread.name for thread in threading.enumerate()}


class Hasty:
    """The lock of a relay's driver: notes how long it would have waited; the first wait takes no time."""

    def __init__(self, lock: threading.Lock, second_s: float) -> None:
        self.lock = lock
        self.waits: list[float] = []
        self._second_s = second_s

    def acquire(self, timeout: float) -> bool:
        self.waits.append(timeout)
        return self.lock.acquire(timeout=0.0 if len(self.waits) == 1 else self._second_s)

    def release(self) -> None:
        self.lock.release()


@pytest.mark.parametrize("ends", [True, False])
def test_stop_interrupts_a_hanging_batch_of_a_drain_in_another_thread(
    outbox_dir: Path, monkeypatch: pytest.MonkeyPatch, ends: bool
) -> None:
    target = InMemoryTarget(OPERATIONS)
    entered, gate = threading.Event(), threading.Event()

    def hang(records: Sequence[Record]) -> None:
        entered.set()
        assert gate.wait(LONG)

    def interrupt() -> None:
        target.interrupted += 1
        if ends:
            gate.set()

    target.before = hang
    monkeypatch.setattr(target, "interrupt", interrupt)
    with Outbox.open(outbox_dir, OutboxConfig(batch_size=1), OPERATIONS) as box:
        many(box, 3)
        relay = Relay(box, target)
        thread = threading.Thread(target=lambda: relay.drain(timeout=LONG))
        thread.start()
        assert entered.wait(LONG)
        driving = relay._driving = Hasty(relay._driving, LONG if ends else 0.0)  # type: ignore[assignment]
        assert relay.stop(timeout=1.0) is ends
        assert target.interrupted == 1
        # Half of the time before the interrupt, half behind it.
        assert driving.waits == [0.5, 0.5]
        relay._driving = driving.lock
        gate.set()
        thread.join(LONG)
        assert relay.stop()


def test_a_drain_without_time_moves_one_batch(outbox_dir: Path) -> None:
    with Rig(outbox_dir, batch_size=1) as rig:
        rig.enqueue(None, None, None)
        assert not rig.relay.drain(timeout=0.0)
        assert rig.target.applied == [1]


def test_stepped_relay_counts_as_delivering_only_in_a_drain(outbox_dir: Path) -> None:
    with Rig(outbox_dir, batch_size=1) as rig:
        seen: list[bool | None] = []
        rig.target.before = lambda records: seen.append(rig.box.progress.delivering)
        rig.enqueue(None, None, None)
        rig.step()
        assert rig.box.progress.delivering is None
        assert rig.relay.drain(timeout=LONG)
        assert seen == [None, None, True]


@pytest.mark.parametrize("threaded", [True, False])
def test_the_end_is_told_at_once_though_the_last_word_is_hardly_older(outbox_dir: Path, threaded: bool) -> None:
    with Rig(outbox_dir, batch_size=1) as rig:
        rig.enqueue(None, None)
        rig.target.before = lambda records: rig.clock.advance(0.3)
        if threaded:
            rig.relay.start()
        assert rig.relay.drain(timeout=LONG)
        assert rig.relay.stop()
        assert rig.box.status().relay.last_applied_at == rig.clock.now()


@pytest.mark.parametrize("loss", [None, LOSS])
def test_idle_relay_forgets_its_last_failure_if_no_entry_is_lost(
    outbox_dir: Path, monkeypatch: pytest.MonkeyPatch, loss: HistoryRewound | None
) -> None:
    with Rig(outbox_dir, batch_size=3) as rig:
        target = remembering(rig)
        target.mark = MARK
        rig.enqueue(None)
        settle = rig.box.store.settle

        def late(settlement: Settlement) -> None:
            settle(settlement)
            raise DurabilityError("recorded, and the disk complains all the same")

        monkeypatch.setattr(rig.box.store, "settle", late)
        rig.step()
        target.loss = loss
        assert "complains" in str(rig.box.status().relay.last_error)
        rig.clock.advance(70)
        rig.step()
        if loss is None:
            assert rig.box.status().relay.last_error is None
        else:
            assert "complains" in str(rig.box.status().relay.last_error)
