"""Columns that are a time and a duration are answered in an outage as the manager makes them."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import DateTime, select
from sqlalchemy.orm import Mapped, mapped_column

from outbox.integrations.durable import TRADING_OPERATIONS, ManagerOperation
from outbox.integrations.roles import Position
from outbox.integrations.view.local_view import UnknownLocally
from tests.unit.fakes.waiting import until

from .small import Base, Scene, SmallManager, scene


class Offer(Base):
    __tablename__ = "offers"
    id: Mapped[int] = mapped_column(primary_key=True)
    expires_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    close_by: Mapped[datetime] = mapped_column(DateTime)
    review_at: Mapped[datetime] = mapped_column(DateTime)


class Timing(SmallManager):
    def offer(self, begun: datetime, ttl: float | None, max_hold: timedelta) -> int:
        expires = None if ttl is None else datetime.now(UTC) + timedelta(minutes=ttl)
        with self.session_factory.begin() as session:
            offer = Offer(expires_at=expires, close_by=begun + max_hold, review_at=begun + timedelta(hours=8))
            session.add(offer)
            session.flush()
            return offer.id

    def prolong(self, position_id: int, hours: int) -> bool:
        with self.session_factory.begin() as session:
            session.get_one(Offer, position_id).close_by += timedelta(hours=hours)
        return True

    def get_active_positions(self, session_id: int | None = None) -> list[dict[str, Any]]:
        with self.session_factory() as session:
            return [
                {"id": one.id, "expires_at": one.expires_at, "close_by": one.close_by, "review_at": one.review_at}
                for one in session.scalars(select(Offer).order_by(Offer.id))
            ]


OPERATIONS = (
    *TRADING_OPERATIONS,
    ManagerOperation("offer", creates="offers", position=Position.OPENS),
    ManagerOperation("prolong", position=Position.UPDATES),
)
BEGUN = datetime(2026, 3, 1, 12, 0, 0, 250)  # noqa: DTZ001 - as in a column without a time zone


@pytest.fixture
def timing(postgres_url: str, outbox_dir: Path) -> Iterator[Scene]:
    with scene(postgres_url, outbox_dir, Timing, OPERATIONS) as here:
        here.relay.start()
        here.manager.create_trading_session("ma", 100)
        yield here


def outage(here: Scene) -> None:
    assert here.drain()
    here.manager.get_active_positions()
    here.box.pauses.begin("an outage", 300)
    until(lambda: here.relay._last.paused)


def test_times_after_a_call_or_an_argument_are_answered(timing: Scene) -> None:
    manager = timing.manager
    for ttl, hold in ((30, timedelta(days=1)), (45.5, timedelta(hours=7))):
        id_ = manager.offer(BEGUN, ttl, hold)
        manager.prolong(id_, int(ttl))
    outage(timing)
    id_ = manager.offer(BEGUN + timedelta(days=2, microseconds=5), 7.25, timedelta(minutes=90))
    manager.prolong(id_, 3)
    manager.prolong(1, 5)
    told = manager.get_active_positions()
    assert told[-1]["close_by"] == BEGUN + timedelta(days=2, minutes=90, hours=3, microseconds=5)
    timing.box.pauses.end()
    assert timing.drain()
    assert told == manager.get_active_positions()


def test_time_that_was_seen_once_only_is_not_answered(timing: Scene) -> None:
    manager = timing.manager
    manager.offer(BEGUN, 30, timedelta(days=1))
    outage(timing)
    manager.offer(BEGUN, 30, timedelta(days=1))
    with pytest.raises(UnknownLocally, match="seen once only"):
        manager.get_active_positions()
