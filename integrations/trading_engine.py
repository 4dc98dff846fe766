"""Wiring: puts an outbox between a trading engine and its DatabaseManager, and takes it away again.

By convention, not by type: the engine has an attribute that holds its manager, `start` and `stop`, and may have a
method for "no new entries, exits go on", which is called when the outbox halts.  Nothing is changed but attributes of
this one engine object.
"""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any

from .. import Operation, Outbox, OutboxConfig, OutboxError, OutboxStatus, PostgresTarget, Relay
from ..errors import ConfigError
from .durable import DurableDatabaseManager

_log = logging.getLogger("outbox.integrations")


class Wiring:
    """A wired engine.  `close` (or the end of a `with` block) undoes it; both may be called twice."""

    def __init__(self, engine: Any) -> None:
        """Use `wire` instead."""
        self.outbox: Outbox | None = None
        self.relay: Relay | None = None
        self._engine = engine
        self._undo: list[Callable[[], object]] = []
        self._lock = threading.Lock()
        self._winding_down: threading.Thread | None = None

    def get_outbox_status(self) -> OutboxStatus | None:
        """The outbox's status; None where it is disabled."""
        return None if self.outbox is None else self.outbox.status()

    def close(self) -> None:
        """Stop the relay, give the engine its own manager, `start` and `stop` back and close the outbox."""
        with self._lock:
            while self._undo:
                self._undo.pop()()
            self.outbox = self.relay = None

    def __enter__(self) -> Wiring:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _join(self) -> None:
        """Wait for what `stop` has begun; the relay is stopped already, so that it ends at once."""
        if self._winding_down is not None:
            self._winding_down.join()

    # -- the steps of `wire`, each with its undoing

    def _replace(self, name: str, value: Any) -> None:
        """Set an attribute of the engine object, to be put back as it was: its own, or its class's."""
        own = vars(self._engine)
        if name in own:
            before = own[name]
            self._undo.append(lambda: setattr(self._engine, name, before))
        else:
            self._undo.append(lambda: vars(self._engine).pop(name, None))
        setattr(self._engine, name, value)

    def _follow(self, relay: Relay, drain_s: float) -> None:
        """Let the relay start and stop with the engine."""
        start, stop = getattr(self._engine, "start", None), getattr(self._engine, "stop", None)
        if callable(start):

            @functools.wraps(start)
            def started(*args: Any, **kwargs: Any) -> Any:
                relay.start()
                return start(*args, **kwargs)

            self._replace("start", started)
        if callable(stop):

            @functools.wraps(stop)
            def stopped(*args: Any, **kwargs: Any) -> Any:
                try:
                    return stop(*args, **kwargs)
                finally:
                    # Not here: `stop` may run in a signal handler, and the engine's last writes come after it.
                    self._winding_down = threading.Thread(
                        target=_wind_down, args=(relay, drain_s), name="outbox-stop", daemon=True
                    )
                    self._winding_down.start()

            self._replace("stop", stopped)


def wire(
    engine: Any,
    *,
    config: OutboxConfig | None = None,
    manager_attribute: str = "db_manager",
    halt_method: str = "enter_close_only",
    operations: Iterable[Operation] | None = None,
    write_behind: bool | None = None,
    relay_here: bool = True,
    drain_s: float = 10.0,
) -> Wiring:
    """Make the critical writes of `engine` durable; call it before the engine starts.

    Settings come from the environment unless `config` is given; `OUTBOX_ENABLED=false` leaves the engine as it was.
    `engine` gets a `get_outbox_status()`.  `halt_method` names the method that is called with a reason when trading
    must halt.  `operations` are the manager's critical calls: by default `TRADING_OPERATIONS`, or those that the
    engine's `DurableDatabaseManager` was made with.  `write_behind=True` never waits for PostgreSQL.
    `relay_here=False` leaves the delivery to a relay in another process.  After `stop` the relay delivers for at most
    `drain_s` seconds what is left.  PostgreSQL may be away if this store was used before and the engine's manager is
    one of `DurableDatabaseManager.of(...)`.

    Raises `ConfigError`, `StoreLocked` and what opening an outbox raises; the engine is then as it was.
    """
    wiring = Wiring(engine)
    settings = config or OutboxConfig.from_env()
    if not hasattr(engine, manager_attribute):
        raise ConfigError(f"the engine has no attribute {manager_attribute!r}", hint="pass manager_attribute=...")
    manager = getattr(engine, manager_attribute)
    if not settings.enabled:
        if isinstance(manager, DurableDatabaseManager):
            manager.bypass_outbox()
        return wiring
    try:
        durable = manager if isinstance(manager, DurableDatabaseManager) else DurableDatabaseManager(manager)
        outbox = wiring.outbox = Outbox.open(config=settings)
        wiring._undo.append(outbox.close)
        halt = getattr(engine, halt_method, None)
        durable.attach_outbox(outbox, operations=operations, write_behind=write_behind, on_halt=halt)
        wiring._undo.append(durable.detach_outbox)
        if durable is not manager:
            wiring._replace(manager_attribute, durable)
        wiring._replace("get_outbox_status", wiring.get_outbox_status)
        if relay_here:
            url = settings.database_url or _url_of(durable)
            relay = wiring.relay = Relay(outbox, PostgresTarget(url, durable.outbox_operations, config=settings))
            wiring._undo.append(wiring._join)
            wiring._undo.append(relay.stop)
            wiring._follow(relay, drain_s)
            relay.start()
    except BaseException:
        wiring.close()
        raise
    _log.info("engine wired", extra={"outbox": str(outbox.path)})
    return wiring


def _wind_down(relay: Relay, drain_s: float) -> None:
    try:
        if relay.running and relay.drain(timeout=drain_s):
            relay.stop()
    except OutboxError as exc:
        # The wiring was closed meanwhile; what is left is delivered by the next relay.
        _log.info("the relay was stopped before everything was delivered", extra={"error": str(exc)})


def _url_of(durable: DurableDatabaseManager) -> str:
    built = durable._host.built
    if built is None:
        raise ConfigError(
            "DATABASE_URL is not set, and the manager cannot be built to ask it",
            hint="set DATABASE_URL: the relay needs it to deliver",
        )
    url: str = built.engine.url.render_as_string(hide_password=False)
    return url
