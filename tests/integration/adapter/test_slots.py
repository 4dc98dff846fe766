"""A manager may keep some of its attributes in slots: calls count them once, and replays find those of the call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from .small import SmallManager, Trade, scene


class Slotted(SmallManager):
    __slots__ = ("__number", "mode", "total")

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.__number, self.total, self.mode = 0, 0, "paper"

    def log_trade(self, symbol: str, note: Any = None, session_id: int | None = None) -> int:
        self.__number += 1
        with self.session_factory.begin() as session:
            trade = Trade(symbol=symbol, note=self.mode, number=self.__number)
            session.add(trade)
            session.flush()
        with self.session_factory() as session:
            self.total += 1
            found: int = session.query(Trade).filter_by(number=self.__number).one().id
            return found


@pytest.mark.parametrize("running", [False, True])
def test_attributes_in_slots_are_those_of_the_call(running: bool, postgres_url: str, tmp_path: Path) -> None:
    """A replay counted on from what the manager held at delivery."""
    with scene(postgres_url, tmp_path / "outbox", Slotted) as made:
        if running:
            made.relay.start()
        made.manager.log_trade("A")
        made.manager.mode = "live"
        made.manager.log_trade("B")
        made.manager.mode = "paper"
        assert made.drain()
        assert made.rows("SELECT number, note FROM trades ORDER BY id") == [(1, "paper"), (2, "live")]
        assert made.manager.total == 2
        assert made.manager.mode == "paper"


def test_attributes_in_slots_outlive_a_restart_as_others_do(postgres_url: str, tmp_path: Path) -> None:
    with scene(postgres_url, tmp_path / "outbox", Slotted) as made:
        made.manager.mode = "live"
        made.manager.log_trade("A")
        made.manager.log_trade("B")
    with scene(postgres_url, tmp_path / "outbox", Slotted) as made:
        assert made.drain()
        assert made.rows("SELECT number, note FROM trades ORDER BY id") == [(1, "live"), (2, "live")]
