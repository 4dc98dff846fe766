"""A module of the host that its manager calls: it reads the clock by names of its own."""

# ruff: noqa: DTZ003, DTZ011
from __future__ import annotations

import datetime as dt
import time
from datetime import date, datetime
from time import time as seconds
from time import time_ns


def epoch_ms() -> int:
    return int(time.time() * 1000)


def all_readings() -> dict[str, datetime | date | float | str]:
    """Every reading of the clock, as an aware time in UTC where that is possible."""
    return {
        "datetime.now": datetime.now(dt.UTC),
        "dt.datetime.now": dt.datetime.now(tz=dt.UTC),
        "now": datetime.now().astimezone(dt.UTC),
        "today": datetime.today().astimezone(dt.UTC),
        "utcnow": datetime.utcnow().replace(tzinfo=dt.UTC),
        "time.time": datetime.fromtimestamp(time.time(), dt.UTC),
        "seconds": dt.datetime.fromtimestamp(seconds(), dt.UTC),
        "time_ns": dt.datetime.fromtimestamp(time_ns() / 1e9, dt.UTC),
        "clock_gettime": dt.datetime.fromtimestamp(time.clock_gettime(time.CLOCK_REALTIME), dt.UTC),
        "gmtime": dt.datetime(*time.gmtime()[:6], tzinfo=dt.UTC),
        "strftime": dt.datetime.strptime(time.strftime("%Y-%m-%dT%H:%M:%S%z"), "%Y-%m-%dT%H:%M:%S%z").astimezone(
            dt.UTC
        ),
        "date.today": date.today(),
        "dt.date.today": dt.date.today(),
    }


def as_keyword(*, at: float | None = None, clock: object = time.time) -> float:
    return clock() if at is None else at  # type: ignore[operator]
