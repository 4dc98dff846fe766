"""A manager that leaves calls out in an outage, by a switch of its own, is warned of; such a call is an alarm."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from outbox.integrations.durable import TRADING_OPERATIONS
from outbox.integrations.preflight.preflight import look
from outbox.testing import PostgresServer
from tests.unit.fakes.waiting import until

from .small import SmallManager, scene


class Switching(SmallManager):
    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.connected, self.failures, self.refused = True, 0, 0

    def check(self) -> bool:
        try:
            with self.engine.connect() as connection:
                connection.execute(text("SELECT 1"))
            self.connected, self.failures = True, 0
        except SQLAlchemyError:
            self.connected = False
            self.failures += 1
        return self.connected

    @property
    def is_open(self) -> bool:
        return self.failures >= 2


class Returns(Switching):
    def log_trade(self, symbol: str, note: Any = None, session_id: int | None = None) -> Any:
        if not self.connected:
            return None
        return super().log_trade(symbol, note, session_id)


class Raises(Switching):
    def log_trade(self, symbol: str, note: Any = None, session_id: int | None = None) -> Any:
        if self.is_open:
            raise RuntimeError("the breaker is open")
        return super().log_trade(symbol, note, session_id)


class Sound(Switching):
    """Turns a switch of which no call is left out."""

    def log_trade(self, symbol: str, note: Any = None, session_id: int | None = None) -> Any:
        if not symbol:
            return None
        try:
            return super().log_trade(symbol, note, session_id)
        except ValueError:
            self.refused += 1
            raise


@pytest.mark.parametrize(
    ("manager_class", "named"),
    [(Returns, "self.connected (check)"), (Raises, "self.failures (check)"), (Sound, None)],
)
def test_switch_of_an_outage_is_warned_of(manager_class: type, named: str | None) -> None:
    (fit,) = [one for one in look(manager_class, TRADING_OPERATIONS).methods if one.name == "log_trade"]
    assert (named in fit.warning) if named else ("an outage has set" not in fit.warning)


@pytest.mark.parametrize("manager_class", [Returns, Raises])
def test_call_that_a_switch_leaves_out_is_an_alarm(
    manager_class: type, own_postgres: PostgresServer, tmp_path: Path
) -> None:
    with scene(own_postgres.url(), tmp_path / "outbox", manager_class, write_behind=True) as made:
        made.manager.create_trading_session("s", 1000)
        made.manager.log_trade("A")
        assert made.drain()
        own_postgres.kill()
        made.relay.start()
        made.manager.log_trade("B")
        until(lambda: bool(made.box.progress.unreachable))
        assert not made.manager.check()
        assert not made.manager.check()
        assert made.box.status().alarms == {}
        with nullcontext() if manager_class is Returns else pytest.raises(RuntimeError):
            assert made.manager.log_trade("C") is None
        assert "calls of log_trade were not recorded" in made.box.status().alarms["left-out-log_trade"]
        own_postgres.start()
        # The manager has not looked since.
        assert made.drain()
        assert made.rows("SELECT symbol FROM trades ORDER BY id") == [("A",), ("B",)]
        assert made.box.status().dead_letters == 0


def test_call_without_a_write_is_no_alarm_in_an_outage(own_postgres: PostgresServer, tmp_path: Path) -> None:
    with scene(own_postgres.url(), tmp_path / "outbox", Sound, write_behind=True) as made:
        made.manager.create_trading_session("s", 1000)
        assert made.drain()
        own_postgres.kill()
        made.relay.start()
        made.manager.log_trade("B")
        until(lambda: bool(made.box.progress.unreachable))
        assert not made.manager.check()
        assert made.manager.log_trade("") is None
        assert made.box.status().alarms == {}
        own_postgres.start()
        assert made.drain()
