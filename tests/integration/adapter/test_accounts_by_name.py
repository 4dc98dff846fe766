"""A manager of several accounts, which its calls name and no declared method begins."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Column, Numeric, String, create_engine, select
from sqlalchemy.orm import DeclarativeBase, sessionmaker

from outbox.integrations.durable import ManagerOperation, ManagerRead
from outbox.integrations.roles import Balance
from outbox.integrations.view.local_view import UnknownLocally
from tests.unit.fakes.waiting import until

from .small import Scene, scene


class Base(DeclarativeBase):
    pass


class Account(Base):
    __tablename__ = "accounts"
    name: Any = Column(String, primary_key=True)
    cash: Any = Column(Numeric(18, 4), nullable=False)


class Accounts:
    def __init__(self, url: str) -> None:
        self.engine = create_engine("postgresql+psycopg2://" + url.partition("://")[2])
        self.session_factory = sessionmaker(bind=self.engine)
        Base.metadata.create_all(self.engine)
        with self.session_factory.begin() as session:
            for name in ("east", "west"):
                session.merge(Account(name=name, cash=Decimal(100)))

    def pay(self, account: str, amount: Decimal) -> None:
        with self.session_factory.begin() as session:
            row = session.get_one(Account, account, with_for_update=True)
            row.cash = row.cash + amount

    def cash(self, account: str) -> Any:
        with self.session_factory() as session:
            return session.scalar(select(Account.cash).where(Account.name == account))


OPERATIONS: tuple[Any, ...] = (
    ManagerOperation("pay", args={"account": "session_id"}, balance=Balance.CHANGE, amount="amount"),
    ManagerRead("cash", like="get_current_balance", args={"account": "session_id"}),
)


@pytest.fixture
def here(postgres_url: str, outbox_dir: Path) -> Iterator[Scene]:
    with scene(postgres_url, outbox_dir, Accounts, OPERATIONS) as made:
        yield made


def test_first_payment_of_an_account_in_an_outage_is_recorded(here: Scene) -> None:
    here.relay.start()
    for amount in (1, 2, 3):
        here.manager.pay("east", Decimal(amount))
    assert here.drain()
    until(lambda: here.manager._adapter.view.is_sure("east"))
    here.relay.stop()
    here.manager.pay("west", Decimal(5))
    here.manager.pay("east", Decimal(-6))
    assert here.manager.cash("east") == Decimal(100)
    with pytest.raises(UnknownLocally, match="west was never seen"):
        here.manager.cash("west")
    assert here.drain()
    assert (here.manager.cash("west"), here.manager.cash("east")) == (Decimal(105), Decimal(100))
    assert list(here.box.dead_letters()) == []
