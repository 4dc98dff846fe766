"""A replay finds what the calls before it have changed, though its own call noted an older value of an attribute.

The code of these managers does not show which attribute they change.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from outbox import OutboxConfig

from .small import SmallManager, Trade, scene

# Each call is a batch of its own, so that one is settled before the next is replayed.
ONE_BY_ONE = OutboxConfig(batch_size=1, busy_batch_size=1)


class Chained(SmallManager):
    """Each row shows what the row before has left in the manager."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.last, self.number = "none", 0
        self.open: dict[str, int] = {"A": 0}
        self.free = [5, 4, 3, 2, 1]

    def log_trade(self, symbol: str, note: Any = None, session_id: int | None = None) -> Any:
        note = f"{self.last} {self.number} {self.open['A']} {self.free[-1]}"
        with self.session_factory.begin() as session:
            trade = Trade(symbol=symbol, note=note)
            session.add(trade)
            session.flush()
            made = trade.id
        self.took(symbol)
        return made

    def took(self, symbol: str) -> None:
        raise NotImplementedError


class BySetattr(Chained):
    def took(self, symbol: str) -> None:
        for name, value in (("last", f"{self.last}{symbol}"), ("number", self.number + 1)):
            setattr(self, name, value)


class ByVars(Chained):
    def took(self, symbol: str) -> None:
        vars(self)["last"] += symbol
        vars(self)["number"] += 1


def follow(manager: Any, symbol: str) -> None:
    manager.last += symbol
    manager.number += 1


class ByFunction(Chained):
    def took(self, symbol: str) -> None:
        follow(self, symbol)


class ByAlias(Chained):
    def took(self, symbol: str) -> None:
        positions, free = self.open, self.free
        positions["A"] += 1
        free.pop()


class ByParts(Chained):
    def took(self, symbol: str) -> None:
        self.open["A"] += 1
        self.free.pop()


MANAGERS = [BySetattr, ByVars, ByFunction, ByAlias, ByParts]


@pytest.mark.parametrize("manager_class", MANAGERS)
@pytest.mark.parametrize("restarts", [False, True])
def test_row_shows_what_the_calls_before_it_changed(
    restarts: bool, manager_class: Any, postgres_url: str, tmp_path: Path
) -> None:
    plain = manager_class(postgres_url)
    for _ in range(4):
        plain.log_trade("A")
    state = (plain.last, plain.number, plain.open, plain.free)
    plain.engine.dispose()
    directory = tmp_path / "outbox"
    with scene(postgres_url, directory, manager_class, config=ONE_BY_ONE, write_behind=True) as made:
        expected = made.rows("SELECT note FROM trades ORDER BY id")
        made.change("TRUNCATE trades")
        for _ in range(4):
            made.manager.log_trade("A")
        if not restarts:
            assert made.drain()
            assert made.rows("SELECT note FROM trades ORDER BY id") == expected
            manager = made.manager
            assert (manager.last, manager.number, manager.open, manager.free) == state
    if restarts:
        with scene(postgres_url, directory, manager_class, config=ONE_BY_ONE, write_behind=True) as made:
            assert made.drain()
            assert made.rows("SELECT note FROM trades ORDER BY id") == expected
            # As of a plain manager after a restart.
            assert (made.manager.last, made.manager.number) == ("none", 0)


def test_what_the_engine_sets_between_calls_stays(postgres_url: str, tmp_path: Path) -> None:
    with scene(postgres_url, tmp_path / "outbox", BySetattr, config=ONE_BY_ONE, write_behind=True) as made:
        made.manager.log_trade("A")
        made.manager.last = "set"
        made.manager.log_trade("B")
        made.manager.log_trade("C")
        assert made.drain()
        notes = [note.split()[0] for (note,) in made.rows("SELECT note FROM trades ORDER BY id")]
        assert notes == ["none", "set", "setB"]
