"""DurableDatabaseManager: an engine's own DatabaseManager behind the outbox, by composition and without changing it."""

from __future__ import annotations

import copy
import copyreg
import functools
import inspect
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from os import PathLike
from typing import Any, TypeVar, cast

from sqlalchemy.exc import SQLAlchemyError

from .. import Operation, Outbox, OutboxError
from ..clock import SystemClock
from ..errors import ConfigError
from ..log import Log
from ..words import first_line
from .adapter import Adapter
from .binding import bind
from .calls.guard import NotCaughtUp
from .code.members import class_member
from .manager import classes
from .manager.away import is_away
from .manager.classes import Singletons
from .manager.host import Host, class_made_by
from .operations import TRADING_OPERATIONS, ManagerOperation
from .replay.replay import CallFailed
from .stand_in import StandIn, call, read
from .view.kept_answers import ManagerRead

__all__ = [
    "TRADING_OPERATIONS",
    "CallFailed",
    "DurableDatabaseManager",
    "ManagerOperation",
    "ManagerRead",
    "NotCaughtUp",
    "bind",
]

_log = Log("outbox.integrations")

M = TypeVar("M")


class DurableDatabaseManager:
    """Stands where the manager stood: same methods, same signatures, same results while PostgreSQL is up.

    Critical methods are on the local disk when they return.  While PostgreSQL takes deliveries they wait (for at most
    `wait_s` seconds) for the real result and raise what the manager raises; while it is away they return at once, with
    final ids.  `write_behind=True` never waits.  Best-effort methods never raise because of the store or PostgreSQL.
    Reads wait until the caller's own writes have passed; during an outage the balance, the open positions, the
    unresolved orders and the active session come from the local view, and what that does not know raises
    `UnknownLocally`.  Its class is a subclass of the manager's, and its attributes are the manager's: `vars` of both
    are one dict.  Methods that are not declared run with this object as `self`, so that what they call is durable.

    Raises `DurabilityError` once a write to the local disk failed; `on_halt(reason)` is called before.
    As thread-safe as the manager; one object for each store and process.
    """

    __slots__ = ("__dict__", "__weakref__", "_durable")

    _durable: StandIn

    def __new__(cls, factory_or_manager: Any = None, *args: Any, **kwargs: Any) -> DurableDatabaseManager:
        """An object of a subclass with the manager's own methods, where its class is known."""
        del args, kwargs
        if cls is DurableDatabaseManager:
            makes = inspect.isclass(factory_or_manager) or not hasattr(factory_or_manager, "session_factory")
            known = class_made_by(factory_or_manager) if makes else type(factory_or_manager)
            cls = _class_for(known) if known is not None else cls
            made = object.__new__(cls)
            # Its constructor gets what this class takes, not what the manager's does.
            object.__setattr__(made, "_durable", None)
            return made
        return object.__new__(cls)

    def __init__(
        self,
        factory_or_manager: Any,
        outbox: Outbox | None = None,
        operations: Iterable[Operation | ManagerRead] = TRADING_OPERATIONS,
        write_behind: bool = False,
        *,
        wait_s: float = 2.0,
        on_halt: Callable[[str], Any] | None = None,
        learned_from: str | PathLike[str] | None = None,
    ) -> None:
        """`factory_or_manager`: a manager, its class or a callable that makes one once PostgreSQL can be reached.

        Give the relay's target `outbox_operations`.  Before an outbox is attached, which `wire` does, the plain
        manager serves the calls.  `learned_from`: a file of `atb outbox learned`, for a store that has learned nothing
        of the manager yet.  Raises `ConfigError` for operations that do not fit the manager.
        """
        host = Host(factory_or_manager, SystemClock() if outbox is None else outbox.clock)
        # A subclass's constructor may have set attributes already.
        host.early.update(self.__dict__)
        settings = {"write_behind": write_behind, "wait_s": wait_s, "learned_from": learned_from}
        _become(self, StandIn(host, tuple(operations), settings))
        if outbox is not None:
            self.attach_outbox(outbox, on_halt=on_halt)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Give a host's own subclass its constructor's signature; classes that are made here have theirs."""
        if classes.STANDS_FOR not in vars(cls):
            super().__init_subclass__(**kwargs)
            if "__init__" in vars(cls) and "__signature__" not in vars(cls):
                own = inspect.signature(vars(cls)["__init__"])
                cls.__signature__ = own.replace(parameters=list(own.parameters.values())[1:])  # type: ignore[attr-defined]

    @classmethod
    def of(cls, manager_class: type[M], outbox: Outbox | None = None, **settings: Any) -> type[M]:
        """A class to put where a host names `manager_class` itself: same constructor, same signatures.

        Its objects can be made while PostgreSQL is away; every other error of the constructor is raised.  `settings`
        are those of this class's constructor.  Raises `ConfigError` for what is no class.
        """
        if not inspect.isclass(manager_class):
            raise ConfigError(
                f"DurableDatabaseManager.of takes the manager's class, and got a {type(manager_class).__name__}",
                hint="for a manager that was made before: DurableDatabaseManager(manager, outbox)",
            )
        plain: Any = classes.stood_for(manager_class) or manager_class

        singletons = Singletons(plain, lambda one, *args, **kwargs: cls.of(one, outbox, **settings)(*args, **kwargs))

        @functools.wraps(plain.__init__)
        def construct(self: Any, *args: Any, **kwargs: Any) -> None:
            singletons.construct(self, lambda: _construct_as(plain, self, args, kwargs, outbox, settings))

        return cast(type[M], classes.subclass_of(_class_for(plain), plain, construct, singletons.members()))

    def attach_outbox(
        self,
        outbox: Outbox,
        *,
        operations: Iterable[Operation | ManagerRead] | None = None,
        write_behind: bool | None = None,
        wait_s: float | None = None,
        on_halt: Callable[[str], Any] | None = None,
        learned_from: str | PathLike[str] | None = None,
    ) -> None:
        """From now on critical calls go into `outbox`; the other settings replace what was given before.

        Best-effort calls that were made before are recorded now.
        """
        stand_in = self._durable
        if operations is not None:
            stand_in.operations = tuple(operations)
        given = {"write_behind": write_behind, "wait_s": wait_s, "learned_from": learned_from}
        stand_in.settings |= {name: value for name, value in given.items() if value is not None}
        adapter = stand_in.attach(outbox, on_halt)
        classes.cover(type(self), (*adapter.calls, *adapter.passing.reads.names), call)
        _adopt(self)
        stand_in.deliver_kept(self)

    def detach_outbox(self) -> None:
        """Stop the background work; critical calls raise until another outbox is attached.  May be called twice."""
        self._durable.detach()

    def bypass_outbox(self) -> None:
        """Behave as the plain manager from now on: where the outbox is disabled."""
        self._durable.bypassed = True

    @property
    def outbox_operations(self) -> tuple[Operation, ...]:
        """The operations with handlers that replay on this manager, for `PostgresTarget`."""
        return _adapter_of(self).operations

    def outbox_age_s(self, name: str, *args: Any, **kwargs: Any) -> float | None:
        """Seconds since the manager gave the answer to a read that is declared with `keep_last`; None for none."""
        adapter = _adapter_of(self)
        call = adapter.host.signature(name).bind(*args, **kwargs).arguments
        return adapter.passing.kept.age_s(name, call)

    # -- attributes: the manager's own, once there is one

    def __getattribute__(self, name: str) -> Any:
        adapter = None if name == "_durable" or name.startswith("__") else _adapter_if_any(self)
        if adapter is not None:
            adapter.pending_attributes.read(name)
        return super().__getattribute__(name)

    def __getattr__(self, name: str) -> Any:
        if name == "_durable":
            return _stand_for_unconstructed(self)
        stand_in = self._durable
        host, adapter = stand_in.host, stand_in.adapter
        if adapter is not None and name == "_current_session_id":
            return adapter.sessions.current or None
        if (adapter is not None and name in adapter.calls) or (host.manager_class is None and host.has(name)):
            # Of a manager that was never seen in this process, but in an earlier one.
            return functools.partial(_call_by_name, self, name)
        own = {"_adapter": adapter, "_host": host}
        if not host.may_have(name) or (name.startswith("__") and host.built is None):
            if name in own:
                return own[name]
            raise _missing(self, name)
        if host.built is None:
            host.manager()
            return getattr(self, name)
        try:
            return host.bound(name, self)
        except AttributeError:
            if name in own:
                return own[name]
            raise _missing(self, name) from None

    def __setattr__(self, name: str, value: Any) -> None:
        stand_in = self._durable
        if name == "_current_session_id" and stand_in.adapter is not None:
            if stand_in.adapter.host is not stand_in.host:
                raise OutboxError(
                    "a copy of a durable manager cannot have a current session of its own",
                    hint="pass session_id to its calls, or make another manager with an outbox of its own",
                )
            stand_in.adapter.sessions.current = value
        elif inspect.ismemberdescriptor(class_member(stand_in.host.manager_class, name)):
            stand_in.host.set(name, value)
        elif _is_own_method(self, name, value):
            # The restored original is no attribute of the object.
            self.__dict__.pop(name, None)
            stand_in.host.doubles.pop(name, None)
        else:
            by_itself = stand_in.adapter is not None and stand_in.adapter.guard.is_watching()
            stand_in.host.set_connecting(name, value, by_itself=by_itself)
            # A manager that another thread builds meanwhile gets it too.
            with stand_in.host.lock if stand_in.host.built is None else nullcontext():
                super().__setattr__(name, value)
            if not classes.takes_double(type(self), name):
                stand_in.host.set_double(name, value)

    def __delattr__(self, name: str) -> None:
        host = self._durable.host
        if host.built is None and name not in self.__dict__:
            host.manager()
        if inspect.ismemberdescriptor(class_member(host.manager_class, name)):
            delattr(host.built, name)
        else:
            super().__delattr__(name)
            host.doubles.pop(name, None)

    def __dir__(self) -> list[str]:
        known = self._durable.host.manager_class
        # Who looks at each of them finds no error.
        missing = {"outbox_operations"} if self._durable.adapter is None else set()
        return sorted({*object.__dir__(self), *(dir(known) if known is not None else ())} - missing)

    # -- copies: as those of the manager, with the same outbox

    def __copy__(self) -> DurableDatabaseManager:
        return _made_as(self, self._durable.copied())

    def __deepcopy__(self, memo: dict[int, Any]) -> DurableDatabaseManager:
        return _made_as(self, self._durable.copied(copy.deepcopy(self._durable.host.manager(), memo)))

    def __reduce_ex__(self, protocol: Any) -> Any:
        manager = self._durable.host.manager()
        function, arguments, *rest = manager.__reduce_ex__(protocol)
        if function is not copyreg.__newobj__:  # type: ignore[attr-defined]
            return (function, arguments, *rest)
        return (_made_anew, (classes.found_by_name(type(self)) or type(manager), *arguments[1:]), *rest)


def _call_by_name(durable: DurableDatabaseManager, name: str, *args: Any, **kwargs: Any) -> Any:
    return call(durable, name, args, kwargs)


@functools.cache
def _class_for(manager_class: Any) -> type[DurableDatabaseManager]:
    """A subclass with the public methods of `manager_class`: signatures, help and completion are its own."""

    @functools.wraps(manager_class.__init__)
    def construct(self: Any, *args: Any, **kwargs: Any) -> None:
        if _is_new_durable(self):
            DurableDatabaseManager.__init__(self, *args, **kwargs)
        else:
            # The manager's own code makes another one of its class.
            _construct_as(manager_class, self, args, kwargs, None, {})

    made = classes.class_for(DurableDatabaseManager, manager_class, call, read, construct)
    return cast(type[DurableDatabaseManager], made)


def _construct_as(
    manager_class: Any,
    durable: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    outbox: Outbox | None,
    settings: dict[str, Any],
) -> None:
    """Construct a durable manager with the arguments of the manager's constructor, perhaps without PostgreSQL."""
    inspect.signature(manager_class).bind(*args, **kwargs)
    DurableDatabaseManager.__init__(durable, functools.partial(manager_class, *args, **kwargs), outbox, **settings)
    try:
        # Errors of the arguments are raised here, as by the plain constructor.
        durable._durable.host.manager()
    except SQLAlchemyError as exc:
        if not is_away(exc):
            raise
        _log.debug("PostgreSQL is away, the manager is built later: %(error)s", error=first_line(exc))


def _is_new_durable(durable: Any) -> bool:
    """Whether `DurableDatabaseManager(...)` itself makes the object."""
    try:
        return object.__getattribute__(durable, "_durable") is None
    except AttributeError:
        return False


def _adapter_if_any(durable: DurableDatabaseManager) -> Adapter | None:
    try:
        stand_in: StandIn | None = object.__getattribute__(durable, "_durable")
    except AttributeError:
        return None
    return None if stand_in is None else stand_in.adapter


def _adapter_of(durable: DurableDatabaseManager) -> Adapter:
    adapter = durable._durable.adapter
    if adapter is None:
        raise OutboxError(
            "this DurableDatabaseManager has no outbox", hint="pass outbox=..., or wire(engine) before it trades"
        )
    return adapter


def _become(durable: DurableDatabaseManager, stand_in: StandIn) -> None:
    """Give an object its state; its attributes are those of the manager from now on, or from when that is built."""
    known: Any = stand_in.host.manager_class
    if known is not None and not known.__dictoffset__:
        raise ConfigError(
            f"{known.__name__} keeps its attributes in slots only, and its state cannot be followed",
            hint="add '__dict__' to its __slots__",
        )
    object.__setattr__(durable, "_durable", stand_in)
    object.__setattr__(durable, "__dict__", stand_in.host.early)
    stand_in.host.durable_class = type(durable)
    stand_in.host.when_built(lambda _: _adopt(durable))


def _adopt(durable: DurableDatabaseManager) -> None:
    host = durable._durable.host
    if host.built is None:
        return
    object.__setattr__(durable, "__dict__", host.built.__dict__)
    known: Any = type(durable)
    found: Any = type(host.built)
    if known is DurableDatabaseManager:
        known = _class_for(found)
    # A function that the constructor has put in place of a method must not bypass the outbox.
    hidden = frozenset(
        name
        for name, value in host.built.__dict__.items()
        if name not in host.doubles and callable(value) and inspect.isfunction(class_member(known, name))
        if not name.startswith("_") or name in host.declared
    )
    known = classes.unhiding(known, hidden) if hidden else known
    if known is not type(durable):
        object.__setattr__(durable, "__class__", known)


def _stand_for_unconstructed(durable: DurableDatabaseManager) -> StandIn:
    """Make the state of an object whose constructor has not run: its manager's has not run either."""
    known = classes.stood_for(type(durable))
    if known is None:
        raise _missing(durable, "_durable")
    stand_in = StandIn(Host.unconstructed(known, SystemClock()), TRADING_OPERATIONS)
    stand_in.host.early.update(durable.__dict__)
    _become(durable, stand_in)
    return stand_in


def _is_own_method(durable: DurableDatabaseManager, name: str, value: Any) -> bool:
    own = class_member(type(durable), name)
    return inspect.ismethod(value) and value.__self__ is durable and value.__func__ is own


def _made_as(durable: DurableDatabaseManager, stand_in: StandIn) -> DurableDatabaseManager:
    made: DurableDatabaseManager = object.__new__(type(durable))
    _become(made, stand_in)
    return made


def _made_anew(cls: type, *args: Any) -> Any:
    return cls.__new__(cls, *args)


def _missing(durable: DurableDatabaseManager, name: str) -> AttributeError:
    return AttributeError(f"{type(durable).__name__!r} object has no attribute {name!r}", name=name, obj=durable)
