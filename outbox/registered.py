"""Registered: the classes of enums, records and derived values that an entry may hold, by their stored names."""

from __future__ import annotations

import sys
from enum import Enum
from types import ModuleType
from typing import Any, TypeVar

from .derived import can_be_registered
from .errors import ConfigError

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
