"""Derived: values of a class that a program derives from a built-in one, as `class Symbol(str)` does."""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Mapping
from datetime import date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any

from .records import has_fields, is_in_python

# By built-in class: a value of it that equals one of a class derived from it, whatever that class has overridden.
_PLAIN: Mapping[type, Callable[[Any], Any]] = {
    str: str.__str__,
    int: int.__int__,
    float: float.__float__,
    Decimal: Decimal,
    datetime: lambda value: _time(datetime, value),
    date: lambda value: date(value.year, value.month, value.day),
    timedelta: lambda value: timedelta(value.days, value.seconds, value.microseconds),
    list: lambda value: list(list.__iter__(value)),
    dict: lambda value: dict(dict.items(value)),
    tuple: lambda value: tuple(tuple.__iter__(value)),
    set: lambda value: set(set.__iter__(value)),
    frozenset: lambda value: frozenset(frozenset.__iter__(value)),
}
_FILLED: Mapping[type, Callable[..., None]] = {list: list.extend, dict: dict.update, set: set.update}
# What makes the missing values of a `defaultdict`, by name.
_FACTORIES: Mapping[str, Any] = {one.__name__: one for one in (int, float, str, bool, list, dict, set, tuple, Decimal)}


def is_derived_class(cls: Any) -> bool:
    """Whether it is derived from a built-in class of values, and not by a library of data or of PostgreSQL."""
    if not isinstance(cls, type) or issubclass(cls, Enum) or _base(cls) in (cls, None):
        return False
    bases = cls.__mro__[: cls.__mro__.index(_base(cls))]
    package = str(cls.__module__).partition(".")[0]
    return is_in_python(bases) and package not in {"numpy", "pandas", "sqlalchemy", "psycopg2", "outbox"}


def can_be_registered(cls: Any) -> bool:
    """Whether objects of a class can be stored, once it is registered."""
    return has_fields(cls) or is_derived_class(cls)


def _base(cls: type) -> Any:
    return next((one for one in cls.__mro__ if one in _PLAIN), None)


def plain_of(value: Any) -> Any:
    """The value of the built-in class, without the attributes that the object has beside it."""
    return _PLAIN[_base(type(value))](value)


def derived_of(cls: Any, plain: Any) -> Any:
    """A value of the class, without its constructor, whose checks it has passed before."""
    base = _base(cls)
    if base is datetime:
        return _time(cls, plain)
    if base is date:
        return date.__new__(cls, plain.year, plain.month, plain.day)
    if base is timedelta:
        return timedelta.__new__(cls, plain.days, plain.seconds, plain.microseconds)
    if base in _FILLED:
        made = base.__new__(cls)
        _FILLED[base](made, plain)
        return made
    return base.__new__(cls, plain)


def collection_name(value: Any) -> str | None:
    """How a collection of `collections` is stored beside its items; None for any other value."""
    kind = type(value)
    if kind is defaultdict:
        factory = value.default_factory
        name = "" if factory is None else getattr(factory, "__name__", "")
        return f"defaultdict:{name}" if factory is _FACTORIES.get(name) else None
    return kind.__name__ if kind in (OrderedDict, Counter) else None


def collection_of(name: str, items: Any) -> Any:
    """The collection of that name."""
    kind, _, factory = name.partition(":")
    if kind == "defaultdict":
        return defaultdict(_FACTORIES.get(factory), items)
    return {"OrderedDict": OrderedDict, "Counter": Counter}[kind](items)


def _time(cls: type[datetime], value: datetime) -> datetime:
    day, clock = (value.year, value.month, value.day), (value.hour, value.minute, value.second, value.microsecond)
    return datetime.__new__(cls, *day, *clock, value.tzinfo, fold=value.fold)
