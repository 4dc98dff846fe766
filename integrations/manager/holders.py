"""Holders: finds every object of an engine that holds the plain manager, and gives it the durable one.

Components take the manager in their constructors: as an attribute, in a list, as a bound method, in a closure.  A write
of theirs would go past the outbox.  Whatever can be reached from the engine without running its code is looked at.
"""

from __future__ import annotations

import functools
import gc
import logging
import types
import weakref
from collections import deque
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from itertools import islice
from typing import Any

from ...errors import ConfigError
from ...log import Log

_log = Log("outbox.integrations")

# Enough for an engine with its components.
_MAX_OBJECTS = 200_000
# Of a larger collection (a price history) only these are looked at, unless one of them may hold something.
_SAMPLE = 1000

_PLAIN = (
    str,
    bytes,
    bytearray,
    int,
    float,
    complex,
    bool,
    type(None),
    types.ModuleType,
    types.CodeType,
    logging.Logger,
)
# Their objects hold no manager, and there may be very many of them.
_FOREIGN = ("sqlalchemy", "psycopg2", "numpy", "pandas", "decimal", "datetime", "_thread", "logging")
_OURS = "outbox.integrations"

# What another object may hold the manager through; and what holds the variables of code that runs.
_LINKS = (dict, list, deque, set, frozenset, tuple, functools.partial, types.CellType, type(functools.cache(len)))
_RUNNING = (types.FrameType, types.GeneratorType, types.CoroutineType, types.AsyncGeneratorType)
# A closure of a function in a dict of a module is as far away as this.
_FAR = 8

# What is read back where an exchange cannot fail unnoticed.
_REPLACED = object()

Undo = Callable[[], object]


Change = Callable[[Any, Any], object]


class _Slot:
    """A place that holds a value: where it is, what it holds, and how another one gets there."""

    def __init__(
        self, where: str, value: Any, change: Change | None, held: Callable[[], Any], *, opens: bool = True
    ) -> None:
        """`change(old, new)` replaces the value, `held()` reads it; no `change` where the holder itself is replaced.

        `opens`: whether the value itself is searched.
        """
        self.where, self.value, self.change, self._held, self.opens = where, value, change, held, opens

    def put(self, change: Change, value: Any) -> Undo:
        """Replace the value; returns what undoes it.  Raises `ConfigError` where that is impossible."""
        try:
            change(self.value, value)
            held = self._held()
            done = held is value or held is _REPLACED
        except Exception:  # noqa: BLE001 - frozen objects raise what they like
            done = False
        if not done:
            raise ConfigError(
                f"{self.where} holds the plain manager and cannot be given the durable one",
                hint="put DurableDatabaseManager.of(DatabaseManager) where the engine names its manager's class",
            )
        return functools.partial(change, value, self.value)


def replace_held(root: Any, manager: Any, durable: Any, name: str) -> Iterator[Undo]:
    """Put `durable` wherever `root` (called `name` in messages) holds `manager`; yields what undoes each step.

    Raises `ConfigError`, which names the holder, where one cannot be changed.
    """
    for slot in _reached(root, name, {id(manager), id(durable)}):
        instead = _instead(slot.value, manager, durable)
        if instead is not None and slot.change is not None:
            _log.info("the durable manager replaces the plain one at %(holder)s", holder=slot.where)
            yield slot.put(slot.change, instead)


def others_held(root: Any, manager_class: type, known: set[int], name: str) -> Iterator[tuple[str, Any]]:
    """Managers of `manager_class` that `root` (called `name`) holds, but those with the ids `known`, and where."""
    seen = set(known)
    for slot in _reached(root, name, seen):
        # Without `isinstance`, which asks a proxy.
        if issubclass(type(slot.value), manager_class) and id(slot.value) not in seen:
            seen.add(id(slot.value))
            yield slot.where, slot.value


def _reached(root: Any, name: str, seen: set[int]) -> Iterator[_Slot]:
    """Every place that can be reached from `root`, but not through the objects with the ids `seen`."""
    todo: deque[tuple[str, Any]] = deque([(name, root)])
    while todo and len(seen) < _MAX_OBJECTS:
        where, holder = todo.popleft()
        if id(holder) in seen or not _may_hold(holder):
            continue
        seen.add(id(holder))
        for slot in _slots_of(where, holder):
            yield slot
            if slot.opens:
                todo.append((slot.where, slot.value))
    if todo:
        _log.warning(
            "the engine is too large to be searched for holders of the manager: %(objects)s objects were looked at",
            objects=len(seen),
        )


def others_holding(manager: Any, known: set[int], methods: Collection[str]) -> list[str]:
    """Objects, classes and modules of the program that hold `manager`, by themselves or in what they hold.

    `known` are ids of those that may; `methods`: names of the methods that count when they are held alone.
    """
    found, held, seen = set[str](), [manager], {id(manager), *known}
    for _ in range(_FAR):
        if not held:
            break
        referrers = [one for one in gc.get_referrers(*held) if one is not held and id(one) not in seen]
        dicts = {id(one) for one in held if type(one) is dict}
        seen |= set(map(id, referrers))
        held = []
        for one in referrers:
            kind = type(one)
            if kind is types.ModuleType:
                found.add(f"module {one.__name__}")
            elif isinstance(one, type):
                found.add(f"class {one.__qualname__}")
            elif kind is types.MethodType:
                held += [one] if one.__name__ in methods else []
            elif kind is types.FunctionType:
                # Each function of a module holds all its globals.
                held += [] if id(one.__globals__) in dicts else [one]
            elif kind in _LINKS or kind.__name__.startswith("hamt"):
                held.append(one)
            elif kind not in _RUNNING and not kind.__module__.startswith((*_FOREIGN, _OURS)):
                found.add(kind.__qualname__)
    return sorted(found)


def _may_hold(holder: Any) -> bool:
    kind = type(holder)
    if issubclass(kind, (*_PLAIN, type)) or kind.__module__.partition(".")[0] in _FOREIGN:
        return False
    if not issubclass(kind, (list, deque, dict, set, tuple, frozenset)) or len(holder) <= _SAMPLE:
        return True
    sample = islice(dict.values(holder) if issubclass(kind, dict) else holder, _SAMPLE)
    return any(_may_hold(item) for item in sample)


def _instead(value: Any, manager: Any, durable: Any) -> Any:
    """What stands for `value` afterwards, if it is the manager or cannot be without it; else None."""
    if value is manager:
        return durable
    kind = type(value)
    if kind is types.MethodType:
        return getattr(durable, value.__name__, None) if value.__self__ is manager else None
    if kind is weakref.ref:
        return weakref.ref(durable) if value() is manager else None
    if kind is functools.partial:
        function, given = _instead(value.func, manager, durable), _instead(value.args, manager, durable)
        named = {name: _instead(item, manager, durable) for name, item in value.keywords.items()}
        if function is None and given is None and not any(item is not None for item in named.values()):
            return None
        keywords = {name: value.keywords[name] if item is None else item for name, item in named.items()}
        return functools.partial(
            value.func if function is None else function, *(value.args if given is None else given), **keywords
        )
    if issubclass(kind, (tuple, frozenset)):
        items = [(item, _instead(item, manager, durable)) for item in value]
        if all(other is None for _, other in items):
            return None
        made = [item if other is None else other for item, other in items]
        base: Any = tuple if issubclass(kind, tuple) else frozenset
        return base.__new__(kind, made)
    return None


def _slots_of(where: str, holder: Any) -> Iterator[_Slot]:
    """The places of one object that may hold something."""
    kind = type(holder)
    if issubclass(kind, (dict, list, deque)):
        for key, value in list(dict.items(holder) if issubclass(kind, dict) else enumerate(holder)):
            held = functools.partial(holder.__getitem__, key)
            yield _Slot(f"{where}[{key!r:.40}]", value, functools.partial(_set_item, holder, key), held)
            if issubclass(kind, dict):
                yield _Slot(f"a key of {where}", key, _refuse, held)
    elif issubclass(kind, set):
        for value in list(holder):
            yield _Slot(f"an element of {where}", value, functools.partial(_exchange, holder), _cannot_tell)
    elif issubclass(kind, (tuple, frozenset)):
        yield from (_inside(where, value) for value in holder)
    elif issubclass(kind, functools.partial):
        yield from (_inside(where, value) for value in (holder.func, holder.args, holder.keywords))
    elif kind is types.MethodType:
        yield from (_inside(where, value) for value in (holder.__self__, holder.__func__))
    elif kind in (types.GeneratorType, types.CoroutineType):
        frame = holder.gi_frame if kind is types.GeneratorType else holder.cr_frame
        for name, value in {} if frame is None else frame.f_locals.items():
            yield _Slot(f"{name!r} of the running {holder.__qualname__}", value, _refuse, _nothing)
    else:
        if kind is types.FunctionType:
            yield from _slots_of_function(where, holder)
        yield from _attributes(where, holder)


def _inside(where: str, value: Any) -> _Slot:
    """A value in an object that cannot be changed: whatever holds that is given another one."""
    return _Slot(where, value, None, _nothing)


def _slots_of_function(where: str, function: types.FunctionType) -> Iterator[_Slot]:
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with suppress(ValueError):  # an empty cell
            change, held = functools.partial(_set_attribute, cell, "cell_contents"), functools.partial(_contents, cell)
            yield _Slot(f"{name!r} of the function {where}", cell.cell_contents, change, held)
    for name in ("__defaults__", "__kwdefaults__"):
        change = functools.partial(_set_attribute, function, name)
        yield _Slot(f"{where}.{name}", getattr(function, name), change, functools.partial(getattr, function, name))


def _contents(cell: types.CellType) -> Any:
    return cell.cell_contents


def _attributes(where: str, holder: Any) -> Iterator[_Slot]:
    """Its own attributes, those in slots, and those of its class that are set to the manager itself."""
    own = _own(holder)
    for name, value in list(own.items()):
        held = functools.partial(own.get, name)
        yield _Slot(f"{where}.{name}", value, functools.partial(_set_attribute, holder, name), held)
    for base in () if type(holder) is types.FunctionType else type(holder).__mro__:
        for name, member in list(vars(base).items()) if base.__module__ != "builtins" else ():
            if isinstance(member, types.MemberDescriptorType):
                held = functools.partial(member.__get__, holder, base)
                with suppress(AttributeError):
                    yield _Slot(f"{where}.{name}", held(), functools.partial(_set_attribute, holder, name), held)
            else:
                change, held = functools.partial(_set_attribute, base, name), functools.partial(vars(base).get, name)
                yield _Slot(f"{base.__qualname__}.{name}", member, change, held, opens=False)


def _own(holder: Any) -> dict[str, Any]:
    """Its attributes, without asking it: a proxy would ask another object, and may have none."""
    with suppress(AttributeError, TypeError):
        own: dict[str, Any] = object.__getattribute__(holder, "__dict__")
        return own
    return {}


def _set_item(holder: Any, key: Any, _: Any, value: Any) -> None:
    holder[key] = value


def _set_attribute(holder: Any, name: str, _: Any, value: Any) -> None:
    setattr(holder, name, value)


def _exchange(holder: set[Any], old: Any, value: Any) -> None:
    holder.discard(old)
    holder.add(value)


def _nothing() -> None:
    """Read nothing back."""


def _cannot_tell() -> Any:
    """Read back from a set, which has no places."""
    return _REPLACED


def _refuse(*_: Any) -> None:
    raise TypeError("what is held here cannot be replaced")
