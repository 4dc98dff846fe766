"""What a manager refuses by an answer, it refuses in an outage too, and no dead letter comes of it."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

from outbox.integrations.durable import TRADING_OPERATIONS, ManagerOperation
from outbox.testing import PostgresServer
from tests.unit.fakes.waiting import until

from .small import Scene, scene
from .test_thresholds import BookManager, Lot, Order

OPERATIONS = (
    *TRADING_OPERATIONS,
    ManagerOperation("reprice", like="update_position"),
    ManagerOperation("raise_price", like="update_position"),
    ManagerOperation("cancel", like="update_order_journal"),
)

# The answers to a position's close, and to a close and a price after it.
SEEN = [True, False, False]


class AnsweringManager(BookManager):
    """Sells and prices what is open only, and answers whether it was."""

    def close_position(self, position_id: int) -> Any:
        with self.session_factory.begin() as session:
            lot = session.get(Lot, position_id)
            if lot is not None:
                session.delete(lot)
            return lot is not None

    def reprice(self, position_id: int, paid: Any) -> bool:
        with self.session_factory.begin() as session:
            lot = session.get(Lot, position_id)
            if lot is None:
                return False
            lot.paid = paid
            return True

    def raise_price(self, position_id: int, paid: Any) -> bool:
        """Answers whether it is the highest so far."""
        with self.session_factory.begin() as session:
            higher = update(Lot).where(Lot.id == position_id, Lot.paid < paid).values(paid=paid)
            return bool(session.execute(higher).rowcount == 1)  # type: ignore[attr-defined]

    def cancel(self, client_order_id: str) -> bool:
        """Cancels what is not filled."""
        with self.session_factory.begin() as session:
            order = session.scalars(select(Order).where(Order.client_order_id == client_order_id)).one()
            if order.filled >= order.quantity:
                return False
            order.quantity = order.filled
            return True


@pytest.fixture
def book(postgres_url: str, outbox_dir: Path) -> Iterator[Scene]:
    with scene(postgres_url, outbox_dir, AnsweringManager, OPERATIONS) as found:
        found.relay.start()
        found.manager.create_trading_session()
        yield found


def test_refusal_by_an_answer_is_answered_in_an_outage(book: Scene) -> None:
    manager = book.manager
    first, second, third = (manager.log_position("A", Decimal(1)) for _ in range(3))
    assert [manager.close_position(first), manager.close_position(first), manager.reprice(first, 2)] == SEEN
    assert manager.reprice(second, Decimal(3)) is True
    assert book.drain()
    book.box.pauses.begin("an outage", 300)
    until(lambda: book.relay._last.paused)
    assert [manager.close_position(second), manager.close_position(second), manager.reprice(second, 2)] == SEEN
    assert (manager.reprice(third, Decimal(3)), manager.close_position(third)) == (True, True)
    book.box.pauses.end()
    assert book.drain()
    assert (book.box.status().dead_letters, book.rows("SELECT id FROM positions")) == (0, [])


def test_condition_of_an_update_is_learned_of_what_it_declines(book: Scene) -> None:
    """It is in the SQL text, and every call that is seen to write has the price which the row shows afterwards."""
    manager = book.manager
    lot = manager.log_position("A", Decimal(1), paid=Decimal(3))
    raised = [manager.raise_price(lot, Decimal(price)) for price in (5, 4, 6, 2)]
    assert raised == [True, False, True, False]
    assert book.drain()
    plain = manager.get_active_positions()
    book.box.pauses.begin("an outage", 300)
    until(lambda: book.relay._last.paused)
    manager.raise_price(lot, Decimal(5))
    assert manager.get_active_positions() == plain
    manager.raise_price(lot, Decimal(9))
    seen = manager.get_active_positions()
    book.box.pauses.end()
    assert book.drain()
    assert seen == manager.get_active_positions() != plain


def test_cancel_of_a_filled_order_is_refused_in_an_outage(book: Scene) -> None:
    manager = book.manager
    for name in "abcdef":
        manager.create_order_journal_entry(name, Decimal(1))
    for name in "abc":
        assert manager.update_order_journal(name, Decimal(1)) is True
    assert [manager.cancel(name) for name in "cd"] == [False, True]
    assert book.drain()
    until(lambda: manager._adapter.view.is_sure(manager._current_session_id))
    book.box.pauses.begin("an outage", 300)
    until(lambda: book.relay._last.paused)
    manager.update_order_journal("e", Decimal(1))
    assert [manager.cancel(name) for name in "ef"] == [False, True]
    # The second cancel of an order was never seen.
    assert manager.cancel("d") is True
    book.box.pauses.end()
    assert book.drain()
    assert [entry.args["client_order_id"] for entry in book.box.dead_letters()] == ["d"]


@pytest.mark.parametrize("refused_before", [False, True])
def test_first_call_after_postgres_died_is_refused_as_in_an_outage(
    own_postgres: PostgresServer, outbox_dir: Path, refused_before: bool
) -> None:
    """A relay without work does not know of it yet; a refused call has put the local view in doubt."""
    url = own_postgres.create_database("book")
    with scene(url, outbox_dir, AnsweringManager, OPERATIONS) as here:
        here.relay.start()
        manager = here.manager
        manager.create_trading_session()
        first, second = (manager.log_position("A", Decimal(1)) for _ in range(2))
        assert [manager.close_position(first), manager.close_position(first)] == [True, False]
        assert manager.close_position(second) is True
        assert here.drain()
        until(lambda: manager._adapter.view.is_sure(manager._current_session_id))
        if refused_before:
            manager._adapter.keeper._tend = lambda: None
            assert manager.close_position(first) is False
            assert not manager._adapter.view.is_sure(manager._current_session_id)
        own_postgres.kill()
        assert manager.close_position(second) is False
        own_postgres.start()
        manager.engine.dispose()
        assert here.drain()
        assert here.box.status().dead_letters == 0
        # While PostgreSQL answers, the manager decides: another writer has opened it again.
        with manager.session_factory.begin() as session:
            session.add(Lot(id=second, symbol="A", size=1))
        assert manager.close_position(second) is True
