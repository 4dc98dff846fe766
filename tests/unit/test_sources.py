"""Which kinds of values an entry has, by its stored JSON and types."""

from __future__ import annotations

from datetime import UTC, datetime, time
from typing import Any

from outbox import codec
from outbox.postgres.sources import kinds_of


def test_a_time_of_day_with_its_zone_is_a_kind_of_its_own() -> None:
    times: dict[str, Any] = {
        "at": time(9, 30, tzinfo=UTC),
        "again": time(2, fold=1),
        "zoned": datetime(2024, 1, 1, tzinfo=UTC),
    }
    plain, types = codec.encode(times)
    assert dict(zip(codec.field_names(plain), kinds_of(plain, types), strict=True)) == {
        "at": "timetz",
        "again": "time",
        "zoned": "aware",
    }
