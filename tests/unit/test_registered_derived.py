"""Values of classes derived from built-in ones, and dicts of `collections`, come back with their class."""

from __future__ import annotations

import json
from collections import Counter, OrderedDict, defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from outbox import InvalidEntry, codec, registered


def round_trip(value: Any) -> Any:
    return codec.decode(*codec.encode(value))


class Symbol(str):
    __slots__ = ()

    def __str__(self) -> str:
        return f"<{super().__str__()}>"


class Money(Decimal):
    currency = "USD"

    @classmethod
    def of(cls, amount: str, currency: str) -> Money:
        made = cls(amount)
        made.currency = currency
        return made


class Stamp(datetime):
    pass


@dataclass
class Book(dict):  # type: ignore[type-arg]
    symbol: str = ""


for one in (Symbol, Money, Stamp, Book):
    registered.register_record(one)


def test_values_of_derived_classes_round_trip() -> None:
    book = Book("BTC")
    book["bids"] = [Decimal(1)]
    stamp = Stamp(2026, 1, 2, 3, tzinfo=UTC)
    for value in (Symbol("BTC"), Money("1.50"), Money.of("2", "EUR"), stamp, book):
        found = round_trip({"it": value})["it"]
        assert (type(found), found, getattr(found, "__dict__", {})) == (
            type(value),
            value,
            vars(value) if hasattr(value, "__dict__") else {},
        )
    assert json.loads(codec.encode(Symbol("BTC"))[0]) == "BTC"
    assert round_trip(Money.of("2", "EUR")).currency == "EUR"


def test_dicts_of_collections_round_trip() -> None:
    counts: defaultdict[str, int] = defaultdict(int, {"a": 1})
    ordered = OrderedDict([("a", 1), ("b", Decimal(2))])
    for value in (counts, ordered, Counter("aab"), defaultdict(list, {"a": [1]}), defaultdict(None, {1: 2})):
        found = round_trip({"it": value})["it"]
        assert (type(found), found, getattr(found, "default_factory", None)) == (
            type(value),
            value,
            getattr(value, "default_factory", None),
        )
    with pytest.raises(InvalidEntry, match=r"collections.defaultdict, which cannot be stored"):
        codec.encode(defaultdict(lambda: 0))
