"""One step of the relay: what it takes, in which order, how much at once, and what it does when there is nothing."""

from __future__ import annotations

import os
from pathlib import Path
from uuid import UUID

import pytest

from outbox import (
    DurabilityError,
    EntryStatus,
    Health,
    Operation,
    Outbox,
    OutboxConfig,
    PostgresTarget,
    Relay,
    StoreCorrupt,
    StoreLocked,
    TargetMisconfigured,
)
from outbox.relay import upkeep
from outbox.store import store
from outbox.store.continuity import Mark
from outbox.store.own_files import StateFile
from outbox.store.reads import MANY_DAMAGED
from tests.unit.fakes.rig import Rig, damage, permanent


def test_entries_are_applied_in_the_order_of_their_enqueueing(outbox_dir: Path) -> None:
    with Rig(outbox_dir, batch_size=7) as rig:
        seqs = rig.enqueue(*(f"k{number % 3}" for number in range(50)))
        rig.settle()
        assert rig.target.applied == seqs
        assert rig.pending() == []
        assert rig.box.status().completed == 50


def test_a_batch_is_bounded_and_the_next_is_due_at_once(outbox_dir: Path) -> None:
    with Rig(outbox_dir, batch_size=4) as rig:
        seqs = rig.enqueue(*[None] * 10)
        assert rig.step() == 0
        assert rig.target.calls == [seqs[:4]]
        rig.settle()
        assert rig.target.calls == [seqs[:4], seqs[4:8], seqs[8:]]


def test_a_batch_extends_to_the_whole_group(outbox_dir: Path) -> None:
    with Rig(outbox_dir, batch_size=2) as rig:
        first = rig.enqueue(None)
        group = rig.group(*[None] * 5)
        after = rig.enqueue(None, None)
        rig.settle()
        assert rig.target.calls == [first + group, after]


def test_a_batch_is_bounded_by_its_bytes_too(outbox_dir: Path) -> None:
    with Rig(outbox_dir) as rig:
        for number in range(10):
            rig.box.enqueue("write", {"number": number, "text": "x" * 1_000_000})
        rig.settle()
        assert rig.target.applied == list(range(1, 11))
        assert len(rig.target.calls) > 1


def test_caught_up_relay_waits_for_the_sync_interval_without_a_call(outbox_dir: Path) -> None:
    with Rig(outbox_dir, sync_interval=42.0) as rig:
        assert rig.step() == 42.0
        rig.enqueue(None)
        assert rig.settle() == 42.0
        assert rig.step() == 42.0
        assert rig.target.calls == [[1]]


def test_entries_enqueued_later_are_found_by_the_next_step(outbox_dir: Path) -> None:
    with Rig(outbox_dir) as rig:
        rig.enqueue(None)
        rig.settle()
        late = rig.enqueue("k", "k")
        rig.settle()
        assert rig.target.applied == [1, *late]


def test_status_tells_when_it_last_applied(outbox_dir: Path) -> None:
    with Rig(outbox_dir) as rig:
        rig.settle()
        assert rig.box.status().relay.last_applied_at is None
        rig.clock.advance(2)
        rig.enqueue(None)
        applied_at = rig.clock.now()
        rig.settle()
        relay = rig.box.status().relay
        assert relay.last_applied_at == applied_at
        assert relay.idle_s == 0
        assert relay.alive
        assert relay.breaker == "closed"


def test_target_gets_the_store_id_and_its_mark_is_kept(outbox_dir: Path) -> None:
    with Rig(outbox_dir) as rig:
        rig.target.mark = Mark(UUID(int=1), UUID(int=2), 7)
        rig.enqueue(None)
        rig.settle()
        assert rig.target.store_id == rig.box.store.identity.store_id
        assert rig.box.store.marks() == [rig.target.mark]


@pytest.mark.parametrize("refused", [True, False])
def test_whatever_leaves_the_backlog_counts_as_movement(outbox_dir: Path, refused: bool) -> None:
    with Rig(outbox_dir, batch_size=1) as rig:
        first, _ = rig.enqueue(None, None)
        if refused:
            rig.target.refuse[first] = permanent()
        rig.clock.advance(50)
        assert rig.step() == 0
        assert rig.box.status().relay.idle_s == 0


def test_a_second_relay_is_refused_while_the_first_holds_the_role(outbox_dir: Path) -> None:
    with Rig(outbox_dir) as rig:
        rig.step()
        other = type(rig.relay)(rig.box, rig.target)
        with pytest.raises(StoreLocked, match="relay role"):
            other.step(0.0)
        rig.relay.stop()
        other.step(0.0)
        other.stop()


def test_damaged_entry_is_quarantined_and_the_others_are_delivered(outbox_dir: Path) -> None:
    with Rig(outbox_dir, batch_size=2) as rig:
        seqs = rig.enqueue("k", "k", "k", "k")
        damage(outbox_dir, seqs[0], seqs[2])
        rig.settle()
        assert rig.target.applied == [seqs[1], seqs[3]]
        status = rig.box.status()
        assert (status.quarantined, status.pending, status.completed) == (2, 0, 2)
        assert status.health is Health.NEEDS_OPERATOR
        assert [seq for seq, _ in rig.box.store.quarantined()] == [seqs[0], seqs[2]]


def test_a_group_with_a_damaged_member_is_not_delivered_in_part(outbox_dir: Path) -> None:
    with Rig(outbox_dir) as rig:
        group = rig.group("a", "a", "a")
        damage(outbox_dir, group[1])
        behind, free = rig.enqueue("a", "b")
        rig.settle()
        assert rig.target.applied == [free]
        assert rig.pending() == [behind]
        # The rest of it waits for an operator, who can only discard it.
        assert rig.dead() == [group[0], group[2]]
        assert rig.box.status().quarantined == 1
        rig.box.requeue(group[0])
        rig.settle()
        assert rig.dead() == [group[0], group[2]]
        rig.box.discard(group[0], "booked by hand")
        rig.settle()
        assert rig.target.applied == [free, behind]


def test_groups_of_which_one_member_each_is_left_are_not_delivered(outbox_dir: Path) -> None:
    with Rig(outbox_dir) as rig:
        first, second = rig.group("a", "b"), rig.group("c", None)
        damage(outbox_dir, first[0], second[0])
        free, *_, behind = rig.enqueue("a", "c", "b")
        rig.settle()
        assert rig.target.applied == [free, free + 1]
        assert rig.dead() == [first[1], second[1]]
        assert {entry.error for entry in rig.box.dead_letters()} == {"another entry of its transaction is damaged"}
        assert rig.pending() == [behind]


def test_a_backlog_that_is_damaged_as_a_whole_is_left_alone(outbox_dir: Path) -> None:
    with Rig(outbox_dir) as rig:
        seqs = rig.enqueue(*[None] * MANY_DAMAGED)
        damage(outbox_dir, *seqs)
        with pytest.raises(StoreCorrupt, match="are all damaged"):
            rig.step()
        assert rig.box.status().pending == len(seqs)
        assert rig.box.status().quarantined == 0


def test_quarantine_that_fails_is_tried_again(outbox_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Rig(outbox_dir) as rig:
        seqs = rig.enqueue("k", "k")
        damage(outbox_dir, seqs[0])
        with monkeypatch.context() as patched:
            patched.setattr(rig.box.store, "quarantine", full_disk)
            rig.step()
        rig.run(60.0)
        assert rig.target.applied == [seqs[1]]
        assert rig.box.status().quarantined == 1


def full_disk(*args: object, **kwargs: object) -> None:
    raise DurabilityError("the store could not write: no space left on device")


def test_state_is_published_every_second_and_at_once_after_a_change(outbox_dir: Path) -> None:
    path = outbox_dir / "relay.state"

    def published() -> bool:
        was_there = path.exists()
        path.unlink(missing_ok=True)
        return was_there

    with Rig(outbox_dir) as rig:
        rig.step()
        state = StateFile(path).read()
        assert state is not None
        assert (state["pid"], state["breaker"], state["died"]) == (os.getpid(), "closed", None)
        said = []
        for elapsed in (0.0, 0.9, 0.1, 0.5, 0.5):
            published()
            rig.clock.advance(elapsed)
            rig.step()
            said.append(published())
        assert said == [False, False, True, False, True]
        rig.target.down = TargetMisconfigured("no such table")
        rig.enqueue(None)
        rig.step()
        assert published()


def test_housekeeping_prunes_what_is_older_than_the_retention(outbox_dir: Path) -> None:
    with Rig(outbox_dir, retention_hours=1) as rig:
        rig.enqueue(None, None)
        rig.settle()
        rig.clock.advance(1800)
        kept = rig.enqueue(None)
        rig.settle()
        assert rig.box.status().ledger == 3
        rig.clock.advance(1801)
        rig.settle()
        assert [entry.seq for entry in rig.box.ledger()] == kept
        rig.clock.advance(1800)
        rig.settle()
        assert rig.box.status().ledger == 0
        assert rig.box.status().completed == 3


@pytest.mark.slow
def test_housekeeping_prunes_a_little_at_a_time(outbox_dir: Path) -> None:
    with Rig(outbox_dir, retention_hours=1) as rig:
        rig.group(*[None] * 2600)
        rig.settle()
        left = []
        for _ in range(2):
            rig.clock.advance(7200)
            rig.step()
            left.append(rig.box.status().ledger)
        assert left == [100, 0]


def test_housekeeping_is_done_once_a_minute(outbox_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[float] = []
    with Rig(outbox_dir) as rig:
        monkeypatch.setattr(rig.box.store, "reader_check", lambda: done.append(rig.clock.monotonic()))
        began = rig.clock.monotonic()
        for _ in range(13):
            rig.step()
            rig.clock.advance(10)
        assert done == [began, began + 60, began + 120]


def test_housekeeping_keeps_dead_letters(outbox_dir: Path) -> None:
    with Rig(outbox_dir, retention_hours=1) as rig:
        [seq] = rig.enqueue(None)
        rig.target.refuse[seq] = permanent()
        rig.settle()
        rig.clock.advance(7200)
        rig.settle()
        assert [(entry.seq, entry.status) for entry in rig.box.ledger()] == [(seq, EntryStatus.FAILED)]


def test_a_relay_that_is_never_idle_prunes_too(outbox_dir: Path) -> None:
    with Rig(outbox_dir, retention_hours=1, batch_size=1) as rig:
        rig.enqueue(None)
        rig.settle()
        rig.clock.advance(7200)
        rig.enqueue(None, None)
        assert rig.step() == 0
        # The second is recorded in the next step.
        assert [entry.seq for entry in rig.box.ledger()] == []


@pytest.mark.parametrize("idle", [True, False])
def test_expired_ledger_entries_are_pruned_piece_by_piece(
    outbox_dir: Path, monkeypatch: pytest.MonkeyPatch, idle: bool
) -> None:
    monkeypatch.setattr(store, "CHUNK", 1)
    monkeypatch.setattr(upkeep, "_PRUNE_ROWS" if idle else "_PRUNE_ROWS_BUSY", 2)
    with Rig(outbox_dir, retention_hours=1, batch_size=1) as rig:
        rig.enqueue(*[None] * 5)
        rig.settle()
        rig.clock.advance(7200)
        left = []
        for _ in range(4):
            rig.enqueue(*[None] * (0 if idle else 2))
            rig.step()
            left.append([entry.seq for entry in rig.box.ledger() if entry.seq <= 5])
            rig.clock.advance(1.0)
        assert left == [[3, 4, 5], [5], [], []]


def test_ledger_is_not_pruned_while_a_loss_waits_for_reconcile(
    outbox_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Rig(outbox_dir, retention_hours=1) as rig:
        rig.enqueue(None)
        rig.settle()
        rig.clock.advance(7200)
        with monkeypatch.context() as patch:
            patch.setattr(rig.relay._delivery._reconciler, "waiting", True)
            rig.step()
            assert rig.box.status().ledger == 1
        rig.clock.advance(60)
        rig.settle()
        assert rig.box.status().ledger == 0


def test_housekeeping_that_cannot_write_does_not_stop_delivery(
    outbox_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Rig(outbox_dir) as rig:
        monkeypatch.setattr(rig.box.store, "prune", full_disk)
        rig.step()
        seqs = rig.enqueue(None)
        rig.run(60.0)
        assert rig.target.applied == seqs


def test_a_state_file_that_cannot_be_written_does_not_stop_delivery(
    outbox_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Rig(outbox_dir) as rig:
        (outbox_dir / "relay.state").mkdir()
        seqs = rig.enqueue(None)
        rig.settle()
        assert rig.target.applied == seqs
        assert "relay state could not be published" in caplog.text
        (outbox_dir / "relay.state").rmdir()


@pytest.mark.parametrize(("given", "lanes"), [(None, 3), (OutboxConfig(lanes=2), 2)])
def test_target_without_settings_takes_those_of_its_outbox(
    given: OutboxConfig | None, lanes: int, outbox_dir: Path
) -> None:
    target = PostgresTarget("postgresql://h/d", [Operation("log", table="logs")], config=given)
    with Outbox.open(outbox_dir, OutboxConfig(lanes=3, min_free_mb=0)) as box:
        Relay(box, target)
    assert target.lanes == lanes
