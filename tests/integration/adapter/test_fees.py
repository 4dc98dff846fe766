"""A balance that a call changes by more than its declared amount is not told for one that changes by that alone."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest

from outbox.integrations.durable import TRADING_OPERATIONS, ManagerOperation
from outbox.integrations.roles import Balance as Role
from outbox.integrations.view.local_view import UnknownLocally
from tests.unit.fakes.waiting import until

from .small import Balance, SmallManager, scene


class Charging(SmallManager):
    def book(self, session_id: int, pnl: float, fees: float = 0.0) -> bool:
        with self.session_factory.begin() as session:
            total = self._balance(session, session_id) + Decimal(str(pnl)) - Decimal(str(fees))
            session.add(Balance(session_id=session_id, total=total))
        return True


OPERATIONS = (*TRADING_OPERATIONS, ManagerOperation("book", returns=True, balance=Role.CHANGE, amount="pnl"))


def test_fee_that_is_seldom_given_is_not_left_out_of_a_balance(postgres_url: str, outbox_dir: Path) -> None:
    with scene(postgres_url, outbox_dir, Charging, OPERATIONS) as here:
        here.relay.start()
        manager = here.manager
        session_id = manager.create_trading_session("ma", 1000)
        for fees in (0.0, 0.5, 0.0, 0.0, 0.0, 0.0):
            manager.book(session_id, 10.25, fees)
        assert here.drain()
        here.box.pauses.begin("an outage", 300)
        until(lambda: here.relay._last.paused)
        manager.book(session_id, 10.25)
        assert manager.get_current_balance(session_id) == Decimal("1071.25")
        manager.book(session_id, 10.25, 0.3)
        with pytest.raises(UnknownLocally, match="another balance"):
            manager.get_current_balance(session_id)


@pytest.mark.parametrize("none", [0, 0.0, Decimal(0)], ids=lambda one: type(one).__name__)
def test_first_fee_in_an_outage_makes_the_balance_unknown(
    postgres_url: str, outbox_dir: Path, none: float | Decimal
) -> None:
    with scene(postgres_url, outbox_dir, Charging, OPERATIONS) as here:
        here.relay.start()
        manager = here.manager
        session_id = manager.create_trading_session("ma", 1000)
        for _ in range(5):
            manager.book(session_id, 10.25, none)
        assert here.drain()
        here.box.pauses.begin("an outage", 300)
        until(lambda: here.relay._last.paused)
        manager.book(session_id, 10.25, none)
        assert manager.get_current_balance(session_id) == Decimal("1061.50")
        manager.book(session_id, 10.25, 0.3)
        with pytest.raises(UnknownLocally):
            manager.get_current_balance(session_id)


def test_fee_is_taken_from_the_balance(postgres_url: str, outbox_dir: Path) -> None:
    class Paying(Charging):
        def pay(self, session_id: int, fee: float) -> bool:
            return self.book(session_id, 0, fee)

    paying = ManagerOperation("pay", returns=True, balance=Role.CHANGE, amount="-fee")
    with scene(postgres_url, outbox_dir, Paying, (*TRADING_OPERATIONS, paying)) as here:
        here.relay.start()
        session_id = here.manager.create_trading_session("ma", 1000)
        for _ in range(3):
            here.manager.pay(session_id, 0.25)
        assert here.drain()
        here.box.pauses.begin("an outage", 300)
        until(lambda: here.relay._last.paused)
        here.manager.pay(session_id, 1.5)
        assert here.manager.get_current_balance(session_id) == Decimal("997.75")
