"""Enqueueing again what nobody will deliver raises, with the entry that stands in the way."""

from __future__ import annotations

from pathlib import Path

import pytest

from outbox import AlreadyRejected, EntryStatus, IdempotencyConflict, OutboxError
from outbox.store.appending import Append
from tests.unit.fakes.rig import Rig, permanent


def _reject(rig: Rig, operation: str = "write") -> int:
    seq = rig.box.enqueue(operation, {"n": 1}, key="k", order_by="a").seq
    rig.target.refuse[seq] = permanent("23505: duplicate key")
    rig.settle()
    del rig.target.refuse[seq]
    return seq


def test_repeating_a_dead_letter_raises_with_the_entry(outbox_dir: Path) -> None:
    with Rig(outbox_dir) as rig:
        seq = _reject(rig)
        with pytest.raises(AlreadyRejected, match=f"entry {seq} .*23505: duplicate key.*show {seq}") as caught:
            rig.box.enqueue("write", {"n": 1}, key="k", order_by="a")
        error = caught.value
        assert isinstance(error, OutboxError)
        assert (error.entry.seq, error.entry.status, dict(error.entry.args)) == (seq, EntryStatus.FAILED, {"n": 1})
        assert (error.seq, error.key, error.reason) == (seq, error.entry.key, "23505: duplicate key")
        assert rig.box.status().acknowledged == 1


def test_repeating_a_discarded_entry_raises(outbox_dir: Path) -> None:
    with Rig(outbox_dir) as rig:
        seq = _reject(rig)
        rig.box.discard(seq, "the order was cancelled")
        with pytest.raises(AlreadyRejected, match="was discarded: the order was cancelled.*another key"):
            rig.box.enqueue("write", {"n": 1}, key="k", order_by="a")


def test_repeating_a_rejected_best_effort_entry_raises(outbox_dir: Path) -> None:
    with Rig(outbox_dir) as rig:
        _reject(rig, "note")
        with pytest.raises(AlreadyRejected, match="was rejected: 23505"):
            rig.box.enqueue("note", {"n": 1}, key="k", order_by="a")


def test_transaction_with_a_rejected_entry_stores_nothing(outbox_dir: Path) -> None:
    with Rig(outbox_dir) as rig:
        _reject(rig)
        with pytest.raises(AlreadyRejected), rig.box.transaction() as transaction:
            transaction.enqueue("write", {"n": 2}, key="other")
            transaction.enqueue("write", {"n": 1}, key="k", order_by="a")
        assert transaction.entries == []
        assert rig.box.status().acknowledged == 1
        assert rig.box.enqueue("write", {"n": 2}, key="other").seq == 2


def test_calls_of_one_commit_beside_a_rejected_one_are_stored(outbox_dir: Path) -> None:
    with Rig(outbox_dir) as rig:
        _reject(rig)
        good = Append([rig.box.prepare("write", {"n": 2})[0]])
        bad = Append([rig.box._prepare("write", {"n": 1}, "k", "a")[0]])
        rig.box.store.append([bad, good])
        assert isinstance(bad.error, AlreadyRejected)
        assert good.error is None
        assert [record.seq for record in good.stored] == [2]


def test_other_arguments_under_a_rejected_key_are_a_conflict(outbox_dir: Path) -> None:
    with Rig(outbox_dir) as rig:
        _reject(rig)
        with pytest.raises(IdempotencyConflict):
            rig.box.enqueue("write", {"n": 2}, key="k", order_by="a")


def test_requeued_entry_is_returned_again(outbox_dir: Path) -> None:
    with Rig(outbox_dir) as rig:
        seq = _reject(rig)
        rig.box.requeue(seq)
        assert rig.box.enqueue("write", {"n": 1}, key="k", order_by="a").status is EntryStatus.PENDING
        rig.settle()
        assert rig.box.enqueue("write", {"n": 1}, key="k", order_by="a").status is EntryStatus.COMPLETED


def test_freed_key_is_a_new_entry(outbox_dir: Path) -> None:
    with Rig(outbox_dir) as rig:
        seq = _reject(rig)
        rig.box.discard(seq, "told", free_key=True)
        assert rig.box.enqueue("write", {"n": 1}, key="k", order_by="a").seq > seq


def test_rejected_entry_raises_after_a_restart(outbox_dir: Path) -> None:
    with Rig(outbox_dir) as rig:
        _reject(rig)
    with Rig(outbox_dir) as rig, pytest.raises(AlreadyRejected):
        rig.box.enqueue("write", {"n": 1}, key="k", order_by="a")
