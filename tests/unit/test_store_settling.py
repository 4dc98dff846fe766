"""What the relay settles leaves `pending` in one commit; operators answer dead letters; damage is set aside."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import lmdb
import pytest

from outbox import (
    AlreadyRejected,
    DurabilityError,
    EntryNotFound,
    EntryStatus,
    IdempotencyConflict,
    InvalidEntry,
    Outbox,
    OutboxConfig,
    StoreClosed,
    StoreCorrupt,
)
from outbox.results import encode_result
from outbox.store import envelope, reads, small
from outbox.store import ledger as ledger_module
from outbox.store.appending import Append
from outbox.store.continuity import UNKNOWN, Mark
from outbox.store.envelope import Counters, Record, seq_key
from outbox.store.gate import COUNTERS_KEY
from outbox.store.ledger import Settlement
from outbox.store.store import Store
from tests.unit.fakes.rig import FakeClock


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def box(outbox_dir: Path, clock: FakeClock) -> Iterator[Outbox]:
    with Outbox.open(outbox_dir, OutboxConfig(retention_hours=1), clock=clock) as box:
        yield box


def enqueue(box: Outbox, count: int, *, order_by: str | None = None) -> list[Record]:
    for number in range(count):
        box.enqueue("log", {"number": number}, order_by=order_by)
    return list(box.store.records("pending"))[-count:]


def group(box: Outbox, count: int) -> list[Record]:
    with box.transaction() as tx:
        for number in range(count):
            tx.enqueue("log", {"member": number}, order_by=f"k{number}")
    return list(box.store.records("pending"))[-count:]


def complete(box: Outbox, *records: Record) -> None:
    box.store.settle(Settlement(completed=[(record, b"") for record in records]))


def bury(box: Outbox, *records: Record) -> None:
    box.store.settle(Settlement(dead=[(record, "refused") for record in records]))


def seqs(entries: Any) -> list[int]:
    return [entry.seq for entry in entries]


def raw(box: Outbox) -> Any:
    assert box.store._environment is not None
    return box.store._environment


# -- settling


def test_a_batch_moves_into_the_ledger_with_what_became_of_it(box: Outbox, clock: FakeClock) -> None:
    done, dead, dropped, again, left = enqueue(box, 5, order_by="k")
    clock.advance(60)
    box.store.settle(
        Settlement(
            completed=[(done, encode_result({"id": 7}))],
            dead=[(dead, "no such symbol")],
            dropped=[(dropped, "too long")],
            retried=[(again, "locked")],
        )
    )
    assert seqs(box.pending()) == [again.seq, left.seq]
    assert [(entry.attempts, entry.error) for entry in box.pending()] == [(1, "locked"), (0, None)]
    settled = list(box.ledger())
    assert seqs(settled) == [done.seq, dead.seq, dropped.seq]
    assert [entry.status for entry in settled] == [EntryStatus.COMPLETED, EntryStatus.FAILED, EntryStatus.FAILED]
    assert [entry.error for entry in settled] == [None, "no such symbol", "too long"]
    assert [entry.attempts for entry in settled] == [0, 1, 1]
    assert settled[0].result == {"id": 7}
    assert {entry.settled_at for entry in settled} == {clock.now()}
    assert settled[0].captured_at == clock.now() - timedelta(seconds=60)
    assert seqs(box.dead_letters()) == [dead.seq]
    status = box.status()
    assert (status.completed, status.dead_letters, status.discarded, status.pending) == (1, 1, 1, 2)
    assert (status.acknowledged, status.ledger, status.watermark, status.last_seq) == (5, 3, again.seq - 1, 5)


def test_an_empty_settlement_is_false() -> None:
    assert not Settlement()


def test_settling_again_changes_nothing(box: Outbox) -> None:
    one, other, third = enqueue(box, 3)
    complete(box, one)
    bury(box, other)
    for settle in (complete, bury):
        settle(box, one, other)
    box.store.settle(Settlement(retried=[(one, "late")], dropped=[(other, "late")]))
    assert seqs(box.pending()) == [third.seq]
    assert [entry.status for entry in box.ledger()] == [EntryStatus.COMPLETED, EntryStatus.FAILED]
    status = box.status()
    assert (status.completed, status.dead_letters, status.discarded) == (1, 1, 0)


def test_entries_settled_out_of_order_lie_in_order(box: Outbox) -> None:
    records = enqueue(box, 6)
    complete(box, records[4], records[5])
    complete(box, records[0], records[3])
    complete(box, records[2], records[1])
    assert seqs(box.ledger()) == seqs(records)


def test_without_room_for_ledger_copies_completed_entries_still_leave(
    box: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    done, dead, again = enqueue(box, 3)

    def full(record: Record) -> bytes:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(ledger_module, "pack", full)
        # The caller must not believe that all of it is recorded.
        with pytest.raises(DurabilityError, match="could not settle: .*No space left"):
            box.store.settle(Settlement(completed=[(done, b"")], dead=[(dead, "refused")], retried=[(again, "locked")]))
    # Only what is done may go without a trace; a dead letter must not be lost.
    assert seqs(box.pending()) == [dead.seq, again.seq]
    assert list(box.ledger()) == []
    status = box.status()
    assert (status.completed, status.unledgered, status.dead_letters) == (1, 1, 0)
    assert status.halted
    with pytest.raises(DurabilityError, match="could not settle: .*No space left"):
        box.enqueue("log", {})


@pytest.mark.parametrize(("failures", "copies"), [(1, 1), (2, 0)])
def test_an_error_that_does_not_last_costs_no_ledger_copy(
    box: Outbox, monkeypatch: pytest.MonkeyPatch, failures: int, copies: int
) -> None:
    records = enqueue(box, 1)
    real, left = envelope.pack_completed, [failures]

    def fail(record: Record, at_us: int, result: bytes) -> bytes:
        if left[0]:
            left[0] -= 1
            raise lmdb.Error("short write")
        return real(record, at_us, result)

    monkeypatch.setattr(ledger_module, "pack_completed", fail)
    complete(box, *records)
    assert left == [0]
    assert len(list(box.ledger())) == copies
    assert box.status().unledgered == 1 - copies
    assert box.status().halted


def test_without_room_a_settlement_that_completes_nothing_fails(box: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    records = enqueue(box, 1)

    def full(record: Record) -> bytes:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ledger_module, "pack", full)
    with pytest.raises(DurabilityError, match="could not settle"):
        bury(box, *records)
    assert seqs(box.pending()) == seqs(records)


def test_the_key_of_an_entry_settled_without_a_copy_is_still_known(
    box: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = box.enqueue("log", {"a": 1}, key="k")
    box.store._settle(Settlement(completed=[(next(box.store.records("pending")), b"")]), keep_ledger=False)
    again = box.enqueue("log", {"a": 1}, key="k")
    assert (again.seq, again.status) == (first.seq, EntryStatus.COMPLETED)
    assert box.status().pending == 0


# -- dead letters


def test_a_requeued_dead_letter_is_back_at_its_old_place(box: Outbox, clock: FakeClock) -> None:
    records = enqueue(box, 3, order_by="k")
    bury(box, records[1])
    clock.advance(5)
    released = box.requeue(records[1].seq)
    assert [(entry.seq, entry.status, entry.attempts) for entry in released] == [(2, EntryStatus.PENDING, 0)]
    assert seqs(box.pending()) == [1, 2, 3]
    assert next(entry for entry in box.pending() if entry.seq == 2).settled_at is None
    assert list(box.dead_letters()) == []
    audit = list(box.ledger())
    assert [(entry.operation, entry.args, entry.status) for entry in audit] == [
        ("outbox.requeue", {"seq": 2}, EntryStatus.COMPLETED)
    ]
    assert audit[0].settled_at == clock.now()
    status = box.status()
    assert (status.dead_letters, status.pending, status.completed, status.acknowledged) == (0, 3, 0, 3)


def test_a_discarded_dead_letter_stays_in_the_ledger_with_the_reason(box: Outbox) -> None:
    record, *_ = enqueue(box, 2)
    bury(box, record)
    released = box.discard(record.seq, "sold by hand")
    assert [(entry.seq, entry.error) for entry in released] == [(1, "discarded: sold by hand; was: refused")]
    assert list(box.dead_letters()) == []
    ledger = list(box.ledger())
    assert [(entry.operation, entry.status) for entry in ledger] == [
        ("log", EntryStatus.FAILED),
        ("outbox.discard", EntryStatus.COMPLETED),
    ]
    assert ledger[0].error == "discarded: sold by hand; was: refused"
    assert ledger[1].args == {"seq": 1, "reason": "sold by hand"}
    status = box.status()
    assert (status.dead_letters, status.discarded, status.pending) == (0, 1, 1)


@pytest.mark.parametrize("action", ["requeue", "discard"])
def test_the_members_of_a_group_are_answered_together(box: Outbox, action: str) -> None:
    enqueue(box, 1)
    members = group(box, 3)
    other = group(box, 2)
    bury(box, *members, *other)
    complete(box, next(box.store.records("pending")))
    released = box.requeue(members[1].seq) if action == "requeue" else box.discard(members[1].seq, "why")
    assert seqs(released) == seqs(members)
    assert seqs(box.dead_letters()) == seqs(other)
    assert seqs(box.pending()) == (seqs(members) if action == "requeue" else [])
    status = box.status()
    assert (status.dead_letters, status.discarded) == (2, 3 if action == "discard" else 0)
    # One audit record for the one answer.
    assert [entry.args["seq"] for entry in box.ledger() if entry.operation == f"outbox.{action}"] == [members[1].seq]


def test_only_the_dead_members_of_a_group_are_answered(box: Outbox) -> None:
    members = group(box, 3)
    complete(box, members[0])
    bury(box, *members[1:])
    assert seqs(box.requeue(members[2].seq)) == seqs(members[1:])
    assert seqs(box.ledger())[0] == members[0].seq


def test_the_relay_can_see_that_something_was_released(box: Outbox) -> None:
    records = enqueue(box, 2)
    bury(box, *records)
    seen = [box.store.peek(0, 1).releases]
    box.requeue(1)
    seen.append(box.store.peek(0, 1).releases)
    box.discard(2, "why")
    seen.append(box.store.peek(0, 1).releases)
    assert seen == [0, 1, 2]


def test_answers_use_sequence_numbers_and_stamps_of_their_own(box: Outbox) -> None:
    record, *_ = enqueue(box, 1)
    bury(box, record)
    box.requeue(record.seq)
    bury(box, record)
    box.discard(record.seq, "why")
    after = box.enqueue("log", {})
    assert seqs(box.ledger()) == [1, 2, 3]
    assert after.seq == 4
    stamps = [entry.captured_at for entry in (*box.ledger(), after)]
    assert stamps == sorted(set(stamps))


@pytest.mark.parametrize("seq", [0, 1, 2, 3, 99, -1, 1 << 64])
def test_only_dead_letters_can_be_answered(box: Outbox, seq: int) -> None:
    _, done, discarded = enqueue(box, 3)
    complete(box, done)
    bury(box, discarded)
    box.discard(discarded.seq, "why")
    before = box.status().last_seq
    # What is pending may be discarded, but is not requeued.
    for answer in (lambda: box.requeue(seq), lambda: box.discard(seq, "why"))[: 1 if seq == 1 else 2]:
        with pytest.raises(EntryNotFound, match=f"entry {seq} is not a dead letter"):
            answer()  # type: ignore[no-untyped-call]
    assert box.status().last_seq == before


def test_bad_answers_are_refused_by_name(box: Outbox) -> None:
    records = enqueue(box, 1)
    bury(box, *records)
    for seq in (True, "1", None, 1.0):
        with pytest.raises(InvalidEntry, match=f"seq is {seq!r}.*a sequence number"):
            box.requeue(seq)  # type: ignore[arg-type]
    for reason in ("", "  ", None, 5):
        with pytest.raises(InvalidEntry, match="reason is .*say why"):
            box.discard(1, reason)  # type: ignore[arg-type]
    with pytest.raises(InvalidEntry, match="contains a NUL"):
        box.discard(1, "a\0")
    assert seqs(box.dead_letters()) == [1]


def test_an_observer_may_answer_and_the_listeners_are_told(box: Outbox) -> None:
    told: list[int] = []
    box.on_enqueue(lambda: told.append(1))
    records = enqueue(box, 1)
    bury(box, *records)
    told.clear()
    box.requeue(1)
    assert told == [1]


# -- retention


@pytest.mark.slow
def test_expired_entries_are_pruned_with_their_keys(box: Outbox, clock: FakeClock) -> None:
    for number in range(600):
        box.enqueue("log", {"number": number}, key=f"k{number}")
    records = list(box.store.records("pending"))
    complete(box, *records[:550])
    clock.advance(3601)
    late = enqueue(box, 1)
    complete(box, records[550], *late)
    assert box.compact() == 550
    assert seqs(box.ledger()) == [551, late[0].seq]
    # 49 pending, the two of the ledger.
    assert box.store.figures().idempotency == 51
    assert box.enqueue("log", {"number": 0}, key="k0").seq == late[0].seq + 1
    assert box.enqueue("log", {"number": 550}, key="k550").seq == 551
    status = box.status()
    assert (status.completed, status.acknowledged, status.pending) == (552, 602, 50)


def test_compact_prunes_only_older_entries_and_all_with_zero(box: Outbox, clock: FakeClock) -> None:
    complete(box, *enqueue(box, 3))
    clock.advance(100)
    assert box.compact(timedelta(seconds=101)) == 0
    assert box.compact(timedelta(seconds=99)) == 3
    complete(box, *enqueue(box, 2))
    clock.advance(1)
    assert box.compact(timedelta(0)) == 2
    assert list(box.ledger()) == []


def test_retention_counts_from_settling(box: Outbox, clock: FakeClock) -> None:
    records = enqueue(box, 2)
    clock.advance(10_000)
    complete(box, records[0])
    clock.advance(10)
    assert box.compact(timedelta(seconds=11)) == 0
    assert box.compact(timedelta(seconds=9)) == 1


def test_stamps_of_a_clock_that_was_ahead_do_not_end_the_pruning(box: Outbox, clock: FakeClock) -> None:
    first, second = enqueue(box, 2)
    clock.advance(1_000_000)
    [ahead] = enqueue(box, 1)
    complete(box, second)
    clock.advance(-1_000_000)
    complete(box, first, ahead)
    clock.advance(10)
    young = enqueue(box, 1)
    complete(box, *young)
    # What was settled by the wrong clock waits for it, and keeps nobody else.
    assert box.compact(timedelta(seconds=5)) == 2
    assert seqs(box.ledger()) == [second.seq, young[0].seq]


def test_dead_letters_are_never_pruned_but_answered_ones_are(box: Outbox, clock: FakeClock) -> None:
    records = enqueue(box, 3)
    bury(box, *records)
    clock.advance(10)
    assert box.compact(timedelta(seconds=5)) == 0
    box.discard(1, "why")
    clock.advance(10)
    assert box.compact(timedelta(seconds=5)) == 2  # the discarded one and its audit record
    assert seqs(box.ledger()) == [2, 3]
    assert box.store.figures().idempotency == 2


def test_reused_key_survives_the_pruning_of_its_first_owner(box: Outbox, clock: FakeClock) -> None:
    box.enqueue("log", {"a": 1}, key="k")
    complete(box, *box.store.records("pending"))
    opened = raw(box)
    with opened.env.begin(write=True) as txn, txn.cursor(db=opened.idempotency) as cursor:
        assert cursor.first()
        key = bytes(cursor.key())
        txn.put(key, seq_key(9) + b"p" * 16, db=opened.idempotency)
    clock.advance(10)
    assert box.compact(timedelta(0)) == 1
    assert box.store.figures().idempotency == 1


def test_pruning_stops_after_about_as_many_as_asked(box: Outbox, clock: FakeClock) -> None:
    with box.transaction() as tx:
        for number in range(700):
            tx.enqueue("log", {"number": number})
    complete(box, *box.store.records("pending"))
    clock.advance(1)
    now_us = box.store._now_us()
    assert box.store.prune(now_us, most=1) == 250
    assert box.store.prune(now_us, most=250) == 250
    assert box.store.prune(now_us) == 200
    assert box.store.prune(now_us) == 0


def test_pruning_goes_on_behind_the_last_row_that_it_has_seen(box: Outbox) -> None:
    complete(box, *enqueue(box, 5))
    opened = raw(box)
    with opened.env.begin(write=True) as txn:
        assert ledger_module.prune(opened, txn, 0, 2, before_us=0, now_us=1 << 62) == (0, None)
        assert ledger_module.prune(opened, txn, 0, 2, before_us=1 << 62, now_us=1 << 62) == (2, 3)
        assert ledger_module.prune(opened, txn, 3, 2, before_us=1 << 62, now_us=1 << 62) == (2, 5)
        assert ledger_module.prune(opened, txn, 6, 2, before_us=1 << 62, now_us=1 << 62) == (0, None)
        assert ledger_module.prune(opened, txn, 5, 2, before_us=1 << 62, now_us=1 << 62) == (1, None)


def test_entry_settled_at_the_limit_itself_is_pruned(box: Outbox, clock: FakeClock) -> None:
    complete(box, *enqueue(box, 2))
    now_us = box.store._now_us()
    assert box.store.prune(now_us - 1) == 0
    # No two entries have one stamp: that of the second one is a microsecond ahead, and it was settled now all the same.
    assert box.store.prune(now_us) == 2


# -- after PostgreSQL has forgotten


def test_entry_put_back_is_pending_as_if_never_settled(box: Outbox, clock: FakeClock) -> None:
    kept, *lost = enqueue(box, 3)
    box.store.settle(Settlement(completed=[(record, encode_result({"id": 7})) for record in (kept, *lost)]))
    settled = list(box.store.records("ledger"))[1:]
    releases = box.store.peek(0, 1).releases
    gone = Record(99, b"k" * 16, b"i" * 16, "log", None, b"p" * 16, b"s" * 8, b"{}", b"")
    assert box.store.put_back([*settled, gone]) == 2
    assert list(box.store.records("pending")) == lost
    assert seqs(box.ledger()) == [kept.seq]
    status = box.status()
    assert (status.completed, status.pending, status.acknowledged) == (1, 2, 3)
    assert box.store.peek(0, 1).releases > releases


def test_after_a_reconciliation_only_its_own_mark_is_remembered(box: Outbox) -> None:
    lineage, before, now = UUID(int=1), UUID(int=2), UUID(int=3)
    for lane in (0, 1, 7):
        box.store.settle(Settlement(marks=[Mark(lineage, before, 50 + lane, lane)]))
    assert len(box.store.marks()) == 3
    box.store.put_meta("outlives", b"it")
    new = Mark(lineage, now, 1, 1)
    box.store.rebase(new, ledger_module.answer(ledger_module.RECONCILE, {"why": "standby"}, b"i" * 16))
    assert box.store.marks() == [new]
    (noted,) = box.ledger()
    assert (noted.operation, noted.args) == (ledger_module.RECONCILE, {"why": "standby"})
    assert box.store.get_meta("outlives") == b"it"


# -- damage


def test_a_damaged_record_is_reported_and_set_aside_with_its_bytes(box: Outbox) -> None:
    enqueue(box, 3)
    opened = raw(box)
    with opened.env.begin(write=True) as txn:
        txn.put(seq_key(2), b"garbage", db=opened.pending)
    with pytest.raises(StoreCorrupt, match="entry 2 is damaged"):
        list(box.pending())
    peeked = box.store.peek(0, 10)
    assert seqs(peeked.records) == [1, 3]
    assert [(seq, data) for seq, data, _ in peeked.damaged] == [(2, b"garbage")]
    box.store.quarantine(peeked.damaged)
    box.store.quarantine(peeked.damaged)
    assert box.store.quarantined() == [(2, b"garbage")]
    assert seqs(box.pending()) == [1, 3]
    status = box.status()
    assert (status.quarantined, status.pending, status.acknowledged) == (1, 2, 3)
    assert "1 damaged entry is quarantined (see `atb outbox list`)" in status.needs_operator


def test_a_damaged_oldest_record_does_not_hide_the_status(box: Outbox) -> None:
    enqueue(box, 2)
    opened = raw(box)
    with opened.env.begin(write=True) as txn:
        txn.put(seq_key(1), b"garbage", db=opened.pending)
    status = box.status()
    assert (status.pending, status.lag_s, status.watermark) == (2, 0.0, 0)


def test_many_damaged_records_are_reported_a_batch_at_a_time(box: Outbox) -> None:
    enqueue(box, 40)
    opened = raw(box)
    with opened.env.begin(write=True) as txn:
        for seq in range(1, 40):
            txn.put(seq_key(seq), b"garbage", db=opened.pending)
    peeked = box.store.peek(0, 20)
    assert len(peeked.damaged) == 20
    assert peeked.last_seq == 20
    box.store.quarantine(peeked.damaged)
    rest = box.store.peek(0, 20)
    assert (len(rest.damaged), seqs(rest.records)) == (19, [40])


def test_repeated_call_of_a_quarantined_entry_is_already_rejected(box: Outbox) -> None:
    box.enqueue("log", {"a": 1}, key="k")
    opened = raw(box)
    with opened.env.begin(write=True) as txn:
        txn.put(seq_key(1), b"garbage", db=opened.pending)
    box.store.quarantine(box.store.peek(0, 1).damaged)
    with pytest.raises(AlreadyRejected) as caught:
        box.enqueue("log", {"a": 1}, key="k")
    assert (caught.value.seq, caught.value.entry.status) == (1, EntryStatus.FAILED)
    assert caught.value.reason == "its record is damaged and quarantined"
    assert "then `discard` it" in caught.value.hint
    assert "retry" not in caught.value.hint
    with pytest.raises(IdempotencyConflict):
        box.enqueue("log", {"a": 2}, key="k")


def test_only_a_dead_letter_is_advised_to_be_retried(box: Outbox) -> None:
    """A refused best-effort entry was given up at once, and a retry of it is refused."""
    for key in ("dead", "dropped"):
        box.enqueue("log", {"a": 1}, key=key)
    dead, dropped = box.store.records("pending")
    box.store.settle(Settlement(dead=[(dead, "too long")], dropped=[(dropped, "too long")]))
    hints = []
    for key in ("dead", "dropped"):
        with pytest.raises(AlreadyRejected, match="was rejected: too long") as caught:
            box.enqueue("log", {"a": 1}, key=key)
        hints.append(caught.value.hint)
    assert "then `retry` or `discard` it" in hints[0]
    assert hints[1] == "enqueue it with another key if it is still wanted"


def test_a_retry_of_a_damaged_entry_is_told_of_the_damage(box: Outbox) -> None:
    box.enqueue("log", {"a": 1}, key="k")
    opened = raw(box)
    with opened.env.begin(write=True) as txn:
        txn.put(seq_key(1), b"garbage", db=opened.pending)
    with pytest.raises(StoreCorrupt, match="entry 1 is damaged"):
        box.enqueue("log", {"a": 1}, key="k")
    assert box.enqueue("log", {"a": 2}).seq == 2


def test_a_damaged_neighbour_in_the_same_commit_harms_nobody_else(box: Outbox) -> None:
    box.enqueue("log", {"a": 1}, key="k")
    opened = raw(box)
    with opened.env.begin(write=True) as txn:
        txn.put(seq_key(1), b"garbage", db=opened.pending)
    before, guilty, after = (Append([box._prepare("log", {"a": 1}, key, None)[0]]) for key in ("b", "k", "a"))
    box.store.append([before, guilty, after])
    assert isinstance(guilty.error, StoreCorrupt)
    assert guilty.stored == []
    assert [(one.error, one.stored[0].seq) for one in (before, after)] == [(None, 2), (None, 3)]
    assert [record.seq for record in box.store.peek(1, 10).records] == [2, 3]


def test_a_damaged_idempotency_record_is_not_taken_for_a_new_key(box: Outbox) -> None:
    entry = box.enqueue("log", {"a": 1}, key="k")
    opened = raw(box)
    with opened.env.begin(write=True) as txn:
        txn.put(bytes.fromhex(entry.key), b"short", db=opened.idempotency)
    with pytest.raises(StoreCorrupt, match=f"idempotency record of key {entry.key} has 16 . 5 bytes"):
        box.enqueue("log", {"a": 1}, key="k")


def test_a_sequence_number_behind_the_last_pending_one_is_corruption(box: Outbox) -> None:
    enqueue(box, 3)
    opened = raw(box)
    with opened.env.begin(write=True) as txn:
        txn.put(COUNTERS_KEY, Counters(next_seq=2, acknowledged=3).pack())
    with pytest.raises(StoreCorrupt, match="sequence number 2 is already behind the last pending one"):
        box.enqueue("log", {})
    assert seqs(box.pending()) == [1, 2, 3]


@pytest.mark.slow
def test_counters_that_do_not_add_up_keep_the_store_shut(box: Outbox, outbox_dir: Path) -> None:
    enqueue(box, 3)
    opened = raw(box)
    with opened.env.begin(write=True) as txn:
        txn.put(COUNTERS_KEY, Counters(next_seq=4, acknowledged=4).pack())
    box.close()
    # After a clean end the totals alone are looked at; the failed opening took the mark, so then all of it is.
    with pytest.raises(StoreCorrupt, match="acknowledged 4 entries and accounts for 3"):
        Outbox.open(outbox_dir)
    with pytest.raises(StoreCorrupt, match="4 entries were acknowledged, accounted for: 3"):
        Outbox.attach(outbox_dir)


# -- looking


def test_peek_takes_whole_groups_and_respects_its_limits(box: Outbox) -> None:
    enqueue(box, 2)
    members = group(box, 3)
    enqueue(box, 2)
    assert seqs(box.store.peek(0, 2).records) == [1, 2]
    assert seqs(box.store.peek(0, 3).records) == [1, 2, *seqs(members)]
    assert seqs(box.store.peek(5, 10).records) == [6, 7]
    assert seqs(box.store.peek(0, 10, max_bytes=1).records) == [1]
    assert seqs(box.store.peek(2, 10, max_bytes=1).records) == seqs(members)
    nothing = box.store.peek(7, 10)
    assert (nothing.records, nothing.last_seq, nothing.newest_seq) == ([], 7, 7)


def test_single_records_can_be_read(box: Outbox) -> None:
    (record,) = enqueue(box, 1)
    assert box.store.record("pending", 1) == record
    assert box.store.record("ledger", 1) is None


def test_dead_letters_are_listed_with_their_ordering_keys(box: Outbox) -> None:
    with_key, *_ = enqueue(box, 1, order_by="BTC")
    without, *_ = enqueue(box, 1)
    bury(box, without, with_key)
    assert box.store.dead() == [(1, "BTC"), (2, None)]
    assert box.store.quarantined() == []


def test_a_dead_letter_that_is_pruned_away_meanwhile_is_left_out(box: Outbox) -> None:
    bury(box, *enqueue(box, 2))
    opened = raw(box)
    with opened.env.begin(write=True) as txn:
        txn.delete(seq_key(1), db=opened.ledger)
    assert seqs(box.dead_letters()) == [2]


# -- small records


def test_meta_records_are_kept_and_replaced(box: Outbox, outbox_dir: Path) -> None:
    assert box.store.get_meta("ids:orders") is None
    box.store.put_meta("ids:orders", b"1")
    box.store.put_meta("ids:orders", b"2" * 1024 * 1024)
    box.store.put_meta("empty", b"")
    box.close()
    with Outbox.open(outbox_dir) as again:
        assert again.store.get_meta("ids:orders") == b"2" * 1024 * 1024
        assert again.store.get_meta("empty") == b""
        assert again.store.get_meta("ids") is None


@pytest.mark.parametrize(("name", "size"), [("", 1), ("x" * 401, 1), ("ä" * 201, 1), ("a", (1 << 20) + 1)])
def test_meta_records_beyond_the_limits_are_refused(box: Outbox, name: str, size: int) -> None:
    with pytest.raises(InvalidEntry, match="allowed: a name of 1 to 400 bytes, and 1 MiB"):
        box.store.put_meta(name, b"x" * size)
    box.store.put_meta("x" * 400, b"x")
    assert box.store.get_meta("x" * 400) == b"x"


def test_meta_records_are_refused_after_a_failed_write(box: Outbox) -> None:
    box.store._latch("enqueue", OSError("bad disk"))
    with pytest.raises(DurabilityError, match="could not enqueue: bad disk"):
        box.store.put_meta("a", b"x")
    with pytest.raises(DurabilityError, match="could not enqueue: bad disk"):
        box.store.delete_meta("a")
    box.store.put_meta("a", b"x", despite_halt=True)
    assert box.store.delete_meta("a", despite_halt=True)


def test_newer_small_record_has_a_higher_stamp_under_any_clock(box: Outbox, clock: FakeClock) -> None:
    stamps = []
    for elapsed in (0, 0, -100, 5, 1000):
        clock.advance(elapsed)
        box.store.put_meta("a", b"x")
        with raw(box).env.begin() as txn:
            stamps.append(small.unpack(txn.get(small.PREFIX + b"a"), b"a").stamp)
    assert stamps == sorted(set(stamps))
    assert stamps[-1] == box.store._now_us()


class BadDisk:
    """An environment of LMDB that can be read and not written."""

    def __init__(self, env: Any) -> None:
        self._env = env

    def begin(self, *, write: bool = False) -> Any:
        if write:
            raise lmdb.DiskError("bad disk")
        return self._env.begin()

    def close(self) -> None:
        self._env.close()


AUDIT = ledger_module.answer("outbox.test", {}, b"i" * 16)


@pytest.mark.parametrize(
    ("what", "write"),
    [
        ("settle", lambda store: store.settle(Settlement(dropped=[(AUDIT, "why")]))),
        ("quarantine damaged entries", lambda store: store.quarantine([(1, b"", "why")])),
        ("requeue", lambda store: store.requeue(1, AUDIT)),
        ("discard", lambda store: store.discard(1, "why", AUDIT)),
        ("acknowledge", lambda store: store.forget_unledgered(1, AUDIT)),
        ("prune the ledger", lambda store: store.prune(1)),
        ("put back what PostgreSQL has forgotten", lambda store: store.put_back([])),
        ("note a reconciliation", lambda store: store.rebase(UNKNOWN, AUDIT)),
        ("repair", lambda store: store.maintain("repair", lambda environment, txn, counters: None)),
        ("store 'a'", lambda store: store.put_meta("a", b"")),
        ("delete 'a'", lambda store: store.delete_meta("a")),
    ],
)
def test_a_write_that_fails_halts_and_says_what_could_not_be_done(
    box: Outbox, monkeypatch: pytest.MonkeyPatch, what: str, write: Callable[[Store], object]
) -> None:
    told: list[str] = []
    box.store.on_halt = told.append
    with monkeypatch.context() as patched:
        patched.setattr(raw(box), "env", BadDisk(raw(box).env))
        with pytest.raises(DurabilityError, match=re.escape(f"the store could not {what}: bad disk")):
            write(box.store)
    assert told == [f"could not {what}: bad disk"]
    with pytest.raises(DurabilityError, match=re.escape(f"enqueueing is halted: the store could not {what}: bad disk")):
        box.enqueue("log", {})


def test_a_discarded_key_stays_in_use_unless_it_is_freed(box: Outbox) -> None:
    first, second = enqueue(box, 2)
    bury(box, first, second)
    box.store.discard(first.seq, "why", AUDIT)
    assert box.store.figures().idempotency == 2
    box.store.discard(second.seq, "why", AUDIT, free_key=True)
    assert box.store.figures().idempotency == 1


# -- closing


def test_a_closed_store_says_so(box: Outbox) -> None:
    box.close()
    box.close()
    for use in (
        box.status,
        lambda: box.enqueue("log", {}),
        lambda: list(box.pending()),
        lambda: box.store.swap(lambda: None),
        box.store.reader_check,
    ):
        with pytest.raises(StoreClosed, match="is closed.*open it again"):
            use()


def test_a_discarded_key_can_be_freed_for_another_entry(box: Outbox) -> None:
    for free, key in ((False, "kept"), (True, "freed")):
        entry = box.enqueue("log", {"a": 1}, key=key)
        bury(box, *[record for record in box.store.records("pending") if record.seq == entry.seq])
        box.discard(entry.seq, "told", free_key=free)
    with pytest.raises(IdempotencyConflict):
        box.enqueue("log", {"a": 2}, key="kept")
    assert box.enqueue("log", {"a": 2}, key="freed").status is EntryStatus.PENDING


# -- a large settlement


@pytest.mark.slow
def test_a_large_settlement_lets_others_write_in_between(box: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    records = enqueue(box, 700)
    sizes: list[int] = []
    settle = ledger_module.settle

    def counting(environment: Any, txn: Any, counters: Any, settlement: Settlement, *args: Any, **options: Any) -> None:
        sizes.append(len(settlement.completed))
        settle(environment, txn, counters, settlement, *args, **options)

    monkeypatch.setattr(ledger_module, "settle", counting)
    mark = Mark(UUID(int=1), UUID(int=2), 7)
    box.store.settle(Settlement(completed=[(record, b"") for record in records], marks=[mark]))
    assert sizes == [250, 250, 200]
    assert box.store.marks() == [mark]
    assert box.status().completed == 700


def test_settlement_in_parts_divides_no_group_and_repeats_the_marks() -> None:
    def record(seq: int, group: int) -> Record:
        return Record(seq, b"", b"", "log", None, b"", b"", b"{}", b"", group=group)

    groups = [0, 0, *[3] * 5, 0, *[9] * 2, 0]
    completed = [(record(seq, group), b"") for seq, group in enumerate(groups, 1)]
    dead = [(record(20, 0), "no")]
    mark = Mark(UUID(int=1), UUID(int=2), 7)
    parts = Settlement(completed=completed, dead=dead, marks=[mark]).parts(3)
    assert [[item.seq for item, _ in part.completed] for part in parts] == [[1, 2, 3, 4, 5, 6, 7], [8, 9, 10], [11]]
    assert [part.marks for part in parts] == [[mark]] * 3
    assert [part.dead for part in parts] == [[], [], dead]
    assert Settlement(dead=dead).parts(3) == [Settlement(dead=dead)]


def test_history_misses_nothing_that_is_settled_while_it_is_read(box: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reads, "CHUNK", 2)
    for number in range(7):
        box.enqueue("x", {"number": number})
    pending = {record.seq: record for record in box.store.records("pending")}
    # The first waits, as one that is held back, and the second is settled already.
    box.store.settle(Settlement(completed=[(pending[2], b"null")]))
    seen = []
    for record in box.store.records("ledger", "pending"):
        seen.append(record.seq)
        if record.seq == 2:
            box.store.settle(Settlement(completed=[(pending[seq], b"null") for seq in (3, 4, 5, 6)]))
    assert seen == [1, 2, 3, 4, 5, 6, 7]
