"""A balance that the manager's own code rounds, when it is shown or when it is made."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from outbox.integrations.view.local_view import UnknownLocally
from tests.unit.fakes.waiting import until

from .small import Balance, Scene, SmallManager, scene


class Showing(SmallManager):
    """Shows cents, and keeps all digits."""

    def get_current_balance(self, session_id: int | None = None) -> Any:
        return round(float(super().get_current_balance(session_id)), 2)


class Making(SmallManager):
    """Makes cents of a change, and keeps what is set."""

    @contextmanager
    def atomic_balance_update(
        self, balance_change: Any, reason: str, session_id: int | None = None, correlation_id: str | None = None
    ) -> Iterator[dict[str, Any]]:
        session_id = session_id or self._current_session_id
        with self.session_factory() as session:
            old = self._balance(session, session_id)
            new = round(old + balance_change, 2)
            session.add(Balance(session_id=session_id, total=new))
            session.flush()
            yield {"old_balance": old, "new_balance": new}
            session.commit()


def settle(book: Scene) -> None:
    assert book.drain()
    until(lambda: bool(book.manager._adapter.keeper.view.is_sure(1)))


def change(book: Scene, amount: str) -> tuple[Decimal, Decimal]:
    with book.manager.atomic_balance_update(Decimal(amount), "trade") as told:
        return told["old_balance"], told["new_balance"]


@pytest.fixture
def book(request: pytest.FixtureRequest, postgres_url: str, outbox_dir: Path) -> Iterator[Scene]:
    """Nothing is delivered until `drain`, as in an outage; a few changes of cents were."""
    with scene(postgres_url, outbox_dir, request.param, write_behind=True, wait_s=0.02) as found:
        found.manager.create_trading_session("s", Decimal(1000))
        for amount in ("5.25", "-1.5", "3"):
            settle(found)
            change(found, amount)
        found.manager.update_balance(Decimal(1010), "set")
        settle(found)
        yield found


def assert_drained(book: Scene, shown: Any) -> None:
    settle(book)
    assert shown == book.manager._host.built.get_current_balance()
    assert (book.box.status().alarms, list(book.box.dead_letters())) == ({}, [])


@pytest.mark.parametrize("book", [Showing], indirect=True)
def test_balance_is_added_to_with_all_its_digits(book: Scene) -> None:
    book.manager.update_balance(Decimal("1020.004"), "set")
    settle(book)
    book.manager.log_trade("A")  # so that the manager cannot be asked
    assert [change(book, "0.004"), change(book, "0.004")] == [
        (Decimal("1020.004"), Decimal("1020.008")),
        (Decimal("1020.008"), Decimal("1020.012")),
    ]
    # How the read rounds was not seen when the calls were made, and is now.
    assert_drained(book, 1020.01)
    change(book, "0.004")
    assert book.manager.get_current_balance() == 1020.02
    assert_drained(book, 1020.02)


@pytest.mark.parametrize("book", [Showing], indirect=True)
def test_balance_that_was_only_shown_is_not_added_to(book: Scene) -> None:
    book.manager.log_trade("A")
    view = book.manager._adapter.keeper.view
    with view.lock:
        session = view.sessions[1]
        session["doubts"]["balance", None, "*"] = "another writer may have changed it"
        view.learning.roundings.written.clear()
        view.observe_session(1, 1010.25, {}, active=True)
        book.manager._adapter.keeper.kept.changed()
    assert book.manager.get_current_balance() == 1010.25
    with book.manager.atomic_balance_update(Decimal(1), "trade") as told, pytest.raises(UnknownLocally):
        told["new_balance"]
    with pytest.raises(UnknownLocally, match="since the manager shows it rounded"):
        book.manager.get_current_balance()
    book.manager.update_balance(Decimal(1030), "set")
    assert book.manager.get_current_balance() == 1030.0


@pytest.mark.parametrize("book", [Making], indirect=True)
def test_balance_is_not_made_as_if_its_code_rounded_nothing(book: Scene) -> None:
    book.manager.log_trade("A")
    assert change(book, "0.25")[1] == Decimal("1010.25")
    with book.manager.atomic_balance_update(Decimal("0.004"), "trade") as told, pytest.raises(UnknownLocally):
        told["new_balance"]
    with pytest.raises(UnknownLocally, match="how many decimal places the balance has is not known"):
        book.manager.get_current_balance()
    settle(book)
    # Once it was seen, it is answered.
    book.manager.log_trade("A")
    assert change(book, "0.014")[1] == Decimal("1010.26")
    shown = book.manager.get_current_balance()
    assert_drained(book, shown)
