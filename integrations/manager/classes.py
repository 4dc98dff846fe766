"""Classes that replace a manager's class: subclasses of it, whose public methods go through the outbox.

The manager's class is a real base, so that `issubclass`, `super()`, properties, constants, special methods and private
helpers are Python's own.  Nothing of it runs: neither its constructor nor its `__init_subclass__`.

A class whose `__new__` hands out an object again gets one durable manager for each such object (`Singletons`): its
`__new__` is asked which object the plain class would give.
"""

from __future__ import annotations

import functools
import inspect
import sys
import threading
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from ...errors import ConfigError
from ...records import slots_of
from ..code.members import class_member

# Set in a class that was made here: the class that it stands for.
STANDS_FOR = "_outbox_stands_for"
# The members with which each class was made here: what differs from them, a host has patched.
_made: WeakKeyDictionary[type, dict[str, Any]] = WeakKeyDictionary()

Invoke = Callable[[Any, str, tuple[Any, ...], dict[str, Any]], Any]
Read = Callable[[Any, str, Callable[[], Any]], Any]


def stood_for(cls: type) -> Any:
    """The manager's class that `cls` stands for, or None."""
    return class_member(cls, STANDS_FOR)


def class_for(root: type, manager_class: type, invoke: Invoke, read: Read, construct: Callable[..., None]) -> type:
    """A subclass of `root` and of `manager_class` with the constructor `construct`.

    Its public functions call `invoke(self, name, args, kwargs)`, its public properties `read(self, name, get)`.
    """
    members: dict[str, Any] = {
        name: _method(name, original, invoke)
        for name, original in inspect.getmembers_static(manager_class)
        if inspect.isfunction(original) and not name.startswith("_")
    }
    members |= {
        name: _property(name, original, read)
        for name, original in inspect.getmembers_static(manager_class)
        if type(original) is property and not name.startswith("_")
    }
    members |= {name: getattr(manager_class, name) for name in ("__doc__", "__module__", "__qualname__")}
    members |= {STANDS_FOR: manager_class, "__init__": construct, "__signature__": inspect.signature(manager_class)}
    if hasattr(manager_class, "__del__"):
        members["__del__"] = _NeverEnds.__del__
    # Hosts log and look up by the name of the class.
    name = manager_class.__name__
    try:
        return _noted(type(manager_class)(name, (root, manager_class), members))
    except TypeError:
        # Python allows no second base for a class with slots of its own.
        return _noted(type(name, (root,), {**_constants(manager_class), **members, "__class__": property(_class_of)}))


def _noted(made: type) -> type:
    _made[made] = dict(vars(made))
    return made


def patched(cls: type) -> dict[str, Any]:
    """What a host has put into the classes that were made here, by name: the plain manager does not have it."""
    found: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        made = _made.get(base)
        if made is not None:
            now = vars(base).copy().items()
            new = ((name, member) for name, member in now if made.get(name, _made) is not member)
            found |= {name: member for name, member in new if not name.startswith("__")}
    return found


def _class_of(durable: Any) -> Any:
    """Hosts ask isinstance(db_manager, DatabaseManager)."""
    return stood_for(type(durable))


def _constants(manager_class: type) -> dict[str, Any]:
    """What can be taken over from a class that cannot be a base."""
    special = ("__enter__", "__exit__", "__len__", "__getitem__", "__contains__", "__iter__", "__call__", "__repr__")
    return {
        name: member
        for name, member in inspect.getmembers_static(manager_class)
        if (not name.startswith("_") and not inspect.ismemberdescriptor(member))
        or (name in special and class_member(object, name) is not member)
    }


def subclass_of(base: type, manager_class: type, construct: Callable[..., None], own: dict[str, Any]) -> type:
    """The class to put where a host names `manager_class`: `base` with the constructor `construct`, and `own`."""
    members: dict[str, Any] = {
        "__init__": construct,
        "__signature__": inspect.signature(manager_class),
        "__doc__": manager_class.__doc__,
        "__module__": manager_class.__module__,
        "__qualname__": manager_class.__qualname__,
        STANDS_FOR: manager_class,
        **own,
    }
    return _noted(type(base)(manager_class.__name__, (base,), members))


def cover(cls: type, names: Iterable[str], invoke: Invoke) -> None:
    """Let methods `names` of the manager's class go through the outbox that are not public, or no functions."""
    made = next((base for base in reversed(cls.__mro__) if STANDS_FOR in vars(base)), None)
    for name in names:
        plain = stood_for(cls)
        # As the class gives it: a partial method cannot be called itself.
        original = getattr(plain, name, None)
        is_method = callable(original) and hasattr(type(class_member(plain, name)), "__get__")
        if made is not None and name not in vars(made) and is_method:
            setattr(made, name, _method(name, original, invoke))
            _made[made][name] = vars(made)[name]


class _NeverEnds:
    """Goes before a class whose objects do something when they are collected."""

    __slots__ = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """What is made here is not the host's concern."""

    def __del__(self) -> None:
        """The manager ends when the manager itself is collected."""


class _InDict:
    """A slot of a manager whose value a replica has in its `__dict__`, beside the other attributes."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, replica: Any, owner: type | None = None) -> Any:
        if replica is None:
            return self
        if self._name not in vars(replica):
            raise AttributeError(self._name)
        return vars(replica)[self._name]

    def __set__(self, replica: Any, value: Any) -> None:
        vars(replica)[self._name] = value

    def __delete__(self, replica: Any) -> None:
        vars(replica).pop(self._name, None)


@functools.cache
def of_replicas(cls: Any) -> Any:
    """The class of replicas of `cls`: what it does when an object is collected is not for them.

    They have no slots of their own, so that their state is in one place.
    """
    ends, slots = hasattr(cls, "__del__"), slots_of(cls)
    if issubclass(cls, _NeverEnds) or not (ends or slots):
        return cls
    members = {"__slots__": (), "__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
    members |= {name: _InDict(name) for name in slots}
    return type(cls)(cls.__name__, (_NeverEnds, cls), members)


@functools.cache
def unhiding(cls: Any, names: frozenset[str]) -> Any:
    """A subclass of `cls` for one object whose manager has attributes of its own in place of methods `names`."""
    members: dict[str, Any] = {name: _Unhidden(name, getattr(cls, name)) for name in names}
    members |= {"__module__": cls.__module__, "__qualname__": cls.__qualname__, STANDS_FOR: stood_for(cls)}
    return _noted(type(cls)(cls.__name__, (cls,), members))


def takes_double(cls: type, name: str) -> bool:
    """Whether the class itself takes what is set in place of method `name`."""
    return isinstance(class_member(cls, name), _Unhidden)


class _Unhidden:
    """A method that an attribute of the manager does not hide."""

    def __init__(self, name: str, function: Any) -> None:
        self._name, self._function = name, function

    def __get__(self, durable: Any, owner: type | None = None) -> Any:
        if durable is None:
            return self._function
        doubles = durable._durable.host.doubles
        return doubles[self._name] if self._name in doubles else self._function.__get__(durable, owner)

    def __set__(self, durable: Any, value: Any) -> None:
        doubles = durable._durable.host.doubles
        if value is vars(durable).get(self._name):
            # The restored original is the manager's own.
            doubles.pop(self._name, None)
        else:
            doubles[self._name] = value

    def __delete__(self, durable: Any) -> None:
        durable._durable.host.doubles.pop(self._name, None)


def _property(name: str, original: property, read: Read) -> property:
    def get(self: Any) -> Any:
        # As it is now: tests patch the manager's class.
        member = class_member(stood_for(type(self)), name)
        return read(self, name, lambda: member.__get__(self, type(self)))

    return property(get if original.fget is not None else None, original.fset, original.fdel, original.__doc__)


def _method(name: str, original: Any, invoke: Invoke) -> Any:
    def call(self: Any, /, *args: Any, **kwargs: Any) -> Any:
        if stood_for(type(self)) is None:
            # The class's function, called with a plain manager.
            return original(self, *args, **kwargs)
        return invoke(self, name, args, kwargs)

    return functools.wraps(original)(call)


def found_by_name(cls: type) -> type | None:
    """The class, where it stands in the module that names the manager's class; pickle looks it up there."""
    found: Any = sys.modules.get(cls.__module__)
    for name in cls.__qualname__.split("."):
        found = getattr(found, name, None)
    return cls if found is cls else None


@dataclass(slots=True)
class _Known:
    # Kept, so that no other object gets its id.
    plain: Any
    durable: weakref.ref[Any]
    constructed: bool = False


class Singletons:
    """The durable managers of one class, by the plain objects that its `__new__` gave.  Thread-safe."""

    def __init__(self, manager_class: Any, of: Callable[..., Any]) -> None:
        """`of(cls, *args, **kwargs)` makes a durable manager of another class, which `__new__` has chosen."""
        self._class, self._of = manager_class, of
        self._lock = threading.RLock()
        self._known: dict[tuple[int, type], _Known] = {}

    def members(self) -> dict[str, Any]:
        """What the durable class needs beside its constructor: nothing where every object is a new one."""
        if class_member(self._class, "__new__") is class_member(object, "__new__"):
            return {}

        def new(cls: Any, *args: Any, **kwargs: Any) -> Any:
            given = self._class.__new__(self._class, *args, **kwargs)
            # A subclass of the host's own is not chosen again.
            if type(given) is self._class or STANDS_FOR not in vars(cls):
                return self._durable(given, cls)
            if not issubclass(type(given), self._class):
                raise ConfigError(
                    f"{self._class.__name__} gives a {type(given).__name__}, which is no subclass of it",
                    hint=f"DurableDatabaseManager.of({type(given).__name__})",
                )
            return self._of(type(given), *args, **kwargs)

        return {"__new__": new}

    def _durable(self, plain: Any, cls: type) -> Any:
        """The durable manager of class `cls` that stands for `plain`."""
        key = (id(plain), cls)
        with self._lock:
            known = self._known.get(key)
            durable = None if known is None else known.durable()
            if durable is None:
                durable = object.__new__(cls)
                self._known[key] = _Known(plain, weakref.ref(durable, lambda ref: self._forget(key, ref)))
            return durable

    def construct(self, durable: Any, construct: Callable[[], None]) -> None:
        """Construct a durable manager once; where it is given again, it is as it was."""
        with self._lock:
            known = next((one for one in self._known.values() if one.durable() is durable), None)
            if known is None or not known.constructed:
                construct()
            if known is not None:
                known.constructed = True

    def _forget(self, key: tuple[int, type], ref: weakref.ref[Any]) -> None:
        with self._lock:
            known = self._known.get(key)
            if known is not None and known.durable is ref:
                del self._known[key]
