"""When PostgreSQL is tried again: a pure function of the failures, the time given and the randomness given."""

from __future__ import annotations

import pytest

from outbox.relay.link import CLOSED, HALF_OPEN, OPEN, Breaker


def breaker(*, base_s: float = 1.0, cap_s: float = 10.0, random: float = 1.0) -> Breaker:
    return Breaker(base_s, cap_s, lambda: random)


def test_a_new_breaker_is_closed_and_does_not_wait() -> None:
    fresh = breaker()
    assert (fresh.state, fresh.wait(0.0), fresh.wait(1e9)) == (CLOSED, 0.0, 0.0)


def test_the_delay_doubles_up_to_the_cap() -> None:
    failing = breaker()
    assert [failing.failed(0.0) for _ in range(7)] == [1, 2, 4, 8, 10, 10, 10]


def test_the_delay_is_jittered_over_its_whole_range() -> None:
    assert breaker(random=0.0).failed(5.0) == 0.0
    assert breaker(random=0.25).backoff(3) == 1.0


def test_an_outage_of_years_does_not_overflow() -> None:
    assert breaker(cap_s=15.0).backoff(10**9) == 15.0


def test_breaker_opens_at_the_third_failure_in_a_row() -> None:
    failing = breaker()
    states = []
    for _ in range(4):
        failing.failed(0.0)
        states.append(failing.state)
    assert states == [CLOSED, CLOSED, OPEN, OPEN]


def test_server_that_comes_and_goes_does_not_keep_it_closed() -> None:
    """Callers would wait for deliveries that do not work."""
    failing = breaker()
    for _ in range(3):
        failing.failed(0.0)
        failing.returned(0.0)
    assert failing.state == OPEN
    assert failing.failed(0.0) == 2.0


def test_the_wait_runs_down_with_the_time_given() -> None:
    failing = breaker(base_s=4.0)
    failing.failed(100.0)
    assert failing.wait(100.0) == 4.0
    assert failing.wait(103.0) == 1.0
    assert failing.wait(104.0) == 0.0
    assert failing.state == CLOSED


def test_an_open_breaker_sends_a_probe_when_the_wait_is_over() -> None:
    failing = breaker()
    for _ in range(3):
        failing.failed(0.0)
    assert failing.wait(3.9) > 0
    assert failing.state == OPEN
    assert failing.wait(4.0) == 0.0
    assert failing.state == HALF_OPEN
    failing.failed(4.0)
    assert failing.state == OPEN
    assert failing.wait(4.0) == 8.0


def test_a_success_closes_it_and_forgets_the_failures() -> None:
    failing = breaker()
    for _ in range(5):
        failing.failed(0.0)
    failing.wait(100.0)
    failing.succeeded()
    assert (failing.state, failing.wait(0.0)) == (CLOSED, 0.0)
    assert failing.failed(0.0) == 1.0
    assert failing.state == CLOSED


@pytest.mark.parametrize(("most_s", "wait"), [(0.5, 0.5), (100.0, 8.0)])
def test_hurry_brings_the_next_try_forward_but_never_back(most_s: float, wait: float) -> None:
    failing = breaker()
    for _ in range(4):
        failing.failed(0.0)
    failing.hurry(0.0, most_s)
    assert failing.wait(0.0) == wait
    assert failing.state == OPEN


def test_hurrying_one_that_has_not_failed_changes_nothing() -> None:
    fresh = breaker()
    fresh.hurry(5.0, 1.0)
    assert (fresh.state, fresh.wait(5.0)) == (CLOSED, 0.0)
