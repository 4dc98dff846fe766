"""Host: the wrapped DatabaseManager, built when it can be, and what is known of it before that.

A manager connects in its constructor, so with PostgreSQL away there may be none yet.  Its methods' signatures come from
its class; where only a factory is given, from the store, which keeps them since the last time it could be built.
"""

from __future__ import annotations

import copy
import functools
import inspect
import json
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from enum import Enum
from typing import Any

from sqlalchemy.exc import InterfaceError, OperationalError

from .. import Outbox, OutboxError
from ..clock import Clock
from ..codec import enum_name, register_enum
from ..errors import ConfigError

# What SQLAlchemy raises where PostgreSQL cannot be reached, or was lost.
AWAY = (OperationalError, InterfaceError)

_META = "manager:signatures"
_ENUMS = "manager:enums"
# After a failed try to build the manager, the next one waits this long; callers get the same error meanwhile.
_REBUILD_S = 5.0
_CONTAINERS = (dict, list, set, deque)


class ManagerUnavailable(OutboxError):
    """The manager cannot be built while PostgreSQL is away, and this call needs it."""


class Host:
    """One manager, given as an object or as a factory of it.  Thread-safe."""

    def __init__(self, factory_or_manager: Any, clock: Clock) -> None:
        """Raises `TypeError` where it is neither a manager nor a callable."""
        self._clock = clock
        self._lock = threading.RLock()
        self._listeners: list[Callable[[Any], None]] = []
        self._failed_at: float | None = None
        self._failure: Exception | None = None
        self._stored: dict[str, inspect.Signature] = {}
        is_manager = not inspect.isclass(factory_or_manager) and hasattr(factory_or_manager, "session_factory")
        if not is_manager and not callable(factory_or_manager):
            raise TypeError(f"neither a manager with a session_factory nor a factory of one: {factory_or_manager!r}")
        self.built: Any = factory_or_manager if is_manager else None
        self._factory: Callable[[], Any] | None = None if is_manager else factory_or_manager
        self.manager_class = type(factory_or_manager) if is_manager else class_made_by(factory_or_manager)
        # Attributes that were set on the wrapper before there was a manager.
        self.early: dict[str, Any] = {}
        self._enums: set[str] = set()

    def manager(self) -> Any:
        """The manager, built now if need be.  Raises what its constructor raises."""
        if self.built is not None:
            return self.built
        with self._lock:
            if self.built is not None:
                return self.built
            now = self._clock.monotonic()
            if self._failure is not None and self._failed_at is not None and now - self._failed_at < _REBUILD_S:
                raise self._failure
            assert self._factory is not None
            try:
                manager = self._factory()
            except Exception as exc:
                self._failed_at, self._failure = self._clock.monotonic(), exc
                raise
            for name, value in self.early.items():
                setattr(manager, name, value)
            self.built, self.manager_class, self._failure = manager, type(manager), None
        for listener in self._listeners:
            listener(manager)
        return manager

    def forget_failure(self) -> None:
        """PostgreSQL answers again: the next call may build the manager at once."""
        self._failed_at = None

    def when_built(self, listener: Callable[[Any], None]) -> None:
        """Call `listener(manager)` once there is a manager; now, if there is one."""
        if self.built is not None:
            listener(self.built)
        else:
            self._listeners.append(listener)

    # -- what is known without a manager

    def method(self, name: str) -> Any:
        """The function `name` of the manager's class, or None."""
        return None if self.manager_class is None else getattr(self.manager_class, name, None)

    def has(self, name: str) -> bool:
        """Whether the manager has a method `name`, as far as is known."""
        return callable(self.method(name)) or name in self._stored

    def signature(self, name: str) -> inspect.Signature:
        """The method's signature without `self`.  Raises `ManagerUnavailable` where it is not known."""
        if self.method(name) is not None:
            return signature_of(self.manager_class, name)
        if name in self._stored:
            return self._stored[name]
        raise ManagerUnavailable(
            f"the arguments of {name!r} are not known, since the manager could never be built",
            hint="start once with PostgreSQL up, or pass the manager's class (functools.partial(Manager, url))",
        )

    def remember(self, outbox: Outbox, names: Iterable[str]) -> None:
        """Keep the signatures of `names` in the store, for a start while PostgreSQL is away."""
        known = {name: _describe(self.signature(name)) for name in names if callable(self.method(name))}
        data = json.dumps(known, sort_keys=True).encode()
        if known and outbox.store.get_meta(_META) != data:
            outbox.store.put_meta(_META, data)

    def recall(self, outbox: Outbox) -> None:
        """Take the signatures that an earlier process remembered."""
        stored = outbox.store.get_meta(_META)
        if stored is not None:
            self._stored = {name: _parse(parameters) for name, parameters in json.loads(stored).items()}
        seen = outbox.store.get_meta(_ENUMS)
        self._enums = set(json.loads(seen)) if seen is not None else set()
        for cls in _loaded_enums() if self._enums else ():
            if enum_name(cls) in self._enums:
                _register(cls)

    def learn_enums(self, outbox: Outbox, values: Any) -> bool:
        """Allow the enum classes of members among `values`, now and after a restart; whether there are any.

        Hosts pass enums of their own and of their ORM.  The store keeps the names only: nothing is imported by name.
        """
        found = {enum_name(cls): cls for cls in _enums_in(values)}
        new = found.keys() - self._enums
        if new:
            self._enums |= new
            outbox.store.put_meta(_ENUMS, json.dumps(sorted(self._enums)).encode())
        for cls in found.values():
            _register(cls)
        return bool(found)

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute of the manager, or what was set before there is one."""
        return self.early.get(name, default) if self.built is None else getattr(self.built, name, default)

    def set(self, name: str, value: Any) -> None:
        """Set an attribute of the manager, now or when it is built."""
        with self._lock:
            if self.built is None:
                self.early[name] = value
            else:
                setattr(self.built, name, value)

    def replica(self, *, session_id: int | None, apart: bool = False) -> Any:
        """A shallow copy for one call made in trading session `session_id`, to be given a session factory of its own.

        `apart`: what the call puts into the manager's own lists, dicts and sets stays in the copy.  Before there is a
        manager it is an object of its class whose constructor has not run.  Raises `ManagerUnavailable` where not even
        the class is known.
        """
        if self.built is None and self.manager_class is None:
            raise ManagerUnavailable("the manager's class is not known")
        copied = copy.copy(self.built) if self.built is not None else object.__new__(self.manager_class)  # type: ignore[arg-type]
        if self.built is None or hasattr(copied, "_current_session_id"):
            copied._current_session_id = session_id
        if apart:
            own = {name: value for name, value in vars(copied).items() if isinstance(value, _CONTAINERS)}
            vars(copied).update({name: copy.copy(value) for name, value in own.items()})
        return copied


def class_made_by(factory: Any) -> type | None:
    """The class that a factory makes, where that can be seen without calling it."""
    while isinstance(factory, functools.partial):
        factory = factory.func
    return factory if inspect.isclass(factory) else None


def register_loaded_enums() -> None:
    """Allow members of every enum class that the program has loaded, for a process that only relays."""
    for cls in _loaded_enums():
        _register(cls)


def _loaded_enums() -> Iterator[type[Enum]]:
    todo: list[type[Enum]] = [Enum]
    while todo:
        for cls in todo.pop().__subclasses__():
            todo.append(cls)
            if cls.__members__:
                yield cls


def _register(cls: type[Enum]) -> None:
    # Where another class of that name came first, its own members are refused when they are passed.
    with suppress(ConfigError):
        register_enum(cls)


def _enums_in(value: Any) -> Iterator[type[Enum]]:
    if isinstance(value, Enum):
        yield type(value)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _enums_in(key)
            yield from _enums_in(item)
    elif isinstance(value, list | tuple | set | frozenset):
        for item in value:
            yield from _enums_in(item)


def signature_of(manager_class: Any, name: str) -> inspect.Signature:
    """The signature of a class's method as objects of the class have it: without `self`."""
    signature = inspect.signature(getattr(manager_class, name))
    if isinstance(inspect.getattr_static(manager_class, name), staticmethod | classmethod):
        return signature
    return signature.replace(parameters=list(signature.parameters.values())[1:])


def invoke(method: Any, call: Mapping[str, Any]) -> Any:
    """Call `method` with arguments by name, also those that Python takes by position only."""
    signature = inspect.signature(method)
    named = {name: value for name, value in call.items() if name in signature.parameters}
    bound = inspect.BoundArguments(signature, named)
    others = {name: value for name, value in call.items() if name not in named}
    return method(*bound.args, **bound.kwargs, **others)


def _describe(signature: inspect.Signature) -> list[list[Any]]:
    return [
        [parameter.name, int(parameter.kind), parameter.default is parameter.empty]
        for parameter in signature.parameters.values()
    ]


def _parse(parameters: list[list[Any]]) -> inspect.Signature:
    kinds = {int(kind): kind for kind in inspect._ParameterKind}
    return inspect.Signature(
        [
            # Only whether there is a default counts: calls are stored as they were made.
            inspect.Parameter(name, kinds[kind], default=inspect.Parameter.empty if required else None)
            for name, kind, required in parameters
        ]
    )
