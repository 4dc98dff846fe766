"""Key order: keeps the order of the keys of dicts, which are stored sorted, for JSON and text made of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

# The keys of a dict, empty where they are sorted, and the orders of what is inside, by position as text.
Order = list[Any]


def key_order(value: Any) -> Order | None:
    """The order of the keys in a value, at any depth; None where sorted keys are in order."""
    keys: list[Any] = []
    inside: Collection[Any] = value
    if isinstance(value, dict):
        inside, given = value.values(), list(value)
        keys = given if any(type(key) is not str for key in given) or given != sorted(given) else []
    elif not isinstance(value, list | tuple):
        return None
    found = {str(index): order for index, one in enumerate(inside) if (order := key_order(one)) is not None}
    return [keys, found] if keys or found else None


def in_key_order(value: Any, order: Order | None) -> Any:
    """A value with its keys in the order that `key_order` found; what does not fit is left as it is."""
    if order is None:
        return value
    keys, inside = order
    if isinstance(value, dict):
        keys = keys or sorted(value)
        if value.keys() != set(keys):
            return value
        return {key: in_key_order(value[key], inside.get(str(index))) for index, key in enumerate(keys)}
    if isinstance(value, list | tuple):
        return type(value)(in_key_order(one, inside.get(str(index))) for index, one in enumerate(value))
    return value


def orders_of(call: Mapping[str, Any], named: Collection[str]) -> dict[str, Any]:
    """What to note of a call: the orders in its arguments, and that of the keywords beside those `named`."""
    found: dict[str, Any] = {}
    orders = {name: order for name, value in call.items() if (order := key_order(value)) is not None}
    if orders:
        found["orders"] = orders
    further = [name for name in call if name not in named]
    if further != sorted(further):
        found["further"] = further
    return found


def in_orders(call: dict[str, Any], notes: Mapping[str, Any]) -> dict[str, Any]:
    """A call as it was made, from what `orders_of` noted of it."""
    orders, further = notes.get("orders", {}), notes.get("further", ())
    if orders:
        call = {name: in_key_order(value, orders.get(name)) for name, value in call.items()}
    return call | {name: call.pop(name) for name in further if name in call} if further else call
