"""Stand-in: the attributes of an object that replaces a manager, and the target of its calls."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from .. import Operation, Outbox, OutboxError
from ..errors import ConfigError
from ..log import Log
from ..words import first_line
from .adapter import Adapter, serving
from .calls.block import current
from .calls.unrecorded import put_off
from .manager.away import is_away
from .manager.host import Host
from .manager.patches import mocks_in
from .operations import ManagerOperation
from .view.kept_answers import ManagerRead

_log = Log("outbox.integrations")

# Methods that end the manager itself and must not wait for anything, unless they are declared.
_ENDINGS = frozenset({"close", "dispose", "shutdown"})
# Best-effort calls that are kept before there is an outbox; the oldest are dropped.
_KEPT = 1000
# Notice of a manager beside the one that is wired.
FURTHER = "further-manager"


@dataclass(slots=True)
class StandIn:
    """The state of one `DurableDatabaseManager`."""

    host: Host
    operations: tuple[Operation | ManagerRead, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    adapter: Adapter | None = None
    # Behaves as the plain manager: the outbox is disabled.
    bypassed: bool = False
    detached: bool = False
    # Each with the time of the call.
    kept: deque[tuple[str, tuple[Any, ...], dict[str, Any], datetime]] = field(
        default_factory=lambda: deque(maxlen=_KEPT)
    )
    # Operations of which a call was logged that is not durable, or is kept.
    warned: set[str] = field(default_factory=set)
    # The outboxes of other managers of the class whose status shows that this one has none.
    shown: list[Outbox] = field(default_factory=list)

    def copied(self, manager: Any = None) -> StandIn:
        """The state of a copy: the same outbox, attributes of its own."""
        return replace(self, host=self.host.copied(manager))

    def attach(self, outbox: Outbox, on_halt: Callable[[str], Any] | None) -> Adapter:
        """Make calls durable from now on.

        Raises `ConfigError` for operations that do not fit the manager, and where it has an outbox already.
        """
        if self.adapter is not None:
            if not self.adapter.outbox.store.forked:
                raise ConfigError(
                    f"the manager has an outbox already, at {self.adapter.outbox.path}",
                    hint="close its wiring, or call detach_outbox(), first",
                )
            # A forked child cannot use the outbox of its parent.
            self.detach()
        declared = frozenset(each.name for each in self.operations if isinstance(each, ManagerOperation))
        before, self.host.declared = self.host.declared, declared
        try:
            with self.host.without_doubles():
                self.adapter = Adapter(self.host, outbox, self.operations, on_halt=on_halt, **self.settings)
        except BaseException:
            self.host.declared = before
            raise
        self.detached = False
        while self.shown:
            with suppress(OutboxError):  # it may be closed
                self.shown.pop().notices.clear(FURTHER)
        return self.adapter

    def detach(self) -> None:
        """Stop the background work; may be called twice."""
        adapter, self.adapter, self.detached = self.adapter, None, True
        self.warned.clear()
        if adapter is not None:
            adapter.close()

    def operation(self, name: str) -> Operation | None:
        """The operation that is declared for method `name`."""
        return next((each for each in self.operations if each.name == name and isinstance(each, Operation)), None)

    def deliver_kept(self, durable: Any) -> None:
        """Record the best-effort calls that were made before there was an outbox."""
        while self.kept:
            name, args, kwargs, at = self.kept.popleft()
            try:
                call(durable, name, args, kwargs, at=at)
            except Exception as exc:  # noqa: BLE001 - best effort: its caller has gone on long ago
                _log.warning("a call of %(operation)s was not recorded: %(error)s", operation=name, error=exc)


def call(durable: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], *, at: datetime | None = None) -> Any:
    """Call method `name` of the manager behind `durable`, as its declaration demands.

    `at`: when the call was made, where that was before there was an outbox.
    """
    stand_in: StandIn = durable._durable
    host, adapter = stand_in.host, stand_in.adapter
    on_replica = host.on_replica(name)
    if on_replica is not None:
        return on_replica(*args, **kwargs)
    declared = stand_in.operation(name)
    if name in _ENDINGS and declared is None:
        # A manager that was never built has nothing to close.
        return host.bound(name, durable)(*args, **kwargs) if host.built is not None else None
    if stand_in.bypassed or "session_factory" in host.replaced:
        return host.bound(name, durable)(*args, **kwargs)
    if declared is None and put_off(host, name, args, kwargs):
        return None
    if adapter is None:
        return _call_without_outbox(stand_in, declared, durable, name, args, kwargs)
    operation = adapter.calls.get(name)
    if operation is None:
        return adapter.passing.call(durable, name, args, kwargs)
    double = host.class_double(name, durable)
    if double is not None:
        return double(*args, **kwargs)
    if mocks_in(durable, host.manager_class) - {name} and current(adapter) is None and adapter.delivery.prompt():
        # A test asks what the method does with the mock: as often, and with as much of the rest, as the plain one.
        return adapter.passing.call(durable, name, args, kwargs)
    if operation.context:
        return adapter.block(operation, args, kwargs)
    return adapter.call(operation, args, kwargs, at=at)


def read(durable: Any, name: str, get: Callable[[], Any]) -> Any:
    """The value of property `name` of the manager's class, which `get` computes."""
    stand_in: StandIn = durable._durable
    if stand_in.adapter is None or stand_in.bypassed or "session_factory" in stand_in.host.replaced:
        return get()
    return stand_in.adapter.passing.attribute(name, get)


def _call_without_outbox(
    stand_in: StandIn,
    operation: Operation | None,
    durable: Any,
    name: str,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """Call the plain manager, before `wire`; a best-effort call that fails for an outage is recorded later."""
    if operation is None:
        return stand_in.host.bound(name, durable)(*args, **kwargs)
    if stand_in.detached and not operation.best_effort:
        raise OutboxError(
            f"{name} needs the outbox, which was detached", hint="attach_outbox(...) or wire(engine) before it trades"
        )
    try:
        if stand_in.detached:
            raise OutboxError("the outbox was detached")
        stand_in.host.manager()
        method = stand_in.host.bound(name, durable)
        _warn_of_plain_call(stand_in, operation)
        return method(*args, **kwargs)
    except (OutboxError, SQLAlchemyError) as exc:
        if not (isinstance(exc, OutboxError) or is_away(exc)):
            raise
        if operation.best_effort:
            _keep(stand_in, name, args, kwargs, exc)
            return None
        if stand_in.host.built is not None:
            raise
        raise OutboxError(
            f"{name} was called before there is an outbox, and PostgreSQL is away",
            hint="wire(engine) before the call, or give the outbox: DurableDatabaseManager.of(Manager, outbox)",
        ) from exc


def _warn_of_plain_call(stand_in: StandIn, operation: Operation) -> None:
    if not operation.best_effort and operation.name not in stand_in.warned:
        stand_in.warned.add(operation.name)
        _log.warning("a call of %(operation)s before there is an outbox is not durable", operation=operation.name)
        _show(stand_in, operation.name)


def _show(stand_in: StandIn, name: str) -> None:
    """Let the status of the manager that is wired show that this one, which is called too, has no outbox."""
    for outbox in serving(stand_in.host.manager_class) if not stand_in.shown else ():
        stand_in.shown.append(outbox)
        message = f"another {stand_in.host.name} was made and called ({name}), and its writes are not durable"
        with suppress(OutboxError):
            outbox.notices.put(FURTHER, f"{message}: let all components take the engine's", degraded=True)


def _keep(stand_in: StandIn, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], exc: Exception) -> None:
    _show(stand_in, name)
    is_first = name not in stand_in.warned
    stand_in.warned.add(name)
    if stand_in.detached:
        say = _log.warning if is_first else _log.debug
        say("a call of %(operation)s was not recorded: %(error)s", operation=name, error=exc)
        return
    with suppress(Exception):
        # The caller may change its lists and dicts before there is an outbox.
        args, kwargs = copy.deepcopy((args, kwargs))
    stand_in.kept.append((name, args, kwargs, stand_in.host.now()))
    say = _log.info if is_first else _log.debug
    say(
        "a call of %(operation)s is kept until there is an outbox: %(error)s",
        operation=name,
        error=first_line(exc),
    )
