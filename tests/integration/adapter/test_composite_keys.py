"""Positions with a composite natural key, which the manager shows as an object and takes as one."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from sqlalchemy import Column, Date, Integer, Numeric, String, create_engine, select
from sqlalchemy.orm import DeclarativeBase, sessionmaker

from outbox.integrations.durable import TRADING_OPERATIONS, ManagerOperation, ManagerRead

from .small import Scene, scene


class Right(enum.StrEnum):
    CALL = "C"
    PUT = "P"


class Option(NamedTuple):
    underlying: str
    expiry: date
    strike: Decimal
    right: Right


@dataclass(frozen=True)
class Held:
    option: Option
    size: Decimal
    stop: Decimal | None


@dataclass(frozen=True)
class Listed:
    id: Option
    size: Decimal
    stop: Decimal | None


class Base(DeclarativeBase):
    pass


class Desk(Base):
    __tablename__ = "trading_sessions"
    id: Any = Column(Integer, primary_key=True)


class Line(Base):
    __tablename__ = "lines"
    session_id: Any = Column(Integer, primary_key=True)
    underlying: Any = Column(String, primary_key=True)
    expiry: Any = Column(Date, primary_key=True)
    strike: Any = Column(Numeric, primary_key=True)
    right: Any = Column(String, primary_key=True)
    size: Any = Column(Numeric(18, 8))
    stop: Any = Column(Numeric(18, 8))


class ByOption:
    """Shows a dict by the composite key."""

    def __init__(self, url: str) -> None:
        self.engine = create_engine("postgresql+psycopg2://" + url.partition("://")[2])
        self.session_factory = sessionmaker(bind=self.engine)
        self._current_session_id: int | None = None
        Base.metadata.create_all(self.engine)

    def create_trading_session(self) -> int:
        with self.session_factory.begin() as session:
            session.add(row := Desk())
            session.flush()
            self._current_session_id = row.id
            return int(row.id)

    def open_line(self, option: Option, size: Decimal, session_id: int) -> None:
        with self.session_factory.begin() as session:
            session.add(Line(session_id=session_id, size=size, **option._asdict()))

    def move_stop(self, option: Option, stop: Decimal, session_id: int) -> bool:
        with self.session_factory.begin() as session:
            session.get_one(Line, (session_id, *option)).stop = stop
        return True

    def close_line(self, option: Option, session_id: int) -> bool:
        with self.session_factory.begin() as session:
            session.delete(session.get_one(Line, (session_id, *option)))
        return True

    def lines(self, session_id: int) -> Any:
        return {option: Held(option, size, stop) for option, size, stop in self._lines(session_id)}

    def _lines(self, session_id: int) -> list[Any]:
        with self.session_factory() as session:
            query = select(Line).where(Line.session_id == session_id).order_by(Line.size)
            return [(self._option(row), row.size, row.stop) for row in session.scalars(query)]

    def _option(self, row: Line) -> Option:
        return Option(row.underlying, row.expiry, row.strike, Right(row.right))


class Listing(ByOption):
    """Shows a list, each row with its key as one object."""

    def lines(self, session_id: int) -> Any:
        return [Listed(*row) for row in self._lines(session_id)]


OPERATIONS: tuple[Any, ...] = (
    *TRADING_OPERATIONS,
    ManagerOperation("open_line", like="log_position", args={"option": "position_id"}, creates=None, identity=()),
    ManagerOperation("move_stop", like="update_position", args={"option": "position_id"}),
    ManagerOperation("close_line", like="close_position", args={"option": "position_id"}),
    ManagerRead("lines", like="get_active_positions"),
)


def option(strike: int, right: Right = Right.CALL) -> Option:
    return Option("SPX", date(2024, 3, 15), Decimal(strike), right)


@contextmanager
def book(url: str, folder: Path, manager: type[ByOption]) -> Iterator[Scene]:
    with scene(url, folder, manager, OPERATIONS, write_behind=True, wait_s=0.02) as found:
        yield found


def learn(found: Scene, session: int) -> None:
    for number, strike in enumerate((100, 105, 110)):
        for right in Right:
            size = Decimal(5 - number) if right is Right.CALL else Decimal(20 + number)
            found.manager.open_line(option(strike, right), size, session)
            found.manager.move_stop(option(strike, right), Decimal(40 - number), session)
            assert found.drain()
    for strike in (105, 110):
        for right in Right:
            found.manager.close_line(option(strike, right), session)
            assert found.drain()


@pytest.mark.parametrize("manager", [ByOption, Listing])
def test_rows_with_composite_keys_are_told_apart_in_an_outage(
    postgres_url: str, outbox_dir: Path, manager: type[ByOption]
) -> None:
    with book(postgres_url, outbox_dir, manager) as found:
        session = found.manager.create_trading_session()
        learn(found, session)
        found.manager.open_line(option(120), Decimal(7), session)
        found.manager.open_line(option(125), Decimal(9), session)
        found.manager.move_stop(option(120), Decimal(3), session)
        found.manager.close_line(option(100, Right.PUT), session)
        answer = found.manager.lines(session)
        assert len(answer) == 3
    with book(postgres_url, outbox_dir, manager) as found:
        # After a restart, too, the keys are objects of their class.
        assert found.manager.lines(session) == answer
        assert found.drain()
        assert found.manager.lines(session) == answer
