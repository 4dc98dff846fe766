"""Callers are answered when PostgreSQL has committed; that the store records it afterwards costs them nothing."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from outbox import DurabilityError
from outbox.integrations.calls import delivery_waits
from outbox.store.store import Store
from tests.unit.fakes.waiting import LONG, until

from .small import Scene, SmallManager, scene


class Counting(SmallManager):
    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.made = 0

    def log_trade(self, symbol: str, note: Any = None, session_id: int | None = None) -> int:
        id_ = super().log_trade(symbol, note, session_id)
        self.made += 1
        return id_


@pytest.fixture
def slow(
    postgres_url: str, outbox_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Scene, threading.Event]]:
    """A running engine whose store records no delivery until the event is set."""
    with scene(postgres_url, outbox_dir, Counting, wait_s=LONG) as here:
        here.relay.start()
        here.manager.create_trading_session("s", Decimal(100))
        here.manager.log_trade("the first")
        assert here.drain()
        goes_on = threading.Event()
        settle = here.box.store.settle

        def settle_later(*args: Any) -> Any:
            assert goes_on.wait(LONG)
            return settle(*args)

        monkeypatch.setattr(here.box.store, "settle", settle_later)
        yield here, goes_on
        goes_on.set()


def test_call_is_answered_before_its_delivery_is_recorded(slow: tuple[Scene, threading.Event]) -> None:
    here, goes_on = slow
    id_ = here.manager.log_trade("the second")
    assert here.box.status().pending == 1
    assert here.rows("SELECT id, symbol FROM trades ORDER BY id")[-1] == (id_, "the second")
    # What the call changed in the manager, and what the manager reads, is there as well.
    assert here.manager.made == 2
    assert here.manager.get_current_balance() == 100
    goes_on.set()
    assert here.drain()
    assert here.box.status().pending == 0
    assert here.rows("SELECT count(*) FROM trades") == [(2,)]


def test_recorded_entry_is_no_longer_listed_as_acknowledged(slow: tuple[Scene, threading.Event]) -> None:
    here, goes_on = slow
    here.manager.log_trade("the second")
    [entry] = here.box.pending()
    assert entry.seq in here.box.progress.acknowledged
    goes_on.set()
    assert here.drain()
    # The step that recorded it ends a moment after the store is empty.
    until(lambda: entry.seq not in here.box.progress.acknowledged)


def test_entry_that_cannot_be_recorded_is_not_listed_as_acknowledged(
    postgres_url: str, outbox_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes again, and PostgreSQL may have been set back by then."""
    with scene(postgres_url, outbox_dir, Counting, write_behind=True) as here:
        here.manager.create_trading_session("s", Decimal(100))
        told: list[frozenset[int]] = []

        def refuse(*_: Any) -> None:
            told.append(here.box.progress.acknowledged)
            raise DurabilityError("the disk refuses")

        monkeypatch.setattr(here.box.store, "settle", refuse)
        here.relay.step(0.0)
        [entry] = here.box.pending()
        assert told == [frozenset({entry.seq})]
        assert here.box.progress.acknowledged == frozenset()


def test_answer_is_the_managers_where_a_full_disk_kept_no_copy(
    postgres_url: str, outbox_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The entry is gone from the store when its caller wakes, and PostgreSQL has its row."""
    monkeypatch.setattr(Store, "_settle_with_copies", lambda *_: DurabilityError("the data file cannot grow"))
    monkeypatch.setattr(delivery_waits, "has_arrived", lambda box, seq: not box.store.is_pending(seq))
    with scene(postgres_url, outbox_dir) as here:
        here.relay.start()
        made = here.manager.log_trade("BTC")
        assert here.rows("SELECT id FROM trades") == [(made,)]
        with here.manager.atomic_balance_update(1, "fee", 1) as told:
            assert told["new_balance"] == 1
        assert here.box.status().unledgered == 2
