"""Later values: which differences between a call and its replay count."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from outbox import Outbox
from outbox.integrations.replay.fingerprint import LaterValues, is_same_moment, stored

AT = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
ENOUGH = 20


def deliver(later: LaterValues, call: int, replay: int, *, at_once: bool = True, code: str = "code") -> list[str]:
    """Deliver a call that had `call`, and whose replay has `replay`."""
    kept = stored({"column": call, "other": 7}, code, AT)
    return later.differing("log_trade", kept, {"column": replay, "other": 7}, code, at_once=at_once)


@pytest.fixture
def later() -> LaterValues:
    return LaterValues()


def test_value_that_was_equal_counts_when_delivered_late(later: LaterValues) -> None:
    for _ in range(ENOUGH):
        assert deliver(later, 1, 1) == []
    assert deliver(later, 1, 2, at_once=False) == ["column"]
    assert deliver(later, 1, 3, at_once=False) == ["column"]


def test_value_counts_only_after_enough_equal_deliveries(later: LaterValues) -> None:
    for _ in range(ENOUGH - 1):
        assert deliver(later, 1, 1) == []
    assert deliver(later, 1, 2, at_once=False) == []


def test_value_that_differed_at_once_is_learned_anew(later: LaterValues) -> None:
    for _ in range(ENOUGH):
        deliver(later, 1, 1)
    assert deliver(later, 1, 2) == []
    assert deliver(later, 1, 2, at_once=False) == []


def test_random_values_never_count(later: LaterValues) -> None:
    numbers = itertools.count(10)
    for number in range(10 * ENOUGH):
        assert deliver(later, next(numbers), next(numbers), at_once=number % 2 == 0) == []


def test_value_that_is_mostly_equal_never_counts(later: LaterValues, tmp_path: Path) -> None:
    def is_equal(times: int) -> None:
        for _ in range(times):
            assert deliver(later, 1, 1) == []

    with Outbox.open(tmp_path / "outbox") as box:
        later.keep_in(box.store)
        for often in (5, 24, 3, 60):
            is_equal(often)
            assert deliver(later, 1, 2) == []
        is_equal(5 * 60 - 1)
        assert deliver(later, 1, 2, at_once=False) == []
    with Outbox.open(tmp_path / "outbox") as box:
        later = LaterValues()
        later.keep_in(box.store)
        is_equal(5 * 24 - 1)
        assert deliver(later, 1, 2, at_once=False) == []


def test_value_that_differed_long_ago_counts_again(later: LaterValues) -> None:
    for often in (30, 5 * 30):
        for _ in range(often):
            assert deliver(later, 1, 1) == []
        found = deliver(later, 1, 2, at_once=often == 30)
    assert found == ["column"]


def test_value_that_is_always_another_one_counts_once(later: LaterValues) -> None:
    found = [deliver(later, 1, 2) for _ in range(5 * ENOUGH)]
    assert found == [[]] * (ENOUGH - 1) + [["column"]] + [[]] * (4 * ENOUGH)


def test_other_code_is_learned_anew(later: LaterValues) -> None:
    for _ in range(ENOUGH):
        deliver(later, 1, 1)
    assert deliver(later, 1, 2, at_once=False, code="new") == []


def test_what_was_learned_outlives_a_restart(tmp_path: Path) -> None:
    with Outbox.open(tmp_path / "outbox") as box:
        later = LaterValues()
        later.keep_in(box.store)
        for _ in range(ENOUGH):
            deliver(later, 1, 1)
    with Outbox.open(tmp_path / "outbox") as box:
        later = LaterValues()
        later.keep_in(box.store)
        assert deliver(later, 1, 2, at_once=False) == ["column"]
        assert deliver(later, 1, 2) == []
        later = LaterValues()
        later.keep_in(box.store)
        assert deliver(later, 1, 2, at_once=False) == []


def test_moment_is_the_same_within_a_hundredth_of_a_second() -> None:
    kept = stored({}, "code", AT.replace(microsecond=8_000))
    assert is_same_moment(kept, AT.replace(microsecond=9_999))
    assert not is_same_moment(kept, AT.replace(microsecond=10_000))
    assert not is_same_moment(kept, AT.replace(microsecond=8_000) + timedelta(seconds=1))
