"""Patience counts the time without progress, not the time."""

from __future__ import annotations

import pytest

from outbox.clock import Patience
from tests.unit.fakes.rig import FakeClock


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def looks(patience: Patience, clock: FakeClock, progress: object, seconds: float) -> bool:
    """Look every half second for so long."""
    lost = False
    for _ in range(int(seconds * 2)):
        clock.advance(0.5)
        lost = patience.is_lost(progress)
    return lost


def test_patience_is_lost_after_the_limit_without_progress(clock: FakeClock) -> None:
    patience = Patience(10, clock.monotonic)
    assert not looks(patience, clock, None, 9.5)
    assert looks(patience, clock, None, 0.5)


def test_patience_lasts_while_anything_moves(clock: FakeClock) -> None:
    patience = Patience(10, clock.monotonic)
    for settled in range(100):
        assert not looks(patience, clock, settled, 9.5)
    assert looks(patience, clock, 99, 10)


def test_patience_counts_backward_movement_as_progress(clock: FakeClock) -> None:
    patience = Patience(1, clock.monotonic)
    assert not patience.is_lost(5)
    clock.advance(2)
    assert not patience.is_lost(4)


def test_patience_of_zero_is_lost_at_the_first_look(clock: FakeClock) -> None:
    assert Patience(0, clock.monotonic).is_lost(7)


def test_patience_survives_a_pause_of_the_waiter(clock: FakeClock) -> None:
    """A waiter that was stopped with Ctrl-Z for an hour looks again before it gives up."""
    patience = Patience(10, clock.monotonic)
    assert not patience.is_lost(1)
    clock.advance(3600)
    assert not patience.is_lost(1)
    assert looks(patience, clock, 1, 5)
