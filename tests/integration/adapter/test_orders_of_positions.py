"""Orders that take values of their position, and calls that open a position and an order at once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import String, select
from sqlalchemy.orm import Mapped, mapped_column

from outbox.integrations.durable import TRADING_OPERATIONS, ManagerOperation, ManagerRead
from outbox.integrations.roles import Order, Position

from .small import Base, Scene, SmallManager, Trade, scene


class Placed(Base):
    __tablename__ = "placed"
    id: Mapped[int] = mapped_column(primary_key=True)
    trade_id: Mapped[int]
    ref: Mapped[str] = mapped_column(String)
    symbol: Mapped[str] = mapped_column(String)


class Desk(SmallManager):
    def open_with_order(self, symbol: str, ref: str) -> int:
        with self.session_factory.begin() as session:
            trade = Trade(symbol=symbol)
            session.add(trade)
            session.flush()
            session.add(Placed(trade_id=trade.id, ref=ref, symbol=symbol))
            return trade.id

    def place(self, trade_id: int, ref: str) -> int:
        with self.session_factory.begin() as session:
            trade = session.get_one(Trade, trade_id)
            placed = Placed(trade_id=trade.id, ref=ref, symbol=trade.symbol)
            session.add(placed)
            session.flush()
            return placed.id

    def trades(self) -> list[dict[str, Any]]:
        with self.session_factory() as session:
            return [{"id": one.id, "symbol": one.symbol} for one in session.scalars(select(Trade).order_by(Trade.id))]

    def placed(self) -> list[dict[str, Any]]:
        with self.session_factory() as session:
            found = session.scalars(select(Placed).order_by(Placed.id))
            return [{"id": one.id, "trade_id": one.trade_id, "ref": one.ref, "symbol": one.symbol} for one in found]


OPERATIONS = (
    *TRADING_OPERATIONS,
    ManagerOperation(
        "open_with_order",
        args={"ref": "client_order_id"},
        creates="trades",
        position=Position.OPENS,
        order=Order.OPENS,
    ),
    ManagerOperation(
        "place",
        args={"trade_id": "position_id", "ref": "client_order_id"},
        creates="placed",
        order=Order.OPENS,
    ),
    ManagerRead("trades", like="get_active_positions"),
    ManagerRead("placed", like="get_unresolved_orders"),
)


@pytest.fixture
def desk(postgres_url: str, outbox_dir: Path) -> Iterator[Scene]:
    """Several calls of each kind were delivered, and the ids of both tables are apart."""
    with scene(postgres_url, outbox_dir, Desk, OPERATIONS, write_behind=True, wait_s=0.02) as made:
        made.manager.create_trading_session("s", 100)
        for number, symbol in enumerate(("BTC", "ETH", "SOL")):
            trade_id = made.manager.open_with_order(symbol, f"open-{number}")
            made.manager.place(trade_id, f"more-{number}")
            assert made.drain()
        yield made


def _answers(made: Scene) -> tuple[Any, Any]:
    return made.manager.trades(), made.manager.placed()


def test_new_order_has_the_symbol_of_its_position(desk: Scene) -> None:
    trade_id = desk.manager.trades()[1]["id"]
    desk.manager.place(trade_id, "in the outage")
    found = _answers(desk)
    assert found[1][-1]["symbol"] == "ETH"
    assert desk.drain()
    assert _answers(desk) == found


def test_order_opened_with_a_position_has_its_own_id(desk: Scene) -> None:
    desk.manager.open_with_order("ADA", "in the outage")
    found = _answers(desk)
    assert found[1][-1]["id"] != found[0][-1]["id"] == found[1][-1]["trade_id"]
    assert desk.drain()
    assert _answers(desk) == found
