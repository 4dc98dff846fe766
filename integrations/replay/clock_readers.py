"""The places where a host's modules read the clock: globals, defaults of columns and arguments, field factories."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import partial
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

from sqlalchemy import MetaData, Table

# They have nothing to do with the time of a call, or must have the real one.
_LIBRARIES = frozenset(
    {
        *("_pytest", "coverage", "hypothesis", "pip", "pkg_resources", "pluggy", "pytest", "setuptools", "xdist"),
        # It replaces the functions that the clock of a replay calls.
        "freezegun",
        *("click", "lmdb", "orjson", "outbox", "psutil", "psycopg2", "sqlalchemy"),
        *("numpy", "pandas", "pydantic", "pydantic_core"),
    }
)
# They are asked for the time in place of the standard library.
_TIME_LIBRARIES = frozenset({"arrow", "delorean", "maya", "pendulum"})
# The managers of this package are hosts as others are.
_PAPER = f"{str(__package__).rpartition('.')[0]}.paper"


@dataclass(frozen=True, slots=True)
class Place:
    """One name, and how to have it mean something else."""

    original: Any
    stand_in: Any
    get: Callable[[], Any]
    set: Callable[[Any], None]

    def put(self) -> bool:
        """Set the stand-in, unless something else is there meanwhile; whether it was done."""
        if self._holds(self.original):
            self.set(self.stand_in)
            return True
        return False

    def put_back(self) -> None:
        """Set what was there, unless something else is there meanwhile."""
        if self._holds(self.stand_in):
            self.set(self.original)

    def _holds(self, value: Any) -> bool:
        try:
            found = self.get()
        except (AttributeError, KeyError, ValueError):
            return False
        return found is value or (type(found) is BuiltinFunctionType and found == value)


class HostModules:
    """Which modules are the host's: all that are not installed, and the packages of its managers."""

    def __init__(self, hosts: Iterable[type]) -> None:
        """An installed package counts where a manager, its tables or a function that it names come from there."""
        self.classes = [cls for host in hosts for cls in host.__mro__ if not is_library(cls.__module__)]
        self._own = set(_TIME_LIBRARIES)
        for cls in self.classes:
            self._own.add(cls.__module__.partition(".")[0])
            for value in list(_globals_of(cls.__module__).values()):
                # By its type: an object that stands for another one may refuse any question.
                kind = type(value)
                if kind is FunctionType or (issubclass(kind, type) and "__table__" in vars(value)):
                    self._own.add(str(value.__module__).partition(".")[0])

    def have(self, names: Mapping[str, Any]) -> bool:
        """Whether these are the globals of one of them, or of code that was made by exec, as that of attrs is."""
        name, file = names.get("__name__"), names.get("__file__")
        if name is None or is_library(name):
            return name is None
        installed = not isinstance(file, str) or "site-packages" in file or "dist-packages" in file
        return not installed or name.partition(".")[0] in self._own


def places_of(hosts: HostModules, stand_in_for: Callable[[Any], Any], seen: dict[int, Any]) -> list[Place]:
    """The places in all modules of `hosts` that are not in `seen`: the objects that were looked at, by their ids."""
    search = _Search(stand_in_for, seen, hosts)
    # Another thread may import meanwhile.
    for module in list(sys.modules.values()):
        if isinstance(module, ModuleType) and hosts.have(vars(module)):
            search.names(vars(module))
    # A module need not be in sys.modules.
    for cls in hosts.classes:
        search.of_class(cls)
    return search.found


def is_library(name: Any) -> bool:
    """Whether a module of that name is never the host's."""
    if not isinstance(name, str):
        # Of classes that are none of Python's.
        return True
    top = name.partition(".")[0]
    return (top in _LIBRARIES or top in sys.stdlib_module_names) and not f"{name}.".startswith(f"{_PAPER}.")


def _globals_of(name: str) -> dict[str, Any]:
    module = sys.modules.get(name)
    return {"__name__": name} if module is None else vars(module)


def places_in(manager: Any, stand_in_for: Callable[[Any], Any]) -> list[Place]:
    """The places among the attributes of an object, and of the host's objects that it holds."""
    search = _Search(stand_in_for, {}, HostModules([]))
    for owner in (manager, *vars(manager).values()):
        if is_library(type(owner).__module__) or issubclass(type(owner), type | ModuleType | FunctionType):
            continue
        try:
            attributes = object.__getattribute__(owner, "__dict__")
        except AttributeError:
            continue
        for name, value in list(attributes.items()):
            search.item(attributes, name, value)
    return search.found


class _Search:
    def __init__(self, stand_in_for: Callable[[Any], Any], seen: dict[int, Any], hosts: HostModules) -> None:
        self._stand_in_for, self._seen, self._hosts = stand_in_for, seen, hosts
        self.found: list[Place] = []

    def _is_new(self, value: Any) -> bool:
        if id(value) in self._seen:
            return False
        # Kept alive, since another object could get the same id.
        self._seen[id(value)] = value
        return True

    def _add(self, value: Any, get: Callable[[], Any], set_: Callable[[Any], None]) -> bool:
        made = self._stand_in_for(value)
        if made is not None:
            self.found.append(Place(value, made, get, set_))
        return made is not None

    def names(self, names: dict[str, Any]) -> None:
        """The globals of a module."""
        if not self._is_new(names):
            return
        for name, value in list(names.items()):
            if not self.item(names, name, value):
                self._of(value)

    def item(self, items: dict[str, Any], name: str, value: Any) -> bool:
        """One item of a dict; whether it reads the clock."""
        return self._add(value, partial(items.__getitem__, name), partial(items.__setitem__, name))

    def _of(self, value: Any) -> None:
        kind = type(value)
        if kind is FunctionType:
            self.function(value)
        elif issubclass(kind, staticmethod | classmethod):
            self._of(value.__func__)
        elif issubclass(kind, property):
            for function in (value.fget, value.fset):
                self._of(function)
        elif issubclass(kind, type):
            if isinstance(value.__module__, str) and self._hosts.have(_globals_of(value.__module__)):
                self.of_class(value)
        elif issubclass(kind, Table):
            self.table(value)
        elif issubclass(kind, MetaData):
            for table in list(value.tables.values()):
                self.table(table)

    def of_class(self, cls: type) -> None:
        """Methods, attributes and columns of a class."""
        if not self._is_new(cls):
            return
        for name, value in list(vars(cls).items()):
            made = self._stand_in_for(value.__func__ if type(value) is staticmethod else value)
            if made is None or issubclass(cls, Enum):
                self._of(value)
            else:
                self._attribute(cls, name, value, made)

    def _attribute(self, owner: type, name: str, value: Any, made: Any) -> None:
        # A function of Python would become a method, and a built-in one does not.
        made = made if issubclass(type(made), type | ModuleType) else staticmethod(made)
        self.found.append(Place(value, made, lambda: vars(owner)[name], lambda new: setattr(owner, name, new)))

    def table(self, table: Table) -> None:
        """Defaults of columns that are functions of Python."""
        if not self._is_new(table):
            return
        for column in table.columns:
            for default in (column.default, column.onupdate):
                # SQLAlchemy wraps a function without arguments in one that has it in its closure.
                self._of(getattr(default, "arg", None))

    def function(self, function: FunctionType) -> None:
        """What a function has in its closure and defaults, and those that it wraps."""
        if not self._is_new(function):
            return
        for cell in function.__closure__ or ():
            self._cell(cell)
        for number, value in enumerate(function.__defaults__ or ()):
            self._default(function, number, value)
        named = function.__kwdefaults__ or {}
        for name, value in list(named.items()):
            self.item(named, name, value)
        names = function.__globals__
        # Loaded modules are looked at one after the other, not from within each other.
        if self._hosts.have(names) and names is not _globals_of(names.get("__name__", "")):
            self.names(names)

    def _cell(self, cell: Any) -> None:
        try:
            value = cell.cell_contents
        except ValueError:
            return
        if not self._add(value, lambda: cell.cell_contents, lambda new: setattr(cell, "cell_contents", new)):
            self._of(value)

    def _default(self, function: FunctionType, number: int, value: Any) -> None:
        def put(new: Any) -> None:
            defaults = function.__defaults__ or ()
            function.__defaults__ = (*defaults[:number], new, *defaults[number + 1 :])

        self._add(value, lambda: (function.__defaults__ or ())[number], put)
