"""Records: dataclasses and named tuples as the fields that they hold, and made again of them."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterable, Mapping
from dataclasses import MISSING, fields
from functools import cached_property
from typing import Any

from .errors import Unrestorable

_TELLING = frozenset({"__mapper__", "__dataclass_fields__", "_fields"})
# Py_TPFLAGS_HEAPTYPE: of classes that are written in Python.
_IN_PYTHON = 1 << 9


def is_record_class(cls: Any) -> bool:
    """Whether it is a dataclass or a named tuple, and not one that maps a table."""
    # No attribute is asked for: a class's own code may answer, and it is asked of every class that is loaded.
    bases = cls.__mro__ if isinstance(cls, type) else ()
    names = {name for base in bases for name in _TELLING & vars(base).keys()}
    if "__mapper__" in names or ("_fields" in names and tuple in bases):
        return "__mapper__" not in names
    # A dataclass that is an exception, a dict or a number, too, holds more than its fields.
    return "__dataclass_fields__" in names and all(one.__flags__ & _IN_PYTHON for one in bases if one is not object)


def names_of(cls: Any) -> tuple[str, ...]:
    """The names of the fields of a record class."""
    return tuple(cls._fields if issubclass(cls, tuple) else (one.name for one in fields(cls)))


def fields_of(value: Any) -> dict[str, Any]:
    """The fields of a record by name, and what else is set on it."""
    if isinstance(value, tuple):
        own = dict(zip(value._fields, value, strict=True))  # type: ignore[attr-defined]
    else:
        own = {one.name: getattr(value, one.name) for one in fields(value) if hasattr(value, one.name)}
    more = {name: item for name, item in getattr(value, "__dict__", {}).items() if name not in own}
    # What a property has cached follows from the rest, and equal calls are equal before and after it was asked for.
    return own | {name: item for name, item in more.items() if not _is_cached(type(value), name)}


def _is_cached(cls: type, name: str) -> bool:
    return isinstance(inspect.getattr_static(cls, name, None), cached_property)


def made_of(cls: Any, given: Mapping[str, Any], more: Collection[str] = ()) -> Any:
    """A record of that class, without its constructor, whose checks it has passed before.

    A field that it did not have then gets its default.  Raises `Unrestorable` for a field without one, and for a field
    that the class has no more.  `more`: what was set on it beside its fields.
    """
    unknown = given.keys() - {*names_of(cls), *more}
    if unknown:
        raise _without(cls, min(unknown))
    if issubclass(cls, tuple):
        items = _completed(cls, given, cls._fields, cls._field_defaults)
        value = tuple.__new__(cls, [items.pop(name) for name in cls._fields])
    else:
        own = fields(cls)
        defaults = {one.name: one.default for one in own if one.default is not MISSING}
        defaults |= {one.name: one.default_factory() for one in own if one.default_factory is not MISSING}
        # What the constructor does not set may be missing.
        names = [one.name for one in own if one.init or one.name in given or one.name in defaults]
        items, value = _completed(cls, given, names, defaults), object.__new__(cls)
    for name, item in items.items():
        try:
            object.__setattr__(value, name, item)
        except AttributeError:
            raise _without(cls, name) from None
    return value


def with_field(value: Any, name: str, item: Any) -> Any:
    """A record with another value in one field."""
    given = fields_of(value)
    return made_of(type(value), {**given, name: item}, given)


def _completed(
    cls: type, given: Mapping[str, Any], names: Iterable[str], defaults: Mapping[str, Any]
) -> dict[str, Any]:
    """Fields in the order in which the constructor sets them, and what was set beside them."""
    found: dict[str, Any] = {}
    for name in names:
        if name not in given and name not in defaults:
            raise Unrestorable(
                f"{cls.__qualname__} had no field {name!r} when it was stored", hint="give the field a default"
            )
        found[name] = given[name] if name in given else defaults[name]
    return {**found, **given}


def _without(cls: type, name: str) -> Unrestorable:
    return Unrestorable(f"{cls.__qualname__} has no field {name!r} any more", hint="give the class its old field, too")
