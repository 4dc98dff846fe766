"""Attributes: what is stored in an object, in its `__dict__` and its slots, without running code of the host."""

from __future__ import annotations

import inspect
from typing import Any
from weakref import WeakKeyDictionary

_found: WeakKeyDictionary[type, tuple[str, ...]] = WeakKeyDictionary()


def attributes(value: Any) -> dict[str, Any]:
    """What is stored in an object, by name; a property would run code of the host."""
    stored = {slot: getattr(value, slot) for slot in slots_of(type(value)) if hasattr(value, slot)}
    return stored | getattr(value, "__dict__", {})


def put(owner: Any, name: str, value: Any) -> None:
    """Store an attribute, also in a frozen object."""
    if name in slots_of(type(owner)):
        inspect.getattr_static(type(owner), name).__set__(owner, value)
    else:
        vars(owner)[name] = value


def slots_of(cls: type) -> tuple[str, ...]:
    """The names of the slots of a class and its bases."""
    found = _found.get(cls)
    if found is None:
        found = _found[cls] = tuple(slot for base in cls.__mro__ for slot in _slots(base))
    return found


def _slots(cls: type) -> list[str]:
    given = vars(cls).get("__slots__", ())
    names = [given] if isinstance(given, str) else list(given)
    # Python keeps a private slot under the name of its class, too.
    own = cls.__name__.lstrip("_")
    return [
        f"_{own}{name}" if name.startswith("__") else name
        for name in names
        if not (name.startswith("__") and name.endswith("__"))
    ]
