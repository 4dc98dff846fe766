"""Records: objects as the fields that they hold, and made again of them.

A *record class* declares its fields: dataclasses, named tuples, classes of attrs, models of pydantic and structs of
msgspec.  A *plain class* is one of the program's own whose objects are what is set on them.  No library is imported,
and what is stored in an object, in its `__dict__` and its slots, is read without running code of the host.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import MISSING, fields
from functools import cached_property, partial
from typing import Any
from weakref import WeakKeyDictionary

from .errors import Unrestorable

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


_TELLING = frozenset({"__mapper__", "__dataclass_fields__", "_fields", "__attrs_attrs__", "__pydantic_fields__"})
# Py_TPFLAGS_HEAPTYPE: of classes that are written in Python.
_IN_PYTHON = 1 << 9
# A class that defines one of these says what its objects are, or does something when one goes.
_OF_ITS_OWN = ("__mapper__", "__del__", "__reduce__", "__reduce_ex__", "__getstate__", "__setstate__")
# Of libraries whose objects stand for something outside of the program.
_LIBRARIES = frozenset({"sqlalchemy", "psycopg2", "outbox"})
# What pydantic keeps beside the fields: which were given, further ones, private ones.
_GIVEN, _EXTRA, _PRIVATE = (f"__pydantic_{name}__" for name in ("fields_set", "extra", "private"))
# Of the base of structs, and of what it is made of in C.
_STRUCT = frozenset({("msgspec", "Struct"), ("msgspec._core", "_StructMixin")})
# attrs computes it anew; texts have another hash in each process.
_HASH = "_attrs_cached_hash"


def is_record_class(cls: Any) -> bool:
    """Whether it declares its fields, and does not map a table."""
    # No attribute is asked for: a class's own code may answer, and it is asked of every class that is loaded.
    bases = cls.__mro__ if isinstance(cls, type) else ()
    names = {name for base in bases for name in _TELLING & vars(base).keys()}
    if "__mapper__" in names or ("_fields" in names and tuple in bases):
        return "__mapper__" not in names
    # One that is an exception, a dict or a number, too, holds more than its fields.
    return bool(names - {"_fields"} or is_struct(cls)) and is_in_python(bases)


def is_struct(cls: Any) -> bool:
    """Whether it is a class of structs of msgspec, or their base."""
    return any(_name(base) in _STRUCT for base in cls.__mro__) if isinstance(cls, type) else False


def _name(cls: type) -> tuple[Any, str]:
    # A class of C may have anything for its module.
    return cls.__module__, cls.__name__


def is_plain_class(cls: Any) -> bool:
    """Whether it is a class of the program's own whose objects are what is set on them."""
    if not is_own_class(cls) or not is_in_python(cls.__mro__) or issubclass(cls, type):
        return False
    return not any(name in vars(base) for base in cls.__mro__[:-1] for name in _OF_ITS_OWN)


def is_own_class(cls: Any) -> bool:
    """Whether it is a class of the program's own, or of a library that stands for nothing outside of the program."""
    if not isinstance(cls, type):
        return False
    package = _package_of(cls)
    if package in sys.stdlib_module_names and package != "__main__":
        return False
    return not any(_package_of(base) in _LIBRARIES for base in cls.__mro__)


def _package_of(cls: type) -> str:
    # A class of C may have anything of that name.
    return str(cls.__module__).partition(".")[0]


def is_in_python(bases: Iterable[type]) -> bool:
    """Whether classes are written in Python, but for `object` and what structs are made of."""
    return all(one.__flags__ & _IN_PYTHON for one in bases if one is not object and _name(one) not in _STRUCT)


def has_fields(cls: Any) -> bool:
    """Whether its objects are stored as their fields."""
    return is_record_class(cls) or is_plain_class(cls)


def names_of(cls: Any) -> tuple[str, ...]:
    """The names of the fields that a class declares; none for a plain one."""
    return tuple(_declared(cls))


def _declared(cls: Any) -> dict[str, Callable[[], Any] | None]:
    """The fields of a class in order, and what makes their default; None for one without."""
    if issubclass(cls, tuple):
        return {name: _constant(cls._field_defaults.get(name, MISSING)) for name in cls._fields}
    if hasattr(cls, "__dataclass_fields__"):
        factories = {one.name: one.default_factory for one in fields(cls) if one.default_factory is not MISSING}
        return {one.name: factories.get(one.name) or _constant(one.default) for one in fields(cls)}
    if hasattr(cls, "__attrs_attrs__"):
        return {one.name: _default_of_attrs(one.default) for one in cls.__attrs_attrs__}
    if is_struct(cls):
        return {one.name: _default_of_struct(one) for one in sys.modules["msgspec"].structs.fields(cls)}
    return {
        name: None if one.is_required() else one.default_factory or _constant(one.default)
        for name, one in getattr(cls, "__pydantic_fields__", {}).items()
    }


def _constant(value: Any) -> Callable[[], Any] | None:
    return None if value is MISSING else lambda: value


def _default_of_attrs(default: Any) -> Callable[[], Any] | None:
    if type(default).__name__ == "_Nothing" or getattr(default, "takes_self", False):
        return None
    factory: Callable[[], Any] | None = getattr(default, "factory", None)
    return factory or _constant(default)


def _default_of_struct(field: Any) -> Callable[[], Any] | None:
    if field.required:
        return None
    factory: Callable[[], Any] = field.default_factory
    return factory if callable(factory) else _constant(field.default)


def fields_of(value: Any) -> dict[str, Any]:
    """The fields of a record by name, and what else is set on it."""
    cls = type(value)
    stored = attributes(value)
    if isinstance(value, tuple):
        own = dict(zip(value._fields, value, strict=True))  # type: ignore[attr-defined]
    elif hasattr(cls, "__dataclass_fields__"):
        own = {one.name: getattr(value, one.name) for one in fields(value) if hasattr(value, one.name)}
        stored = getattr(value, "__dict__", {})
    else:
        own = {name: stored[name] for name in names_of(cls) if name in stored}
    more = {name: item for name, item in stored.items() if name not in own and name != _HASH}
    # What a property has cached follows from the rest, and equal calls are equal before and after it was asked for.
    more = {name: item for name, item in more.items() if not _is_cached(cls, name)}
    return own | more | (_beside(value, own) if _is_model(cls) else {})


def _is_model(cls: type) -> bool:
    """Whether it is a model of pydantic, whose dataclasses are dataclasses."""
    return hasattr(cls, "__pydantic_fields__") and not hasattr(cls, "__dataclass_fields__")


def _beside(value: Any, own: Mapping[str, Any]) -> dict[str, Any]:
    """What a model of pydantic holds beside its fields, where that is not as usual."""
    found = {name: getattr(value, name, None) for name in (_GIVEN, _EXTRA, _PRIVATE)}
    return {name: one for name, one in found.items() if one and not (name == _GIVEN and one == own.keys())}


def _is_cached(cls: type, name: str) -> bool:
    return isinstance(inspect.getattr_static(cls, name, None), cached_property)


def made_of(cls: Any, given: Mapping[str, Any], more: Collection[str] = ()) -> Any:
    """A record of that class, without its constructor, whose checks it has passed before.

    A field that it did not have then gets its default.  Raises `Unrestorable` for a field without one, and for a field
    that the class has no more.  `more`: what was set on it beside its fields.
    """
    declared = _declared(cls)
    unknown = given.keys() - {*declared, *more}
    if unknown:
        raise _without(cls, min(unknown))
    # What the constructor does not set may be missing.
    missing = [name for name, default in declared.items() if name not in given and default is None]
    missing = [name for name in missing if name not in _late(cls)]
    if missing:
        raise Unrestorable(
            f"{cls.__qualname__} had no field {missing[0]!r} when it was stored", hint="give the field a default"
        )
    # In the order in which the constructor sets them; then what was set beside them.
    defaults = {name: default() for name, default in declared.items() if default is not None and name not in given}
    items = {name: given.get(name, defaults.get(name)) for name in declared if name in given or name in defaults}
    items |= {name: item for name, item in given.items() if name not in items}
    if issubclass(cls, tuple):
        value = tuple.__new__(cls, [items.pop(name) for name in cls._fields])
    elif is_struct(cls):
        # Nothing else makes one.
        value = cls(**{name: items[name] for name in declared if name in items})
    else:
        value = object.__new__(cls)
    if _is_model(cls):
        items = {_EXTRA: None, _PRIVATE: None, _GIVEN: declared.keys() & given.keys(), **items}
    # A dataclass may have a property for a field.
    store = partial(object.__setattr__, value) if hasattr(cls, "__dataclass_fields__") else partial(_put, value)
    for name, item in items.items():
        try:
            store(name, item)
        except AttributeError:
            raise _without(cls, name) from None
    return value


def _late(cls: Any) -> set[str]:
    """Fields that the constructor does not set."""
    own = getattr(cls, "__attrs_attrs__", ()) or (fields(cls) if hasattr(cls, "__dataclass_fields__") else ())
    return {one.name for one in own if not one.init}


def _put(value: Any, name: str, item: Any) -> None:
    if name.startswith("__pydantic_"):
        object.__setattr__(value, name, item)
    elif hasattr(value, "__dict__") or hasattr(type(value), name):
        put(value, name, item)
    else:
        raise AttributeError(name)


def with_field(value: Any, name: str, item: Any) -> Any:
    """A record with another value in one field."""
    given = fields_of(value)
    return made_of(type(value), {**given, name: item}, given)


def _without(cls: type, name: str) -> Unrestorable:
    return Unrestorable(f"{cls.__qualname__} has no field {name!r} any more", hint="give the class its old field, too")
