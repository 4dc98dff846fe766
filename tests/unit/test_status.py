"""What an operator is told, from the figures: what needs a person, what is degraded, and how healthy that is."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from outbox import Health, OutboxConfig, OutboxStatus, RelayStatus
from outbox.monitoring.findings import assess

MIB = 1 << 20
CONFIG = OutboxConfig(alert_pending=100, min_free_mb=50)
GOOD = OutboxStatus(
    path="/srv/outbox",
    store_id="7a2b",
    pending=3,
    held_back=0,
    dead_letters=0,
    completed=10,
    acknowledged=13,
    discarded=0,
    quarantined=0,
    unledgered=0,
    ledger=10,
    lag_s=0.5,
    watermark=10,
    last_seq=13,
    ahead_s=0.0,
    relay=RelayStatus(alive=True, pid=7, breaker="closed", last_applied_at=datetime(2024, 3, 1, tzinfo=UTC)),
    engine_pid=7,
    halted=False,
    halt_reason=None,
    live_bytes=10 * MIB,
    file_bytes=20 * MIB,
    max_bytes=100 * MIB,
    reserve_bytes=16 * MIB,
    map_bytes=64 << 30,
    free_disk_bytes=50 * MIB,
)


def relay(**changes: Any) -> RelayStatus:
    return replace(GOOD.relay, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"pending": 100},
        {"pending": 0, "relay": RelayStatus()},
        {"live_bytes": 70 * MIB},
        {"relay": RelayStatus(alive=True)},
        {"relay": relay(late_s=15.0)},
        {"relay": relay(died="an earlier one", last_error="an earlier one")},
    ],
    ids=str,
)
def test_status_without_a_finding_is_healthy(changes: dict[str, Any]) -> None:
    status = assess(replace(GOOD, **changes), CONFIG)
    assert (status.needs_operator, status.degraded, status.health) == ([], [], Health.HEALTHY)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"halted": True, "halt_reason": "could not X"}, "enqueueing is halted: the store could not X"),
        ({"quarantined": 1}, "1 damaged entry is quarantined (see `atb outbox list`)"),
        ({"quarantined": 2}, "2 damaged entries are quarantined (see `atb outbox list`)"),
        ({"dead_letters": 1, "held_back": 0}, "1 dead letter waits for an answer (see `atb outbox list`)"),
        ({"dead_letters": 2, "held_back": 0}, "2 dead letters wait for an answer (see `atb outbox list`)"),
        ({"dead_letters": 1, "held_back": 3}, "1 dead letter holds back 3 entries (see `atb outbox list`)"),
        ({"dead_letters": 2, "held_back": 1}, "2 dead letters hold back 1 entry (see `atb outbox list`)"),
        (
            {"live_bytes": 84 * MIB + 1},
            "the store is full: 84 of 100 MiB; drain and compact, or raise max_size_mb (OUTBOX_MAX_SIZE_MB)",
        ),
        (
            {"live_bytes": 84 * MIB + 1, "map_bytes": 100 * MIB},
            "the store is full: 84 of 100 MiB; drain and compact, or raise ulimit -v",
        ),
        (
            {"free_disk_bytes": 17 * MIB - 1},
            "enqueueing is refused: 16 MiB of disk are free, 16 MiB are kept for draining; free disk space",
        ),
        (
            {"pending": 0, "relay": RelayStatus(died="KeyError: 1")},
            "the relay died: KeyError: 1; restart the engine or its relay",
        ),
        (
            {"relay": relay(stuck=True, idle_s=61.4)},
            "the relay is stuck: no progress for 61 s while entries wait; read its log, restart it",
        ),
        (
            {"relay": relay(stuck=True)},
            "the relay is stuck: no progress for 0 s while entries wait; read its log, restart it",
        ),
        ({"relay": relay(stopped=True, last_error="no table trades")}, "the line is stopped: no table trades"),
        (
            {"relay": relay(stopped=True, breaker="open", last_error="no table trades")},
            "the line is stopped: no table trades",
        ),
        (
            {
                "alarms": {"postgresql-forgot": "PostgreSQL lost entries; nothing is delivered: reconcile"},
                "relay": relay(stopped=True, breaker="open", last_error="PostgreSQL lost entries (reconcile)"),
            },
            "postgresql-forgot: PostgreSQL lost entries; nothing is delivered: reconcile",
        ),
    ],
    ids=str,
)  # fmt: skip
def test_finding_for_an_operator_is_told_in_one_sentence(changes: dict[str, Any], said: str) -> None:
    status = assess(replace(GOOD, **changes), CONFIG)
    assert (status.needs_operator, status.degraded) == ([said], [])
    assert status.health is Health.NEEDS_OPERATOR


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"relay": relay(breaker="open", last_error="refused")}, "delivery fails and is tried again: refused"),
        ({"relay": relay(breaker="half-open", last_error="refused")}, "delivery fails and is tried again: refused"),
        (
            {"relay": relay(late_s=15.1)},
            "nothing was delivered for 15 s, and 3 entries wait: PostgreSQL or a handler is slow, or hangs",
        ),
        ({"relay": RelayStatus()}, "no relay is running and 3 entries wait; start the engine or its relay"),
        (
            {"relay": RelayStatus(), "pending": 1},
            "no relay is running and 1 entry waits; start the engine or its relay",
        ),
        ({"pending": 101}, "101 entries wait, more than alert_pending=100"),
        ({"free_disk_bytes": 50 * MIB - 1}, "49 MiB of disk are free, less than min_free_mb=50"),
        ({"free_disk_bytes": 17 * MIB}, "17 MiB of disk are free, less than min_free_mb=50"),
        ({"live_bytes": 70 * MIB + 1}, "70 of 100 MiB are used, enqueueing stops at 85 %"),
        ({"live_bytes": 84 * MIB}, "84 of 100 MiB are used, enqueueing stops at 85 %"),
        ({"unledgered": 1}, "1 entry was completed without a ledger copy (`atb outbox acknowledge unledgered`)"),
        ({"unledgered": 4}, "4 entries were completed without a ledger copy (`atb outbox acknowledge unledgered`)"),
    ],
    ids=str,
)
def test_finding_that_degrades_is_told_in_one_sentence(changes: dict[str, Any], said: str) -> None:
    status = assess(replace(GOOD, **changes), CONFIG)
    assert (status.needs_operator, status.degraded) == ([], [said])
    assert status.health is Health.DEGRADED


def test_stop_by_another_cause_is_told_beside_a_loss() -> None:
    stopped = relay(stopped=True, last_error="28P01: the password is wrong")
    status = assess(replace(GOOD, alarms={"postgresql-forgot": "PostgreSQL lost entries"}, relay=stopped), CONFIG)
    assert len(status.needs_operator) == 2


def test_an_operators_matter_outweighs_a_degradation() -> None:
    status = assess(replace(GOOD, quarantined=1, unledgered=1, relay=RelayStatus(died="x")), CONFIG)
    assert status.health is Health.NEEDS_OPERATOR
    assert (len(status.needs_operator), len(status.degraded)) == (2, 2)


def test_health_is_an_exit_code() -> None:
    assert [int(health) for health in (Health.HEALTHY, Health.DEGRADED, Health.NEEDS_OPERATOR)] == [0, 1, 2]


def test_as_dict_is_plain_json() -> None:
    values = assess(GOOD, CONFIG).as_dict()
    assert json.loads(json.dumps(values)) == values
    assert values["breaker"] == "closed"
    assert values["health"] == "healthy"
    assert values["relay"]["last_applied_at"] == "2024-03-01T00:00:00+00:00"
    assert values["needs_operator"] == []


def test_a_relay_that_never_reported_is_null_in_json() -> None:
    values = replace(GOOD, relay=RelayStatus()).as_dict()
    assert values["relay"]["last_applied_at"] is None
    assert values["breaker"] == "unknown"
