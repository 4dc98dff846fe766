"""A full disk and a full store: trading halts with a clear reason, draining goes on, nothing is lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from outbox import Outbox, OutboxConfig, PostgresTarget, Relay
from tests.faults import small_disk
from tests.faults.drill import Drill, Report, Steps
from tests.faults.invariants import check
from tests.unit.fakes.audit import OPERATIONS
from tests.unit.fakes.waiting import LONG

_MIB = 1 << 20


@pytest.fixture
def drill(outbox_dir: Path, postgres_url: str) -> Drill:
    return Drill(outbox_dir, postgres_url).create()


@pytest.fixture
def small(drill: Drill) -> Drill:
    reason = small_disk.available(drill.directory.parent)
    if reason:
        pytest.skip(reason)
    return drill


def judged(drill: Drill, report: Report, **more: Any) -> list[str]:
    """What the invariants say of a store that only its process could see."""
    [(stored, counters, status)] = report.of("contents")
    return check(drill.judge(stored, counters, status, **more))


def statuses(report: Report) -> list[dict[str, Any]]:
    return [status for (status,) in report.of("status")]


def reasons(report: Report, kind: str) -> list[str]:
    return [why for _, _, why in report.of(kind)]


def test_a_file_that_cannot_grow(drill: Drill) -> None:
    """As a full disk, by a limit that needs no privilege."""
    steps: Steps = [
        ("open",),
        ("enqueue", 0, 60, 1500),
        ("drain",),
        ("enqueue", 100, 100, 1500),
        ("limit", 0),
        ("fill", 200, 500, 1500),
        ("enqueue", 800, 2),
        ("status",),
        ("drain",),
        ("status",),
        ("limit", None),
        # There is room again, but nobody has verified the store.
        ("enqueue", 810, 2),
        ("close",),
        ("open",),
        ("enqueue", 820, 2),
    ]
    report = drill.run(steps)
    full, drained = statuses(report)
    assert full["halted"]
    assert full["pending"] >= 100
    assert full["health"] == "needs_operator"
    assert report.of("drained") == [(True,), (True,)]
    assert (drained["pending"], drained["completed"]) == (0, drained["acknowledged"])
    first, *later = reasons(report, "in doubt")
    assert "the store could not enqueue" in first
    assert len(later) == 4
    assert all("enqueueing is halted: the store could not enqueue" in why for why in later)
    assert report.of("opened") == [(False,), (True,)]
    assert [number for number, *_ in report.of("acknowledged")][-2:] == [820, 821]
    drill.finish()


def test_full_disk_drains_after_a_restart_and_resumes_with_free_space(small: Drill) -> None:
    small.settings = {"min_free_mb": 0}
    report = small.run(
        [
            ("small_disk", 8 * _MIB),
            ("open",),
            ("enqueue", 0, 40, 1500),
            ("drain",),
            ("enqueue", 100, 300, 1500),
            ("ballast", 0),
            ("fill", 1000, 2000, 1500),
            ("enqueue", 4000, 2),
            ("status",),
            ("close",),
            # The engine comes back, and is told again; a relay of its own drains.
            ("open",),
            ("fill", 5000, 2000, 1500),
            ("close",),
            ("attach",),
            ("drain",),
            ("status",),
            ("close",),
            ("ballast", 4 * _MIB),
            ("open",),
            ("enqueue", 8000, 3, 1500),
            ("drain",),
            ("contents",),
        ]
    )
    full, drained = statuses(report)
    assert full["halted"]
    assert "No space left on device" in reasons(report, "in doubt")[0]
    assert "No space left on device" in full["halt_reason"]
    assert full["free_disk_bytes"] == 0
    assert report.of("drained") == [(True,)] * 3
    assert drained["pending"] == 0
    # Each opening after a halt verified the store.
    assert report.of("opened") == [(False,), (True,), (True,), (False,)]
    assert [number for number, *_ in report.of("acknowledged")][-3:] == [8000, 8001, 8002]
    assert judged(small, report, calm=True) == []


def test_nearly_full_disk_gives_a_warning_and_then_refuses_entries(small: Drill) -> None:
    small.settings = {"min_free_mb": 16}
    report = small.run(
        [
            ("small_disk", 24 * _MIB),
            ("open",),
            ("status",),
            ("enqueue", 0, 3),
            ("ballast", 10 * _MIB),
            ("status",),
            ("fill", 100, 5000, 4000),
            ("status",),
            ("drain",),
            ("status",),
            ("ballast", 12 * _MIB),
            # Not sticky: nothing has failed.
            ("enqueue", 8000, 3),
            ("drain",),
            ("contents",),
        ]
    )
    roomy, warned, refusing, drained = statuses(report)
    assert (roomy["degraded"], roomy["needs_operator"]) == ([], [])
    assert "10 MiB of disk are free, less than min_free_mb=16" in warned["degraded"]
    assert warned["needs_operator"] == []
    [why] = reasons(report, "refused")
    assert "1 MiB are kept for draining" in why
    assert "halt trading and free disk space" in why
    assert refusing["needs_operator"] == [
        "enqueueing is refused: 1 MiB of disk are free, 1 MiB are kept for draining; free disk space"
    ]
    assert not refusing["halted"]
    # What was kept was enough to keep the ledger.
    assert (drained["pending"], drained["unledgered"]) == (0, 0)
    assert report.of("drained") == [(True,)] * 2
    assert [number for number, *_ in report.of("acknowledged")][-3:] == [8000, 8001, 8002]
    assert judged(small, report, calm=True) == []


def test_a_full_quota_refuses_entries_drains_and_can_be_raised(drill: Drill) -> None:
    drill.settings = {"max_size_mb": 1}
    report = drill.run(
        [
            ("open",),
            ("fill", 0, 2000, 1500),
            ("enqueue", 3000, 2, 1500),
            ("status",),
            ("drain",),
            ("status",),
        ]
    )
    full, drained = statuses(report)
    assert len(reasons(report, "refused")) == 3
    assert "85 % of max_size_mb=1" in reasons(report, "refused")[0]
    assert "raise max_size_mb" in reasons(report, "refused")[0]
    assert not full["halted"]
    assert any("the store is full" in said for said in full["needs_operator"])
    assert report.of("drained") == [(True,)]
    assert (drained["pending"], drained["unledgered"]) == (0, 0)
    # The ledger fills it still, until it is pruned or the quota is raised.
    assert len(reasons(drill.run([("open",), ("enqueue", 4000, 1, 1500)]), "refused")) == 1
    drill.settings = {"max_size_mb": 2}
    raised = drill.run([("open",), ("enqueue", 5000, 20, 1500), ("status",)])
    assert len(raised.of("acknowledged")) == 20
    assert statuses(raised)[0]["acknowledged"] == drained["acknowledged"] + 20
    drill.finish()


def test_quota_above_the_address_space_is_lowered_without_a_halt(drill: Drill) -> None:
    drill.settings = {"max_size_mb": 65536}
    report = drill.run([("address_space", 6 << 30), ("open",), ("status",)])
    [status] = statuses(report)
    assert status["map_bytes"] < 6 << 30
    assert status["max_bytes"] == status["map_bytes"]


def test_unrecorded_dead_letter_stays_pending_until_there_is_room(outbox_dir: Path, postgres_url: str) -> None:
    """On a full disk a rejected entry stays pending, visible, and is recorded when there is room."""
    drill = Drill(outbox_dir, postgres_url).create()
    with Outbox.open(outbox_dir, OutboxConfig(backoff_base=0.01, backoff_cap=0.02), OPERATIONS) as box:
        for number in range(4):
            account = "x" if number else None  # NOT NULL refuses it
            box.enqueue("trade", {"number": number, "account": account}, key=f"trade-{number}")
        del drill
        relay = Relay(box, PostgresTarget(postgres_url, OPERATIONS))
        real, fails = box.store._settle, [3]

        def settle(settlement: Any, *, keep_ledger: bool) -> None:
            if settlement.dead and fails[0]:
                fails[0] -= 1
                with box.store._write("settle"):
                    raise OSError(28, "No space left on device")
            real(settlement, keep_ledger=keep_ledger)

        box.store._settle = settle  # type: ignore[method-assign]
        assert not relay.drain(0.0)
        status = box.status()
        assert (status.pending, status.completed, status.dead_letters) == (1, 3, 0)
        assert status.halted
        assert relay.drain(LONG)
        status = box.status()
        assert (status.pending, status.completed, status.dead_letters) == (0, 3, 1)
        relay.stop()
