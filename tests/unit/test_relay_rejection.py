"""Rejected entries: how often they are tried, what waits behind them, and what an operator's answer releases."""

from __future__ import annotations

from pathlib import Path

import pytest

from outbox import EntryRejected, EntryStatus, Health
from outbox.monitoring.held_back import counts, held_back
from tests.unit.fakes.rig import Rig, passing, permanent


def test_permanent_rejection_is_a_dead_letter_and_holds_its_key(outbox_dir: Path) -> None:
    with Rig(outbox_dir) as rig:
        a1, b1, a2, none, b2 = rig.enqueue("a", "b", "a", None, "b")
        rig.target.refuse[a1] = permanent("23505: duplicate key")
        rig.settle()
        assert rig.target.applied == [b1, none, b2]
        assert rig.pending() == [a2]
        [letter] = rig.box.dead_letters()
        assert (letter.seq, letter.status, letter.attempts) == (a1, EntryStatus.FAILED, 1)
        assert letter.error == "23505: duplicate key"
        status = rig.box.status()
        assert (status.dead_letters, status.held_back, status.pending) == (1, 1, 1)
        assert status.health is Health.NEEDS_OPERATOR
        assert status.breaker == "closed"


def test_declined_entry_is_a_dead_letter_and_holds_nothing(outbox_dir: Path) -> None:
    with Rig(outbox_dir) as rig:
        first, second = rig.enqueue("a", "a")
        rig.target.refuse[first] = EntryRejected("declined", permanent=True, holds_back=False)
        rig.settle()
        assert rig.target.applied == [second]
        assert rig.dead() == [first]
        assert rig.box.status().held_back == 0
    with Rig(outbox_dir) as rig:
        third = rig.enqueue("a")
        rig.settle()
        assert rig.target.applied == third


def test_dead_letter_holds_later_entries_of_its_key_after_a_restart(outbox_dir: Path) -> None:
    with Rig(outbox_dir, batch_size=2) as rig:
        [a1] = rig.enqueue("a")
        rig.target.refuse[a1] = permanent()
        rig.settle()
        held = rig.enqueue("a", "a", "a", "a", "a")
        free = rig.enqueue("b")
        rig.settle()
        assert rig.target.applied == free
        assert rig.box.status().held_back == 5
    with Rig(outbox_dir) as rig:
        free = rig.enqueue("b")
        rig.settle()
        assert rig.target.applied == free
        assert rig.pending() == held
        assert rig.box.status().held_back == 5


def test_status_without_a_relay_counts_held_back_entries(outbox_dir: Path) -> None:
    with Rig(outbox_dir) as rig:
        [bad] = rig.enqueue("a")
        rig.target.refuse[bad] = permanent()
        rig.settle()
    with Rig(outbox_dir) as rig:
        for number in range(1, 4):
            rig.enqueue("a", "b")
            with rig.box.transaction() as transaction:
                transaction.enqueue("write", {"n": 1}, order_by="b")
                transaction.enqueue("write", {"n": 1}, order_by="c")
            # Those behind the letter, and nothing else: not counted twice, nor forgotten.
            assert rig.box.status().held_back == number
            assert counts(rig.box.store.records("pending"), rig.box.store.dead()) == {bad: number}
        rig.box.requeue(bad)
        assert rig.box.status().held_back == 0


def test_entries_without_ordering_key_wait_for_nobody(outbox_dir: Path) -> None:
    with Rig(outbox_dir) as rig:
        first, second = rig.enqueue(None, None)
        rig.target.refuse[first] = permanent()
        rig.settle()
        assert rig.target.applied == [second]
        assert rig.dead() == [first]


@pytest.mark.parametrize("max_retries", [0, 1, 3])
def test_a_rejection_that_may_pass_is_tried_max_retries_times_more(outbox_dir: Path, max_retries: int) -> None:
    with Rig(outbox_dir, max_retries=max_retries) as rig:
        bad, behind, other = rig.enqueue("a", "a", "b")
        rig.target.refuse[bad] = passing()
        for tried in range(1, max_retries + 1):
            rig.clock.advance(rig.settle())
            assert rig.attempts(bad) == tried
            assert next(iter(rig.box.pending())).error == "refused for now"
            # Meanwhile it holds its key.
            assert rig.pending() == [bad, behind]
            assert rig.dead() == []
        rig.settle()
        assert rig.dead() == [bad]
        assert sum(bad in call for call in rig.target.calls) == max_retries + 1
        assert next(iter(rig.box.dead_letters())).attempts == max_retries + 1
        assert rig.target.applied == [other]
        assert rig.box.status().held_back == 1


def test_a_rejection_that_passes_is_forgotten_and_its_key_kept_order(outbox_dir: Path) -> None:
    with Rig(outbox_dir) as rig:
        rig.clock.jitter = 0.5
        bad, behind = rig.enqueue("a", "a")
        rig.target.refuse[bad] = passing()
        wait = rig.step()
        assert wait == pytest.approx(0.05)
        assert rig.attempts(bad) == 1
        assert rig.box.status().health is not Health.NEEDS_OPERATOR
        # Before its time it is not tried, and nothing overtakes it.
        late = rig.enqueue("a", "b")
        rig.settle()
        assert rig.target.applied == [late[1]]
        del rig.target.refuse[bad]
        rig.run(10.0)
        assert rig.target.applied == [late[1], bad, behind, late[0]]
        assert rig.dead() == []


def test_retries_of_an_entry_back_off_with_jitter_up_to_the_cap(outbox_dir: Path) -> None:
    with Rig(outbox_dir, backoff_base=1.0, backoff_cap=10.0, sync_interval=3600, max_retries=7) as rig:
        rig.clock.jitter = 0.999
        [bad] = rig.enqueue(None)
        rig.target.refuse[bad] = passing()
        waits = []
        for _ in range(8):
            waits.append(rig.step())
            rig.clock.advance(waits[-1])
        assert rig.dead() == [bad]
        assert waits[:-1] == pytest.approx([0.999 * limit for limit in (1, 2, 4, 8, 10, 10, 10)])


def test_several_due_rejections_of_one_key_keep_their_order(outbox_dir: Path) -> None:
    with Rig(outbox_dir, batch_size=3) as rig:
        seqs = rig.enqueue("a", "b", "a", "b", "a", "b")
        rig.target.refuse[seqs[0]] = passing()
        rig.target.refuse[seqs[1]] = passing()
        rig.run(1.0)
        assert rig.target.applied == []
        rig.target.refuse.clear()
        rig.run(60.0)
        assert sorted(rig.target.applied) == seqs
        assert [seq for seq in rig.target.applied if seq in seqs[::2]] == seqs[::2]
        assert [seq for seq in rig.target.applied if seq in seqs[1::2]] == seqs[1::2]


def test_a_refused_best_effort_entry_is_dropped_and_holds_nobody(outbox_dir: Path) -> None:
    with Rig(outbox_dir) as rig:
        [note] = rig.enqueue("a", operation="note")
        [write] = rig.enqueue("a")
        rig.target.refuse[note] = permanent("too long")
        rig.settle()
        assert rig.target.applied == [write]
        status = rig.box.status()
        assert (status.dead_letters, status.discarded, status.pending) == (0, 1, 0)
        assert status.health is not Health.NEEDS_OPERATOR
        assert [(entry.seq, entry.error) for entry in rig.box.ledger() if entry.error] == [(note, "too long")]


def test_a_best_effort_entry_that_waits_for_its_retry_holds_nobody(outbox_dir: Path) -> None:
    with Rig(outbox_dir) as rig:
        rig.clock.jitter = 0.5
        [note] = rig.enqueue("a", operation="note")
        [write] = rig.enqueue("a")
        rig.target.refuse[note] = passing()
        rig.settle()
        [late] = rig.enqueue("a")
        rig.settle()
        assert rig.target.applied == [write, late]
        # Nor is it tried again before it is due, only because others are delivered.
        assert rig.target.calls == [[note, write], [late]]


def test_a_best_effort_entry_is_dropped_after_its_retries(outbox_dir: Path) -> None:
    with Rig(outbox_dir, max_retries=2) as rig:
        [note] = rig.enqueue(None, operation="note")
        rig.target.refuse[note] = passing()
        rig.run(60.0)
        assert len(rig.target.calls) == 3
        status = rig.box.status()
        assert (status.dead_letters, status.discarded, status.pending) == (0, 1, 0)


def test_a_refused_group_is_dead_as_a_whole_and_holds_all_its_keys(outbox_dir: Path) -> None:
    with Rig(outbox_dir) as rig:
        group = rig.group("a", "b", None)
        a, b, c = rig.enqueue("a", "b", "c")
        rig.target.refuse[group[1]] = permanent()
        rig.settle()
        assert rig.dead() == group
        assert rig.target.applied == [c]
        assert rig.pending() == [a, b]
        assert rig.box.status().held_back == 2


@pytest.mark.parametrize("together", [True, False])
def test_a_held_back_group_holds_the_other_keys_it_spans(outbox_dir: Path, together: bool) -> None:
    with Rig(outbox_dir, batch_size=2) as rig:
        [dead] = rig.enqueue("a")
        rig.target.refuse[dead] = permanent()
        if not together:
            rig.settle()
        group = rig.group("a", "b")
        chained = rig.group("b", "c")
        behind = rig.enqueue("c")
        free = rig.enqueue("d")
        rig.settle()
        assert rig.target.applied == free
        assert rig.pending() == group + chained + behind
        assert rig.box.status().held_back == 5
        pending, letters = list(rig.box.store.records("pending")), rig.box.store.dead()
        assert [record.seq for record in held_back(pending, letters)] == group + chained + behind
        assert counts(pending, letters) == {dead: 5}
        rig.target.refuse.clear()
        rig.box.requeue(dead)
        rig.settle()
        assert rig.target.applied == [*free, dead, *group, *chained, *behind]
        assert rig.box.status().held_back == 0


def test_entry_behind_two_dead_letters_is_counted_for_both(outbox_dir: Path) -> None:
    with Rig(outbox_dir) as rig:
        first, second = rig.enqueue("a", "b")
        rig.target.refuse.update({first: permanent(), second: permanent()})
        rig.settle()
        rig.enqueue("a")
        rig.group("a", "b")
        rig.enqueue("b", "c")
        pending, letters = list(rig.box.store.records("pending")), rig.box.store.dead()
        assert counts(pending, letters) == {first: 4, second: 3}


def test_pending_entry_before_a_dead_letter_is_not_held_back(outbox_dir: Path) -> None:
    with Rig(outbox_dir) as rig:
        before, dead, behind = rig.enqueue("a", "a", "a")
        pending = list(rig.box.store.records("pending"))
        assert [record.seq for record in held_back(pending, [(dead, "a")])] == [behind]
        assert counts(pending, [(dead, "a")]) == {dead: 1}
        assert before in rig.pending()


def test_held_back_counts_only_what_is_behind_dead_letters(outbox_dir: Path) -> None:
    with Rig(outbox_dir) as rig:
        rig.clock.jitter = 0.5
        dead, waiting, *_ = rig.enqueue("a", "b", "b", "b")
        rig.target.refuse.update({dead: permanent(), waiting: passing()})
        rig.settle()
        assert rig.box.status().dead_letters == 1
        assert rig.box.status().held_back == 0


def test_requeue_delivers_the_dead_letter_first_and_then_what_it_held(outbox_dir: Path) -> None:
    with Rig(outbox_dir, batch_size=2) as rig:
        seqs = rig.enqueue("a", "a", "a", "a", "a")
        rig.target.refuse[seqs[0]] = permanent()
        rig.settle()
        other = rig.enqueue("b")
        rig.settle()
        rig.target.refuse.clear()
        [released] = rig.box.requeue(seqs[0])
        assert (released.seq, released.attempts) == (seqs[0], 0)
        rig.settle()
        assert rig.target.applied == other + seqs
        assert rig.box.status().health is Health.HEALTHY


def test_requeue_of_what_is_refused_again_holds_again(outbox_dir: Path) -> None:
    with Rig(outbox_dir) as rig:
        bad, behind = rig.enqueue("a", "a")
        rig.target.refuse[bad] = permanent()
        rig.settle()
        rig.box.requeue(bad)
        rig.settle()
        assert rig.dead() == [bad]
        assert rig.pending() == [behind]
        assert rig.box.status().held_back == 1


def test_discard_releases_what_was_held_in_order(outbox_dir: Path) -> None:
    with Rig(outbox_dir) as rig:
        bad, *behind = rig.enqueue("a", "a", "a")
        rig.target.refuse[bad] = permanent()
        rig.settle()
        rig.box.discard(bad, "sold by hand")
        rig.settle()
        assert rig.target.applied == behind
        status = rig.box.status()
        assert (status.discarded, status.dead_letters, status.held_back, status.pending) == (1, 0, 0, 0)


def test_one_answer_of_two_releases_only_its_own_key(outbox_dir: Path) -> None:
    with Rig(outbox_dir) as rig:
        a1, b1, a2, b2 = rig.enqueue("a", "b", "a", "b")
        rig.target.refuse.update({a1: permanent(), b1: permanent()})
        rig.settle()
        assert rig.box.status().held_back == 2
        rig.box.discard(b1, "known")
        rig.settle()
        assert rig.target.applied == [b2]
        assert rig.pending() == [a2]
        assert rig.box.status().held_back == 1


def test_requeue_of_a_group_applies_it_whole_again(outbox_dir: Path) -> None:
    with Rig(outbox_dir, batch_size=1) as rig:
        group = rig.group("a", "b", "c")
        rig.target.refuse[group[2]] = permanent()
        rig.settle()
        rig.target.refuse.clear()
        rig.box.requeue(group[1])
        rig.settle()
        assert rig.target.applied == group
        assert rig.target.calls[-1] == group


def test_a_mixed_group_is_dead_as_a_whole_and_can_be_requeued(outbox_dir: Path) -> None:
    with Rig(outbox_dir) as rig:
        with rig.box.transaction() as transaction:
            transaction.enqueue("write", {"number": 1}, order_by="a")
            transaction.enqueue("note", {"number": 2}, order_by="a")
        write, note = (entry.seq for entry in transaction.entries)
        rig.target.refuse[write] = permanent()
        rig.settle()
        assert write in rig.dead()
        rig.target.refuse.clear()
        rig.box.requeue(write)
        rig.settle()
        assert rig.target.applied == [write, note]
        assert rig.dead() == []


def test_discarding_a_group_gives_up_all_of_it_and_releases_its_keys(outbox_dir: Path) -> None:
    with Rig(outbox_dir) as rig:
        group = rig.group("a", "b")
        behind = rig.enqueue("b", "a")
        rig.target.refuse[group[0]] = permanent()
        rig.settle()
        rig.box.discard(group[1], "booked by hand")
        rig.settle()
        assert rig.target.applied == behind
        assert rig.box.status().discarded == 2


def test_best_effort_entry_waits_for_its_retry_after_another_release(outbox_dir: Path) -> None:
    with Rig(outbox_dir, backoff_base=100.0, backoff_cap=100.0) as rig:
        rig.clock.jitter = 1.0
        [note] = rig.enqueue("a", operation="note")
        [bad] = rig.enqueue("b")
        rig.target.refuse = {note: passing(), bad: permanent()}
        rig.settle()
        rig.target.refuse.clear()
        rig.box.requeue(bad)
        rig.settle()
        assert rig.target.applied == [bad]
        rig.run(101.0)
        assert rig.target.applied == [bad, note]
