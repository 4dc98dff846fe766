"""The last word of a relay stays: its end, and the start of the next one, do not improve the status."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from outbox import (
    Health,
    Operation,
    Outbox,
    OutboxConfig,
    PostgresTarget,
    Relay,
    TargetMisconfigured,
    TargetUnavailable,
)
from tests.unit.fakes.rig import Rig
from tests.unit.fakes.waiting import until


def _stopped(rig: Rig) -> None:
    rig.enqueue("a")
    rig.target.down = TargetMisconfigured("28P01: password authentication failed")
    rig.settle()


def test_status_of_an_ended_relay_says_why_the_line_was_stopped(outbox_dir: Path) -> None:
    with Rig(outbox_dir) as rig:
        _stopped(rig)
        before = rig.box.status()
        since = rig.clock.now()
        rig.clock.advance(60)
        rig.relay.stop()
        status = rig.box.status()
        assert (before.health, status.health) == (Health.NEEDS_OPERATOR, Health.NEEDS_OPERATOR)
        [said] = status.needs_operator
        assert said.startswith(
            "the line is stopped: 28P01: password authentication failed (the relay has ended; this began at "
        )
        assert f"began at {since:%Y-%m-%d %H:%M:%S} UTC" in said
        assert status.degraded == ["no relay is running and 1 entry waits; start the engine or its relay"]
        assert status.relay.since == since
        assert status.as_dict()["relay"]["since"] == since.isoformat()


def test_next_relay_keeps_the_word_until_it_knows_better(outbox_dir: Path) -> None:
    with Rig(outbox_dir) as rig:
        _stopped(rig)
        rig.relay.stop()
        later = Relay(rig.box, rig.target)
        later._take_role()
        later._delivery.publish(rig.clock.monotonic(), force=True)
        assert rig.box.status().needs_operator == ["the line is stopped: 28P01: password authentication failed"]
        rig.target.down = TargetUnavailable("connection refused")
        for _ in range(5):
            rig.clock.advance(30)
            later.step(rig.clock.monotonic())
        assert rig.box.status().health is Health.DEGRADED
        rig.target.down = None
        rig.clock.advance(60)
        later.step(rig.clock.monotonic())
        assert rig.box.status().health is Health.HEALTHY
        later.stop()
        assert rig.box.status().health is Health.HEALTHY


def test_next_relay_that_finds_nothing_to_do_is_healthy(outbox_dir: Path) -> None:
    with Rig(outbox_dir) as rig:
        _stopped(rig)
        rig.relay.stop()
        [seq] = rig.pending()
        later = Relay(rig.box, rig.target)
        rig.target.down = None
        later.step(rig.clock.monotonic())
        assert rig.pending() == []
        later.step(rig.clock.monotonic())
        later.stop()
        assert (rig.box.status().health, seq) == (Health.HEALTHY, 1)


def test_parked_operation_and_outage_of_an_ended_relay_are_shown(outbox_dir: Path) -> None:
    with Rig(outbox_dir) as rig:
        rig.enqueue("a", operation="book")
        rig.enqueue("b", operation="note")
        rig.target.broken = {name: TargetMisconfigured(f"no table for {name}") for name in ("book", "note")}
        rig.settle()
        rig.relay.stop()
        status = rig.box.status()
        [said] = status.needs_operator
        assert said.startswith("operation 'book' is parked, its entries wait: no table for book (the relay has ended")
        assert "operation 'note' is parked, its best-effort entries wait: no table" in status.degraded[0]


def test_slow_entry_of_an_ended_relay_is_shown(outbox_dir: Path) -> None:
    with Rig(outbox_dir) as rig:
        [slow] = rig.enqueue("a")
        rig.target.stalls = {slow}
        for _ in range(9):
            rig.clock.advance(60)
            rig.relay.step(rig.clock.monotonic())
        assert rig.box.status().relay.slow == slow
        rig.relay.stop()
        later = Relay(rig.box, rig.target)
        later._take_role()
        later._delivery.publish(rig.clock.monotonic(), force=True)
        later.stop()
        [said] = rig.box.status().needs_operator
        assert said.startswith(f"entry {slow} takes too long or fails each time, by itself: ")
        assert "the relay has ended" in said


def test_outage_of_an_ended_relay_is_told(outbox_dir: Path) -> None:
    with Rig(outbox_dir) as rig:
        rig.enqueue("a")
        rig.target.down = TargetUnavailable("connection refused")
        rig.settle()
        rig.relay.stop()
        [said] = rig.box.status().degraded
        assert said.startswith(
            "no relay is running and 1 entry waits; start the engine or its relay; last error: connection refused "
            "(the relay has ended; this began at 2024"
        )


def test_clean_end_of_a_healthy_relay_raises_no_alarm(outbox_dir: Path) -> None:
    with Rig(outbox_dir) as rig:
        rig.enqueue("a")
        rig.settle()
        rig.relay.stop()
        assert rig.box.status().health is Health.HEALTHY


@pytest.mark.parametrize("ends", ["stop", "dies"])
def test_read_only_database_is_told_after_the_relay_has_ended(postgres_url: str, outbox_dir: Path, ends: str) -> None:
    url = f"{postgres_url}?options=-c%20default_transaction_read_only%3Don"
    write = Operation("write", table="rows")
    config = OutboxConfig(backoff_base=0.01, backoff_cap=0.05)
    with Outbox.open(outbox_dir, config, [write]) as box:
        box.enqueue("write", {"n": 1})
        relay = Relay(box, PostgresTarget(url, [write], config=config))
        relay.start()
        until(lambda: box.status().health is Health.NEEDS_OPERATOR)
        if ends == "dies":
            # As after SIGKILL: nothing is published at the end.
            relay._delivery.publish = lambda now, *, force=False: None  # type: ignore[method-assign]
        relay.stop()
        status = box.status()
        assert "the line is stopped" in status.needs_operator[0]
        assert "read-only" in status.needs_operator[0]
        assert status.relay.since is not None
        assert status.relay.since <= box.clock.now() + timedelta(seconds=1)
