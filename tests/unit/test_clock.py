"""The real clock, from which everything else is told the time."""

from __future__ import annotations

from datetime import UTC, datetime

from outbox.clock import SystemClock


def test_the_real_clock_gives_stamps_in_utc_and_never_goes_back() -> None:
    clock = SystemClock()
    before = datetime.now(UTC)
    stamp = clock.now()
    assert stamp.tzinfo is UTC
    assert before <= stamp <= datetime.now(UTC)
    assert clock.monotonic() <= clock.monotonic()
    assert 0 <= clock.random() < 1
    assert clock.new_id() != clock.new_id()
