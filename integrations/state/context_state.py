"""Context state: context variables, and thread-local values that a call reads, such as the user of a request.

They belong to the context or the thread in which the call is made.  The relay's thread has none of them, nor has
another process.  A call has all context variables that are set, since any code that it runs may read one, also a
listener or a column's default; they are named `module:NAME`, which outlives the process.  Of a thread's own values it
has those that the code names: others, such as a cache, must not be used by two threads.

How a thread computes with Decimals (precision, rounding, traps) is such a value, too: a replay in the relay's thread
would round in another way than its caller.
"""

from __future__ import annotations

import ast
import decimal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar, copy_context
from dataclasses import dataclass, field
from decimal import Context
from types import FunctionType, ModuleType
from typing import Any, NamedTuple

from sqlalchemy import Connection
from sqlalchemy.orm import Session

from ... import Entry, Outbox
from ..code.class_code import ClassCode, remembered
from ..code.method_code import dotted, facts_of, meaning, names_in
from ..plain_data import copied
from .carried import has_arrived
from .noted_state import can_be_stored, is_secret

_OWN_PACKAGE = __name__.partition(".")[0]
# A library may make variables without end.
_MOST = 1000


class Names:
    """The names of variables, each looked up once.  Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        # The variables themselves, since another one could get the same id.
        self._known: dict[ContextVar[Any], str | None] = {}

    def of(self, variable: ContextVar[Any]) -> str | None:
        """The name of a variable; None where no module has it."""
        with self._lock:
            if variable not in self._known:
                if len(self._known) >= _MOST:
                    self._known.clear()
                self._known[variable] = min(_names_of(variable), key=lambda name: (len(name), name), default=None)
            return self._known[variable]


_names = Names()


def variables_set() -> Iterator[tuple[ContextVar[Any], str | None, Any]]:
    """The variables that are set here, with their names and values, but those of this package."""
    for variable, value in copy_context().items():
        if isinstance(value, Context):
            # That of the arithmetic, see `state/context_state.py`.
            continue
        name = _names.of(variable)
        if name is None or name.partition(":")[0].partition(".")[0] != _OWN_PACKAGE:
            yield variable, name, value


def variable_named(name: str) -> ContextVar[Any] | None:
    """The variable of a name; None where its module is not loaded, or has it no more."""
    module, _, attribute = name.partition(":")
    found = vars(sys.modules[module]).get(attribute) if module in sys.modules else None
    return found if isinstance(found, ContextVar) else None


def _names_of(variable: ContextVar[Any]) -> Iterator[str]:
    # Another thread may import meanwhile.
    for module_name, module in list(sys.modules.items()):
        if isinstance(module, ModuleType):
            for name, value in list(vars(module).items()):
                if value is variable:
                    yield f"{module_name}:{name}"


# So far functions are followed that a method calls by their names.
_DEEPEST = 3
# After so many calls it is looked which of them are delivered.
_LOOK_EACH = 256
# What a thread holds for a manager itself, by its attribute.
_OWN = "self."
# A replay has a session of its own.
_SESSIONS = (Session, Connection)


class Noted(NamedTuple):
    """The values that are set: those that can be stored with the call, and those that only this process can keep.

    The latter by name where the method's code names them, else by the variable itself.
    """

    stored: dict[str, Any]
    held: dict[Any, Any]

    @property
    def names(self) -> list[str]:
        """Of those that only this process can keep, the names of those that the method's code names."""
        return [name for name in self.held if isinstance(name, str)]


def noted(cls: type | None, method: str, own: Mapping[str, Any], learn: Callable[[Any], bool]) -> Noted:
    """What a call of `method` finds now; `own`: the manager's attributes."""
    found = Noted({}, {})
    sources = _Sources() if cls is None else _sources(cls, method)
    named = {variable: name for name, variable in sources.variables.items()}
    for variable, name, value in variables_set():
        if variable in named:
            _note(found, named[variable], value, learn, is_secret=is_secret(variable.name))
        elif name is not None and not is_secret(name) and can_be_stored(value, _learn_nothing):
            found.stored[name] = value
        elif not isinstance(value, _SESSIONS):
            found.held[variable] = copied(value)
    for name, local in _locals(sources, own).items():
        for attribute in vars(local).keys() & sources.names:
            value = vars(local)[attribute]
            _note(found, f"{name}.{attribute}", value, learn, is_secret=is_secret(attribute))
    return found


def _note(found: Noted, name: str, value: Any, learn: Callable[[Any], bool], *, is_secret: bool) -> None:
    if not is_secret and can_be_stored(value, learn, objects=True):
        found.stored[name] = value
    elif not isinstance(value, _SESSIONS):
        found.held[name] = copied(value)


def _learn_nothing(_: Any) -> bool:
    """Let no value of a variable that is perhaps not read need a class after a restart."""
    return False


class Contexts:
    """The values that cannot be stored, such as an object with a lock, of calls that wait.  Thread-safe."""

    def __init__(self, outbox: Outbox | None, lost: Callable[[Entry, str], None]) -> None:
        """`lost(entry, name)` is called where the process that had the value is gone."""
        self._outbox, self._lost = outbox, lost
        self._lock = threading.RLock()
        # By the id of the call, and its sequence number, as far as it is known.
        self._held: dict[bytes, Mapping[Any, Any]] = {}
        self._seqs: dict[bytes, int] = {}
        self._since_look = 0

    def hold(self, id_: bytes, values: Mapping[Any, Any]) -> None:
        """Keep the values of a call that is going to be recorded."""
        if not values:
            return
        with self._lock:
            self._held[id_] = values
            self._since_look += 1
            if self._since_look >= _LOOK_EACH and self._outbox is not None:
                self._since_look = 0
                for one in [one for one, seq in self._seqs.items() if has_arrived(self._outbox, seq)]:
                    self.drop(one)

    def drop(self, id_: bytes) -> None:
        """The call is delivered, or not recorded."""
        with self._lock:
            self._held.pop(id_, None)
            self._seqs.pop(id_, None)

    @contextmanager
    def restored(self, manager: Any, method: str, entry: Entry, notes: Mapping[str, Any]) -> Iterator[None]:
        """Within the block the context and the thread have the values that they had at the call.

        The context must be one of its own for each replay: no variable can be unset.
        """
        values, names = dict[Any, Any](notes.get("context", {})), notes.get("held", ())
        with self._lock:
            held = self._held.get(entry.id.bytes)
            if held is not None:
                values |= held
                self._seqs[entry.id.bytes] = entry.seq
        cls: type = type(manager)
        sources = _sources(cls, method) if values or names else _Sources()
        locals_ = _locals(sources, vars(manager))
        for name in names:
            if name not in values and (name in sources.variables or name.rpartition(".")[0] in locals_):
                self._lost(entry, name)
        with ExitStack() as stack:
            for name, value in values.items():
                if (variable := _variable(sources, name)) is not None:
                    variable.set(value)
                    continue
                owner, _, attribute = name.rpartition(".")
                if owner in locals_:
                    stack.enter_context(_holding(locals_[owner], attribute, value))
            yield


def _variable(sources: _Sources, name: Any) -> ContextVar[Any] | None:
    if isinstance(name, ContextVar):
        return name
    return sources.variables.get(name) or variable_named(name)


@dataclass(frozen=True, slots=True)
class _Sources:
    """What a method reads of its context, by names that outlive the process.

    `attributes`: of self, all of them; `names`: all that its code names, also in texts, as for `getattr`.
    """

    variables: dict[str, ContextVar[Any]] = field(default_factory=dict)
    locals: dict[str, threading.local] = field(default_factory=dict)
    attributes: frozenset[str] = frozenset()
    names: set[str] = field(default_factory=set)


_UNSET: Any = object()


@remembered(256)
def _sources(cls: type, method: str) -> _Sources:
    code = ClassCode(cls)
    found = _Sources(attributes=frozenset(code.uses_of(method)))
    todo = [(function, 0) for function, _ in code.reached(method)]
    seen: set[Any] = set()
    while todo:
        function, depth = todo.pop()
        if function in seen:
            continue
        seen.add(function)
        found.names.update(names_in(function), facts_of(function).texts)
        for name, value in _named_in(function):
            if isinstance(value, ContextVar):
                found.variables[f"{function.__module__}:{name}"] = value
            elif isinstance(value, threading.local):
                found.locals[f"{function.__module__}:{name}"] = value
        for call in facts_of(function).calls if depth < _DEEPEST else ():
            called = meaning(function, call.name) if "(" not in call.name else None
            if isinstance(called, FunctionType):
                todo.append((called, depth + 1))
    return found


def _named_in(function: Any) -> Iterator[tuple[str, Any]]:
    """What the names in a function's code stand for, those within modules and classes included."""
    names = set[str]()
    for statement in facts_of(function).body:
        names |= {dotted(node) for node in ast.walk(statement) if isinstance(node, ast.Name | ast.Attribute)}
    return ((name, meaning(function, name)) for name in names if "(" not in name and "?" not in name)


def _locals(sources: _Sources, own: Mapping[str, Any]) -> dict[str, threading.local]:
    mine = {_OWN + name: own[name] for name in sources.attributes & own.keys()}
    return sources.locals | {name: value for name, value in mine.items() if isinstance(value, threading.local)}


@contextmanager
def _holding(local: threading.local, name: str, value: Any) -> Iterator[None]:
    """Within the block this thread holds a value."""
    here = vars(local)
    before = here.get(name, _UNSET)
    here[name] = value
    try:
        yield
    finally:
        here.pop(name, None)
        if before is not _UNSET:
            here[name] = before


_FIELDS = ("prec", "rounding", "Emin", "Emax", "capitals", "clamp")
# As Python begins; the host may have changed the default since.
_TRAPS = ("DivisionByZero", "InvalidOperation", "Overflow")
_PLAIN: dict[str, Any] = {
    "prec": 28,
    "rounding": decimal.ROUND_HALF_EVEN,
    "Emin": -999999,
    "Emax": 999999,
    "capitals": 1,
    "clamp": 0,
    "traps": list(_TRAPS),
}


def decimals_noted() -> dict[str, Any] | None:
    """What to note of the arithmetic here; None for that with which Python begins."""
    here = decimal.getcontext()
    found = {name: getattr(here, name) for name in _FIELDS}
    traps = [signal.__name__ for signal, is_set in here.traps.items() if is_set]
    found["traps"] = sorted(traps)
    return None if found == _PLAIN else found


@contextmanager
def decimals_restored(found: dict[str, Any] | None) -> Iterator[None]:
    """Within the block Decimals are computed as `noted` has found it."""
    known = _PLAIN if found is None else found
    traps = [getattr(decimal, name) for name in known["traps"]]
    with decimal.localcontext(decimal.Context(**{name: known[name] for name in _FIELDS}, traps=traps, flags=[])):
        yield
