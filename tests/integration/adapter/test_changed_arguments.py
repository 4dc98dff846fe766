"""What a method changes in the objects that it is given reaches its caller; in an outage the new row's id does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Column, Integer, Numeric, String, create_engine, select
from sqlalchemy.orm import DeclarativeBase, sessionmaker

from outbox.integrations.durable import ManagerOperation

from .small import Scene, scene


class Base(DeclarativeBase):
    pass


class Row(Base):
    __tablename__ = "noted_fills"
    id: Any = Column(Integer, primary_key=True)
    symbol: Any = Column(String)
    size: Any = Column(Numeric(18, 8))


@dataclass
class Fill:
    symbol: str
    size: Decimal
    id: int | None = None
    notes: list[str] = field(default_factory=list)
    seen: dict[str, Any] = field(default_factory=dict)


class Manager:
    def __init__(self, url: str) -> None:
        self.engine = create_engine("postgresql+psycopg2://" + url.partition("://")[2])
        self.session_factory = sessionmaker(bind=self.engine)
        Base.metadata.create_all(self.engine)

    def save_fill(self, fill: Fill) -> int:
        with self.session_factory.begin() as session:
            session.add(row := Row(symbol=fill.symbol, size=fill.size))
            session.flush()
            fill.id = row.id
        fill.notes.append("saved")
        fill.seen["row"] = {"id": fill.id}
        assert fill.id is not None
        return fill.id

    def save_item(self, item: dict[str, Any], *, tags: list[str] | None = None) -> int:
        with self.session_factory.begin() as session:
            row = Row(symbol=item["symbol"], size=item.pop("size"))
            session.add(row)
            session.flush()
            row_id = int(row.id)
            item["id"] = row_id
            (tags or []).sort()
        return row_id

    def save_again(self, fill: Fill) -> int:
        with self.session_factory.begin() as session:
            row = Row() if fill.id is None else session.get_one(Row, fill.id)
            row.symbol, row.size = fill.symbol, fill.size
            session.add(row)
            session.flush()
            fill.id = row.id
        assert fill.id is not None
        return fill.id

    def sizes(self) -> list[Any]:
        with self.session_factory() as session:
            return list(session.execute(select(Row.id, Row.symbol, Row.size).order_by(Row.id)))


OPERATIONS = tuple(ManagerOperation(name, creates="noted_fills") for name in ("save_fill", "save_item", "save_again"))


@pytest.fixture
def here(postgres_url: str, outbox_dir: Path) -> Iterator[Scene]:
    with scene(postgres_url, outbox_dir, Manager, OPERATIONS) as made:
        made.relay.start()
        yield made


def test_change_of_an_argument_reaches_the_caller(here: Scene) -> None:
    notes: list[str] = []
    fill = Fill("BTC", Decimal("0.5"), notes=notes)
    id_ = here.manager.save_fill(fill)
    assert (fill.id, notes, fill.seen, fill.symbol) == (id_, ["saved"], {"row": {"id": id_}}, "BTC")
    item, tags = {"symbol": "ETH", "size": Decimal(2)}, ["b", "a"]
    id_ = here.manager.save_item(item, tags=tags)
    assert (item, tags) == ({"symbol": "ETH", "id": id_}, ["a", "b"])


def test_id_reaches_the_argument_in_an_outage(here: Scene) -> None:
    here.manager.save_fill(Fill("BTC", Decimal(1)))
    here.relay.stop()
    fills = [Fill("BTC", Decimal(number)) for number in range(3)]
    item: dict[str, Any] = {"symbol": "ETH", "size": Decimal(2)}
    assert [here.manager.save_fill(fill) for fill in fills] == [fill.id for fill in fills]
    assert here.manager.save_item(item) == item["id"]
    assert here.drain()
    found = {id_: (symbol, size) for id_, symbol, size in here.manager.sizes()}
    assert [found[fill.id] for fill in fills] == [("BTC", Decimal(number)) for number in range(3)]
    assert found[item["id"]] == ("ETH", Decimal(2))
    assert here.box.status().alarms == {}


def test_object_that_has_its_id_is_saved_under_it(here: Scene) -> None:
    for size in range(3):
        fill = Fill("BTC", Decimal(size))
        assert here.manager.save_again(fill) == here.manager.save_again(fill) == fill.id
    here.relay.stop()
    fills = [Fill("ETH", Decimal(2)), fill]
    for one in fills:
        ids = set[int]()
        for _ in range(3):
            one.size += 1
            ids.add(here.manager.save_again(one))
        assert ids == {one.id}
    assert here.drain()
    found = {id_: (symbol, size) for id_, symbol, size in here.manager.sizes()}
    assert len(found) == 4
    assert [found[one.id] for one in fills] == [(one.symbol, one.size) for one in fills]
    assert here.box.status().alarms == {}


def test_same_object_passed_again_is_the_same_call(postgres_url: str, outbox_dir: Path) -> None:
    operations = [ManagerOperation("save_fill", creates="noted_fills", identity="symbol", records="fill")]
    with scene(postgres_url, outbox_dir, Manager, operations) as made:
        fill = Fill("BTC", Decimal(1))
        assert made.manager.save_fill(fill) == made.manager.save_fill(fill) == fill.id
        made.relay.start()
        assert made.manager.save_fill(fill) == fill.id
        assert made.drain()
        assert len(made.manager.sizes()) == 1


def test_refused_change_of_an_object_fails_no_call(here: Scene, caplog: pytest.LogCaptureFixture) -> None:
    @dataclass
    class Sealed(Fill):
        def __setattr__(self, name: str, value: Any) -> None:
            if name == "id" and value is not None:
                raise ValueError("sealed")
            super().__setattr__(name, value)

    here.relay.stop()
    assert here.manager.save_fill(Sealed("BTC", Decimal(1)))
    assert "could not follow" in caplog.text
