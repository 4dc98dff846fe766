"""Noted state: what a call finds in the manager's attributes, and a replay must find as well.

They are those that a call reads, such as the name of a run or a mode that the engine sets, what is read of an object in
one (`self.run.id`), and those that calls change before they write, such as the date of a daily counter, whether this
call changed them or a later one did meanwhile.  The engine may set them anew before the delivery, and after a restart
they are what the constructor makes of them.  What calls before it change at their delivery is added, see `Unseen`.
"""

from __future__ import annotations

import ast
import json
import re
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from ... import InvalidEntry, Outbox
from ...codec import encode
from ...records import attributes, fields_of, has_fields, is_own_class
from ..code.class_code import ClassCode, remembered
from ..code.members import class_member, names_set_by
from ..code.method_code import Facts, facts_of
from ..manager.host import Host
from ..plain_data import SCALARS, is_of_the_host, is_small, is_state
from .foreseen import Foreseen
from .kept_state import NOT_STATE, Changes, is_storable, stored_form


def parts_read(code: ClassCode, name: str) -> dict[str, frozenset[str] | None]:
    """By attribute, the names that are read of what it holds; None where that gets into other hands."""
    found: dict[str, frozenset[str] | None] = {}
    for function, _ in code.reached(name):
        for attribute, names in _parts_in(function).items():
            before = found.get(attribute, frozenset())
            found[attribute] = None if names is None or before is None else before | names
    return found


def parts_changed(code: ClassCode, name: str) -> set[str]:
    """Attributes of which a method assigns something that they hold: `self.run.trades += 1`."""
    found: set[str] = set()
    for function, _ in code.reached(name):
        facts = facts_of(function)
        for node in _nodes(facts):
            if isinstance(node, ast.Attribute | ast.Subscript) and not isinstance(node.ctx, ast.Load):
                inside = [one for one in ast.walk(node.value) if isinstance(one, ast.Attribute)]
                found |= {one.attr for one in inside if _is_mine(one, facts)}
    return found


@remembered(1024)
def changes_itself(cls: type, names: frozenset[str]) -> bool:
    """Whether one of these methods or properties of a class changes its object."""
    code = ClassCode(cls)
    return any(code.changed_by(name) for name in names)


@lru_cache(maxsize=4096)
def _parts_in(function: Any) -> dict[str, frozenset[str] | None]:
    facts = facts_of(function)
    found: dict[str, set[str]] = {}
    whole: set[str] = set()
    inside: set[int] = set()
    for node in _nodes(facts):
        if not isinstance(node, ast.Attribute):
            continue
        held = node.value
        if isinstance(held, ast.Attribute) and _is_mine(held, facts):
            inside.add(id(held))
            found.setdefault(held.attr, set()).add(node.attr)
        elif _is_mine(node, facts) and id(node) not in inside:
            whole.add(node.attr)
    return {name: None if name in whole else frozenset(found[name]) for name in found.keys() | whole}


def _nodes(facts: Facts) -> list[ast.AST]:
    """Every node of a function, each one before those in it."""
    return [node for statement in facts.body for node in ast.walk(statement)]


def _is_mine(node: ast.Attribute, facts: Facts) -> bool:
    return isinstance(node.value, ast.Name) and node.value.id == facts.myself


# Where the names of attributes that calls change before they write are kept.
_META = "state:early"
# Each entry holds the values of those that a call only reads.
_MOST = 50
_CONTAINERS = (list, tuple, dict, set, frozenset)
_DICTS = (defaultdict, OrderedDict, Counter)
# Objects may hold each other.
_DEEPEST = 4
# What a connection needs is the replaying manager's own business, and no file must hold a password.
_SECRET = re.compile(r"passw|secret|token|credential|private|dsn|ur[li]$|api_?key|auth", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class _Held:
    """What methods read of the object in one attribute: `names` the method at hand, None for all; `by_all` any."""

    names: frozenset[str] | None
    by_all: frozenset[str]


@dataclass(frozen=True, slots=True)
class _Read:
    """What one method reads: attributes, and of objects in them.

    `but`: None, unless the method reads a descriptor of the host's own.  That may keep its value in any attribute but
    those that the class sets by their names.
    """

    names: frozenset[str] = frozenset()
    held: Mapping[str, _Held] = field(default_factory=dict)
    but: frozenset[str] | None = None

    def of(self, own: Mapping[str, Any]) -> frozenset[str]:
        """Those of the attributes `own`."""
        behind = () if self.but is None else (name for name in own.keys() - self.but - NOT_STATE if not is_secret(name))
        return (self.names & own.keys()).union(behind)


@dataclass(frozen=True, slots=True)
class Beside:
    """Present values of attributes beside those that a call changes.

    `early`: of those that calls change before they write; `read`: of those that the call reads; `parts`: what objects
    in such attributes hold.
    """

    early: dict[str, Any]
    read: dict[str, Any]
    parts: dict[str, dict[str, Any]]

    def __bool__(self) -> bool:
        return bool(self.early or self.read or self.parts)


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
        self._host, self._outbox, self._methods, self._foreseen = host, outbox, tuple(methods), foreseen
        self._learn = learn
        stored = outbox.store.get_meta(_META)
        # Attributes that calls were seen to change before they write.
        self._early: set[str] = set(json.loads(stored)) if stored else set()

    def names(self, method: str) -> set[str]:
        """The attributes that may be noted of a call of `method`."""
        read = self._read_by(method).of(self._host.attributes())
        return {*self._early, *self._foreseen.names(), *self._read_by(method).names, *read}

    def beside(self, method: str, own: Mapping[str, Any], changes: Changes, changed: Collection[str]) -> Beside:
        """What to note of a call beside its changes, as far as it can be stored.

        `own`: the attributes of the manager, or of what stands for it before it is built.  `changed`: all that the
        rehearsal has changed.  Raises `DurabilityError`.
        """
        names = {*changes.by_name, *self._foreseen.names()}
        if names - self._early:
            self._early |= names
            self._outbox.store.put_meta(_META, json.dumps(sorted(self._early)).encode())
        others = self._early & own.keys() - changes.by_name.keys()
        early = {name: own[name] for name in others if is_small(own[name]) and is_storable(own[name])}
        known, but = self._read_by(method), {*changed, *early}
        read = known.of(own) - but
        found = {name: own[name] for name in read if can_be_stored(_as_stored(own[name]), self._learn)}
        parts = {name: self._parts(own[name], known.held[name]) for name in known.held.keys() & own.keys() - but}
        parts = {name: one for name, one in parts.items() if one}
        # A replay finds what calls before it have made of an object only where it begins with all that it held.
        whole = {name for name in read - found.keys() - parts.keys() if self._can_be_noted_whole(own[name])}
        return Beside(early, found | {name: own[name] for name in whole}, parts)

    def _can_be_noted_whole(self, value: Any) -> bool:
        """Whether an object, or a collection of such, can be stored with all that it holds."""
        if isinstance(value, SCALARS) or not is_state(value) or not is_small(value, _MOST) or not is_storable(value):
            return False
        return can_be_stored(stored_form(value), self._learn)

    def _read_by(self, method: str) -> _Read:
        cls = self._host.manager_class
        return _Read() if cls is None else _read_by_all(cls, self._methods).get(method, _Read())

    def _parts(self, value: Any, held: _Held) -> dict[str, Any]:
        if isinstance(value, (*SCALARS, *_CONTAINERS)) or not is_of_the_host(value) or not is_state(value):
            return {}
        stored = attributes(value)
        # Its methods and properties may read any of it.
        cls: type = type(value)
        called = held.by_all.difference(stored)
        if called and changes_itself(cls, called):
            return {}
        names = stored.keys() if held.names is None or not held.names <= stored.keys() else held.names
        found: dict[str, Any] = {}
        for name in names:
            if is_secret(name):
                continue
            if can_be_stored(stored[name], self._learn):
                found[name] = stored[name]
            elif inner := self._parts(stored[name], _WHOLE):
                found[name] = inner
        return found if is_small(found, _MOST) else {}


_WHOLE = _Held(None, frozenset())


@remembered(64)
def _read_by_all(cls: type, methods: tuple[str, ...]) -> dict[str, _Read]:
    """By method of a class, what it reads."""
    code = ClassCode(cls)
    # What is in an object is noted only where no method changes it.
    changed = set[str]().union(*map(code.changed_by, methods), *(parts_changed(code, name) for name in methods))
    parts = {name: parts_read(code, name) for name in methods}
    by_all: dict[str, frozenset[str]] = {}
    for read in parts.values():
        for name, one in read.items():
            by_all[name] = by_all.get(name, frozenset()) | (one or frozenset())
    found: dict[str, _Read] = {}
    for method in methods:
        names = frozenset(one for one in code.uses_of(method).keys() - NOT_STATE if not is_secret(one))
        held = {one: _Held(parts[method].get(one), by_all.get(one, frozenset())) for one in names - changed}
        found[method] = _Read(
            names, held, names_set_by(cls) if any(_is_descriptor(cls, one) for one in names) else None
        )
    return found


def _is_descriptor(cls: type, name: str) -> bool:
    kind = type(class_member(cls, name))
    return is_own_class(kind) and hasattr(kind, "__get__") and hasattr(kind, "__set__")


def _as_stored(value: Any) -> Any:
    """A collection of a further type as it is stored, apart from its type."""
    if type(value) is deque:
        return list(value)
    return dict(value) if type(value) in _DICTS else value


def is_secret(name: str) -> bool:
    """Whether a name tells that its value must not get into a file."""
    return _SECRET.search(name) is not None


def can_be_stored(value: Any, learn: Callable[[Any], bool], *, objects: bool = False) -> bool:
    """Whether a value is plain, small, and such that it cannot make its call be refused.

    `objects`: also one of an object that can be passed as an argument.
    """
    if value is None or type(value) is bool:
        return True
    if not is_small(value, _MOST) or not all(map(_is_plain, _inside(value, objects=objects))):
        return False
    return _is_encoded(value) or (learn(value) and _is_encoded(value))


def _is_encoded(value: Any) -> bool:
    try:
        encode(value)
    except InvalidEntry:
        return False
    return True


def _inside(value: Any, *, objects: bool, depth: int = 0) -> Iterator[Any]:
    """A value, and what is in it, the keys of dicts included; an object as the dict of its fields."""
    if objects and depth < _DEEPEST and type(value) not in _CONTAINERS and has_fields(type(value)):
        value = dict(fields_of(value))
    yield value
    if isinstance(value, _CONTAINERS):
        for one in (*value, *value.values()) if isinstance(value, dict) else value:
            yield from _inside(one, objects=objects, depth=depth + 1)


def _is_plain(value: Any) -> bool:
    if isinstance(value, str):
        return "://" not in value
    if type(value) is dict:
        return not any(isinstance(key, str) and is_secret(key) for key in value)
    return isinstance(value, SCALARS) or type(value) in _CONTAINERS
