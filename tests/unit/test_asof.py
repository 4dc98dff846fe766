"""AsOf: times that a replay reads from the clock become those of the call, wherever a parameter has them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from outbox.clock import SystemClock
from outbox.integrations.replay.asof import AsOf
from outbox.integrations.replay.row_ids import SideIds

CAPTURED = datetime(2024, 5, 1, 9, 30, tzinfo=UTC)


class Stamp(datetime):
    """A time of a class of its own, as pandas has one."""


def as_of(*given: Any) -> AsOf:
    return AsOf((None, "trades", "id"), {}, CAPTURED, SystemClock(), SideIds(), call=given)


def test_times_of_the_replay_are_restored_in_lists_and_of_any_class() -> None:
    one = as_of()
    now = datetime.now(UTC)
    restored = one.restore({"at": Stamp.now(UTC), "all": [now, 1], "amount": Decimal("1.5"), "name": "x"})
    assert restored == {"at": CAPTURED, "all": [CAPTURED, 1], "amount": Decimal("1.5"), "name": "x"}


def test_parameters_without_times_are_left_as_they_are() -> None:
    given = {"amount": Decimal("1.5"), "name": "x", "none": None}
    assert as_of().restore(given) is given


def test_times_among_the_arguments_are_not_restored() -> None:
    later = datetime.now(UTC) + timedelta(milliseconds=1)
    assert as_of({"all": [{"at": later}], "n": 1}).restore({"at": later}) == {"at": later}
