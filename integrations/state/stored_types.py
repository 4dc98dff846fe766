"""Stored types: an attribute's collections and objects behind a restart are of the types that they were at the call.

They are stored as plain lists and dicts, and objects of the host as dicts of what they hold.  The attribute of the new
manager tells the type of its value, but not where a method makes the value at its first use, and nothing tells that of
a collection or an object in another.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Iterable, Mapping
from decimal import Decimal
from itertools import count
from typing import Any
from weakref import WeakValueDictionary

from ...errors import Unrestorable
from ...records import attributes, has_fields, is_in_python, is_own_class, made_of, put
from ...registered import class_name, class_named
from ..plain_data import SCALARS

# What may fill a defaultdict.  Nothing else is named in a store: reading it must not run code that the file chooses.
_FACTORIES = {one.__name__: one for one in (int, float, str, bool, list, dict, set, tuple, Decimal, Counter, deque)}
# Of rows, and of objects that do something when they go.
_TELLING = ("__mapper__", "__del__")
# Classes of objects that were met in this process: one within a function is found by no name.
_met: WeakValueDictionary[str, type] = WeakValueDictionary()


def types_in(value: Any) -> dict[str, Any] | None:
    """What `rebuilt` needs for a value; None where its stored form is of the same types."""
    own, inner = _type_of(value), [[at, one] for at, item in _items(value) if (one := types_in(item)) is not None]
    found = {"type": own} if own else {}
    return found | {"inner": inner} if inner else found or None


def can_be_rebuilt(types: Mapping[str, Any], present: Any) -> bool:
    """Whether the type of a value is known, by itself or by what the attribute holds now."""
    return types.get("type") != ["defaultdict", None] or isinstance(present, defaultdict)


def rebuilt(value: Any, types: Mapping[str, Any] | None) -> Any:
    """A value by its stored form, of the types that `types_in` has found."""
    if types is None:
        return value
    for at, of_inner in types.get("inner", ()):
        value[at] = rebuilt(value[at], of_inner)
    name, *more = types.get("type", [None])
    if name == "deque":
        return deque(value, *more)
    if name == "count":
        return count(*value)
    if name == "defaultdict":
        return defaultdict(_FACTORIES.get(more[0]), value)
    if name == "object":
        return _object(more[0], value)
    made: Any = {"Counter": Counter, "OrderedDict": OrderedDict}.get(name)
    return value if made is None else made(value)


def _object(name: str, given: dict[str, Any]) -> Any:
    """An object of that class, without its constructor; what it held, where no such class is loaded any more."""
    cls = _met.get(name) or class_named(name)
    # A file must choose nothing that runs code when it is made, or when it goes.
    if cls is None or not _can_be_made(cls):
        return given
    if has_fields(cls):
        try:
            return made_of(cls, given, given)
        except Unrestorable:
            return given
    made = object.__new__(cls)
    for at, item in given.items():
        put(made, at, item)
    return made


def _can_be_made(cls: type) -> bool:
    """Whether an object of a class can be made of what it held, and no code of the class runs for that."""
    if not is_own_class(cls) or has_fields(cls):
        return is_own_class(cls)
    return is_in_python(cls.__mro__) and not any(name in vars(one) for one in cls.__mro__ for name in _TELLING)


def _is_object(value: Any) -> bool:
    return not isinstance(value, (*SCALARS, tuple)) and _can_be_made(type(value))


def _type_of(value: Any) -> list[Any] | None:
    if _is_object(value):
        name = class_name(type(value))
        _met.setdefault(name, type(value))
        return ["object", name]
    if type(value) is deque:
        return ["deque", value.maxlen]
    if type(value) is defaultdict:
        return ["defaultdict", next((name for name, one in _FACTORIES.items() if one is value.default_factory), None)]
    return [type(value).__name__] if type(value) in (Counter, OrderedDict, count) else None


def _items(value: Any) -> Iterable[tuple[Any, Any]]:
    """What is in a collection in which an item can be replaced, by its place."""
    if isinstance(value, dict):
        return tuple(value.items())
    if _is_object(value):
        return tuple(attributes(value).items())
    return enumerate(tuple(value)) if type(value) in (list, deque) else ()
