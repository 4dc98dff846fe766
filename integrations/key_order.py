"""Key order: keeps the order of the keys of dicts, which are stored sorted, for JSON and text made of them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Mapping
from typing import Any

from ..records import fields_of, has_fields, made_of
from .plain_data import PLAIN

# The keys of a dict, empty where they are sorted, and the orders of what is inside, by position as text.
KeyOrder = list[Any]
# By `id()`: the value, so that its id stays its own, and its order.
_Known = dict[int, tuple[Any, KeyOrder | None]]
_COLLECTIONS = (dict, list, tuple)


def key_order(value: Any, known: _Known | None = None) -> KeyOrder | None:
    """The order of the keys in a value, at any depth; None where sorted keys are in order.

    `known`: the orders of what was looked at before, since objects may hold each other.
    """
    if type(value) in PLAIN:
        return None
    known = {} if known is None else known
    if id(value) not in known:
        known[id(value)] = value, None
        known[id(value)] = value, _order_in(value, known)
    return known[id(value)][1]


def _order_in(value: Any, known: _Known) -> KeyOrder | None:
    keys: list[Any] = []
    given = fields_of(value) if type(value) not in _COLLECTIONS and has_fields(type(value)) else value
    if isinstance(given, dict):
        names, inside = list(given), list(given.values())
        keys = names if any(type(key) is not str for key in names) or names != sorted(names) else []
    elif isinstance(given, list | tuple):
        inside = list(given)
    else:
        return None
    found = {str(index): order for index, one in enumerate(inside) if (order := key_order(one, known)) is not None}
    return [keys, found] if keys or found else None


def in_key_order(value: Any, order: KeyOrder | None) -> Any:
    """A value with its keys in the order that `key_order` found; what does not fit is left as it is."""
    if order is None:
        return value
    keys, inside = order
    if has_fields(type(value)):
        given = fields_of(value)
        return made_of(type(value), in_key_order(given, order), given)
    if isinstance(value, dict):
        keys = keys or sorted(value)
        if value.keys() != set(keys):
            return value
        items = {key: in_key_order(value[key], inside.get(str(index))) for index, key in enumerate(keys)}
        return items if type(value) is dict else _refilled(value, items)
    if isinstance(value, list | tuple):
        ordered = [in_key_order(one, inside.get(str(index))) for index, one in enumerate(value)]
        if isinstance(value, tuple):
            return tuple.__new__(type(value), ordered)
        list.__setitem__(value, slice(None), ordered)
    return value


def _refilled(value: dict[Any, Any], items: Mapping[Any, Any]) -> dict[Any, Any]:
    base = OrderedDict if isinstance(value, OrderedDict) else dict
    base.clear(value)
    for key, item in items.items():
        base.__setitem__(value, key, item)
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
