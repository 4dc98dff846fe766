"""A replay gets times in the zones in which they were given: a day later the clock may be set."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from .small import SmallManager, Trade, scene

# On the next day the clock is set forward.
AT = datetime(2026, 3, 28, 12, tzinfo=ZoneInfo("Europe/Berlin"))


class Expiring(SmallManager):
    def log_trade(self, symbol: str, note: Any = None, session_id: int | None = None) -> int:
        expires = note["at"] + timedelta(days=1)
        with self.session_factory.begin() as session:
            trade = Trade(symbol=symbol, note=f"{expires.isoformat()} {expires.tzname()}")
            session.add(trade)
            session.flush()
            return trade.id


@pytest.mark.parametrize("restarts", [False, True])
def test_day_after_a_time_of_a_named_zone_is_that_of_the_call(
    restarts: bool, postgres_url: str, tmp_path: Path
) -> None:
    with scene(postgres_url, tmp_path / "outbox", Expiring, write_behind=True) as made:
        made.manager.log_trade("A", {"at": AT})
        if not restarts:
            assert made.drain()
    with scene(postgres_url, tmp_path / "outbox", Expiring, write_behind=True) as made:
        assert made.drain()
        assert made.rows("SELECT note FROM trades") == [("2026-03-29T12:00:00+02:00 CEST",)]
