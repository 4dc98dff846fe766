"""Sums that the manager was given at the calls are corrected when a call is settled, and not before."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

from outbox import Outbox
from outbox.clock import SystemClock
from outbox.integrations.host import Host
from outbox.integrations.state.carried import Carried
from outbox.store.ledger import Settlement


def test_a_sum_stays_while_its_call_is_pending_behind_a_settled_one(outbox_dir: Path) -> None:
    manager = SimpleNamespace(session_factory=None, pnl=30)
    host = Host(manager, SystemClock())
    with Outbox.open(outbox_dir) as box:
        carried = Carried(host, box)
        for amount in (10, 20):
            carried.foresee(box.enqueue("log", {"amount": amount}).seq, {"pnl": amount})
        for record in list(box.store.records("pending")):
            box.store.settle(Settlement(completed=[(record, b"")]))
            carried.settle()
            assert manager.pnl == 30


def test_the_sum_of_a_rejected_call_is_taken_back(outbox_dir: Path) -> None:
    manager = SimpleNamespace(session_factory=None, pnl=30)
    host = Host(manager, SystemClock())
    with Outbox.open(outbox_dir) as box:
        carried = Carried(host, box)
        for amount in (10, 20):
            carried.foresee(box.enqueue("log", {"amount": amount}).seq, {"pnl": amount})
        first, second = box.store.records("pending")
        box.store.settle(Settlement(dead=[(first, "refused")]))
        carried.settle()
        assert manager.pnl == 20
        box.store.settle(Settlement(completed=[(second, b"")]))
        carried.settle()
        assert manager.pnl == 20
