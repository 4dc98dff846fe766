"""Methods that answer with what they wrote answer so in an outage too, as they were seen to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from outbox.integrations.durable import TRADING_OPERATIONS, ManagerOperation
from outbox.integrations.roles import Balance, Position
from outbox.integrations.view.local_view import UnknownLocally
from tests.unit.fakes.waiting import LONG, until

from .small import Balance as BalanceRow
from .small import Scene, SmallManager, Trade, scene


class Base(DeclarativeBase):
    pass


class Lot(Base):
    __tablename__ = "lots"
    id: Mapped[int] = mapped_column(primary_key=True)
    symbol: Mapped[str]
    paid: Mapped[Decimal | None]


@dataclass(frozen=True)
class LotView:
    id: int
    symbol: str
    paid: Decimal | None


class TellingManager(SmallManager):
    """Answers a row as a dict or an object, an id with the new balance, the new balance, or None for nothing done."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        Base.metadata.create_all(self.engine)

    def get_active_positions(self, session_id: int | None = None) -> list[LotView]:
        with self.session_factory() as session:
            return [LotView(one.id, one.symbol, one.paid) for one in session.scalars(select(Lot).order_by(Lot.id))]

    def buy(self, symbol: str, paid: Decimal | None = None, *, fee: Decimal | None = None) -> dict[str, Any]:
        with self.session_factory.begin() as session:
            paid = paid if fee is None or paid is None else paid + fee
            lot = Lot(symbol=symbol, paid=paid)
            session.add(lot)
            session.flush()
            return {"id": lot.id, "symbol": symbol, "paid": paid}

    def reprice(self, position_id: int, paid: Decimal) -> LotView | None:
        with self.session_factory.begin() as session:
            lot = session.get(Lot, position_id)
            if lot is None:
                return None
            lot.paid = paid
            session.flush()
            return LotView(lot.id, lot.symbol, lot.paid)

    def charge(self, delta: Decimal, session_id: int | None = None) -> tuple[int, Decimal]:
        with self.session_factory.begin() as session:
            session_id = session_id or self._current_session_id
            row = BalanceRow(session_id=session_id, total=self._balance(session, session_id) + delta)
            session.add(row)
            session.flush()
            return row.id, row.total

    def signal(self, symbol: str) -> tuple[int, str]:
        with self.session_factory.begin() as session:
            trade = Trade(symbol=symbol)
            session.add(trade)
            session.flush()
            return trade.id, "saved"

    def signals(self, symbols: list[str]) -> int:
        with self.session_factory.begin() as session:
            session.add_all([Trade(symbol=symbol) for symbol in symbols])
        return len(symbols)


OPERATIONS = (
    *TRADING_OPERATIONS,
    ManagerOperation("buy", creates="lots", position=Position.OPENS),
    ManagerOperation("reprice", position=Position.UPDATES),
    ManagerOperation("charge", creates="account_balances", balance=Balance.CHANGE, amount="delta"),
    ManagerOperation("signal", creates="trades"),
    ManagerOperation("signals"),
)


@pytest.fixture
def desk(postgres_url: str, outbox_dir: Path) -> Iterator[Scene]:
    """A desk that was seen at work, and is in an outage now."""
    with scene(postgres_url, outbox_dir, TellingManager, OPERATIONS, wait_s=LONG) as found:
        found.relay.start()
        manager = found.manager
        manager.create_trading_session("ma", Decimal(1000))
        for number in range(1, 5):
            lot = manager.buy(f"S{number}", paid=Decimal(number) / 4)
            manager.reprice(lot["id"], Decimal(number) / 8)
            manager.charge(Decimal(number) / 3)
            manager.signal(f"S{number}")
            manager.signals(["A"])
        assert manager.reprice(999, Decimal(1)) is None
        assert found.drain()
        manager.get_active_positions()
        found.box.pauses.begin("an outage", 300)
        until(lambda: found.relay._last.paused)
        yield found


def test_rows_ids_and_balances_are_answered_as_seen(desk: Scene) -> None:
    manager = desk.manager
    bought = manager.buy("IBM", paid=Decimal("2.5"))
    assert bought == {"id": bought["id"], "symbol": "IBM", "paid": Decimal("2.5")}
    assert manager.reprice(bought["id"], Decimal("3.25")) == LotView(bought["id"], "IBM", Decimal("3.25"))
    number, total = manager.charge(Decimal("-0.5"))
    assert (type(number), total) == (int, manager.get_current_balance())
    saved = manager.signal("IBM")
    assert saved == (saved[0], "saved")
    desk.box.pauses.end()
    assert desk.drain()
    assert desk.box.status().alarms == {}
    assert desk.rows(f"SELECT symbol, paid FROM lots WHERE id = {bought['id']}") == [("IBM", Decimal("3.25"))]
    assert desk.rows(f"SELECT total FROM account_balances WHERE id = {number}") == [(total,)]
    assert desk.rows(f"SELECT symbol FROM trades WHERE id = {saved[0]}") == [("IBM",)]


def test_none_for_nothing_done_is_answered_without_a_record(desk: Scene) -> None:
    waiting = desk.box.status().pending
    assert desk.manager.reprice(12345, Decimal(1)) is None
    assert desk.box.status().pending == waiting


def test_answer_that_is_not_known_is_not_made_by_guess(desk: Scene) -> None:
    """A call with another argument may answer otherwise, and a count is no constant."""
    bought = desk.manager.buy("IBM", Decimal(1), fee=Decimal("0.5"))
    with pytest.raises(UnknownLocally, match="never seen with fee"):
        bought["paid"]
    assert desk.manager.signals(["IBM", "ACN"]) is None
    desk.box.pauses.end()
    assert desk.drain()
    assert desk.box.status().alarms == {}
