"""Host: the wrapped DatabaseManager, built as soon as PostgreSQL allows; until then, its methods' signatures.

A manager connects in its constructor, so with PostgreSQL away there may be none yet.  Its methods' signatures come from
its class; where only a factory is given, from the store, which keeps them since the last time it could be built.
"""

from __future__ import annotations

import copy
import copyreg
import functools
import inspect
import json
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from typing import Any

from sqlalchemy import URL
from sqlalchemy.exc import SQLAlchemyError

from ... import Outbox, OutboxError
from ...clock import Clock
from ...errors import ConfigError
from ...records import attributes
from ..code.begun import locks_begun
from ..code.members import binds, class_member, is_mock, names_set_by
from ..code.signatures import described, signature_from, signature_of
from ..roles import NO_SESSIONS
from .away import is_away, note_failure
from .classes import of_replicas
from .given_urls import urls_given_to
from .held import held_by, without_factory
from .host_classes import HostClasses
from .patches import class_to_construct, construct, is_apart, show

_META = "manager:signatures"
# Methods by which a class decides how its objects are copied.
_COPYING = ("__copy__", "__reduce_ex__", "__reduce__", "__getstate__", "__setstate__")
# Attributes of a manager by which it reaches PostgreSQL.
_CONNECTING = ("session_factory", "engine")
# After a failed try to build the manager, callers get the same error for this many times as long as the try took, so
# that a server which does not answer costs a loop a tenth of its time, and one that refuses at once is asked again.
_REBUILD_RATIO = 10.0
_REBUILD_S = 5.0

# The replica that a rehearsal runs on: methods of the stand-in that a double calls work on it.
_REPLICA: ContextVar[tuple[Any, Any] | None] = ContextVar("outbox_replica", default=None)


class ManagerUnavailable(OutboxError):
    """The manager cannot be built while PostgreSQL is away, and this call needs it."""


class Host:
    """One manager, given as an object or as a factory of it.  Thread-safe."""

    def __init__(self, factory_or_manager: Any, clock: Clock) -> None:
        """Raises `ConfigError` for what cannot be made durable."""
        self._clock = clock
        self.lock = threading.RLock()
        self._listeners: list[Callable[[Any], None]] = []
        self._failed_until: float | None = None
        self._failure: Exception | None = None
        self._stored: dict[str, inspect.Signature] = {}
        is_manager = not inspect.isclass(factory_or_manager) and hasattr(factory_or_manager, "session_factory")
        if not is_manager and not callable(factory_or_manager) and hasattr(factory_or_manager, "__dict__"):
            name = type(factory_or_manager).__name__
            raise ConfigError(
                f"{name} cannot be made durable: {without_factory(held_by(factory_or_manager))}",
                hint="`atb outbox check MODULE:CLASS` names what a class lacks",
            )
        if not is_manager and not callable(factory_or_manager):
            raise ConfigError(
                f"a manager is needed, and {factory_or_manager!r:.100} was given",
                hint="pass a manager with a session_factory, its class, or a function that makes one",
            )
        self.built: Any = factory_or_manager if is_manager else None
        self._factory: Callable[[], Any] | None = None if is_manager else factory_or_manager
        self.manager_class = type(factory_or_manager) if is_manager else class_made_by(factory_or_manager)
        # Attributes that were set on the wrapper before there was a manager.
        self.early: dict[str, Any] = {}
        # What was set on the wrapper in place of methods of the manager's class, by name.
        self.doubles: dict[str, Any] = {}
        # The manager's own session factory and engine, where a test has put a mock or None in their place.
        self.replaced: dict[str, Any] = {}
        # By what the manager reached PostgreSQL last.
        self._connecting: dict[str, Any] = {}
        # Names of the methods that are made durable: a replica has its class's own.
        self.declared: frozenset[str] = frozenset()
        self.classes = HostClasses()
        # The class of the object that stands for the manager: what is patched in it counts for the manager, too.
        self.durable_class: Any = None
        # How the engine computes with Decimals, see `state/context_state.py`: the manager's reads may round.
        self.decimals: dict[str, Any] | None = None

    @classmethod
    def unconstructed(cls, manager_class: type, clock: Clock) -> Host:
        """A host of an object of `manager_class` whose constructor does not run."""
        host = cls(functools.partial(object.__new__, manager_class), clock)
        host.manager_class = manager_class
        return host

    def copied(self, manager: Any = None) -> Host:
        """A host of a shallow copy of the manager, or of `manager`."""
        host = Host(self._factory or object, self._clock)
        host.manager_class, host.early = self.manager_class, dict(self.early)
        if manager is not None or self.built is not None:
            host.built = shallow(self.built) if manager is None else manager
        host.doubles, host.declared, host._stored = dict(self.doubles), self.declared, self._stored
        return host

    def manager(self) -> Any:
        """The manager, built now if need be.  Raises what its constructor raises."""
        if self.built is not None:
            return self.built
        with self.lock:
            if self.built is not None:
                return self.built
            began = self._clock.monotonic()
            if self._failure is not None and self._failed_until is not None and began < self._failed_until:
                note_failure(self._failure)
                raise self._failure
            assert self._factory is not None
            made = class_made_by(self._factory)
            changed = None if None in (made, self.durable_class) else class_to_construct(made, self.durable_class)
            try:
                manager = self._factory() if changed is None else construct(self._factory, changed, self.early)
            except Exception as exc:
                now = self._clock.monotonic()
                self._failed_until, self._failure = now + min(_REBUILD_S, _REBUILD_RATIO * (now - began)), exc
                note_failure(exc)
                raise
            for name, value in dict(self.early).items() if changed is None else ():
                setattr(manager, name, value)
            self.built, self.manager_class, self._failure = manager, type(manager), None
            for listener in self._listeners:
                listener(manager)
        return manager

    def undoubled(self) -> Any:
        """The manager for the adapter's own questions, without what a host has put in place of methods."""
        manager = self.manager()
        if not {*self.doubles, *self.replaced, *self.let_go()} & _own(manager).keys():
            return manager
        copied = replica_of(manager)
        self._with_own_methods(copied, doubles=False)
        return copied

    @property
    def urls_given(self) -> list[URL] | None:
        """The addresses of PostgreSQL that the manager's class is given; None where the manager was given itself."""
        return None if self._factory is None else urls_given_to(self._factory)

    @property
    def name(self) -> str:
        """The name of the manager's class, for messages."""
        return "manager" if self.manager_class is None else self.manager_class.__name__

    def now(self) -> datetime:
        """The present time, aware."""
        return self._clock.now()

    def forget_failure(self) -> None:
        """PostgreSQL answers again: the next call may build the manager at once."""
        self._failed_until = None

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
        """Whether the manager has a method `name`, as far as is known: by its class, else as the store remembers."""
        return name in self._stored if self.manager_class is None else callable(self.method(name))

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
        known = {name: described(self.signature(name)) for name in names if callable(self.method(name))}
        data = json.dumps(known, sort_keys=True).encode()
        if known and outbox.store.get_meta(_META) != data:
            outbox.store.put_meta(_META, data)

    def recall(self, outbox: Outbox) -> None:
        """Take the signatures that an earlier process remembered."""
        stored = outbox.store.get_meta(_META)
        if stored is not None:
            self._stored = {name: signature_from(parameters) for name, parameters in json.loads(stored).items()}
        self.classes.recall(outbox)

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute of the manager, or what was set before there is one."""
        return self.early.get(name, default) if self.built is None else getattr(self.built, name, default)

    def set(self, name: str, value: Any) -> None:
        """Set an attribute of the manager, now or when it is built."""
        with self.lock:
            if self.built is None:
                self.early[name] = value
            else:
                setattr(self.built, name, value)

    def attributes(self) -> Mapping[str, Any]:
        """The attributes of the manager, or those that it will have, as far as they are known."""
        return self.early if self.built is None else attributes(self.built)

    def begin_with(self, attributes: Mapping[str, Any]) -> None:
        """Attributes that the manager will have when it is built, and may be read and counted up before."""
        with self.lock:
            if self.built is None:
                self.early.update({name: value for name, value in attributes.items() if name not in self.early})

    def bound(self, name: str, stand_in: Any = None) -> Any:
        """Attribute `name` as the manager's class defines it, with `stand_in` (by default the manager) as `self`.

        What is patched on the class is taken, a double that was set on the wrapper is not.  Builds the manager; where
        it cannot, methods are bound to `stand_in` nevertheless: what they call may need none.
        """
        try:
            manager = self.manager()
        except SQLAlchemyError as exc:
            known = class_member(self.manager_class, name)
            if stand_in is None or not (is_away(exc) and binds(known)):
                raise
            return known.__get__(stand_in, self.manager_class)
        member = class_member(type(manager), name)
        if name in _own(manager) and name not in self.doubles:
            return getattr(manager, name)
        if binds(member):
            return member.__get__(manager if stand_in is None else stand_in, type(manager))
        return getattr(type(manager) if name in self.doubles else manager, name)

    def class_double(self, name: str, stand_in: Any) -> Any:
        """The mock that a test has put in place of method `name` of the manager's class, or None."""
        member = class_member(self.manager_class, name)
        if inspect.isfunction(member):
            # One with the specification of the method takes `self`.
            return member.__get__(stand_in) if hasattr(member, "mock") else None
        return member if is_mock(member) else None

    def set_double(self, name: str, value: Any) -> None:
        """Note what was set on the wrapper in place of a method."""
        if callable(self.method(name)) and not inspect.isclass(self.method(name)):
            self.doubles[name] = value

    def set_connecting(self, name: str, value: Any, *, by_itself: bool) -> None:
        """Note what is set in place of the manager's session factory or engine, before it is.

        `by_itself`: a method of the manager does it.
        """
        if self.built is None or name not in _CONNECTING:
            return
        self.let_go()
        if is_mock(value) or (value is None and not by_itself):
            self.replaced.setdefault(name, _own(self.built).get(name))
        else:
            self.replaced.pop(name, None)

    def let_go(self) -> dict[str, Any]:
        """By what the manager reached PostgreSQL before its own code has put None there, as some do in an outage."""
        own = {} if self.built is None else _own(self.built)
        for name in _CONNECTING:
            if own.get(name) is not None and name not in self.replaced:
                self._connecting[name] = own[name]
        known = self._connecting.items()
        return {name: value for name, value in known if own.get(name) is None and name not in self.replaced}

    @property
    def is_mocked(self) -> bool:
        """Whether a mock of a test answers in place of PostgreSQL, or in place of a method that is not durable."""
        mocks = (name for name, double in self.doubles.items() if name not in self.declared and is_mock(double))
        return bool(self.replaced) or any(mocks)

    @contextmanager
    def without_doubles(self) -> Iterator[None]:
        """Within the block the manager has its own methods only, to be looked at."""
        own = {} if self.built is None else _own(self.built)
        taken = {name: own.pop(name) for name in self.doubles if name in own}
        try:
            yield
        finally:
            own.update(taken)

    def may_have(self, name: str) -> bool:
        """Whether an object of the manager's class may get an attribute `name` once it is built."""
        if self.built is not None or self.manager_class is None:
            return True
        names = names_set_by(self.manager_class)
        return name in names or "setattr" in names or "__dict__" in names

    def on_replica(self, name: str) -> Any:
        """Method `name` of the replica that is rehearsed in this context, or None."""
        host, replica = _REPLICA.get() or (None, None)
        return getattr(type(replica), name).__get__(replica) if host is self else None

    def replica(self, *, session_id: int | None, doubles: bool = False) -> Any:
        """A shallow copy for one call made in trading session `session_id`, to be given a session factory of its own.

        Its state is the manager's until `KeptState` sets it apart.  Before there is a manager it is an object of its
        class whose constructor has not run.  With `doubles` it has those of methods that are not durable.  Raises
        `ManagerUnavailable` where not even the class is known.
        """
        if self.built is None and self.manager_class is None:
            raise ManagerUnavailable(
                "the manager's class is not known while PostgreSQL is away",
                hint="pass the manager's class, or functools.partial(Manager, url)",
            )
        copied: Any
        if self.built is not None:
            copied = replica_of(self.built)
        else:
            copied = object.__new__(of_replicas(self.manager_class))
            # With a lock of none the call could not be rehearsed, and what the manager refuses would be recorded.
            _own(copied).update(locks_begun(type(copied)))
        if self.built is None or hasattr(copied, "_current_session_id"):
            copied._current_session_id = session_id if session_id != NO_SESSIONS else None
        self._with_own_methods(copied, doubles=doubles)
        return copied

    def show_patches(self, replica: Any, hidden: Collection[str]) -> None:
        """Let a replica have what was patched in the durable class, but mocks and the methods `hidden`."""
        if self.durable_class is not None:
            show(replica, self.durable_class, hidden)

    def show_mocks(self, replica: Any, hidden: Collection[str]) -> None:
        """Let a replica call what a test has put in place of methods, but those of `hidden`."""
        for name, double in self.doubles.items():
            # A method that yields sessions has to serve the calls that were made before there was a mock.
            yields = inspect.isgeneratorfunction(inspect.unwrap(self.method(name)))
            shown = is_mock(double) or (self.durable_class is not None and is_apart(double, self.durable_class))
            if shown and name not in hidden and not yields:
                _own(replica)[name] = functools.partial(_call_on, self, replica, double)

    def _with_own_methods(self, replica: Any, *, doubles: bool) -> None:
        """Let a replica have its class's methods; of the doubles only those of methods that are not durable."""
        own = _own(replica)
        own.update(self.replaced | self.let_go())
        for name in {*self.doubles, *self.declared} & own.keys():
            if name in self.doubles or callable(self.method(name)):
                del own[name]
        for name, double in self.doubles.items() if doubles else ():
            if name not in self.declared:
                own[name] = functools.partial(_call_on, self, replica, double) if callable(double) else double


def _call_on(host: Host, replica: Any, double: Any, /, *args: Any, **kwargs: Any) -> Any:
    token = _REPLICA.set((host, replica))
    try:
        return double(*args, **kwargs)
    finally:
        _REPLICA.reset(token)


def replica_of(manager: Any) -> Any:
    """A shallow copy that the host does not see: nothing of the host runs when it is collected."""
    cls: Any = type(manager)
    return shallow(manager, of_replicas(cls))


def shallow(manager: Any, cls: type | None = None) -> Any:
    """A copy, also of an object whose class hands out the same one each time or needs arguments to make another.

    `cls`: the class of a replica, which has all that the manager has, also where the class copies and pickles less.
    """
    if cls is None and any(getattr(type(manager), name, None) is not getattr(object, name, None) for name in _COPYING):
        return copy.copy(manager)
    cls = cls or type(manager)
    made: Any = object.__new__(cls)
    for name in copyreg._slotnames(cls):  # type: ignore[attr-defined]
        if hasattr(manager, name):
            setattr(made, name, getattr(manager, name))
    _own(made).update(_own(manager))
    return made


def _own(manager: Any) -> dict[str, Any]:
    """The attributes of the object itself; those of a class with slots are not among them."""
    own: dict[str, Any] = getattr(manager, "__dict__", {})
    return own


def class_made_by(factory: Any) -> type | None:
    """The class that a factory makes, where that can be seen without calling it."""
    while isinstance(factory, functools.partial):
        factory = factory.func
    return factory if inspect.isclass(factory) else None
