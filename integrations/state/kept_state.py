"""Kept state: a manager's own attributes that calls change, such as counters, row numbers, a day's profit.

A rehearsal and a replay run on a copy of the manager whose state is apart from the manager's.  What the call changed
there is carried over to the manager once: at the call, or when PostgreSQL has its effect.
"""

from __future__ import annotations

import copy
import sys
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from types import MappingProxyType, SimpleNamespace
from typing import Any
from uuid import UUID

from sqlalchemy.orm import scoped_session, sessionmaker

from ...errors import ConfigError
from ..key_order import in_key_order, key_order
from .own_locks import own_locks

_SCALARS = (bool, int, float, complex, str, bytes, Decimal, datetime, date, time, timedelta, UUID, Enum, type(None))
_NUMBERS = (int, float, Decimal)
_CONTAINERS = (list, dict, set, deque)
# A longer list or deque (a history) is copied without its items, since items are seldom changed; a larger dict or set
# (a cache) is shared with the copy.
_LARGEST = 10_000
# An attribute with more values than this is not stored with a call: each entry would hold all of a growing history.
_STORED = 1000
# A longer text counts as several values.
_TEXT_CHARS = 64
_DEEPEST = 4
# Set by the adapter itself for each copy.
NOT_STATE = frozenset({"session_factory", "_current_session_id"})
_FACTORIES = (sessionmaker, scoped_session)
_MISSING: Any = object()
_NONE: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Change:
    """What one call did to one attribute; `before` is `_MISSING` for a new one."""

    before: Any
    after: Any


class KeptState:
    """The state of one copy of a manager, set apart from the manager's when this is made."""

    def __init__(self, replica: Any) -> None:
        self._replica = replica
        self._before: dict[str, Any] = {}
        self._watched: dict[str, dict[str, Any]] = {}
        # Attributes of which the manager has what the call did before it turned to the database.
        self._noted: tuple[str, ...] = ()
        self._in_contact = False
        # What was changed before the contact, of attributes that were not noted.
        self._early: Mapping[str, Change] = {}
        own, locks = vars(replica), own_locks(replica)
        own.update(locks)
        self._before.update(locks)
        for name in own.keys() - NOT_STATE - locks.keys():
            value = self._before[name] = own[name]
            if not _is_state(value) and not _is_long(value):
                self._watched[name] = _scalars_of(value)
            elif not isinstance(value, _SCALARS):
                own[name], self._before[name] = copied(value), copied(value)

    def follow(self, earlier: Changes) -> None:
        """Begin after a call whose changes the manager does not have yet."""
        earlier.apply(self._replica)
        self._begin_again(earlier.by_name)

    def restore(self, noted: Mapping[str, Any], foreseen: Collection[str] = ()) -> None:
        """Begin with the values that attributes had at the call (see `Changes.noted`).

        Large ones have their present values.  Of those that were `foreseen` the whole change is compared, though the
        call may make it before its contact.
        """
        for name in noted["absent"]:
            vars(self._replica).pop(name, None)
        orders = noted.get("orders", {})
        for name, value in noted["values"].items():
            _fill(self._replica, name, in_key_order(value, orders.get(name)))
        names = (*noted["absent"], *noted["values"], *noted.get("large", ()))
        self._begin_again(names)
        self._noted = tuple(name for name in names if name not in foreseen)

    def contact(self) -> None:
        """The call turns to the database: what it did so far to the noted attributes was done at the call."""
        if not self._in_contact:
            self._in_contact = True
            self._begin_again(self._noted)
            self._early = self.changes().by_name

    def _begin_again(self, names: Iterable[str]) -> None:
        for name in names:
            if name in vars(self._replica):
                self._before[name] = copied(vars(self._replica)[name])
            else:
                self._before.pop(name, None)

    def changes(self) -> Changes:
        """What the call has changed since."""
        found: dict[str, Change] = {}
        for name, after in vars(self._replica).items():
            before = self._before.get(name, _MISSING)
            # The adapter gives each copy a session factory, and a property may keep it under a name of its own.
            if after is before or name in NOT_STATE or isinstance(after, _FACTORIES):
                continue
            if not _same(before, after):
                found[name] = Change(before, copied(after))
        return Changes(found)

    def later_changes(self) -> Changes:
        """What the manager does not have yet of the changes."""
        had = () if self._in_contact else self._noted
        return Changes({name: change for name, change in self.changes().by_name.items() if name not in had})

    def changed_after_contact(self, changes: Changes) -> set[str]:
        """Those of the changed attributes that the call has changed behind its contact with the database."""
        early = {name: change.after for name, change in self._early.items()}
        return {name for name, one in changes.by_name.items() if not _same(early.get(name, _MISSING), one.after)}

    def shared_changes(self) -> list[str]:
        """Attributes of objects that the copy shares with the manager, changed since: `tracker.count`."""
        return [
            f"{name}.{inner}"
            for name, before in self._watched.items()
            for inner, value in _scalars_of(self._before[name]).items()
            if not _same(before.get(inner, _MISSING), value)
        ]


@dataclass(frozen=True, slots=True)
class Changes:
    """Changed attributes by name."""

    by_name: Mapping[str, Change]

    def __bool__(self) -> bool:
        return bool(self.by_name)

    def without(self, names: Collection[str]) -> Changes:
        """Those of other attributes."""
        return Changes({name: change for name, change in self.by_name.items() if name not in names})

    def noted(self, operation: str, others: Mapping[str, Any] = _NONE) -> dict[str, Any]:
        """The values before the call and those of `others`, to be stored with it; the names only of large ones.

        Raises `ConfigError` for what cannot be stored.
        """
        before = {name: change.before for name, change in self.by_name.items()}
        large = [name for name, value in before.items() if not is_small(value)]
        known: dict[str, Any] = {name: value for name, value in {**others, **before}.items() if name not in large}
        values = {name: _plain(value, operation, name) for name, value in known.items() if value is not _MISSING}
        orders = {name: order for name, value in values.items() if (order := key_order(value)) is not None}
        return {
            "absent": [name for name, value in before.items() if value is _MISSING],
            "values": values,
            **({"orders": orders} if orders else {}),
            **({"large": large} if large else {}),
        }

    def still_fit(self, manager: Any) -> bool:
        """Whether the attributes have the values with which the call began."""
        return all(_same(vars(manager).get(name, _MISSING), change.before) for name, change in self.by_name.items())

    def apply(self, manager: Any) -> None:
        """Let the manager have them; what it changed itself meanwhile is kept where both can be."""
        for name, change in self.by_name.items():
            live = vars(manager).get(name, _MISSING)
            # A copy, since what the manager has from now on may be changed by it.
            merged = _merged(live, change.before, copied(change.after))
            if merged is not live:
                setattr(manager, name, merged)


def _is_state(value: Any, depth: int = 0) -> bool:
    """Whether a value is plain data: scalars, collections of them, objects of the host that hold nothing else."""
    if isinstance(value, _SCALARS) or type(value).__module__ == "numpy":
        return True
    if depth >= _DEEPEST:
        return False
    if isinstance(value, Mapping):
        return isinstance(value, dict) and len(value) <= _LARGEST and _all_state(value.values(), depth)
    if isinstance(value, (list, set, deque, tuple, frozenset)):
        return len(value) <= _LARGEST and _all_state(value, depth)
    return _is_of_the_host(value) and _all_state(vars(value).values(), depth)


def _is_long(value: Any) -> bool:
    return isinstance(value, (list, deque)) and len(value) > _LARGEST


def is_small(value: Any) -> bool:
    """Whether a value is small enough to be stored with each call."""
    todo, left = [value], _STORED
    while todo:
        one = todo.pop()
        left -= 1 + (len(one) // _TEXT_CHARS if isinstance(one, (str, bytes)) else 0)
        inner: Any = ()
        if isinstance(one, Mapping):
            inner = one.values()
        elif isinstance(one, (list, tuple, set, frozenset, deque)):
            inner = one
        elif not isinstance(one, _SCALARS) and _is_of_the_host(one):
            inner = vars(one).values()
        if left < len(inner):
            return False
        todo.extend(inner)
    return True


def _all_state(values: Any, depth: int) -> bool:
    return all(_is_state(value, depth + 1) for value in tuple(values))


def _is_of_the_host(value: Any) -> bool:
    """Whether it is an object of a plain class that is neither Python's nor a library's of the database."""
    cls = type(value)
    if cls is SimpleNamespace:
        return True
    package = cls.__module__.partition(".")[0]
    foreign = package in sys.stdlib_module_names and package != "__main__"
    return hasattr(value, "__dict__") and not foreign and package not in {"sqlalchemy", "psycopg2", "outbox"}


def _scalars_of(value: Any) -> dict[str, Any]:
    """The plain attributes of an object that is shared, to notice when they change."""
    if not _is_of_the_host(value) or callable(value):
        return {}
    return {name: inner for name, inner in tuple(vars(value).items()) if isinstance(inner, _SCALARS)}


def copied(value: Any) -> Any:
    """A copy of plain data, collections within it included; a long list keeps its items; anything else as it is."""
    if _is_long(value):
        return copy.copy(value)
    if isinstance(value, _SCALARS) or type(value).__module__ == "numpy" or not _is_state(value):
        return value
    made = copy.copy(value)
    if isinstance(made, dict):
        for key, item in made.items():
            made[key] = copied(item)
    elif isinstance(made, (list, deque)):
        for at, item in enumerate(made):
            made[at] = copied(item)
    elif not isinstance(made, (set, tuple, frozenset)):
        for name, item in vars(made).items():
            vars(made)[name] = copied(item)
    return made


def _same(one: Any, other: Any) -> bool:
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if _is_long(one):
        try:
            return len(one) == len(other) and bool(one == other)
        except ValueError:  # of arrays that were replaced
            return False
    if isinstance(one, dict):
        return list(one) == list(other) and all(_same(item, other[key]) for key, item in one.items())
    if isinstance(one, (list, deque, tuple)):
        return len(one) == len(other) and all(_same(a, b) for a, b in zip(one, other, strict=True))
    if isinstance(one, (*_SCALARS, set, frozenset)) or type(one).__module__ == "numpy":
        return bool(one == other)
    return _is_of_the_host(one) and _is_state(one) and _same(vars(one), vars(other))


def _plain(value: Any, operation: str, name: str) -> Any:
    """`value` as it can be stored: an object of the host by its attributes."""
    if isinstance(value, _SCALARS) or type(value).__module__ == "numpy":
        return value
    if type(value) in (list, deque):
        return [_plain(item, operation, name) for item in value]
    if isinstance(value, dict) and all(isinstance(key, _SCALARS) for key in value):
        return {key: _plain(item, operation, name) for key, item in value.items()}
    if type(value) is tuple:
        return tuple(_plain(item, operation, name) for item in value)
    if type(value) in (set, frozenset):
        return type(value)(_plain(item, operation, name) for item in value)
    if not isinstance(value, (tuple, set, frozenset, dict)) and _is_of_the_host(value) and _is_state(value):
        return _plain(vars(value), operation, name)
    raise ConfigError(
        f"{operation} changes self.{name} ({type(value).__name__}) before it writes, and that cannot be kept",
        hint="keep it in numbers, text or collections of them, or leave the operation out",
    )


def is_storable(value: Any) -> bool:
    """Whether a value can be stored with a call."""
    try:
        _plain(value, "", "")
    except ConfigError:
        return False
    return True


def _fill(owner: Any, name: str, value: Any) -> None:
    """Set an attribute from its stored form; its present value tells the type."""
    present = vars(owner).get(name)
    if isinstance(present, deque) and isinstance(value, list):
        value = deque(value, present.maxlen)
    if isinstance(present, dict) and type(present) is not dict and isinstance(value, dict):
        made = copy.copy(present)
        made.clear()
        made.update(value)
        value = made
    if not isinstance(present, (*_SCALARS, *_CONTAINERS)) and present is not None and isinstance(value, dict):
        for inner, item in value.items():
            _fill(present, inner, item)
        return
    vars(owner)[name] = value


def _merged(live: Any, before: Any, after: Any) -> Any:
    """`live` with what was changed from `before` to `after`; collections and objects are changed in place."""
    if type(live) is not type(after):
        return after
    if isinstance(live, _NUMBERS) and not isinstance(live, bool):
        return after if _same(live, before) or type(before) is not type(after) else live + (after - before)
    if isinstance(live, list):
        grown = isinstance(before, list) and _same(after[: len(before)], before)
        live[:] = [*live, *after[len(before) :]] if grown else after
    elif isinstance(live, deque):
        grown = isinstance(before, deque) and live.maxlen is None and _same(list(after)[: len(before)], list(before))
        added = list(after)[len(before) :] if grown else list(after)
        if not grown:
            live.clear()
        live.extend(added)
    elif isinstance(live, dict):
        _merge_dict(live, before if isinstance(before, dict) else {}, after)
    elif isinstance(live, set):
        old = before if isinstance(before, set) else set()
        live -= old - after
        live |= after - old
    elif not isinstance(live, _SCALARS) and _is_of_the_host(live) and _is_state(live):
        _merge_dict(vars(live), {} if before is _MISSING else vars(before), vars(after))
    else:
        return after
    return live


def _merge_dict(live: dict[Any, Any], before: Mapping[Any, Any], after: Mapping[Any, Any]) -> None:
    for key in _removed(before, after):
        live.pop(key, None)
    for key, item in after.items():
        old = before.get(key, _MISSING)
        if not _same(old, item):
            live[key] = _merged(live.get(key, _MISSING), old, item)


def _removed(before: Mapping[Any, Any], after: Mapping[Any, Any]) -> Iterator[Any]:
    return (key for key in before if key not in after)
