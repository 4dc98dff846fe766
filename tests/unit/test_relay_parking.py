"""Parked operations: their entries and what comes behind them wait, are tried again in order, and cost little."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from outbox import EntryRejected, Health, TargetMisconfigured
from outbox.store.ledger import Settlement

from .fakes.rig import Rig

GONE = TargetMisconfigured("table 'books' does not exist", hint="create it; the entries wait")


def test_parked_operation_holds_back_its_keys_in_order(outbox_dir: Path) -> None:
    with Rig(outbox_dir) as rig:
        rig.target.broken = {"book": GONE}
        [first] = rig.enqueue("a")
        [second] = rig.enqueue("a", operation="book")
        [third, other] = rig.enqueue("a", "b")
        [fourth] = rig.enqueue("a", operation="book")
        rig.run(300.0)
        assert rig.target.applied == [first, other]
        status = rig.box.status()
        assert status.health is Health.NEEDS_OPERATOR
        assert status.relay.parked == {"book": str(GONE)}
        assert (status.relay.stopped, status.relay.breaker, status.relay.stuck) == (False, "closed", False)
        [later, fifth] = rig.enqueue("b", "a")
        rig.run(5.0)
        assert rig.target.applied == [first, other, later]
        rig.target.broken = {}
        rig.run(60.0)
        assert rig.target.applied == [first, other, later, second, third, fourth, fifth]
        assert rig.box.status().health is Health.HEALTHY


def test_attempts_are_not_counted_while_an_operation_is_parked(outbox_dir: Path) -> None:
    with Rig(outbox_dir, max_retries=2) as rig:
        rig.target.broken = {"book": GONE}
        [seq] = rig.enqueue("a", operation="book")
        rig.run(3600.0)
        assert (rig.attempts(seq), rig.dead()) == (0, [])


def test_parked_best_effort_operation_holds_nobody_and_drains(outbox_dir: Path) -> None:
    with Rig(outbox_dir) as rig:
        rig.target.broken = {"note": GONE}
        [note] = rig.enqueue("a", operation="note")
        [behind] = rig.enqueue("a")
        assert rig.relay.drain(timeout=5.0)
        assert rig.target.applied == [behind]
        rig.run(3600.0)
        status = rig.box.status()
        assert status.health is Health.DEGRADED
        assert status.relay.parked_best_effort == {"note": str(GONE)}
        assert rig.pending() == [note]


@pytest.mark.parametrize("operation", ["note", "book"])
def test_child_waits_in_its_batch_for_no_parked_best_effort(outbox_dir: Path, operation: str) -> None:
    with Rig(outbox_dir) as rig:
        rig.step()  # what came before the relay would wait
        rig.enqueue("a", operation=operation)
        [child] = rig.enqueue("b")
        rig.target.broken[operation] = TargetMisconfigured("no table")
        rig.target.refuse[child] = EntryRejected("no such parent", permanent=True, sqlstate="23503")
        rig.step()
        assert rig.target.calls == [[1, 2]]
        assert rig.dead() == ([child] if operation == "note" else [])


def test_parking_is_logged_once(outbox_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Rig(outbox_dir) as rig:
        rig.target.broken = {"book": GONE}
        rig.enqueue("a", operation="book")
        rig.run(3600.0)
        assert len([line for line in caplog.records if "is parked: " in line.message]) == 1


@pytest.mark.slow
def test_backlog_of_a_parked_operation_is_not_walked_at_each_try(
    outbox_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Rig(outbox_dir, batch_size=10) as rig:
        rig.clock.jitter = 0.5
        rig.target.broken = {"book": GONE}
        rig.enqueue(*[f"k{number}" for number in range(500)], operation="book")
        rig.run(60.0)
        looked: list[int] = []
        peek = rig.box.store.peek

        def counted(*args: Any, **options: Any) -> Any:
            peeked = peek(*args, **options)
            looked.append(len(peeked.records))
            return peeked

        monkeypatch.setattr(rig.box.store, "peek", counted)
        tries = len(rig.target.calls)
        rig.run(300.0)
        tries = len(rig.target.calls) - tries
        assert tries >= 3
        assert sum(looked) <= 20 * tries
        monkeypatch.undo()
        rig.target.broken = {}
        rig.run(60.0)
        assert rig.target.applied == list(range(1, 501))


def test_parked_operation_whose_entries_are_gone_is_forgotten(outbox_dir: Path) -> None:
    with Rig(outbox_dir) as rig:
        rig.target.broken = {"book": GONE}
        [seq] = rig.enqueue("a", operation="book")
        rig.run(10.0)
        # As an operator's answer takes it out of `pending`.
        [record] = rig.box.store.peek(0, 1).records
        rig.box.store.settle(Settlement(completed=[(record, b"")]))
        assert record.seq == seq
        rig.run(120.0)
        assert rig.box.status().relay.parked == {}
        assert rig.box.status().health is Health.HEALTHY


def test_group_of_two_parked_operations_waits_for_both(outbox_dir: Path) -> None:
    with Rig(outbox_dir) as rig:
        rig.target.broken = {"book": GONE, "note": GONE}
        with rig.box.transaction() as transaction:
            transaction.enqueue("book", {"number": 1}, order_by="a")
            transaction.enqueue("note", {"number": 2}, order_by="b")
        [behind] = rig.enqueue("b")
        rig.run(30.0)
        rig.target.broken = {"note": GONE}
        rig.run(120.0)
        assert rig.target.applied == []
        rig.target.broken = {}
        rig.run(120.0)
        assert rig.target.applied == [1, 2, behind]


def test_outage_while_an_operation_is_tried_again_loses_no_order(outbox_dir: Path) -> None:
    with Rig(outbox_dir) as rig:
        rig.target.broken = {"book": GONE}
        rig.enqueue("a", operation="book")
        rig.enqueue("a", "b")
        rig.run(30.0)
        rig.target.down = TargetMisconfigured("a wrong password")
        rig.run(60.0)
        rig.target.down, rig.target.broken = None, {}
        rig.run(60.0)
        assert rig.target.applied == [3, 1, 2]
