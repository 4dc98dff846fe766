"""Calls whose arguments hold objects in objects, tuples for arrays, and times of several zones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID, uuid4

import pytest
from sqlalchemy import ARRAY, DateTime, Numeric, insert, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from outbox.integrations.durable import TRADING_OPERATIONS, ManagerOperation, ManagerRead
from outbox.integrations.roles import Order

from .small import Scene, SmallManager, scene

ZONES = (UTC, timezone(timedelta(hours=9)), timezone(timedelta(hours=-5)))


@dataclass(frozen=True)
class Level:
    px: Decimal
    qty: Decimal


@dataclass(frozen=True)
class Quote:
    ref: str
    level: Level
    ladder: tuple[Decimal, ...]
    placed_at: datetime


class Quotes(DeclarativeBase):
    """Apart: other managers of the tests would learn the decimal places of this one's columns."""


class QuoteTable(Quotes):
    __tablename__ = "ladder_quotes"
    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    ref: Mapped[str]
    px: Mapped[Decimal] = mapped_column(Numeric(38, 18))
    qty: Mapped[Decimal] = mapped_column(Numeric(38, 18))
    ladder: Mapped[list[Decimal]] = mapped_column(ARRAY(Numeric(38, 18)))
    placed_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))


class Shown(NamedTuple):
    id: UUID
    ref: str
    px: Decimal
    qty: Decimal
    ladder: list[Decimal]
    placed_at: datetime


class Maker(SmallManager):
    def __init__(self, url: str) -> None:
        super().__init__(url)
        Quotes.metadata.create_all(self.engine)

    def place_quote(self, quote: Quote) -> UUID:
        with self.session_factory.begin() as session:
            made = insert(QuoteTable).values(
                ref=quote.ref,
                px=quote.level.px,
                qty=quote.level.qty,
                ladder=list(quote.ladder),
                placed_at=quote.placed_at,
            )
            found: UUID = session.execute(made.returning(QuoteTable.id)).scalar_one()
            return found

    def live_quotes(self) -> list[Shown]:
        with self.session_factory() as session:
            found = session.scalars(select(QuoteTable).order_by(QuoteTable.px))
            return [Shown(one.id, one.ref, one.px, one.qty, one.ladder, one.placed_at) for one in found]

    def is_empty(self) -> bool:
        """As an engine asks before it trades."""
        return not self.live_quotes()

    @property
    def refs(self) -> list[str]:
        """The names of the quotes that are shown."""
        return [one.ref for one in self.live_quotes()]

    @property
    def count(self) -> int:
        """How many trades there are, as the manager said last."""
        return self.count_trades()


OPERATIONS = (
    *TRADING_OPERATIONS,
    ManagerOperation("place_quote", args={"ref": "client_order_id"}, creates="ladder_quotes.id", order=Order.OPENS),
    ManagerRead("live_quotes", like="get_unresolved_orders"),
    ManagerRead("count_trades", keep_last=True),
)


def _quote(number: int) -> Quote:
    level = Level(Decimal(f"{100 + number}.50"), Decimal(1 + number))
    at = datetime(2026, 1, 1, 9, number, tzinfo=ZONES[number % len(ZONES)])
    return Quote(f"q-{number}", level, (level.px, level.px + 1), at)


def _spelled(one: Shown) -> Any:
    """With the decimal places of its amounts, and the zone of its time."""
    return repr(one._replace(placed_at=one.placed_at.replace(tzinfo=None))), one.placed_at.utcoffset()


@pytest.fixture
def maker(postgres_url: str, outbox_dir: Path) -> Iterator[Scene]:
    with scene(postgres_url, outbox_dir, Maker, OPERATIONS, write_behind=True, wait_s=0.02) as made:
        made.manager.create_trading_session("s", 100)
        for number in range(4):
            made.manager.place_quote(_quote(number))
            assert made.drain()
            made.manager.live_quotes()
        yield made


def test_parts_of_nested_arguments_are_answered(maker: Scene) -> None:
    for number in (4, 5):
        maker.manager.place_quote(_quote(number))
    found = maker.manager.live_quotes()
    assert maker.drain()
    known = maker.manager.live_quotes()
    assert [_spelled(one) for one in found] == [_spelled(one) for one in known]


def test_answer_of_one_uuid_is_understood(maker: Scene) -> None:
    notices = maker.box.status().notices
    assert "place_quote" not in getattr(notices.get("unanswerable"), "message", "")


@pytest.mark.parametrize("name", ["refs", "count", "is_empty"])
def test_method_that_asks_a_local_read_needs_no_delivery(name: str, maker: Scene) -> None:
    """A kill switch that is a property raised until the last call of an outage was delivered."""

    def asked() -> Any:
        found = getattr(maker.manager, name)
        return found() if callable(found) else found

    before: Any = asked()
    maker.manager.place_quote(_quote(6))
    assert asked() == ([*before, "q-6"] if name == "refs" else before)
