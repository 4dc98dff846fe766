"""Sums that the manager was given at the calls are corrected when a call is settled, and not before."""

from __future__ import annotations

import copy
import threading
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from outbox import Outbox
from outbox.clock import SystemClock
from outbox.integrations.manager.host import Host
from outbox.integrations.state.carried import Carried
from outbox.integrations.state.kept_state import Changes
from outbox.integrations.state.merging import Change
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


@pytest.mark.parametrize("noted", [{"values": {"fills": [1]}}, {"values": {}, "large": {"fills": {"added": [2]}}}])
def test_shared_list_keeps_what_came_since_the_call(outbox_dir: Path, noted: Mapping[str, Any]) -> None:
    """A replay begins with the list as it was; the attribute beside it, which nothing was noted of, holds it too."""
    host: Any = Host(SimpleNamespace(session_factory=None, book=[1, 2]), SystemClock())
    manager = host.built
    manager.fills = manager.book
    with Outbox.open(outbox_dir) as box:
        carried, entry = Carried(host, box), box.enqueue("log", {})
        replica, kept = carried.begin(lambda: copy.copy(manager), entry, {"absent": [], **noted}, ())
        kept.contact()
        replica.fills.append(3)
        carried.end(kept, entry, {})
        box.store.settle(Settlement(completed=[(one, b"") for one in box.store.records("pending")]))
        carried.settle()
    assert manager.book is manager.fills
    assert manager.fills == [1, 2, 3]


def test_call_begins_with_all_that_calls_before_it_have_changed(outbox_dir: Path) -> None:
    """Of two attributes that hold one list, the values of one were noted."""
    host: Any = Host(SimpleNamespace(session_factory=None, book=[1, 2]), SystemClock())
    manager = host.built
    manager.fills = manager.book
    with Outbox.open(outbox_dir) as box:
        carried, noted = Carried(host, box), {"absent": [], "values": {"fills": []}}
        noted["seen"] = {"process": 1, "at": 0}
        carried._unseen.add(1, 1, Changes({"fills": Change([], [1, 2])}))
        box.enqueue("log", {})
        _, kept = carried.begin(lambda: copy.copy(manager), box.enqueue("log", {}), noted, ())
        assert kept.replica.book == [1, 2]
        assert not kept.changes()
