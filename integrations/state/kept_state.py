"""Kept state: a manager's own attributes that calls change, such as counters, row numbers, a day's profit.

A rehearsal and a replay run on a copy of the manager whose state is apart from the manager's.  What the call changed
there is carried over to the manager once: at the call, or when PostgreSQL has its effect.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from types import GeneratorType, MappingProxyType, MethodWrapperType, SimpleNamespace
from typing import Any

from sqlalchemy.orm import scoped_session, sessionmaker

from ...errors import ConfigError
from ...records import attributes, put, slots_of
from ..code.members import values_of
from ..plain_data import (
    SCALARS,
    Copies,
    all_copied,
    copied,
    counter,
    in_key_order,
    is_long,
    is_of_the_host,
    is_small,
    is_state,
    key_order,
    same,
)
from .merging import MISSING, NUMBERS, Change, delta_of, merged, take_back
from .own_locks import own_locks
from .references import referring
from .stored_types import can_be_rebuilt, rebuilt, types_in

_CONTAINERS = (list, dict, set, deque)
# Set by the adapter itself for each copy.
NOT_STATE = frozenset({"session_factory", "_current_session_id"})
_FACTORIES = (sessionmaker, scoped_session)
_NONE: Mapping[str, Any] = MappingProxyType({})


class KeptState:
    """The state of one copy of a manager, set apart from the manager's when this is made."""

    def __init__(self, replica: Any) -> None:
        self.replica = replica
        self._before: dict[str, Any] = {}
        # The copy's own values with which it began.
        self._begun: dict[str, Any] = {}
        self._watched: dict[str, dict[str, Any]] = {}
        # Attributes of which the manager has what the call did before it turned to the database.
        self._noted: tuple[str, ...] = ()
        # Attributes whose values are those of the call, and the process in which it was made, where it noted any.
        self._restored: frozenset[str] = frozenset()
        self.process: int | None = None
        self.in_contact = False
        # Whether it has changes of earlier calls that the call did not find.
        self.has_followed = False
        # What was changed before the contact, of attributes that were not noted.
        self._early: Mapping[str, Change] = {}
        own, of_class = vars(replica), values_of(type(replica))
        locks = own_locks(replica, of_class)
        own.update(_states_in(of_class) | own | locks)
        self._before.update(locks)
        others: list[str] = []
        known: Copies = {}
        known_before: Copies = {}
        for name in own.keys() - NOT_STATE - locks.keys():
            value = self._before[name] = own[name]
            if not is_state(value) and not is_long(value):
                self._watched[name] = _scalars_of(value)
                others.append(name)
            elif not isinstance(value, SCALARS):
                own[name], self._before[name] = copied(value, known), copied(value, known_before)
        for name in others:
            own[name] = self._before[name] = referring(own[name], known, name, replica)
        self._begun.update(own)

    def follow(self, earlier: Changes) -> None:
        """Begin after a call whose changes the manager does not have yet."""
        own = vars(self.replica)
        # What the engine has set behind that call stays.
        set_anew = {
            name
            for name, one in earlier.by_name.items()
            if name in self._restored and _is_set_whole(one) and not same(own.get(name, MISSING), one.before)
        }
        earlier = earlier.without(set_anew)
        earlier.apply(self.replica)
        self.has_followed = self.has_followed or bool(earlier)
        self._begin_again(earlier.by_name)

    def begin_with(self, values: Mapping[str, Any]) -> None:
        """Begin with these values of attributes, as the constructor makes them."""
        for name, value in all_copied(values).items():
            put(self.replica, name, _refilled(vars(self.replica).get(name), value))
        self._begin_again(values)

    def restore(self, noted: Mapping[str, Any], foreseen: Collection[str] = ()) -> Collection[str]:
        """Begin with the values that attributes had at the call (see `Changes.noted`).

        Large ones have their present values without the call's own change.  Of those that were `foreseen` the whole
        change is compared, though the call may make it before its contact.  Returns the attributes that have other
        values than the manager's.
        """
        for name in noted["absent"]:
            vars(self.replica).pop(name, None)
        orders, types = noted.get("orders", {}), noted.get("types", {})
        present = vars(self.replica)
        # Of others a plain collection would be another one than the method makes itself.
        values = {
            name: one for name, one in noted["values"].items() if can_be_rebuilt(types.get(name, {}), present.get(name))
        }
        for name, value in values.items():
            _fill(self.replica, name, in_key_order(value, orders.get(name)), types.get(name))
        large = noted.get("large", {})
        for name, delta in large.items():
            take_back(vars(self.replica).get(name), delta)
        parts = noted.get("parts", {})
        for name, value in parts.items():
            self._put_into(name, in_key_order(value, orders.get(name)))
        names = (*noted["absent"], *values, *large, *parts)
        self._begin_again(names)
        # What the call only read it may change all the same, and then the manager does not have that yet.
        later = {*foreseen, *noted.get("read", ())}
        self._noted = tuple(name for name in names if name not in later)
        self._restored, self.process = frozenset(names) - large.keys(), noted.get("seen", {}).get("process")
        return self._restored

    def begin(self) -> None:
        """Take what attributes hold now for what the call begins with: one that holds what another was given, too."""
        self._begin_again([*self.changes().by_name])

    def _put_into(self, name: str, parts: Mapping[str, Any]) -> None:
        """Let the object in an attribute hold what was read of it; one that copies share is left as it is."""
        present = vars(self.replica).get(name)
        if present is None:
            # Behind a restart; of what the object was, only what it held is known.
            vars(self.replica)[name] = SimpleNamespace(**parts)
        elif is_of_the_host(present) and is_state(present):
            _fill(self.replica, name, parts)

    def contact(self) -> None:
        """The call turns to the database: what it did so far to the noted attributes was done at the call."""
        if not self.in_contact:
            self.in_contact = True
            self._begin_again(self._noted)
            self._early = self.changes().by_name

    def _begin_again(self, names: Iterable[str]) -> None:
        for name in names:
            if name in vars(self.replica):
                self._begun[name] = vars(self.replica)[name]
                self._before[name] = copied(vars(self.replica)[name])
            else:
                self._before.pop(name, None)

    def began_with(self, manager: Any, names: Iterable[str]) -> bool:
        """Whether attributes of the manager have the values with which this copy began."""
        present = _all_present(manager, names)
        return all(same(value, self._before.get(name, MISSING)) for name, value in present.items())

    def changes(self) -> Changes:
        """What the call has changed since."""
        found: dict[str, Change] = {}
        known: Copies = {}
        for name, after in vars(self.replica).items():
            before = self._before.get(name, MISSING)
            # The adapter gives each copy a session factory, and a property may keep it under a name of its own.
            if after is before or name in NOT_STATE or isinstance(after, _FACTORIES):
                continue
            if before is MISSING and not is_state(after) and _is_cached(type(self.replica), name):
                # Each copy makes its own: what this one has made may hold the copy.
                continue
            if not same(before, after):
                found[name] = Change(before, copied(after, known), after is not self._begun.get(name, MISSING))
        return Changes(found)

    def later_changes(self) -> Changes:
        """What the manager does not have yet of the changes."""
        had = () if self.in_contact else self._noted
        return Changes({name: change for name, change in self.changes().by_name.items() if name not in had})

    def changed_after_contact(self, changes: Changes) -> set[str]:
        """Those of the changed attributes that the call has changed behind its contact with the database."""
        early = {name: change.after for name, change in self._early.items()}
        return {name for name, one in changes.by_name.items() if not same(early.get(name, MISSING), one.after)}

    def shared_changes(self) -> list[str]:
        """Attributes of objects that the copy shares with the manager, changed since: `tracker.count`."""
        return [
            f"{name}.{inner}"
            for name, before in self._watched.items()
            for inner, value in _scalars_of(self._before[name]).items()
            if not same(before.get(inner, MISSING), value)
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

    def of(self, names: Collection[str]) -> Changes:
        """Those of these attributes."""
        return Changes({name: change for name, change in self.by_name.items() if name in names})

    def noted(
        self, operation: str, others: Mapping[str, Any] = _NONE, parts: Mapping[str, Any] = _NONE
    ) -> dict[str, Any]:
        """The values before the call and those of `others`, to be stored with it; of large collections the change.

        `parts`: of what objects in attributes hold.

        Raises `ConfigError` for what cannot be stored.
        """
        before = {name: change.before for name, change in self.by_name.items()}
        deltas = {name: delta_of(change) for name, change in self.by_name.items() if not is_small(change.before)}
        large = {name: delta for name, delta in deltas.items() if delta is not None}
        known: dict[str, Any] = {name: value for name, value in {**others, **before}.items() if name not in large}
        values = {name: _plain(value, operation, name) for name, value in known.items() if value is not MISSING}
        ordered = {**values, **parts}
        orders = {name: order for name, value in ordered.items() if (order := key_order(value)) is not None}
        types = {name: found for name in values if (found := types_in(known[name])) is not None}
        return {
            "absent": [name for name, value in before.items() if value is MISSING],
            "values": values,
            **({"types": types} if types else {}),
            **({"orders": orders} if orders else {}),
            **({"parts": dict(parts)} if parts else {}),
            **({"large": {name: _plain(one, operation, name) for name, one in large.items()}} if large else {}),
        }

    def still_fit(self, manager: Any) -> bool:
        """Whether the attributes have the values with which the call began."""
        present = _all_present(manager, self.by_name)
        return all(same(present[name], change.before) for name, change in self.by_name.items())

    def apply(self, manager: Any) -> None:
        """Let the manager have them; what it changed itself meanwhile is kept where both can be."""
        known: Copies = {}
        done: dict[int, Any] = {}
        for name, change in self.by_name.items():
            live = present = _all_present(manager, (name,))[name]
            # A copy, since what the manager has from now on may be changed by it.
            after = copied(change.after, known)
            if not change.is_other or isinstance(live, SCALARS):
                after = merged(live, change.before, after, done)
            elif not same(live, change.before):
                # What was there may be held elsewhere, and is what it was.
                after = merged(copied(live), change.before, after)
            if after is not present:
                setattr(manager, name, after)


def _is_set_whole(change: Change) -> bool:
    """Whether a change replaces a value, and neither adds to it nor changes a part of it."""
    one = change.after
    return isinstance(one, SCALARS) and not (isinstance(one, NUMBERS) and not isinstance(one, bool))


def _states_in(of_class: Mapping[str, Any]) -> dict[str, Any]:
    """The state that a class holds for its objects: a collection, a counter, an object that makes ids."""
    return {
        name: value
        for name, value in of_class.items()
        if not (name.startswith("__") and name.endswith("__"))
        and not hasattr(type(value), "__get__")
        and (isinstance(value, (*_CONTAINERS, count)) or is_of_the_host(value))
        and is_state(value)
    }


def _is_cached(cls: type, name: str) -> bool:
    return any(isinstance(vars(base).get(name), cached_property) for base in cls.__mro__)


def _all_present(manager: Any, names: Iterable[str]) -> dict[str, Any]:
    """The values of a manager's attributes, which may be those of its class; `MISSING` for what is not there."""
    own = attributes(manager) if slots_of(type(manager)) else vars(manager)
    found = {name: own.get(name, MISSING) for name in names}
    missing = [name for name, value in found.items() if value is MISSING]
    of_class = _states_in(values_of(type(manager))) if missing else {}
    return found | {name: of_class.get(name, MISSING) for name in missing}


def scalars_shared(value: Any) -> dict[str, Any]:
    """The plain attributes of an object in an attribute of a manager that each copy shares; none if it has its own."""
    return {} if is_state(value) or is_long(value) else _scalars_of(value)


def _scalars_of(value: Any) -> dict[str, Any]:
    """The plain attributes of an object that is shared, to notice when they change."""
    if isinstance(value, GeneratorType):
        frame = value.gi_frame
        return {"()": None if frame is None else (frame.f_lasti, *map(repr, _scalars(frame.f_locals).values()))}
    if isinstance(value, MethodWrapperType) and isinstance(value.__self__, count):
        return {"()": repr(value.__self__)}
    return _scalars(attributes(value)) if is_of_the_host(value) and not callable(value) else {}


def _scalars(found: Mapping[str, Any]) -> dict[str, Any]:
    return {name: inner for name, inner in tuple(found.items()) if isinstance(inner, SCALARS)}


def stored_form(value: Any) -> Any:
    """A value as it is stored with a call.  Raises `ConfigError` where it cannot be."""
    return _plain(value, "", "")


def _plain(value: Any, operation: str, name: str) -> Any:
    """`value` as it can be stored: an object of the host by its attributes."""
    if isinstance(value, SCALARS) or type(value).__module__ == "numpy":
        return value
    if type(value) in (list, deque):
        return [_plain(item, operation, name) for item in value]
    if isinstance(value, dict) and all(isinstance(key, SCALARS) for key in value):
        return {key: _plain(item, operation, name) for key, item in value.items()}
    if isinstance(value, count) and (numbers := counter(value)) is not None:
        return [*numbers]
    if type(value) is tuple:
        return tuple(_plain(item, operation, name) for item in value)
    if type(value) in (set, frozenset):
        return type(value)(_plain(item, operation, name) for item in value)
    if not isinstance(value, (tuple, set, frozenset, dict)) and is_of_the_host(value) and is_state(value):
        return _plain(attributes(value), operation, name)
    raise ConfigError(
        f"{operation} changes self.{name} ({type(value).__name__}) before it writes, and that cannot be kept",
        hint="keep it in numbers, text or collections of them, or leave the operation out",
    )


def is_storable(value: Any) -> bool:
    """Whether a value can be stored with a call."""
    try:
        stored_form(value)
    except ConfigError:
        return False
    return True


def _fill(owner: Any, name: str, value: Any, types: Mapping[str, Any] | None = None) -> None:
    """Set an attribute from its stored form; its present value tells the type, or else what was noted with it."""
    present = attributes(owner).get(name)
    value = rebuilt(value, types)
    if isinstance(present, count) and isinstance(value, list):
        value = count(*value)
    if isinstance(present, deque) and isinstance(value, (list, deque)):
        value = deque(value, present.maxlen)
    if isinstance(present, dict) and type(present) not in (dict, type(value)) and isinstance(value, dict):
        made = copy.copy(present)
        made.clear()
        made.update(value)
        value = made
    if not isinstance(present, (*SCALARS, *_CONTAINERS)) and present is not None and isinstance(value, dict):
        for inner, item in value.items():
            _fill(present, inner, item)
        return
    put(owner, name, _refilled(present, value))


def _refilled(present: Any, value: Any) -> Any:
    """`value`, in what is there as far as it is of the same type: another attribute of the copy may hold that, too."""
    if present is value or type(present) is not type(value) or isinstance(value, SCALARS) or not is_state(present):
        return value
    if isinstance(present, dict):
        items = {key: _refilled(present.get(key), item) for key, item in value.items()}
        present.clear()
        present.update(items)
    elif isinstance(present, list):
        present[:] = [*map(_refilled, present, value), *value[len(present) :]]
    elif isinstance(present, (deque, set)) and getattr(present, "maxlen", None) == getattr(value, "maxlen", None):
        items_ = list(value)
        present.clear()
        present.update(items_) if isinstance(present, set) else present.extend(items_)
    elif is_of_the_host(present):
        stored = attributes(value)
        for name in attributes(present).keys() - stored.keys():
            object.__delattr__(present, name)
        for name, item in stored.items():
            put(present, name, _refilled(attributes(present).get(name), item))
    else:
        return value
    return present
