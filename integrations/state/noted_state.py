"""Noted state: what a call finds in the manager's attributes and in context variables, and a replay must find as well.

The attributes are those that a call reads, such as the name of a run or a mode that the engine sets; and those that
calls change before they write, such as the date of a daily counter, whether this call changed them or a later one did
meanwhile.  The engine may set them anew before the delivery, and after a restart they are what the constructor makes of
them.  What calls before it change at their delivery is added there, see `Unseen`.  Context variables, such as the tenant
or the user of a request, belong to the context in which the call is made: the relay's thread has none of them, nor has
another process.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from types import FunctionType
from typing import Any

from ... import InvalidEntry, Outbox
from ...codec import encode
from ..code.class_code import ClassCode
from ..code.method_code import facts_of, meaning
from ..manager.host import Host
from ..plain_data import SCALARS, is_small
from .foreseen import Foreseen
from .kept_state import NOT_STATE, Changes, is_storable

# Where the names of attributes that calls change before they write are kept.
_META = "state:early"
# Each entry holds the values of those that a call only reads.
_MOST = 50
_CONTAINERS = (list, tuple, dict, set, frozenset)
# What a connection needs is the replaying manager's own business, and no file must hold a password.
_SECRET = re.compile(r"passw|secret|token|credential|private|dsn|ur[li]$|api_?key|auth", re.IGNORECASE)
# So far functions are followed that a method calls by their names.
_DEEPEST = 3


class NotedState:
    """What is noted of the calls of one manager's methods.  Needs the order of calls."""

    def __init__(
        self,
        host: Host,
        outbox: Outbox,
        methods: Collection[str],
        foreseen: Foreseen,
        learn: Callable[[Any], bool],
    ) -> None:
        """`learn(value)` allows the enum classes of a value to be stored; whether there are any."""
        self._host, self._outbox, self._methods, self._foreseen = host, outbox, methods, foreseen
        self._learn = learn
        # The class that was looked at, and the names of the attributes that a method reads.
        self._known: tuple[type | None, dict[str, frozenset[str]]] = (None, {})
        stored = outbox.store.get_meta(_META)
        # Attributes that calls were seen to change before they write.
        self._early: set[str] = set(json.loads(stored)) if stored else set()

    def names(self, method: str) -> set[str]:
        """The attributes that may be noted of a call of `method`."""
        return {*self._early, *self._foreseen.names(), *self._read_by(method)}

    def _read_by(self, method: str) -> frozenset[str]:
        """The attributes that a call of `method` reads, by its code."""
        cls = self._host.manager_class
        if cls is None:
            return frozenset()
        if self._known[0] is not cls:
            code = ClassCode(cls)
            found = {name: code.uses_of(name).keys() - NOT_STATE for name in self._methods}
            self._known = (
                cls,
                {name: frozenset(one for one in used if not _SECRET.search(one)) for name, used in found.items()},
            )
        return self._known[1].get(method, frozenset())

    def beside(
        self, method: str, own: Mapping[str, Any], changes: Changes, changed: Collection[str]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """The present values of attributes beside those that a call changes, as far as they can be stored.

        Those that calls change before they write, and those that the call reads.  `own`: the attributes of the manager,
        or of what stands for it before it is built.  `changed`: all that the rehearsal has changed.  Raises
        `DurabilityError`.
        """
        names = {*changes.by_name, *self._foreseen.names()}
        if names - self._early:
            self._early |= names
            self._outbox.store.put_meta(_META, json.dumps(sorted(self._early)).encode())
        others = self._early & own.keys() - changes.by_name.keys()
        early = {name: own[name] for name in others if is_small(own[name]) and is_storable(own[name])}
        read = self._read_by(method) & own.keys() - {*changed, *early}
        return early, {name: own[name] for name in read if _can_be_stored(own[name], self._learn)}

    def context(self, method: str) -> dict[str, Any]:
        """The present values of context variables that are set and can be stored."""
        cls, found = self._host.manager_class, dict[str, Any]()
        for name, variable in _variables(cls, method).items() if cls is not None else ():
            try:
                value = variable.get()
            except LookupError:
                continue
            if _can_be_stored(value, self._learn):
                found[name] = value
        return found


@lru_cache(maxsize=256)
def _variables(cls: type, method: str) -> Mapping[str, ContextVar[Any]]:
    """The context variables that a method reads, as far as its code shows, by a name that outlives the process."""
    found: dict[str, ContextVar[Any]] = {}
    todo = [(function, 0) for function, _ in ClassCode(cls).reached(method)]
    seen: set[Any] = set()
    while todo:
        function, depth = todo.pop()
        if function in seen:
            continue
        seen.add(function)
        for call in facts_of(function).calls:
            owner, _, last = call.name.rpartition(".")
            value = meaning(function, owner) if owner and last == "get" else None
            if isinstance(value, ContextVar):
                found[f"{function.__module__}:{owner}"] = value
            called = meaning(function, call.name) if depth < _DEEPEST and "(" not in call.name else None
            if isinstance(called, FunctionType):
                todo.append((called, depth + 1))
    return found


@contextmanager
def restored(cls: type, method: str, values: Mapping[str, Any]) -> Iterator[None]:
    """Within the block the variables have the values that were noted."""
    known = _variables(cls, method) if values else {}
    tokens = [(known[name], known[name].set(value)) for name, value in values.items() if name in known]
    try:
        yield
    finally:
        for variable, token in reversed(tokens):
            variable.reset(token)


def _can_be_stored(value: Any, learn: Callable[[Any], bool]) -> bool:
    """Whether a value is plain, small, and such that it cannot make its call be refused."""
    if value is None or type(value) is bool:
        return True
    if not is_small(value, _MOST) or not all(map(_is_plain, _inside(value))):
        return False
    return _is_encoded(value) or (learn(value) and _is_encoded(value))


def _is_encoded(value: Any) -> bool:
    try:
        encode(value)
    except InvalidEntry:
        return False
    return True


def _inside(value: Any) -> Iterator[Any]:
    """A value, and what is in it, the keys of dicts included."""
    yield value
    if isinstance(value, _CONTAINERS):
        for one in (*value, *value.values()) if isinstance(value, dict) else value:
            yield from _inside(one)


def _is_plain(value: Any) -> bool:
    if isinstance(value, str):
        return "://" not in value
    if type(value) is dict:
        return not any(isinstance(key, str) and _SECRET.search(key) for key in value)
    return isinstance(value, SCALARS) or type(value) in _CONTAINERS
