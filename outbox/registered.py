"""Registered: the classes whose values an entry may hold beside the plain ones.

Enums and records are registered by the program under their stored names.  A derived value is of a class that a program
derives from a built-in one, as `class Symbol(str)` does.  Values of numpy and pandas become plain ones.
"""

from __future__ import annotations

import sys
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Mapping
from datetime import date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from types import ModuleType
from typing import Any, TypeVar

from .errors import ConfigError, InvalidEntry
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


T = TypeVar("T")

enums: dict[str, type[Enum]] = {}
records: dict[str, type] = {}


def register_enum(cls: type[Enum]) -> type[Enum]:
    """Allow members of `cls` as arguments; usable as a class decorator.

    Members are stored by class and member name; PostgreSQL sees their value.  Raises `ConfigError` when another
    class of the same module and name is registered already.
    """
    return _register(cls, enums, "enum")


def register_record(cls: type[T]) -> type[T]:
    """Allow objects of `cls` as arguments; usable as a class decorator.

    A dataclass, a named tuple, a class of attrs, a model of pydantic, a struct of msgspec, a class of your own whose
    objects hold values only, or one that is derived from a built-in class (`class Symbol(str)`).  They are stored by
    class and the names of their fields; PostgreSQL sees an object of the fields, or the built-in value.  Raises
    `ConfigError` as `register_enum`, and for a class of another kind.
    """
    if not can_be_registered(cls):
        raise ConfigError(
            f"objects of {class_name(cls)} hold more than fields, so it cannot be registered",
            hint="pass their values, or an object of a class that holds nothing else",
        )
    return _register(cls, records, "record")


def _register(cls: type[T], known: dict[str, type[T]], kind: str) -> type[T]:
    name = class_name(cls)
    if known.setdefault(name, cls) is not cls:
        raise ConfigError(f"{kind} {name} is already registered as another class", hint="give one of them another name")
    return cls


def class_name(cls: type) -> str:
    """Under which name objects of a class are stored: its module and qualified name."""
    return f"{cls.__module__}:{cls.__qualname__}"


def class_named(name: str) -> Any:
    """The class of that name among the loaded modules; None where there is none: nothing is imported by name."""
    module, _, path = name.partition(":")
    found: Any = sys.modules.get(module)
    for part in path.split("."):
        # A module may import what it is asked for.
        found = vars(found).get(part) if isinstance(found, ModuleType) else getattr(found, part, None)
    return found if isinstance(found, type) else None


def is_column_name(value: Any) -> bool:
    """Whether it is a text of a class of SQLAlchemy's, as the keys of a row are that a table without a class gives."""
    return isinstance(value, str) and type(value).__module__.startswith("sqlalchemy.")


def coerced(value: Any, path: str) -> Any:
    """numpy scalars, pandas times and column names become the Python value they stand for; others are refused."""
    module = type(value).__module__.partition(".")[0]
    if is_column_name(value):
        return str(value)
    if module == "numpy" and hasattr(value, "item") and not getattr(value, "shape", ()):
        item = value.item()
        temporal = type(value).__name__ in ("datetime64", "timedelta64")
        if type(item).__module__ != "numpy" and not (temporal and isinstance(item, int)) and item is not None:
            return item
    elif module == "pandas" and hasattr(value, "to_pydatetime") and value == value and not value.nanosecond:
        return value.to_pydatetime()  # value == value: not NaT
    elif module == "pandas" and hasattr(value, "to_pytimedelta") and value == value and not value.nanoseconds:
        return value.to_pytimedelta()
    raise InvalidEntry(
        f"{path} has type {type(value).__module__}.{type(value).__qualname__}, which cannot be stored exactly",
        hint="allowed: None, bool, int, float, str, Decimal, datetime, date, time, timedelta, UUID, bytes, "
        "registered Enums and classes, numpy scalars, and dict, list, tuple, set, frozenset of these"
        + ("; or register its class with outbox.register_record" if can_be_registered(type(value)) else ""),
    )
