"""What a backlog teaches: the view is far ahead of the call that is replayed, and learns of it as it was made."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from outbox import Outbox, OutboxConfig, PostgresTarget, Relay
from outbox.integrations.durable import DurableDatabaseManager
from outbox.integrations.paper import DatabaseManager
from outbox.integrations.replay.lesson import Lesson
from tests.unit.fakes.waiting import LONG

TRADES = 5


class Behind:
    """A paper manager in `write_behind`, whose relay delivers when it is told to."""

    def __init__(self, url: str, folder: Path) -> None:
        config = OutboxConfig(backoff_base=0.01, backoff_cap=0.05)
        self.box = Outbox.open(folder, config)
        self.plain = DatabaseManager(url, pool_size=1)
        self.manager: Any = DurableDatabaseManager(self.plain, self.box, write_behind=True)
        self.relay = Relay(self.box, PostgresTarget(url, self.manager.outbox_operations, config=config))

    def enter_and_fill(self, name: str) -> None:
        self.manager.create_order_journal_entry(self.session, name, "IBM", "buy", "entry", Decimal(1), "s")
        self.manager.update_order_journal(name, "filled", f"e-{name}", Decimal(2), Decimal(1), Decimal(0))

    def begin(self) -> None:
        self.session = self.manager.create_trading_session("s", "IBM", "1d", "paper", Decimal(100))
        self.manager.update_balance(Decimal(100), "start")


@pytest.fixture
def behind(postgres_url: str, outbox_dir: Path) -> Iterator[Behind]:
    made = Behind(postgres_url, outbox_dir)
    yield made
    made.manager.detach_outbox()
    made.relay.stop()
    made.plain.close()
    made.box.close()


def test_orders_filled_before_their_delivery_are_learned_as_new_ones(behind: Behind) -> None:
    behind.begin()
    # From here on the view knows that a fill ends an order.
    behind.enter_and_fill("first")
    assert behind.relay.drain(LONG)
    for number in range(TRADES):
        behind.enter_and_fill(f"o{number}")
    assert behind.relay.drain(LONG)
    keeper = behind.manager._adapter.keeper
    assert not [kind for kind in keeper.view.learning.effects if kind.startswith("create") and "resolved" in kind]
    # Seen so often, they are not looked at any more, which would slow down the delivery of a backlog.
    behind.enter_and_fill("last")
    assert keeper.witness.looks.wanted == {}
    assert behind.relay.drain(LONG)


def test_first_backlog_of_a_manager_is_looked_at_a_few_times(behind: Behind, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing was known of any of its calls when they were made."""
    look, looks = Lesson.look_before, list[object]()

    def counted(lesson: Lesson, *more: Any) -> None:
        looks.append(lesson)
        look(lesson, *more)

    monkeypatch.setattr(Lesson, "look_before", counted)
    behind.begin()
    for number in range(60):
        behind.enter_and_fill(f"o{number}")
    assert behind.relay.drain(LONG)
    assert 6 <= len(looks) <= 60
    # And all was learned that such calls do.
    behind.enter_and_fill("last")
    assert behind.manager._adapter.keeper.witness.looks.wanted == {}
    assert behind.relay.drain(LONG)
