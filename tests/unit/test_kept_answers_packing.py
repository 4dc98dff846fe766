"""Packing: answers come back as objects of their classes, with their keys in order."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from typing import Any

import pytest
from sqlalchemy import ForeignKey
from sqlalchemy.engine import result_tuple
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from outbox import InvalidEntry, registered
from outbox.codec import decode, encode
from outbox.integrations.view.kept_answers import packed, unpacked


class Base(DeclarativeBase):
    pass


class Venue(Base):
    __tablename__ = "venues"
    id: Mapped[int] = mapped_column(primary_key=True)


class Ticket(Base):
    __tablename__ = "tickets"
    id: Mapped[int] = mapped_column(primary_key=True)
    price: Mapped[Decimal]
    venue_id: Mapped[int] = mapped_column(ForeignKey("venues.id"))
    venue: Mapped[Venue] = relationship()


@dataclass(frozen=True, slots=True)
class Quote:
    bid: float
    at: datetime


class Mood(Enum):
    CALM = "calm"


Pair = namedtuple("Pair", ["left", "right"])


def again(answer: Any, **met: Any) -> Any:
    return unpacked(decode(*encode(packed(answer, **met))))


@pytest.mark.parametrize(
    "answer",
    [
        None,
        5,
        [{"z": Decimal("1.50"), "a": (1, {"q": 1, "b": 2})}],
        {10: "x", 9: "y"},
        [Quote(1.5, datetime(2024, 5, 6, tzinfo=UTC))],
        {"pair": Pair(1, "b")},
        result_tuple(["ref", "px"])(["a", 5]),
        {1, 2},
    ],
    ids=lambda answer: type(answer).__name__,
)
def test_answer_comes_back_as_it_was(answer: Any) -> None:
    assert repr(again(answer)) == repr(answer)
    assert type(again(answer)) is type(answer)


def test_mapped_object_comes_back_with_what_it_had_loaded() -> None:
    ticket = again([Ticket(id=7, price=Decimal("1.5"), venue=Venue(id=3))])[0]
    assert (type(ticket), ticket.id, ticket.price, ticket.venue.id) == (Ticket, 7, Decimal("1.5"), 3)


class Point:
    """A value, as of attrs."""

    __slots__ = ("x",)

    def __init__(self, x: int) -> None:
        self.x = x

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Point) and self.x == other.x

    __hash__ = None  # type: ignore[assignment]


def test_value_of_any_class_comes_back_and_other_objects_do_not() -> None:
    assert again([Point(5)]) == [Point(5)]
    with pytest.raises(InvalidEntry, match="cannot be stored"):
        packed([type("Client", (), {"__init__": lambda self: setattr(self, "x", 5)})()])


def test_enum_that_is_new_is_allowed_by_its_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registered, "enums", {})
    with pytest.raises(InvalidEntry, match="unregistered enum"):
        packed([Mood.CALM])

    def met(one: Any) -> bool:
        return bool(registered.register_enum(type(one)))

    assert again([Mood.CALM], met=met) == [Mood.CALM]


def test_answer_that_contains_itself_is_refused() -> None:
    answer: list[Any] = []
    answer.append(answer)
    with pytest.raises(InvalidEntry, match="contains itself"):
        packed(answer)
    with pytest.raises(InvalidEntry, match="cannot be stored"):
        packed([object()])
