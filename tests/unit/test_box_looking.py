"""What is in the store can be looked at and answered also by those who do not know the types of its arguments."""

from __future__ import annotations

import os
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any

import pytest

from outbox import (
    ConfigError,
    EntryNotFound,
    EntryStatus,
    Health,
    InvalidEntry,
    Outbox,
    OutboxConfig,
    StoreFull,
    registered,
)
from outbox.store.ledger import DISCARD, Settlement
from outbox.store.locks import Role, RoleLock
from outbox.store.own_files import StateFile
from tests.unit.fakes.rig import FakeClock


class Side(Enum):
    BUY = "buy"


@pytest.fixture
def box(outbox_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Outbox]:
    """Two entries, of which the first is dead, with an enum that nobody has registered any more."""
    with Outbox.open(outbox_dir) as opened:
        with monkeypatch.context() as patched:
            patched.setitem(registered.enums, registered.class_name(Side), Side)
            for key in ("a", "b"):
                opened.enqueue("log", {"side": Side.BUY}, key=key)
        opened.store.settle(Settlement(dead=[(next(opened.store.records("pending")), "refused")]))
        yield opened


def test_entries_of_an_unknown_type_are_shown_by_their_values(box: Outbox) -> None:
    shown = {"side": "buy"}
    assert [entry.args for entry in box.pending()] == [shown]
    assert [entry.args for entry in box.ledger()] == [shown]
    assert [entry.args for entry in box.dead_letters()] == [shown]
    assert [box.entry(seq).args for seq in (1, 2)] == [shown, shown]


@pytest.mark.parametrize("seq", [-1, 0, 2**63, 2**64, 10**30])
def test_number_that_no_entry_can_have_is_not_found(box: Outbox, seq: int) -> None:
    with pytest.raises(EntryNotFound):
        box.entry(seq)


@pytest.mark.parametrize("seq", [True, "1", None, 1.0])
def test_something_that_is_no_number_is_refused(box: Outbox, seq: Any) -> None:
    with pytest.raises(InvalidEntry):
        box.entry(seq)


def test_a_program_that_would_act_on_them_is_refused(box: Outbox) -> None:
    with pytest.raises(ConfigError, match="Side is not registered"):
        box.lookup("log", {}, key="a")


def test_dead_letter_of_an_unknown_type_is_answered_and_audited(box: Outbox) -> None:
    assert [entry.args for entry in box.requeue(1)] == [{"side": "buy"}]
    box.store.settle(Settlement(dead=[(next(box.store.records("pending")), "refused")]))
    assert [entry.args for entry in box.discard(1, "by hand", free_key=True)] == [{"side": "buy"}]
    *_, audit = box.ledger()
    assert (audit.operation, audit.args) == (DISCARD, {"seq": 1, "reason": "by hand", "free_key": True})
    assert audit.status is EntryStatus.COMPLETED


def test_a_call_is_looked_up_by_its_key(box: Outbox) -> None:
    registered.register_enum(Side)
    try:
        found = [box.lookup("log", {}, key=key) for key in ("a", "b", "c")]
    finally:
        del registered.enums[registered.class_name(Side)]
    assert [entry and entry.seq for entry in found] == [1, 2, None]
    assert box.lookup("log", {}) is None


def test_attached_box_has_settings_and_a_clock_of_its_own(box: Outbox) -> None:
    box.close()
    clock, config = FakeClock(), OutboxConfig(stuck_after=77)
    with Outbox.attach(box.path, config, clock=clock) as observer:
        assert observer.config is config
        assert observer.clock is clock


def test_observer_judges_by_the_limits_of_the_running_engine(outbox_dir: Path) -> None:
    """The quota may be set in the program; a status by the environment's was healthy while entries were refused."""
    with Outbox.open(outbox_dir, OutboxConfig(max_size_mb=1, min_free_mb=0)) as box:
        with pytest.raises(StoreFull):
            while True:
                box.enqueue("log", {"text": "x" * 3_000})
        own = box.status()
    with Outbox.attach(outbox_dir, OutboxConfig(max_size_mb=100, min_free_mb=64)) as observer:
        # As in another process: that engine's report is still there.
        engine = RoleLock(outbox_dir, Role.ENGINE)
        seen = observer.status()
        assert (seen.max_bytes, seen.reserve_bytes) == (own.max_bytes, own.reserve_bytes) == (1 << 20, 0)
        assert seen.needs_operator == own.needs_operator != []
        engine.release()
        # The next engine may have other settings.
        status = observer.status()
        assert (status.max_bytes, status.reserve_bytes) == (100 << 20, 4 << 20)
        assert status.health is Health.DEGRADED


def test_a_relay_that_died_and_one_that_has_only_begun(outbox_dir: Path) -> None:
    clock = FakeClock()
    with Outbox.open(outbox_dir, OutboxConfig(stuck_after=0.5), clock=clock) as box:
        box.enqueue("log", {})
        clock.advance(100.0)
        lock = RoleLock(outbox_dir, Role.RELAY)
        state = StateFile(outbox_dir / "relay.state")
        state.write({"breaker": "closed", "died": "KeyError: 'x'"})
        relay = box.status().relay
        assert (relay.died, relay.idle_s, relay.stuck) == ("KeyError: 'x'", None, False)
        state.write({"breaker": "closed", "moved_at": clock.monotonic()})
        relay = box.status().relay
        assert (relay.died, relay.idle_s, relay.stuck) == (None, 0.0, False)
        lock.release()


@pytest.mark.slow
def test_every_figure_of_the_status(outbox_dir: Path) -> None:
    clock = FakeClock()
    config = OutboxConfig(max_size_mb=64, min_free_mb=32)
    with Outbox.open(outbox_dir, config, clock=clock) as box:
        for number in range(9):
            box.enqueue("log", {"number": number}, order_by="key")
        done, dead, discarded, bare, damaged, *_ = box.store.records("pending")
        box.store.settle(Settlement(completed=[(done, b"")], dead=[(dead, "no"), (discarded, "no")]))
        box.discard(discarded.seq, "by hand")
        box.store._settle(Settlement(completed=[(bare, b"")]), keep_ledger=False)
        box.store.quarantine([(damaged.seq, b"", "why")])
        box.alarms.sound("disk", "it smells")
        StateFile(outbox_dir / "relay.state").write({"held_back": 3, "breaker": "open", "moved_at": 0})
        lock = RoleLock(outbox_dir, Role.RELAY)
        clock.advance(60.0)
        status, figures = box.status(), box.store.figures()
        assert (status.path, status.store_id) == (str(outbox_dir), str(box.store.identity.store_id))
        assert (status.pending, status.held_back, status.dead_letters, status.completed) == (4, 4, 1, 2)
        assert (status.acknowledged, status.discarded, status.quarantined, status.unledgered) == (9, 1, 1, 1)
        # Behind the nine entries lies the record of the answer.
        assert (status.ledger, status.watermark, status.last_seq) == (4, 5, 10)
        assert round(status.lag_s, 3) == 60.0
        assert (status.engine_pid, status.halted, status.halt_reason) == (os.getpid(), False, None)
        assert (status.relay.pid, status.relay.breaker, status.relay.stuck) == (os.getpid(), "open", False)
        assert (status.live_bytes, status.file_bytes) == (figures.live_bytes, figures.file_bytes)
        assert (status.max_bytes, status.reserve_bytes) == (64 << 20, 2 << 20)
        assert (status.map_bytes, status.alarms) == (figures.map_bytes, {"disk": "it smells"})
        assert abs(status.free_disk_bytes - figures.free_disk_bytes) < 1 << 28
        assert status.needs_operator
        box.store._latch("enqueue", OSError("bad disk"))
        status = box.status()
        assert (status.halted, status.halt_reason) == (True, "could not enqueue: bad disk")
        lock.release()
        # What another process said counts only while it is the engine.
        StateFile(outbox_dir / "engine.state").write({"pid": os.getpid(), "halted": "bad disk"})
        box.close()
    with Outbox.attach(outbox_dir, clock=clock) as observer:
        StateFile(outbox_dir / "relay.state").write({})
        status = observer.status()
        assert (status.engine_pid, status.halted, status.held_back) == (None, False, 4)
        engine = RoleLock(outbox_dir, Role.ENGINE)
        StateFile(outbox_dir / "engine.state").write({"pid": os.getpid(), "halted": "bad disk"})
        status = observer.status()
        assert (status.engine_pid, status.halted, status.halt_reason) == (os.getpid(), True, "bad disk")
        StateFile(outbox_dir / "engine.state").write({"pid": 1, "halted": "bad disk"})
        assert not observer.status().halted
        engine.release()
