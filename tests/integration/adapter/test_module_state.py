"""A method that reads a changing global of a module is warned of, and no other."""

from __future__ import annotations

import os
import uuid
from typing import Any

import pytest

from outbox.integrations.durable import TRADING_OPERATIONS
from outbox.integrations.preflight.preflight import look

from . import small
from .small import SmallManager, Trade

RUN_ID = uuid.uuid4().hex
VENUE = os.environ.get("VENUE", "paper")
mode = "paper"
pending: list[str] = []


def go_live() -> None:
    global mode
    mode = "live"


class Started(SmallManager):
    def log_trade(self, symbol: str, note: Any = None, session_id: int | None = None) -> Any:
        return super().log_trade(symbol, RUN_ID, session_id)


class Switched(SmallManager):
    def log_trade(self, symbol: str, note: Any = None, session_id: int | None = None) -> Any:
        return super().log_trade(symbol, self._mode(), session_id)

    def _mode(self) -> str:
        return mode


class Sound(SmallManager):
    def log_trade(self, symbol: str, note: Any = None, session_id: int | None = None) -> Any:
        mode = str(pending)
        return super().log_trade(symbol, f"{VENUE} {mode} {uuid.uuid4()} {small.__name__} {Trade}", session_id)


@pytest.mark.parametrize(
    ("manager_class", "named"),
    [(Started, "RUN_ID (made anew at each start)"), (Switched, "mode (set by go_live)"), (Sound, None)],
)
def test_changing_global_of_a_module_is_warned_of(manager_class: type, named: str | None) -> None:
    (fit,) = [one for one in look(manager_class, TRADING_OPERATIONS).methods if one.name == "log_trade"]
    assert (named in fit.warning) if named else ("it reads" not in fit.warning)
