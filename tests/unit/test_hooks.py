"""Hooks: called for what happened, in threads of their own, and harmless whatever they do."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from outbox import (
    ConfigError,
    DurabilityError,
    Entry,
    EntryStatus,
    Health,
    Hooks,
    Outbox,
    OutboxStatus,
    Relay,
    StoreLocked,
    StoreUnavailable,
    TargetUnavailable,
    hooks,
)
from outbox.hooks import StateWatch
from outbox.store.ledger import Settlement
from outbox.testing import InMemoryTarget
from tests.unit.fakes.rig import OPERATIONS, Rig, permanent
from tests.unit.fakes.waiting import LONG, until


class Told:
    """A hook that remembers, and where `gate` is shut keeps its thread."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        self.entered = threading.Semaphore(0)
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, event: Any) -> None:
        self.entered.release()
        assert self.gate.wait(LONG)
        self.events.append(event)


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a loaded machine a hook that does not block may take long all the same."""
    monkeypatch.setattr(hooks, "_CLOSE_S", LONG)


@pytest.fixture
def told() -> Iterator[Told]:
    told = Told()
    yield told
    told.gate.set()
    # A thread that the gate kept must not be met by the next test.
    until(lambda: not hook_threads())


def opened(outbox_dir: Path, **given: Any) -> Outbox:
    return Outbox.open(outbox_dir, operations=OPERATIONS, hooks=Hooks(**given))


def write(box: Outbox, *numbers: int) -> list[Entry]:
    return [box.enqueue("write", {"number": number}) for number in numbers]


def halt(box: Outbox) -> None:
    """As where somebody removes the lock file of a running engine."""
    os.unlink(box.path / "engine.lock")
    with pytest.raises(DurabilityError):
        write(box, 0)


def hook_threads() -> list[str]:
    return sorted(thread.name for thread in threading.enumerate() if thread.name.startswith("outbox-on-"))


# -- each hook


def test_a_delivered_entry_is_handed_over_with_its_result(outbox_dir: Path, told: Told) -> None:
    target = InMemoryTarget(OPERATIONS)
    with opened(outbox_dir, on_delivered=told) as box:
        entries = write(box, 1, 2, 3)
        with Relay(box, target) as relay:
            assert relay.drain(LONG)
        until(lambda: len(told.events) == 3)
        assert told.events == list(box.ledger())
    assert [entry.seq for entry in told.events] == [entry.seq for entry in entries]
    assert {entry.status for entry in told.events} == {EntryStatus.COMPLETED}


def test_a_dead_letter_is_handed_over_with_its_reason(outbox_dir: Path, told: Told) -> None:
    target = InMemoryTarget(OPERATIONS)
    delivered = Told()
    with opened(outbox_dir, on_dead_letter=told, on_delivered=delivered) as box:
        write(box, 1, 2)
        target.refuse[2] = permanent("22003: out of range")
        assert Relay(box, target).drain(LONG)
        until(lambda: bool(told.events))
        assert told.events == list(box.dead_letters())
    assert [(entry.seq, entry.error, entry.attempts) for entry in told.events] == [(2, "22003: out of range", 1)]
    assert [entry.seq for entry in delivered.events] == [1]


def test_a_refused_best_effort_entry_is_no_dead_letter(outbox_dir: Path, told: Told) -> None:
    target = InMemoryTarget(OPERATIONS)
    with opened(outbox_dir, on_dead_letter=told, on_delivered=told) as box:
        box.enqueue("note", {"text": "x"})
        target.refuse[1] = permanent()
        assert Relay(box, target).drain(LONG)
    assert told.events == []


def test_an_entry_that_was_settled_before_is_not_handed_over_again(outbox_dir: Path, told: Told) -> None:
    with opened(outbox_dir, on_delivered=told) as box:
        write(box, 1)
        records = list(box.store.records("pending"))
        for _ in range(2):
            box.store.settle(Settlement(completed=[(record, b"") for record in records]))
    assert [entry.seq for entry in told.events] == [1]


def test_the_halt_latch_is_handed_over_once(outbox_dir: Path, told: Told) -> None:
    with opened(outbox_dir, on_halt=told) as box:
        halt(box)
        with pytest.raises(DurabilityError):
            write(box, 1)
        until(lambda: bool(told.events))
        assert told.events == [box.status().halt_reason]


def test_a_halt_in_the_process_of_a_relay_is_handed_over_there(outbox_dir: Path, told: Told) -> None:
    opened(outbox_dir).close()
    with Outbox.attach(outbox_dir, hooks=Hooks(on_halt=told)) as relays:
        os.unlink(outbox_dir / "lock.mdb")
        with pytest.raises(DurabilityError):
            relays.alarms.sound("name", "message")
        until(lambda: told.events == [relays.store.halt_reason])


@pytest.mark.slow
def test_the_state_is_handed_over_at_the_beginning_and_after_a_change(outbox_dir: Path, told: Told) -> None:
    with opened(outbox_dir, on_state=told) as box:
        until(lambda: len(told.events) == 1)
        halt(box)
        until(lambda: len(told.events) == 2)
    assert [status.health for status in told.events] == [Health.HEALTHY, Health.NEEDS_OPERATOR]
    assert told.events[1].halted


def test_the_state_is_not_handed_over_for_figures_alone(tmp_path: Path) -> None:
    seen: list[OutboxStatus] = []
    with Rig(tmp_path / "outbox", alert_pending=5) as rig:
        watch = StateWatch(rig.box.status, seen.append)
        rig.settle()
        watch.look()
        for _ in range(3):
            rig.enqueue("a")
            watch.look()
        assert [status.health for status in seen] == [Health.HEALTHY]
        rig.target.down = TargetUnavailable("away")
        rig.run(600)
        watch.look()
        assert [(status.health, status.relay.breaker) for status in seen[1:]] == [(Health.DEGRADED, "open")]
        for _ in range(20):  # each try half opens the breaker
            rig.run(1)
            watch.look()
        assert len(seen) == 2
        rig.target.down = None
        rig.run(60)
        watch.look()
        assert [status.health for status in seen[2:]] == [Health.HEALTHY]


def test_a_try_of_an_open_breaker_is_no_change_of_state(tmp_path: Path) -> None:
    seen: list[str] = []
    with Rig(tmp_path / "outbox") as rig:
        status = rig.box.status()
    states = iter(["closed", "open", "half-open", "open", "closed"])

    def look() -> OutboxStatus:
        return replace(status, relay=replace(status.relay, breaker=next(states)))

    watch = StateWatch(look, lambda status: seen.append(status.breaker))
    for _ in range(5):
        watch.look()
    assert seen == ["closed", "open", "closed"]


def test_a_state_that_cannot_be_looked_at_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    def look() -> OutboxStatus:
        raise StoreLocked("no slot")

    watch = StateWatch(look, lambda _: None)
    for _ in range(3):
        watch.look()
    assert [record.getMessage() for record in caplog.records] == [
        "the status for hook on_state cannot be read: no slot"
    ]


# -- what a hook may do


def test_a_hook_that_raises_harms_nothing_and_is_logged(outbox_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    seen: list[int] = []

    def fail(entry: Entry) -> None:
        seen.append(entry.seq)
        raise SystemExit("no more of this")

    with opened(outbox_dir, on_delivered=fail) as box:
        write(box, 1, 2)
        assert Relay(box, InMemoryTarget(OPERATIONS)).drain(LONG)
        until(lambda: len(seen) == 2)
        assert box.status().completed == 2
    said = [record.getMessage() for record in caplog.records if record.name == "outbox.hooks"]
    assert said == ["hook on_delivered failed: SystemExit: no more of this"] * 2


def test_a_hook_may_look_enqueue_and_stop_the_relay(outbox_dir: Path) -> None:
    done = threading.Event()

    def again(entry: Entry) -> None:
        if entry.operation == "write":
            assert box.status().completed >= 1
            box.enqueue("book", {"of": entry.seq})
        else:
            assert relay.stop(LONG)
            done.set()

    with opened(outbox_dir, on_delivered=again) as box:
        relay = Relay(box, InMemoryTarget(OPERATIONS))
        relay.start()
        write(box, 1)
        assert done.wait(LONG)
        assert not relay.running
        assert [entry.operation for entry in box.ledger()] == ["write", "book"]


def test_a_hook_may_close_the_outbox(outbox_dir: Path) -> None:
    closed = threading.Event()

    def close(reason: str) -> None:
        box.close()
        closed.set()

    box = opened(outbox_dir, on_halt=close)
    halt(box)
    assert closed.wait(LONG)
    until(lambda: not hook_threads())


def test_blocking_hook_holds_up_no_commit_no_delivery_no_other_hook(outbox_dir: Path, told: Told) -> None:
    halted = Told()
    told.gate.clear()
    with opened(outbox_dir, on_delivered=told, on_halt=halted) as box:
        with Relay(box, InMemoryTarget(OPERATIONS)) as relay:
            write(box, 1)
            assert told.entered.acquire(timeout=LONG)
            write(box, *range(2, 50))
            assert relay.drain(LONG)
        halt(box)
        until(lambda: bool(halted.events))
        assert told.events == []
        told.gate.set()
    assert [entry.seq for entry in told.events] == list(range(1, 50))


def test_events_beyond_the_bound_are_dropped_and_counted_in_the_log(
    outbox_dir: Path, told: Told, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hooks, "_MOST_BYTES", 5000)
    told.gate.clear()
    with opened(outbox_dir, on_delivered=told) as box:
        relay = Relay(box, InMemoryTarget(OPERATIONS))
        for number in range(10):
            write(box, number)
            assert relay.drain(LONG)
        told.gate.set()
        until(lambda: len(told.events) == 4)
        write(box, 10)
        assert relay.drain(LONG)
    assert [entry.seq for entry in told.events] == [1, 2, 3, 4, 11]
    assert [record.getMessage() for record in caplog.records if record.name == "outbox.hooks"] == [
        "hook on_delivered is too slow, and events for it are dropped",
        "hook on_delivered keeps up again; dropped events: 6",
    ]


def test_a_batch_beyond_the_bound_is_handed_over_where_nothing_waits(
    outbox_dir: Path, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hooks, "_MOST_BYTES", 10)
    with opened(outbox_dir, on_delivered=told) as box:
        write(box, 1)
        assert Relay(box, InMemoryTarget(OPERATIONS)).drain(LONG)
    assert len(told.events) == 1


def test_closing_does_not_wait_for_ever_for_a_hook_that_blocks(
    outbox_dir: Path, told: Told, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(hooks, "_CLOSE_S", 0.05)
    told.gate.clear()
    box = opened(outbox_dir, on_delivered=told)
    write(box, 1)
    assert Relay(box, InMemoryTarget(OPERATIONS)).drain(LONG)
    box.close()
    assert hook_threads() == ["outbox-on-delivered"]
    # Nor was the gate given up.
    assert [record for record in caplog.records if record.name == "outbox.hooks"] == []
    assert told.events == []
    with Outbox.open(outbox_dir) as again:
        assert again.status().completed == 1


# -- declaring them


def test_an_outbox_without_hooks_has_no_thread_for_them(outbox_dir: Path) -> None:
    with Outbox.open(outbox_dir):
        assert hook_threads() == []
    with opened(outbox_dir, on_state=lambda _: None, on_halt=lambda _: None):
        assert hook_threads() == ["outbox-on-halt", "outbox-on-state"]
    assert hook_threads() == []


async def _later(_: Any) -> None:
    """Never awaited."""


@pytest.mark.parametrize(
    ("hook", "expected"),
    [
        (3, "hooks: on_halt 3 is not callable"),
        (_later, "is asynchronous or a generator"),
        (lambda: None, "does not take 1 positional arguments"),
    ],
)
def test_hook_that_cannot_be_called_is_refused_at_its_declaration(hook: Any, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        Hooks(on_halt=hook)


def test_where_no_thread_can_be_started_the_store_is_closed_again(
    outbox_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Outbox.open(outbox_dir).close()
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "outbox-on-state":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(StoreUnavailable, match="hook cannot be started"):
        opened(outbox_dir, on_halt=lambda _: None, on_state=lambda _: None)
    until(lambda: not hook_threads())
    Outbox.open(outbox_dir).close()
