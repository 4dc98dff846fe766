"""Named zones of times, through the store."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from outbox import register_record
from outbox.codec import decode, encode
from outbox.integrations.plain_data import call_in_zones, in_zones, zones_in

BERLIN, LONDON = ZoneInfo("Europe/Berlin"), ZoneInfo("Europe/London")
WINTER = datetime(2026, 3, 28, 12, tzinfo=BERLIN)
TWICE = datetime(2026, 10, 25, 2, 30, fold=1, tzinfo=BERLIN)


@register_record
@dataclass
class Fill:
    at: datetime
    price: int


@pytest.mark.parametrize(
    "value",
    [
        WINTER,
        TWICE,
        datetime(2026, 1, 1, tzinfo=LONDON),
        [1, WINTER],
        (WINTER, "text"),
        {"a": {"b": [WINTER]}, "c": 1},
        {"fill": Fill(WINTER, 3)},
    ],
    ids=repr,
)
def test_times_come_back_in_their_zones(value: Any) -> None:
    stored, zones = decode(*encode(value)), decode(*encode(zones_in(value)))
    assert repr(in_zones(stored, zones)) == repr(value)


@pytest.mark.parametrize(
    "value",
    [
        datetime(2026, 1, 1, tzinfo=UTC),
        datetime(2026, 1, 1, tzinfo=ZoneInfo("UTC")),
        datetime(2026, 1, 1, tzinfo=timezone(timedelta(hours=1))),
        datetime(2026, 1, 1),  # noqa: DTZ001
        {"day": date(2026, 1, 1), "number": 1},
    ],
    ids=repr,
)
def test_values_without_a_named_zone_need_no_note(value: Any) -> None:
    assert zones_in(value) is None


def test_zone_that_does_not_fit_leaves_the_value() -> None:
    fixed = WINTER.astimezone(timezone(timedelta(hours=1)))
    assert repr(in_zones(fixed, "No/Where")) == repr(fixed)
    assert repr(in_zones(fixed, "Asia/Tokyo")) == repr(fixed)
    assert in_zones("text", "Europe/Berlin") == "text"
    assert in_zones([1], {"7": "Europe/Berlin"}) == [1]
    assert call_in_zones({"a": 1}, {}) == {"a": 1}
