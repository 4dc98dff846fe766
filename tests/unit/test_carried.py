"""Sums that the manager was given at the calls are corrected when a call is settled, and not before."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from outbox import Outbox
from outbox.clock import SystemClock
from outbox.integrations.manager.host import Host
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


def test_a_sum_that_is_taken_back_during_a_call_loses_none(outbox_dir: Path) -> None:
    """The relay's thread settled a refused call between a caller's look at the attribute and its change of it."""
    host: Any = Host(SimpleNamespace(session_factory=None, pnl=30), SystemClock())
    with Outbox.open(outbox_dir) as box:
        carried = Carried(host, box)
        relay, get = threading.Thread(target=carried.take_back, args=({"pnl": 10}, 0)), host.get

        def slowly(name: str) -> Any:
            found = get(name)
            if threading.current_thread() is not relay and not relay.ident:
                relay.start()
                relay.join(0.1)
            return found

        host.get = slowly
        carried.give({"pnl": 5}, behind_seq=0)
        relay.join()
        assert host.built.pnl == 25
