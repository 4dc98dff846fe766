"""Plain data: the values of a manager's attributes and calls that are copied, compared and stored.

An object with a lock is none: it is shared, since other threads may use it at the same time.  Notes beside a value keep
what the store loses: the order of the keys of dicts, which are stored sorted, for JSON and text made of them; and the
named zones of times, which are stored with their offset: a day later the clock may be set.
"""

from __future__ import annotations

import copy
import re
import sys
from collections import OrderedDict, deque
from collections.abc import Collection, Mapping
from contextlib import suppress
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from itertools import count
from types import SimpleNamespace
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

from ..records import attributes, fields_of, has_fields, made_of, put, slots_of

SCALARS = (bool, int, float, complex, str, bytes, Decimal, datetime, date, time, timedelta, UUID, Enum, type(None))
# Most items have one of these types: told apart by identity, a large collection costs a tenth.
PLAIN = frozenset(SCALARS)
# Of larger collections only the collection is copied, since its items are seldom changed; a still larger dict or set (a
# cache) is shared with the copy.
_LARGEST = 10_000
_CACHE = 100_000
# An attribute with more values than this is not stored with a call: each entry would hold all of a growing history.
_STORED = 1000
# A longer text counts as several values.
_TEXT_CHARS = 64
_DEEPEST = 4
# An itertools.count shows its state only so; to copy one is deprecated.
_COUNTER = re.compile(r"count\((-?\d+)(?:, (-?\d+))?\)")


def is_state(value: Any, depth: int = 0) -> bool:
    """Whether a value is plain data: scalars, collections of them, objects of the host that hold nothing else."""
    if type(value) in PLAIN or isinstance(value, SCALARS) or type(value).__module__ == "numpy":
        return True
    if isinstance(value, count):
        return counter(value) is not None
    if depth >= _DEEPEST:
        return False
    if isinstance(value, Mapping):
        return isinstance(value, dict) and len(value) <= _LARGEST and _all_state(value.values(), depth)
    if isinstance(value, (list, set, deque, tuple, frozenset)):
        return len(value) <= _LARGEST and _all_state(value, depth)
    return is_of_the_host(value) and _all_state(attributes(value).values(), depth)


def _all_state(values: Any, depth: int) -> bool:
    return all(type(value) in PLAIN or is_state(value, depth + 1) for value in tuple(values))


def is_of_the_host(value: Any) -> bool:
    """Whether it is an object of a plain class that is neither Python's nor a library's of the database."""
    cls = type(value)
    if cls is SimpleNamespace:
        return True
    package = cls.__module__.partition(".")[0]
    foreign = package in sys.stdlib_module_names and package != "__main__"
    if foreign or package in {"sqlalchemy", "psycopg2", "outbox"}:
        return False
    return hasattr(value, "__dict__") or bool(slots_of(cls))


def is_long(value: Any) -> bool:
    """Whether a collection is copied without its items."""
    if isinstance(value, (list, deque)):
        return len(value) > _LARGEST
    return isinstance(value, (dict, set)) and _LARGEST < len(value) <= _CACHE


def is_small(value: Any, most: int = _STORED) -> bool:
    """Whether a value is small enough to be stored with each call."""
    todo, left = [value], most
    while todo:
        one = todo.pop()
        left -= 1 + (len(one) // _TEXT_CHARS if isinstance(one, (str, bytes)) else 0)
        inner: Any = ()
        if isinstance(one, Mapping):
            inner = one.values()
        elif isinstance(one, (list, tuple, set, frozenset, deque)):
            inner = one
        elif not isinstance(one, SCALARS) and is_of_the_host(one):
            inner = attributes(one).values()
        if left < len(inner):
            return False
        todo.extend(inner)
    return True


# By `id()`: the value, so that its id stays its own, and its copy.
Copies = dict[int, tuple[Any, Any]]


def copied(value: Any, known: Copies | None = None) -> Any:
    """A copy of plain data, collections within it included; a long list keeps its items; anything else as it is.

    `known`: what was copied before: what two attributes hold, their copies hold, too.
    """
    if type(value) in PLAIN:
        return value
    known = {} if known is None else known
    if is_long(value):
        return known.setdefault(id(value), (value, copy.copy(value)))[1]
    if isinstance(value, SCALARS) or type(value).__module__ == "numpy" or not is_state(value):
        return value
    return _copied(value, known)


def all_copied(values: Mapping[str, Any]) -> dict[str, Any]:
    """Copies of several values, which hold together what these do."""
    known: Copies = {}
    return {name: copied(value, known) for name, value in values.items()}


def _copied(value: Any, known: Copies) -> Any:
    if isinstance(value, SCALARS) or type(value).__module__ == "numpy":
        return value
    if id(value) in known:
        return known[id(value)][1]
    made = count(*counter(value) or ()) if isinstance(value, count) else copy.copy(value)
    known[id(value)] = value, made
    if isinstance(made, (list, deque)):
        for at, item in enumerate(made):
            if type(item) not in PLAIN:
                made[at] = _copied(item, known)
    elif not isinstance(made, (set, tuple, frozenset, count)):
        for name, item in (made if isinstance(made, dict) else attributes(made)).items():
            if type(item) in PLAIN:
                continue
            if isinstance(made, dict):
                made[name] = _copied(item, known)
            else:
                put(made, name, _copied(item, known))
    return made


def same(one: Any, other: Any) -> bool:
    """Whether two values are equal, type by type and in the order of their items."""
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if is_long(one):
        try:
            return len(one) == len(other) and bool(one == other)
        except ValueError:  # arrays that were replaced
            return False
    if isinstance(one, dict):
        return list(one) == list(other) and all(
            item is other[key] or same(item, other[key]) for key, item in one.items()
        )
    if isinstance(one, (list, deque, tuple)):
        return len(one) == len(other) and all(a is b or same(a, b) for a, b in zip(one, other, strict=True))
    if isinstance(one, (*SCALARS, set, frozenset)) or type(one).__module__ == "numpy":
        return bool(one == other)
    if isinstance(one, count):
        return repr(one) == repr(other)
    return is_of_the_host(one) and is_state(one) and same(attributes(one), attributes(other))


def counter(value: count[Any]) -> tuple[int, int] | None:
    """The next number of an `itertools.count` and its step; None unless both are whole."""
    found = _COUNTER.fullmatch(repr(value))
    return None if found is None else (int(found[1]), int(found[2] or 1))


def plain(value: Any) -> Any:
    """`value` in types that can be stored exactly: enum members by value, containers copied."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    return value


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
    objects = [(name, value) for name, value in call.items() if type(value) not in PLAIN]
    orders = {name: order for name, value in objects if (order := key_order(value)) is not None}
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


# The name of a zone, or the zones of what is inside: by key, and of a list or tuple by position as text.
Zones = str | dict[str, Any]
# Zones whose clock is never set.
_EVEN = frozenset({"UTC", "Etc/UTC"})
_DEEPEST_TIME = 16
_TIMELESS = PLAIN - {datetime}


def zones_in(value: Any, depth: int = 0) -> Zones | None:
    """The named zones of the times in a value; None where there are none."""
    kind = type(value)
    if kind is datetime:
        zone = value.tzinfo
        return zone.key if type(zone) is ZoneInfo and zone.key not in _EVEN else None
    if kind in PLAIN or depth > _DEEPEST_TIME:
        return None
    parts = _parts(value).items()
    zoned = [(name, one) for name, one in parts if isinstance(name, str) and type(one) not in _TIMELESS]
    return {name: zones for name, one in zoned if (zones := zones_in(one, depth + 1)) is not None} or None


def in_zones(value: Any, zones: Any) -> Any:
    """A value with its times in the zones that `zones_in` found; what does not fit is left as it is."""
    if isinstance(zones, str):
        return _in_zone(value, zones) if isinstance(value, datetime) else value
    parts = _parts(value)
    made = {name: in_zones(one, zones[name]) if name in zones else one for name, one in parts.items()}
    if isinstance(value, list):
        list.__setitem__(value, slice(None), list(made.values()))
    elif isinstance(value, dict):
        for name in zones.keys() & made.keys():
            dict.__setitem__(value, name, made[name])
    elif has_fields(type(value)):
        return made_of(type(value), made, made)
    elif isinstance(value, tuple):
        return tuple.__new__(type(value), list(made.values()))
    return value


def call_in_zones(call: dict[str, Any], notes: Mapping[str, Any]) -> dict[str, Any]:
    """A call with the times of its arguments as they were given."""
    zones = notes.get("zones")
    return call if not zones else in_zones(call, zones)


def _parts(value: Any) -> dict[Any, Any]:
    if isinstance(value, dict):
        return value
    if has_fields(type(value)):
        return dict(fields_of(value))
    if isinstance(value, list | tuple):
        return {str(index): one for index, one in enumerate(value)}
    return {}


def _in_zone(value: datetime, name: str) -> datetime:
    # The zones of this system may be others than those of the call.
    with suppress(KeyError, ValueError, OSError, OverflowError):
        zoned = value.astimezone(ZoneInfo(name))
        return zoned if zoned.utcoffset() == value.utcoffset() else value
    return value
