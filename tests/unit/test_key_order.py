"""Key order: dicts come back with their keys as they were, at any depth."""

from __future__ import annotations

from typing import Any

import pytest

from outbox.codec import decode, encode
from outbox.integrations.key_order import in_key_order, in_orders, key_order, orders_of

VALUES: list[Any] = [
    {"b": 1, "a": 2},
    {"a": {"z": 1, "y": [{"q": 1, "p": (0, {"n": 1, "m": 2})}]}, "b": 0},
    {10: "x", 9: "y", "a": {"d": 1, "c": 2}},
    [{"b": 1, "a": 2}, {"a": 1}],
    {"z": {}, "a": []},
]


@pytest.mark.parametrize("value", VALUES)
def test_stored_value_comes_back_in_its_order(value: Any) -> None:
    stored = decode(*encode(value))
    assert repr(in_key_order(stored, decode(*encode(key_order(value))))) == repr(value)


@pytest.mark.parametrize("value", [None, 5, "text", {}, [], {"a": 1, "b": {"c": [1], "d": 2}}, {"tags": {1, 2}}])
def test_value_in_sorted_order_needs_no_note(value: Any) -> None:
    assert key_order(value) is None
    assert in_key_order(value, None) is value


def test_order_of_another_value_changes_nothing() -> None:
    order = key_order({"b": 1, "a": 2})
    assert in_key_order({"b": 1, "c": 2}, order) == {"b": 1, "c": 2}
    assert in_key_order("text", order) == "text"


def test_further_keywords_of_a_call_come_in_their_order() -> None:
    call = {"message": {"b": 1, "a": 2}, "z": 1, "y": 2}
    notes = orders_of(call, {"message"})
    assert list(in_orders({"message": {"a": 2, "b": 1}, "y": 2, "z": 1}, notes)) == ["message", "z", "y"]
    assert orders_of({"y": 1, "x": 2}, {"y", "x"}) == {}
