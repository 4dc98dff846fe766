"""Key order: dicts come back with their keys as they were, at any depth."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest

from outbox import register_record
from outbox.codec import decode, encode
from outbox.integrations.plain_data import in_key_order, in_orders, key_order, orders_of


@register_record
@dataclass
class Leg:
    symbol: str
    more: dict[str, int]


class Quote(NamedTuple):
    more: dict[str, int]
    bid: int


class Plain:
    def __init__(self, symbol: str, more: Any) -> None:
        self.symbol, self.more = symbol, more

    def __repr__(self) -> str:
        return f"Plain{vars(self)}"


register_record(Quote)
register_record(Plain)

VALUES: list[Any] = [
    {"b": 1, "a": 2},
    {"a": {"z": 1, "y": [{"q": 1, "p": (0, {"n": 1, "m": 2})}]}, "b": 0},
    {10: "x", 9: "y", "a": {"d": 1, "c": 2}},
    [{"b": 1, "a": 2}, {"a": 1}],
    {"z": {}, "a": []},
    OrderedDict([("b", 1), ("a", [OrderedDict([("z", 1), ("y", 2)])])]),
    Leg("BTC", {"b": 1, "a": 2}),
    [Quote({"b": 1, "a": 2}, 1)],
    Plain("BTC", {"b": 1, "a": 2}),
]


@pytest.mark.parametrize("value", VALUES)
def test_stored_value_comes_back_in_its_order(value: Any) -> None:
    stored = decode(*encode(value))
    assert repr(in_key_order(stored, decode(*encode(key_order(value))))) == repr(value)


@pytest.mark.parametrize("value", [None, 5, "text", {}, [], {"a": 1, "b": {"c": [1], "d": 2}}, {"tags": {1, 2}}])
def test_value_in_sorted_order_needs_no_note(value: Any) -> None:
    assert key_order(value) is None
    assert in_key_order(value, None) is value


def test_object_that_holds_itself_has_an_end() -> None:
    plain = Plain("BTC", [])
    plain.more += [{"b": plain, "a": plain}] * 3
    assert key_order(plain) is not None


def test_order_of_another_value_changes_nothing() -> None:
    order = key_order({"b": 1, "a": 2})
    assert in_key_order({"b": 1, "c": 2}, order) == {"b": 1, "c": 2}
    assert in_key_order("text", order) == "text"


def test_further_keywords_of_a_call_come_in_their_order() -> None:
    call = {"message": {"b": 1, "a": 2}, "z": 1, "y": 2}
    notes = orders_of(call, {"message"})
    assert list(in_orders({"message": {"a": 2, "b": 1}, "y": 2, "z": 1}, notes)) == ["message", "z", "y"]
    assert orders_of({"y": 1, "x": 2}, {"y", "x"}) == {}
