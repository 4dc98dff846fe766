"""Undelivered calls that may change a kept answer are found, and cost little however many wait."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from outbox.integrations.operations import ManagerOperation
from outbox.integrations.view.kept_answers import WaitingWrites


class Store:
    """Counts how often it is asked."""

    def __init__(self) -> None:
        self.pending: set[int] = set()
        self.asked = 0

    def records(self, name: str, on_damage: object = None) -> list[Any]:
        assert name == "pending"
        return []

    def figures(self) -> Any:
        return SimpleNamespace(counters=SimpleNamespace(next_seq=1))

    def is_pending(self, seq: int) -> bool:
        self.asked += 1
        return seq in self.pending


def waiting(store: Store) -> WaitingWrites:
    host, outbox = SimpleNamespace(manager_class=None), SimpleNamespace(store=store)
    return WaitingWrites(cast(Any, host), cast(Any, outbox), {"halt": ManagerOperation("halt")})


def test_oldest_waiting_call_is_found_behind_delivered_ones() -> None:
    store = Store()
    writes = waiting(store)
    for seq in range(1, 2001):
        writes.note("halt", seq)
        store.pending = {1}
    assert writes.of("is_halted") == ("halt", "entry 1")
    store.pending.clear()
    assert writes.of("is_halted") is None
    assert writes.of("is_halted", [("log_trade", "this block"), ("halt", "this block")]) == ("halt", "this block")


def test_long_outage_costs_few_looks_for_each_call() -> None:
    store = Store()
    writes = waiting(store)
    for seq in range(1, 20_001):
        store.pending.add(seq)
        writes.note("halt", seq)
    assert store.asked < 40_000
