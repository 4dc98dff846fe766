"""Records: dataclasses and named tuples as the fields that they hold, and made again of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields
from typing import Any

from .errors import Unrestorable

_TELLING = frozenset({"__mapper__", "__dataclass_fields__", "_fields"})


def is_record_class(cls: Any) -> bool:
    """Whether it is a dataclass or a named tuple, and not one that maps a table."""
    # No attribute is asked for: a class's own code may answer, and it is asked of every class that is loaded.
    bases = cls.__mro__ if isinstance(cls, type) else ()
    names = {name for base in bases for name in _TELLING & vars(base).keys()}
    return "__mapper__" not in names and ("__dataclass_fields__" in names or ("_fields" in names and tuple in bases))


def names_of(cls: Any) -> tuple[str, ...]:
    """The names of the fields of a record class."""
    return tuple(cls._fields if issubclass(cls, tuple) else (one.name for one in fields(cls)))


def fields_of(value: Any) -> dict[str, Any]:
    """The fields of a record by name, and what else a dataclass has set on itself."""
    if isinstance(value, tuple):
        return dict(zip(value._fields, value, strict=True))  # type: ignore[attr-defined]
    own = {one.name: getattr(value, one.name) for one in fields(value) if hasattr(value, one.name)}
    return own | getattr(value, "__dict__", {})


def made_of(cls: Any, given: Mapping[str, Any]) -> Any:
    """A record of that class, without its constructor, whose checks it has passed before.

    A field that it did not have then gets its default.  Raises `Unrestorable` for a field without one, and for a field
    that the class has no more.
    """
    if issubclass(cls, tuple):
        unknown = next((name for name in given if name not in cls._fields), None)
        if unknown is not None:
            raise _without(cls, unknown)
        return tuple.__new__(cls, _completed(cls, given, cls._fields, cls._field_defaults).values())
    own = fields(cls)
    defaults = {one.name: one.default for one in own if one.default is not MISSING}
    defaults |= {one.name: one.default_factory() for one in own if one.default_factory is not MISSING}
    # What the constructor does not set may be missing.
    names = [one.name for one in own if one.init or one.name in given or one.name in defaults]
    value = object.__new__(cls)
    for name, item in _completed(cls, given, names, defaults).items():
        try:
            object.__setattr__(value, name, item)
        except AttributeError:
            raise _without(cls, name) from None
    return value


def with_field(value: Any, name: str, item: Any) -> Any:
    """A record with another value in one field."""
    return made_of(type(value), {**fields_of(value), name: item})


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
