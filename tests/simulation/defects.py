"""Deliberate defects, each of which would lose, double, reorder or hide a write; the simulation must find them."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest

from outbox import DurabilityError, EntryRejected
from outbox.calls import Calls
from outbox.errors import TargetUnavailable
from outbox.fate import Failed, Fate
from outbox.monitoring.held_back import HeldBack
from outbox.postgres import lane, receipts, target, watermarks
from outbox.relay.delivery import Delivery
from outbox.relay.link import Breaker
from outbox.relay.reconcile import Reconciler
from outbox.relay.scan import Scan
from outbox.relay.settling import Refusals, Settling
from outbox.store import ledger
from outbox.store.continuity import judge
from outbox.store.envelope import Counters, Record, pack, seq_key
from outbox.store.ledger import Settlement
from outbox.store.store import Store
from outbox.target import Outcome, Unit, free_of

from .database import SimulatedLane, SimulatedTarget, State
from .world import InDeliveryInMemory


def skip_a_poison_row(patch: pytest.MonkeyPatch) -> None:
    real = SimulatedTarget.apply

    def apply(self: SimulatedTarget, store_id: UUID, records: Sequence[Record]) -> Outcome:
        outcome = real(self, store_id, records)
        outcome.completed += [(record, b"") for record, _ in outcome.rejected]
        outcome.failed = outcome.waiting
        return outcome

    patch.setattr(SimulatedTarget, "apply", apply)


def count_outages_as_retries(patch: pytest.MonkeyPatch) -> None:
    real = Delivery._settle

    def settle(self: Any, batch: Any, outcome: Outcome, now: float) -> None:
        if outcome.interruption is not None:
            error = EntryRejected("outage", permanent=False)
            outcome.failed += [Failed([record], error, Fate.RETRIED) for record in batch.records]
        real(self, batch, outcome, now)

    patch.setattr(Delivery, "_settle", settle)


def settle_before_applying(patch: pytest.MonkeyPatch) -> None:
    real = Delivery._apply

    def apply(self: Any, batch: Any) -> Outcome:
        self._box.store.settle(Settlement(completed=[(record, b"") for record in batch.records]))
        return real(self, batch)

    patch.setattr(Delivery, "_apply", apply)


def do_not_hold_back_behind_dead_letters(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(HeldBack, "block", lambda self, unit: None)
    patch.setattr(HeldBack, "holds", lambda self, unit: False)


def forget_waiting_keys(patch: pytest.MonkeyPatch) -> None:
    real = Scan._must_wait

    def must_wait(self: Scan, unit: Unit, batch: Any) -> bool:
        self._walk.waiting_keys = set()
        return real(self, unit, batch)

    patch.setattr(Scan, "_must_wait", must_wait)


def block_backwards(patch: pytest.MonkeyPatch) -> None:
    """What waits behind a refused row also blocks what lies before itself; this was a defect once."""
    real = free_of

    def blocking(part: list[Unit], blocked: set[str], *rest: Any) -> tuple[list[int], set[str]]:
        free, behind = real(part, blocked, *rest)
        blocked |= behind
        return free, behind

    patch.setattr(lane, "free_of", blocking)


def split_groups(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(target, "units", lambda records: ([record] for record in records))


def ignore_receipts(patch: pytest.MonkeyPatch) -> None:
    real = SimulatedLane._apply

    def apply(self: SimulatedLane, record: Record, state: State, index: int) -> None:
        known = state.receipts.pop(record.key, None)
        real(self, record, state, index)
        if known is not None:
            state.receipts[record.key] = known

    patch.setattr(SimulatedLane, "_apply", apply)


def go_on_after_a_durability_error(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Store, "_latch", lambda self, purpose, exc: None)


def do_not_distrust_after_a_failed_settlement(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Scan, "distrust", lambda self: None)
    real = Delivery._settle

    def settle(self: Any, batch: Any, outcome: Outcome, now: float) -> None:
        self._scan.passed(batch, {record.seq for record in batch.records})
        real(self, batch, outcome, now)

    patch.setattr(Delivery, "_settle", settle)


def drop_what_fails_for_an_unlisted_reason(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Refusals, "_is_best_effort", lambda self, unit: True)


def never_look_again_after_an_answer(patch: pytest.MonkeyPatch) -> None:
    real = Scan.next_batch

    def next_batch(self: Scan, now: float, limit: int) -> Any:
        self.releases = self._store.peek(self._walk.cursor, 1).releases
        return real(self, now, limit)

    patch.setattr(Scan, "next_batch", next_batch)


def new_key_for_a_repeated_call(patch: pytest.MonkeyPatch) -> None:
    real = Calls._hash_of
    seen: set[bytes | None] = set()

    def hashed(self: Calls, operation: Any, name: str, args: Any, key: str | None) -> bytes | None:
        # As if nothing but the call itself identified it; the simulation knows entries by the right hash.
        right = real(self, operation, name, args, key)
        if right is None or right not in seen:
            seen.add(right)
            return right
        return right[::-1]

    patch.setattr(Calls, "_hash_of", hashed)


def never_close_the_breaker(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Breaker, "succeeded", lambda self: None)


def take_a_lost_reply_for_a_commit(patch: pytest.MonkeyPatch) -> None:
    real = Delivery._settle

    def settle(self: Any, batch: Any, outcome: Outcome, now: float) -> None:
        if isinstance(outcome.interruption, TargetUnavailable):
            done = {record.seq for record, _ in outcome.completed + outcome.rejected}
            outcome.completed += [(record, b"") for record in batch.records if record.seq not in done]
        real(self, batch, outcome, now)

    patch.setattr(Delivery, "_settle", settle)


def bury_one_member_of_a_group(patch: pytest.MonkeyPatch) -> None:
    real = SimulatedTarget.apply

    def apply(self: SimulatedTarget, store_id: UUID, records: Sequence[Record]) -> Outcome:
        outcome = real(self, store_id, records)
        outcome.completed += [(record, b"") for record, _ in outcome.rejected if record.group not in (0, record.seq)]
        outcome.failed = [one if one.fate.waits else replace(one, unit=one.unit[:1]) for one in outcome.failed]
        return outcome

    patch.setattr(SimulatedTarget, "apply", apply)


def requeue_one_member_of_a_group(patch: pytest.MonkeyPatch) -> None:
    real = ledger._dead
    patch.setattr(ledger, "_dead", lambda txn, environment, seq: real(txn, environment, seq)[-1:])


def requeue_under_a_new_number(patch: pytest.MonkeyPatch) -> None:
    real = ledger.requeue

    def requeue(environment: Any, txn: Any, counters: Counters, seq: int, audit: Record, now_us: int) -> list[Record]:
        released = real(environment, txn, counters, seq, audit, now_us)
        for record in released:
            txn.delete(seq_key(record.seq), db=environment.pending)
            moved = replace(record, seq=counters.next_seq)
            txn.put(seq_key(moved.seq), pack(moved), db=environment.pending)
            counters.next_seq += 1
        return released

    patch.setattr(ledger, "requeue", requeue)


def count_what_a_full_store_could_not_keep_as_kept(patch: pytest.MonkeyPatch) -> None:
    real = ledger.settle

    def settle(*args: Any, keep_ledger: bool) -> None:
        counters = args[2]
        before = counters.unledgered
        real(*args, keep_ledger=keep_ledger)
        counters.unledgered = before

    patch.setattr(ledger, "settle", settle)


def take_a_failed_settlement_for_made(patch: pytest.MonkeyPatch) -> None:
    """A settlement that fails is dropped, as if it had been made."""
    real = Store.settle

    def settle(self: Store, settlement: Settlement) -> None:
        with contextlib.suppress(DurabilityError):
            real(self, settlement)

    patch.setattr(Store, "settle", settle)


def stamp_by_the_wall_clock(patch: pytest.MonkeyPatch) -> None:
    real = Record.numbered
    patch.setattr(
        Record, "numbered", lambda self, seq, last_us, *group: real(self, seq, self.captured_us or last_us, *group)
    )


def try_refused_entries_for_ever(patch: pytest.MonkeyPatch) -> None:
    """A refused entry is tried again at once, for ever."""
    patch.setattr(Breaker, "backoff", lambda self, failures: 0.0)
    real = Delivery._settle

    def settle(self: Any, batch: Any, outcome: Outcome, now: float) -> None:
        outcome.failed = outcome.waiting
        real(self, batch, outcome, now)

    patch.setattr(Delivery, "_settle", settle)


def never_notice_what_postgresql_forgets(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(watermarks, "judge", lambda marks, rows: None)


def put_back_without_the_oldest(patch: pytest.MonkeyPatch) -> None:
    real = Reconciler._first
    patch.setattr(Reconciler, "_first", lambda self, settled_seq: real(self, settled_seq) + 1)


def deliver_while_a_loss_is_not_mended(patch: pytest.MonkeyPatch) -> None:
    """What is new overtakes what PostgreSQL has forgotten."""
    patch.setattr(Delivery, "_mend", lambda self: None)
    patch.setattr(watermarks.RelaySession, "examine", lambda self, cursor: None)


def sound_no_alarm_while_the_store_is_halted(patch: pytest.MonkeyPatch) -> None:
    """Then nothing that PostgreSQL has forgotten is put back either; this was a defect once."""
    real = Store.put_meta

    def put_meta(self: Store, name: str, value: bytes, *, despite_halt: bool = False) -> None:
        real(self, name, value)

    patch.setattr(Store, "put_meta", put_meta)


def forget_what_is_owed_when_recording_fails(patch: pytest.MonkeyPatch) -> None:
    real = Settling.finish

    def finish(self: Any) -> None:
        with contextlib.suppress(DurabilityError), pytest.MonkeyPatch.context() as inner:
            inner.setattr(self._scan, "distrust", lambda: None)
            real(self)

    patch.setattr(Settling, "finish", finish)


def deliver_a_key_on_two_lanes(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(target, "spread", lambda batch, lanes, pinned: [batch[lane::lanes] for lane in range(lanes)])


def look_at_one_lane_only(patch: pytest.MonkeyPatch) -> None:
    """A loss in another lane is not noticed."""
    real = judge
    patch.setattr(watermarks, "judge", lambda marks, rows: real([mark for mark in marks if not mark.lane], rows))


def never_notice_emptied_receipts(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(receipts, "check_there", lambda *args, more: None)


def take_emptied_receipts_for_the_work_of_a_copy(patch: pytest.MonkeyPatch) -> None:
    """Once a copy has delivered, nobody looks whether receipts are there; this was a defect once."""
    real = watermarks.RelaySession.examine

    def examine(self: watermarks.RelaySession, cursor: Any) -> Any:
        loss = judge(self._memory.marks(), self._rows(cursor), self._memory.sessions(), self._memory.last_seq())
        return loss if loss is not None else real(self, cursor)

    patch.setattr(watermarks.RelaySession, "examine", examine)


def discard_what_is_being_delivered(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(InDeliveryInMemory, "holds", lambda self, first, last: False)


def never_ask_for_what_was_discarded(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Reconciler, "confirm_withdrawn", lambda self: None)


def deliver_what_was_discarded_after_it_was_read(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Settling, "_is_current", lambda self: True)


DEFECTS = (
    skip_a_poison_row, count_outages_as_retries, settle_before_applying, do_not_hold_back_behind_dead_letters,
    forget_waiting_keys, block_backwards, split_groups, ignore_receipts, go_on_after_a_durability_error,
    do_not_distrust_after_a_failed_settlement, drop_what_fails_for_an_unlisted_reason, never_look_again_after_an_answer,
    new_key_for_a_repeated_call, never_close_the_breaker, take_a_lost_reply_for_a_commit, bury_one_member_of_a_group,
    requeue_one_member_of_a_group, requeue_under_a_new_number, count_what_a_full_store_could_not_keep_as_kept,
    take_a_failed_settlement_for_made, stamp_by_the_wall_clock, try_refused_entries_for_ever,
    never_notice_what_postgresql_forgets, put_back_without_the_oldest, deliver_while_a_loss_is_not_mended,
    sound_no_alarm_while_the_store_is_halted, forget_what_is_owed_when_recording_fails,
    deliver_a_key_on_two_lanes, look_at_one_lane_only, never_notice_emptied_receipts,
    take_emptied_receipts_for_the_work_of_a_copy, discard_what_is_being_delivered, never_ask_for_what_was_discarded,
    deliver_what_was_discarded_after_it_was_read,
)  # fmt: skip
