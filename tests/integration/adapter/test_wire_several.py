"""An engine with several managers, each with a store: they start and stop together, and close in any order."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from outbox.integrations.durable import DurableDatabaseManager
from outbox.integrations.trading_engine import Wiring, wire
from tests.unit.fakes.waiting import LONG, until

from .scripted import Engine, Manager, config

Durable = DurableDatabaseManager.of(Manager)


class Desk(Engine):
    """Two strategies, each with a manager of its own."""

    def __init__(self, *managers: Any) -> None:
        super().__init__(managers[0])
        self.second = managers[1]


@pytest.fixture(params=[Manager, Durable])
def desk(request: pytest.FixtureRequest, postgres_url: str, outbox_dir: Path) -> Iterator[tuple[Any, list[Wiring]]]:
    engine = Desk(request.param(postgres_url), request.param(postgres_url))
    wirings = [
        wire(engine, config=config(outbox_dir / name, postgres_url), manager_attribute=name, drain_s=LONG)
        for name in ("db_manager", "second")
    ]
    yield engine, wirings
    for wiring in wirings:
        wiring.close()


def test_managers_with_a_store_each_are_no_further_ones(desk: tuple[Any, list[Wiring]]) -> None:
    for wiring in desk[1]:
        assert wiring.outbox is not None
        assert not {"other-managers", "further-manager", "held-beside"} & wiring.outbox.status().notices.keys()


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_wirings_are_closed_in_any_order(desk: tuple[Any, list[Wiring]], order: tuple[int, int]) -> None:
    engine, wirings = desk
    first, last = (wirings[index] for index in order)
    first.close()
    assert last.relay is not None
    assert last.outbox is not None
    engine.start()
    left = (engine.db_manager, engine.second)[order[1]]
    left.create_trading_session("s", "I", "1d", "paper", 1)
    engine.stop()
    until(lambda: last.relay is not None and not last.relay.running)
    engine.start()
    assert last.relay.running
    last.close()
    engine.start()
    engine.stop()
    assert type(engine.db_manager) is type(engine.second)
