"""How fast entries come and go, when the backlog is gone, and when there is no room left."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from outbox import Outbox, OutboxConfig, Relay, StoreFull, TargetUnavailable
from outbox.monitoring.rates import Rates, Room, measure
from outbox.relay.upkeep import Pace
from outbox.store.envelope import Record
from outbox.words import counted, duration, rate
from tests.unit.fakes.rig import FakeClock, Rig

ROOM = Room(
    live_bytes=1_000_000,
    file_bytes=1_000_000,
    max_bytes=100_000_000,
    free_disk_bytes=1 << 40,
    reserve_bytes=0,
    pending=1000,
    ledger=9000,
    dead_letters=0,
    history_may_go=False,
)


def trade(rig: Rig, seconds: int, each_s: int) -> None:
    """Enqueue so many entries a second, and let the relay do its work."""
    for _ in range(seconds):
        rig.enqueue(*[None] * each_s)
        rig.run(1)


def slow(rig: Rig, seconds: float) -> None:
    """Let each batch take so long in PostgreSQL."""

    def take(records: Sequence[Record]) -> None:
        del records
        rig.clock.advance(seconds)

    rig.target.before = take


@pytest.mark.slow
def test_both_rates_are_those_of_the_last_minute(outbox_dir: Path) -> None:
    with Rig(outbox_dir, sync_interval=1) as rig:
        trade(rig, 120, 1)
        trade(rig, 100, 4)
        rates = rig.box.status().rates
        assert rates.window_s is not None
        assert 30 <= rates.window_s <= 62
        assert rates.enqueued_per_s == pytest.approx(4, rel=0.1)
        assert rates.delivered_per_s == pytest.approx(4, rel=0.1)


def test_before_five_seconds_are_over_no_rate_is_known(outbox_dir: Path) -> None:
    with Rig(outbox_dir, sync_interval=1) as rig:
        trade(rig, 3, 10)
        assert rig.box.status().rates == Rates()
        trade(rig, 3, 10)
        assert rig.box.status().rates.enqueued_per_s == pytest.approx(10, rel=0.2)


@pytest.mark.slow
def test_in_an_outage_the_runway_is_that_of_what_is_enqueued(outbox_dir: Path) -> None:
    with Rig(outbox_dir, sync_interval=1, max_size_mb=1, backoff_cap=5) as rig:
        slow(rig, 0.1)
        trade(rig, 60, 10)
        rig.target.down = TargetUnavailable("connection refused")
        trade(rig, 20, 10)
        status = rig.box.status()
        assert status.breaker != "closed"
        rates = status.rates
        assert rates.full_in_s is not None
        assert rates.full_in_s == rates.outage_s
        assert rates.limit == "quota"
        assert rates.drained_in_s is None
        each = status.live_bytes / (status.pending + status.ledger)
        assert rates.full_in_s == pytest.approx(
            (0.85 * (1 << 20) / each - status.pending - status.ledger) / 10, rel=0.1
        )
        assert f"the quota is full in about {duration(rates.full_in_s)}" in status.degraded[-1]
        # It is as it was said: so long enqueueing goes on, within a fifth.
        lasts = 0
        with suppress(StoreFull):  # in the middle of a second
            while not rig.box.status().needs_operator:
                trade(rig, 1, 10)
                lasts += 1
        assert lasts == pytest.approx(rates.full_in_s, rel=0.2)


def test_a_long_runway_does_not_degrade(outbox_dir: Path) -> None:
    with Rig(outbox_dir, sync_interval=1, backoff_cap=5) as rig:
        rig.target.down = TargetUnavailable("connection refused")
        trade(rig, 60, 5)
        status = rig.box.status()
        assert status.rates.full_in_s is not None
        assert status.rates.full_in_s > 3600
        assert [said for said in status.degraded if "full" in said] == []


@pytest.mark.slow
def test_while_a_backlog_is_drained_it_is_known_for_how_long(outbox_dir: Path) -> None:
    with Rig(outbox_dir, batch_size=50, busy_batch_size=50) as rig:
        rig.enqueue(*[None] * 1000)
        slow(rig, 0.5)
        for _ in range(5):
            rig.step()
        left = rig.box.status()
        assert left.relay.alive
        began = rig.clock.monotonic()
        assert left.rates.drained_in_s == pytest.approx(left.pending / 100, rel=0.05)
        rig.settle()
        assert rig.box.status().pending == 0
        assert rig.clock.monotonic() - began == pytest.approx(left.rates.drained_in_s or 0.0, rel=0.15)
        assert rig.box.status().rates.drained_in_s is None


def test_parked_backlog_has_no_end_in_sight(outbox_dir: Path) -> None:
    with Rig(outbox_dir, batch_size=100) as rig:
        slow(rig, 0.5)
        rig.enqueue(*[None] * 200)
        rig.settle()
        rig.target.broken = {"book": TargetUnavailable("42P01: no table")}
        rig.enqueue("a", operation="book")
        rig.enqueue("b")
        rig.step()
        status = rig.box.status()
        assert status.relay.parked
        assert status.rates.drained_in_s is None


def test_without_a_relay_the_oldest_entry_tells_the_rate(outbox_dir: Path) -> None:
    clock = FakeClock()
    with Outbox.open(outbox_dir, OutboxConfig(), clock=clock) as box:
        for number in range(100):
            box.enqueue("log", {"number": number})
            clock.advance(2)
        rates = box.status().rates
        assert (rates.window_s, rates.enqueued_per_s, rates.delivered_per_s) == (200, 0.5, 0)
        assert rates.outage_s is not None
        # How fast PostgreSQL takes them nobody has seen.
        assert rates.drain_then_s is None


def test_a_new_relay_knows_the_speed_of_the_one_before(outbox_dir: Path) -> None:
    with Rig(outbox_dir, batch_size=100, sync_interval=1) as rig:
        rig.enqueue(*[None] * 200)
        slow(rig, 0.5)
        trade(rig, 10, 1)
        before = rig.box.status().rates
        assert before.drain_then_s is not None
        rig.relay.stop()
        after = Relay(rig.box, rig.target)
        rig.target.before = None
        for _ in range(10):
            rig.enqueue(None)
            after.step(rig.clock.monotonic())
            rig.clock.advance(1)
        rates = rig.box.status().rates
        after.stop()
        assert rates.drain_then_s == pytest.approx(before.drain_then_s, rel=0.05)


def test_small_batches_do_not_hide_how_fast_a_backlog_goes() -> None:
    pace = Pace()
    pace.batch(1, 0.1)
    assert pace.published()["speed"] == pytest.approx(10)
    pace.batch(100, 0.5)
    pace.batch(1, 0.1)
    assert pace.published()["speed"] == pytest.approx(200)


@pytest.mark.parametrize(
    ("changes", "more", "limit"),
    [
        ({}, 840_000, "quota"),
        ({"free_disk_bytes": 1_000_000, "reserve_bytes": 500_000}, 5_000, "disk"),
        ({"free_disk_bytes": 1_000_000, "file_bytes": 2_000_000}, 20_000, "disk"),
        ({"history_may_go": True}, 848_000, "quota"),
        ({"history_may_go": True, "dead_letters": 8000}, 840_000, "quota"),
        ({"live_bytes": 90_000_000}, 0, "quota"),
    ],
    ids=str,
)
def test_room_is_what_the_quota_and_the_disk_leave(changes: dict[str, Any], more: int, limit: str) -> None:
    found = replace(ROOM, **changes).entries()
    assert found is not None
    assert found[0] == pytest.approx(more)
    assert found[1] == limit


def test_a_backlog_that_shrinks_has_no_end_of_room() -> None:
    rates = measure(
        {"sample": (0.0, 0, 0), "delivered": 200, "speed": 50.0},
        now=10.0,
        delivering=True,
        relay_alive=True,
        last_seq=100,
        first_pending=1,
        waiting_s=10.0,
        deliverable=400,
        room=ROOM,
    )
    assert (rates.enqueued_per_s, rates.delivered_per_s) == (10, 20)
    assert rates.full_in_s is None
    assert rates.outage_s == pytest.approx(84_000)
    assert rates.drained_in_s == 10
    assert rates.drain_then_s == pytest.approx((840_000 + 1000) / 40)


def test_a_torn_or_older_state_says_nothing() -> None:
    for said in (None, "?", {}, {"sample": None, "delivered": 0, "speed": None}):
        rates = measure(
            said,
            now=10.0,
            delivering=True,
            relay_alive=True,
            last_seq=100,
            first_pending=1,
            waiting_s=10.0,
            deliverable=1,
            room=ROOM,
        )
        assert rates == Rates()


def test_numbers_durations_and_rates_are_written_in_words() -> None:
    assert [counted(n, "entry", "entries") for n in (0, 1, 2)] == ["0 entries", "1 entry", "2 entries"]
    assert counted(2, "dead letter") == "2 dead letters"
    spans = [0.5, 119.9, 120, 7199, 13_200, 200_000, 86_400 * 400]
    assert [duration(span) for span in spans] == [
        "500 ms", "119.9 s", "2 min", "119 min", "3 h 40 min", "2 d 7 h", "more than a year",
    ]  # fmt: skip
    assert [rate(value) for value in (0, 0.01, 0.5, 1, 130.4)] == ["0/s", "36.0/h", "30.0/min", "1.0/s", "130/s"]
