"""A batch takes about as long as it is meant to, however long its entries take."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from outbox.target import Outcome
from tests.unit.fakes.rig import Rig

pytestmark = pytest.mark.slow


def slow(rig: Rig, monkeypatch: pytest.MonkeyPatch, entry_s: float, batch_s: float = 0.0) -> list[float]:
    """Let each entry, and each batch beside, take so many seconds; the seconds of each batch."""
    batches: list[float] = []
    apply = rig.target.apply

    def take_long(store_id: UUID, records: Sequence[Any]) -> Outcome:
        batches.append(batch_s + entry_s * len(records))
        rig.clock.advance(batches[-1])
        return apply(store_id, records)

    monkeypatch.setattr(rig.target, "apply", take_long)
    return batches


def test_slow_entries_never_take_the_stall_timeout(outbox_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As calls of a manager over a long line: a whole batch of 1,000 would take a minute."""
    with Rig(outbox_dir) as rig:
        rig.enqueue(*[None] * 400)
        batches = slow(rig, monkeypatch, 0.06)
        rig.settle()
        assert max(batches) <= 3.0
        # What was read ahead, before it was known how long it takes, is taken as it is.
        assert all(0.5 <= took <= 1.0 for took in batches[4:-1])
        assert rig.pending() == []


def test_short_stall_timeout_makes_batches_shorter(outbox_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Rig(outbox_dir, stall_timeout=2.0) as rig:
        rig.enqueue(*[None] * 200)
        batches = slow(rig, monkeypatch, 0.02)
        rig.settle()
        assert max(batches[4:]) <= 0.2


def test_quick_entries_fill_whole_batches(outbox_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Rig(outbox_dir, batch_size=150) as rig:
        rig.enqueue(*[None] * 500)
        slow(rig, monkeypatch, 0.0001)
        rig.settle()
        assert [len(call) for call in rig.target.calls] == [50, 100, 150, 150, 50]


def test_one_slow_entry_halves_the_batch_at_most(outbox_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Rig(outbox_dir) as rig:
        rig.enqueue(*[None] * 50)
        rig.step()
        rig.enqueue(None)
        with monkeypatch.context() as once:
            slow(rig, once, 5.0)
            rig.settle()
        rig.clock.advance(61)
        rig.target.calls.clear()
        rig.enqueue(*[None] * 100)
        rig.settle()
        assert len(rig.target.calls[0]) >= 50


def test_slow_commits_leave_batches_large(outbox_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As over a line of 0.2 s a round trip: a smaller batch takes as long."""
    with Rig(outbox_dir) as rig:
        slow(rig, monkeypatch, 0.001, batch_s=1.2)
        for _ in range(10):
            rig.enqueue(None)
            rig.settle()
        rig.enqueue(*[None] * 2000)
        rig.step()
        rig.clock.advance(61)
        rig.settle()
        assert rig.pending() == []
        assert len(rig.target.calls) <= 25


def test_slow_commits_from_the_start_leave_batches_large(outbox_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Rig(outbox_dir, stall_timeout=2.0) as rig:
        rig.enqueue(*[None] * 2000)
        slow(rig, monkeypatch, 0.0001, batch_s=0.4)
        rig.settle()
        assert rig.pending() == []
        assert len(rig.target.calls) <= 10


def test_entry_of_half_the_stall_timeout_goes_alone(outbox_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of them would stall, and each second batch would be thrown away."""
    with Rig(outbox_dir, batch_size=4) as rig:
        rig.enqueue(*[None] * 16)
        batches = slow(rig, monkeypatch, 20.0)
        rig.settle()
        assert batches[-3:] == [20.0, 20.0, 20.0]
