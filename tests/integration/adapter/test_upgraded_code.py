"""A manager's next version: an outage does not answer by what was learned of the code before it."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from outbox.integrations.view.local_view import UnknownLocally

from .small import Balance, Order, SmallManager, scene


class Charging(SmallManager):
    """Takes a fee from each balance that is set."""

    def update_balance(self, new_balance: Any, update_reason: str, session_id: int | None = None) -> bool:
        with self.session_factory.begin() as session:
            session.add(Balance(session_id=session_id or self._current_session_id, total=new_balance - 1))
        return True


class Showing(SmallManager):
    """Has a read that the version before it had not."""

    def get_unresolved_orders(self, session_id: int | None = None) -> list[dict[str, Any]]:
        with self.session_factory() as session:
            found = session.scalars(select(Order).where(Order.status == "pending_submit").order_by(Order.id))
            return [{"id": one.id, "client_order_id": one.client_order_id, "status": one.status} for one in found]


class Labelled(Showing):
    """Shows one key more."""

    def get_unresolved_orders(self, session_id: int | None = None) -> list[dict[str, Any]]:
        return [{**one, "venue": "X"} for one in super().get_unresolved_orders(session_id)]


def taught(url: str, directory: Path, manager_class: Any) -> int:
    """The session in which a manager of this class was seen to make each kind of call."""
    with scene(url, directory, manager_class) as s:
        session: int = s.manager.create_trading_session("s", Decimal(100))
        for number in range(3):
            s.manager.update_balance(Decimal(number), "x", session_id=session)
            s.manager.create_order_journal_entry(f"o{number}")
            assert s.drain()
        s.manager.get_current_balance(session)
    return session


def test_method_with_other_code_is_not_answered_by_the_former(postgres_url: str, outbox_dir: Path) -> None:
    session = taught(postgres_url, outbox_dir, SmallManager)
    with scene(postgres_url, outbox_dir) as s:
        s.manager.update_balance(Decimal(20), "x", session_id=session)
        assert s.manager.get_current_balance(session) == 20
        assert s.drain()
    with scene(postgres_url, outbox_dir, Charging) as s:
        s.manager.update_balance(Decimal(30), "x", session_id=session)
        with pytest.raises(UnknownLocally, match="update_balance: it was never seen"):
            s.manager.get_current_balance(session)
        assert s.drain()
        assert s.manager.get_current_balance(session) == 29


def test_waiting_call_of_the_former_code_is_in_doubt(postgres_url: str, outbox_dir: Path) -> None:
    """Its delivery runs the present code."""
    session = taught(postgres_url, outbox_dir, SmallManager)
    with scene(postgres_url, outbox_dir) as s:
        s.manager.update_balance(Decimal(20), "x", session_id=session)
    with scene(postgres_url, outbox_dir) as s:
        assert s.manager.get_current_balance(session) == 20
    with scene(postgres_url, outbox_dir, Charging) as s:
        with pytest.raises(UnknownLocally, match="the code of update_balance has changed"):
            s.manager.get_current_balance(session)
        assert s.drain()
        assert s.manager.get_current_balance(session) == 19


@pytest.mark.parametrize(("former", "present"), [(SmallManager, Showing), (Showing, Labelled)])
def test_read_of_another_version_is_not_answered_by_the_former(
    postgres_url: str, outbox_dir: Path, former: Any, present: Any
) -> None:
    session = taught(postgres_url, outbox_dir, former)
    with scene(postgres_url, outbox_dir, former) as s:
        s.manager.create_order_journal_entry("waits")
    with scene(postgres_url, outbox_dir, present) as s:
        with pytest.raises(UnknownLocally, match="the code of .*get_unresolved_orders.* has changed"):
            s.manager.get_unresolved_orders(session)
        assert s.drain()
        shown = s.manager.get_unresolved_orders(session)
        assert [one["client_order_id"] for one in shown] == ["o0", "o1", "o2", "waits"]
        assert ("venue" in shown[0]) is (present is Labelled)
