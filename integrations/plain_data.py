"""Plain data: the values of a manager's attributes that are copied, compared and stored for a call.

An object with a lock is none: it is shared, since other threads may use it at the same time.
"""

from __future__ import annotations

import copy
import re
import sys
from collections import deque
from collections.abc import Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from itertools import count
from types import SimpleNamespace
from typing import Any
from uuid import UUID

from ..records import attributes, put, slots_of

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


def copied(value: Any) -> Any:
    """A copy of plain data, collections within it included; a long list keeps its items; anything else as it is."""
    if type(value) in PLAIN:
        return value
    if is_long(value):
        return copy.copy(value)
    if isinstance(value, SCALARS) or type(value).__module__ == "numpy" or not is_state(value):
        return value
    return _copied(value)


def _copied(value: Any) -> Any:
    if isinstance(value, SCALARS) or type(value).__module__ == "numpy":
        return value
    if isinstance(value, count):
        return count(*counter(value) or ())
    made = copy.copy(value)
    if isinstance(made, (list, deque)):
        for at, item in enumerate(made):
            if type(item) not in PLAIN:
                made[at] = _copied(item)
    elif not isinstance(made, (set, tuple, frozenset)):
        for name, item in (made if isinstance(made, dict) else attributes(made)).items():
            if type(item) in PLAIN:
                continue
            if isinstance(made, dict):
                made[name] = _copied(item)
            else:
                put(made, name, _copied(item))
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
