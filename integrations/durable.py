"""DurableDatabaseManager: an engine's own DatabaseManager behind the outbox, by composition and without changing it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any, cast

from .. import Operation, Outbox, OutboxError
from ..clock import SystemClock
from .adapter import Adapter, bind_to
from .host import Host, class_made_by, register_loaded_enums
from .operations import TRADING_OPERATIONS, ManagerOperation
from .passing import NotCaughtUp
from .replay import CallFailed, Replayer

__all__ = [
    "TRADING_OPERATIONS",
    "CallFailed",
    "DurableDatabaseManager",
    "ManagerOperation",
    "NotCaughtUp",
    "bind",
]

# Methods that end the manager itself and must not wait for anything.
_ENDINGS = frozenset({"close", "dispose", "shutdown"})


class _Stand(type):
    """The class of classes that stand for a manager's class: what they lack (constants, for example) is that one's."""

    stands_for: type | None = None

    def __getattr__(cls, name: str) -> Any:
        if cls.stands_for is None:
            raise AttributeError(f"type object {cls.__name__!r} has no attribute {name!r}")
        return getattr(cls.stands_for, name)


class DurableDatabaseManager(metaclass=_Stand):
    """Stands where the manager stood: same methods, same signatures, same results while PostgreSQL is up.

    Critical methods are on the local disk when they return.  While PostgreSQL takes deliveries they wait (for at most
    `wait_s` seconds) for the real result and raise what the manager raises; while it is away they return at once, with
    final ids.  `write_behind=True` never waits.  Best-effort methods never raise because of the store or PostgreSQL.
    Reads wait until the caller's own writes have passed; during an outage the balance, the open positions, the
    unresolved orders and the active session come from the local view, and what that does not know raises
    `UnknownLocally`.  Attributes that this class lacks are the manager's.

    Raises `DurabilityError` when the store cannot promise durability any more, after `on_halt(reason)` was called.
    As thread-safe as the manager; one object for each store and process.
    """

    _adapter: Adapter | None
    _host: Host

    def __new__(cls, factory_or_manager: Any = None, *args: Any, **kwargs: Any) -> DurableDatabaseManager:
        """An object of a subclass with the manager's own methods, where its class is known."""
        del args, kwargs
        if cls is DurableDatabaseManager:
            made = inspect.isclass(factory_or_manager) or not hasattr(factory_or_manager, "session_factory")
            known = class_made_by(factory_or_manager) if made else type(factory_or_manager)
            cls = _class_for(known) if known is not None else cls
        return object.__new__(cls)

    def __init__(
        self,
        factory_or_manager: Any,
        outbox: Outbox | None = None,
        operations: Iterable[Operation] = TRADING_OPERATIONS,
        write_behind: bool = False,
        *,
        wait_s: float = 2.0,
        on_halt: Callable[[str], Any] | None = None,
    ) -> None:
        """`factory_or_manager`: a manager, its class or a callable that makes one once PostgreSQL can be reached.

        Give the relay's target `outbox_operations`.  Without `outbox` the object must be attached before its first
        critical call; `wire` does that.  Raises `ConfigError` for operations that do not fit the manager.
        """
        own = self.__dict__
        own["_host"] = Host(factory_or_manager, SystemClock() if outbox is None else outbox.clock)
        own["_adapter"] = None
        own["_bypassed"] = False
        own["_settings"] = {"operations": tuple(operations), "write_behind": write_behind, "wait_s": wait_s}
        if outbox is not None:
            self.attach_outbox(outbox, on_halt=on_halt)

    @classmethod
    def of(cls, manager_class: type, outbox: Outbox | None = None, **settings: Any) -> type[DurableDatabaseManager]:
        """A class to put where a host names `manager_class` itself: same constructor, same signatures.

        Its objects need no PostgreSQL to be made.  `settings` are those of this class's constructor.
        """
        base = _class_for(manager_class)

        def construct(self: Any, *args: Any, **kwargs: Any) -> None:
            inspect.signature(manager_class).bind(*args, **kwargs)
            factory = functools.partial(manager_class, *args, **kwargs)
            DurableDatabaseManager.__init__(self, factory, outbox, **settings)

        members: dict[str, Any] = {"__init__": construct, "__signature__": inspect.signature(manager_class)}
        # Other ways to construct a manager construct a durable one.
        members |= {
            name: member
            for name, member in inspect.getmembers_static(manager_class)
            if isinstance(member, classmethod) and not name.startswith("_")
        }
        return type(manager_class.__name__, (base,), members)

    def attach_outbox(
        self,
        outbox: Outbox,
        *,
        write_behind: bool | None = None,
        on_halt: Callable[[str], Any] | None = None,
    ) -> None:
        """From now on critical calls go into `outbox`; `write_behind` replaces what was given before."""
        settings = dict(self.__dict__["_settings"])
        operations = settings.pop("operations")
        if write_behind is not None:
            settings["write_behind"] = write_behind
        self.__dict__["_adapter"] = Adapter(self._host, outbox, operations, on_halt=on_halt, **settings)

    def detach_outbox(self) -> None:
        """Stop the background work; critical calls raise until another outbox is attached.  May be called twice."""
        adapter = self._adapter
        self.__dict__["_adapter"] = None
        if adapter is not None:
            adapter.close()

    def bypass_outbox(self) -> None:
        """Behave as the plain manager from now on: where the outbox is disabled."""
        self.__dict__["_bypassed"] = True

    @property
    def outbox_operations(self) -> tuple[Operation, ...]:
        """The operations with handlers that replay on this manager, for `PostgresTarget`."""
        return self._attached().operations

    def _attached(self) -> Adapter:
        if self._adapter is None:
            raise OutboxError(
                "this DurableDatabaseManager has no outbox", hint="pass outbox=..., or wire(engine) before it trades"
            )
        return self._adapter

    def _invoke(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        adapter = self._adapter
        if self.__dict__["_bypassed"] or name in _ENDINGS:
            return getattr(self._host.manager(), name)(*args, **kwargs)
        if adapter is None:
            if any(operation.name == name for operation in self.__dict__["_settings"]["operations"]):
                self._attached()
            return getattr(self._host.manager(), name)(*args, **kwargs)
        operation = adapter.calls.get(name)
        if operation is None:
            return adapter.passing.call(name, args, kwargs)
        return adapter.block(operation, args, kwargs) if operation.context else adapter.call(operation, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        host: Host = self.__dict__["_host"]
        if self._adapter is not None and name in self._adapter.calls:
            return functools.partial(_invoke_by_name, self, name)
        if name == "_current_session_id" and self._adapter is not None:
            return self._adapter.session_id
        if host.built is None and name in host.early:
            return host.early[name]
        if host.built is None and self._adapter is not None and host.has(name):
            # Of a manager that was never seen in this process, but in an earlier one.
            return functools.partial(_invoke_by_name, self, name)
        value = getattr(host.manager(), name)
        if inspect.ismethod(value) and not name.startswith("_"):
            return functools.wraps(value)(functools.partial(_invoke_by_name, self, name))
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "_current_session_id" and self._adapter is not None:
            self._adapter.session_id = value
        else:
            self._host.set(name, value)

    def __dir__(self) -> list[str]:
        known = self._host.manager_class
        return sorted({*object.__dir__(self), *(dir(known) if known is not None else ())})


def bind(operations: Iterable[Operation], factory: Callable[[], Any]) -> tuple[Operation, ...]:
    """`operations` with handlers that replay on the manager that `factory` makes when one is needed.

    For a relay in a process of its own (`OUTBOX_OPERATIONS`), where no engine is running.
    """
    clock = SystemClock()
    register_loaded_enums()
    return bind_to(Replayer(Host(factory, clock), clock), operations)


def _invoke_by_name(durable: DurableDatabaseManager, name: str, *args: Any, **kwargs: Any) -> Any:
    return durable._invoke(name, args, kwargs)


@functools.cache
def _class_for(manager_class: type) -> type[DurableDatabaseManager]:
    """A subclass with the public methods of `manager_class`: signatures, help and completion are its own."""

    def method(name: str, original: Any) -> Any:
        @functools.wraps(original)
        def invoke(self: DurableDatabaseManager, *args: Any, **kwargs: Any) -> Any:
            return self._invoke(name, args, kwargs)

        return invoke

    members: dict[str, Any] = {"__doc__": manager_class.__doc__, "__module__": manager_class.__module__}
    for name, original in inspect.getmembers_static(manager_class):
        if isinstance(original, staticmethod) and not name.startswith("_"):
            members[name] = original
        elif inspect.isfunction(original) and not name.startswith("_"):
            members[name] = method(name, original)
    if hasattr(manager_class, "__enter__"):
        members |= {"__enter__": _enter, "__exit__": _exit}
    # Hosts ask isinstance(db_manager, DatabaseManager).
    members["__class__"] = property(lambda _: manager_class)
    members["stands_for"] = manager_class
    made: Any = _Stand(f"Durable{manager_class.__name__}", (DurableDatabaseManager,), members)
    return cast(type[DurableDatabaseManager], made)


def _enter(self: DurableDatabaseManager) -> Any:
    """`with` the manager: what is given instead of the manager itself stays what it is."""
    manager = self._host.manager()
    given = manager.__enter__()
    return self if given is manager else given


def _exit(self: DurableDatabaseManager, *exc: Any) -> Any:
    return self._host.manager().__exit__(*exc)
