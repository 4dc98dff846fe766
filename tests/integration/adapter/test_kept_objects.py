"""Reads with keep_last whose answers are objects, or cannot be kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.exc import OperationalError

from outbox.integrations.durable import TRADING_OPERATIONS, ManagerRead
from outbox.testing import PostgresServer

from .small import Order, SmallManager, scene


class Finder(SmallManager):
    def find_order(self, client_order_id: str) -> Order | None:
        with self.session_factory() as session:
            return session.scalar(select(Order).where(Order.client_order_id == client_order_id))

    def watch_order(self, client_order_id: str) -> Any:
        """None, or something that no store can hold."""
        with self.session_factory() as session:
            found = session.scalar(select(Order.id).where(Order.client_order_id == client_order_id))
        return None if found is None else object()


OPERATIONS = (
    *TRADING_OPERATIONS,
    ManagerRead("find_order", keep_last=True),
    ManagerRead("watch_order", keep_last=True),
)


def test_object_that_was_answered_is_kept(own_postgres: PostgresServer, outbox_dir: Path) -> None:
    url = own_postgres.url()
    with scene(url, outbox_dir, Finder, OPERATIONS) as here:
        here.relay.start()
        assert here.manager.find_order("A-1") is None
        here.manager.create_order_journal_entry("A-1")
        known = here.manager.find_order("A-1")
        own_postgres.kill()
        found = here.manager.find_order("A-1")
        built = here.manager._host.built
    with scene(url, outbox_dir, lambda _: built, OPERATIONS) as again:
        for order in (found, again.manager.find_order("A-1")):
            assert (type(order), order.id, order.status) == (Order, known.id, "pending_submit")


def test_answer_that_cannot_be_kept_ends_the_one_before(own_postgres: PostgresServer, outbox_dir: Path) -> None:
    """Nobody may be told of an order that there is none, because that was so before."""
    url = own_postgres.url()
    with scene(url, outbox_dir, Finder, OPERATIONS) as here:
        here.relay.start()
        assert here.manager.watch_order("A-1") is None
        built = here.manager._host.built
        built.create_order_journal_entry("A-1")
        assert here.manager.watch_order("A-1") is not None
        own_postgres.kill()
        with pytest.raises(OperationalError):
            here.manager.watch_order("A-1")
    with scene(url, outbox_dir, lambda _: built, OPERATIONS) as again, pytest.raises(OperationalError):
        again.manager.watch_order("A-1")
