"""Wiring: puts an outbox between a trading engine and its DatabaseManager, and takes it away again.

By convention, not by type: the engine has an attribute that holds its manager, `start` and `stop`, and may have a
method for "no new entries, exits go on", which is called when the outbox halts.  Nothing is changed but attributes of
this one engine object.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from os import PathLike
from types import TracebackType
from typing import Any

from sqlalchemy import URL

from .. import Hooks, Operation, Outbox, OutboxConfig, OutboxError, OutboxStatus, PostgresTarget, Relay
from ..errors import ConfigError, StoreMissing
from ..handlers import check_callable
from ..log import Log
from .durable import DurableDatabaseManager
from .manager.holders import others_held, others_holding, replace_held
from .manager.manager_connection import check_connection, engine_of
from .stand_in import FURTHER
from .view.kept_answers import ManagerRead

_log = Log("outbox.integrations")

# The method that is called when trading must halt, where `halt_method` names none.
_HALT = "enter_close_only"
_NOTICE = "halt-method"
_OTHERS = "other-managers"
_BESIDE = "held-beside"
_SILENT = "log-disabled"
_NO_URL = "no-database-url"
_MISSING: Any = object()


class Wiring:
    """A wired engine.  `close` (or the end of a `with` block) undoes it; both may be called twice."""

    def __init__(self, engine: Any) -> None:
        """Use `wire` instead."""
        self.outbox: Outbox | None = None
        self.relay: Relay | None = None
        self._engine = engine
        # Where each of several managers has a store, the one that was wired before.
        self._before = _newest(engine)
        self._managers: tuple[Any, DurableDatabaseManager] | None = None
        self._undo: list[Callable[[], object]] = []
        # A signal handler may close what is being closed.
        self._lock = threading.RLock()
        self._winding_down: threading.Thread | None = None
        # Cleared while the engine's `start` runs: many engines block there until `stop`, and write on the way out.
        self._out_of_start = threading.Event()
        self._out_of_start.set()
        # Nothing is delivered on closing before the engine is wired.
        self._drain_s = 0.0

    def get_outbox_status(self) -> OutboxStatus | None:
        """The outbox's status; None where it is disabled."""
        return None if self.outbox is None else self.outbox.status()

    def close(self) -> None:
        """Deliver what is left, for at most `drain_s` seconds, and undo the wiring.

        The relay stops, the engine gets its own manager, `start` and `stop` back, and the outbox is closed.  In a
        forked child only its copy of the engine changes, and the parent's outbox goes on.
        """
        with self._lock:
            try:
                self._deliver_rest()
            finally:
                while self._undo:
                    self._undo.pop()()
                self.outbox = self.relay = None

    def _deliver_rest(self) -> None:
        outbox, relay = self.outbox, self.relay
        if outbox is None or relay is None or not self._drain_s or outbox.store.forked:
            return
        if self._winding_down is not None:
            self._out_of_start.set()
            self._winding_down.join(self._drain_s)
            if relay.running:
                return  # PostgreSQL is away, and the time is used up
        # If `stop` was called in the middle of a write, that came after the relay had ended.
        if outbox.store.figures().pending:
            _deliver(relay, self._drain_s)

    def __enter__(self) -> Wiring:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _join(self) -> None:
        """Wait for the thread of `stop`; the relay is stopped already, so that it ends at once."""
        if self._winding_down is not None:
            self._winding_down.join()

    # -- the steps of `wire`, each with its undoing

    def _open(self, settings: OutboxConfig, hooks: Hooks | None) -> Outbox:
        """Open the outbox, without the notices of the wiring before."""
        outbox = self.outbox = Outbox.open(config=settings, hooks=hooks)
        self._undo.append(outbox.close)
        for name in (_NOTICE, _OTHERS, _BESIDE, _SILENT, _NO_URL, FURTHER):
            outbox.notices.clear(name)
        if _log.is_disabled:
            message = "the program has disabled the outbox's log, which alone names exits that are not recorded"
            self._show_problem(_SILENT, message, "logging.config with disable_existing_loggers=False")
        return outbox

    def _start_relay(
        self,
        durable: DurableDatabaseManager,
        settings: OutboxConfig,
        password: Callable[[], str] | None,
        drain_s: float,
    ) -> None:
        """Deliver from this process, into the database that the manager writes to."""
        assert self.outbox is not None
        url = settings.database_url or _url_of(durable, with_password=password is None)
        host = durable._durable.host
        if host.built is not None:
            check_connection(host.built, url, password)
        given = host.urls_given
        if settings.database_url is None and given is not None and len(given) != 1:
            problem = "DATABASE_URL is not set, and without it the engine cannot start during an outage"
            self._show_problem(_NO_URL, problem, "set it")
        target = PostgresTarget(url, durable.outbox_operations, password=password, config=settings)
        relay = self.relay = Relay(self.outbox, target)
        self._undo += [self._join, relay.stop]
        self._follow(relay, drain_s)
        relay.start()
        self._drain_s = drain_s

    def _put_durable(self, name: str, manager: Any, durable: Any) -> None:
        """Put the durable manager wherever the engine or a component of it holds the plain one."""
        for undo in replace_held(self._engine, manager, durable, type(self._engine).__name__):
            self._undo.append(undo)
        if getattr(self._engine, name) is not durable:
            self._replace(name, durable)
        others = others_holding(manager, {id(self._engine), id(durable)}, durable._durable.host.declared)
        if others:
            held = f"the plain manager is held beside the engine too ({', '.join(others)})"
            way = "put DurableDatabaseManager.of(DatabaseManager) where its class is named"
            self._show_problem(_BESIDE, f"{held}, and what is written there is not durable", way)

    def _look_for_others(self) -> None:
        """Warn of managers of the same class that components have made for themselves: they have no outbox."""
        if self.outbox is None or self._managers is None:
            return
        manager, durable = self._managers
        host = durable._durable.host
        known, cls = {id(one) for one in (manager, durable, host, host.built)}, host.manager_class
        known |= {id(part) for one in _wirings(self._engine) for part in (one, one.outbox, one.relay)}
        found = [] if cls is None else others_held(self._engine, cls, known, type(self._engine).__name__)
        others = [where for where, other in found if not _is_durable(other)]
        if others:
            message = f"further managers are held at {', '.join(others)}, and their writes are not durable"
            self._show_problem(_OTHERS, message, "let components take the engine's")
        else:
            self.outbox.notices.clear(_OTHERS)

    def _show_problem(self, name: str, problem: str, way: str) -> None:
        """Warn in the log and in the status until the next wiring."""
        assert self.outbox is not None
        _log.warning("%(problem)s: %(way)s", problem=problem, way=way)
        self.outbox.notices.put(name, f"{problem}: {way}")

    def _find_halt(self, name: str | None) -> Callable[[str], Any] | None:
        """The engine's method for the halt.

        Raises `ConfigError` where it lacks the one that the caller named, and for one that a call with a reason does
        not run, such as a coroutine.
        """
        halt: Callable[[str], Any] | None = getattr(self._engine, name or _HALT, None)
        if name is not None and not callable(halt):
            raise ConfigError(
                f"halt_method={name!r} names no method of {type(self._engine).__name__}",
                hint="name the method that stops new entries and lets exits go on",
            )
        if halt is None:
            message = f"the engine has no {_HALT}(), so nothing stops new entries when trading must halt"
            self._show_problem(_NOTICE, message, "wire(engine, halt_method=...)")
        else:
            check_callable(type(self._engine).__name__, f"the halt method {name or _HALT}", halt, 1)
        return halt

    def _replace(self, name: str, value: Any) -> None:
        """Set an attribute of the engine object, to be put back as it was: its own, or its class's.

        Raises `ConfigError` where the engine does not allow it.
        """
        own = getattr(self._engine, "__dict__", None)
        before = getattr(self._engine, name, _MISSING) if own is None else own.get(name, _MISSING)

        def put_back() -> None:
            if (own or {}).get(name, value) is not value:
                return  # another wiring, or the host, has put something around it, and needs it
            if before is not _MISSING:
                setattr(self._engine, name, before)
            else:
                with suppress(AttributeError):  # the host has done so
                    delattr(self._engine, name)

        try:
            setattr(self._engine, name, value)
        except (AttributeError, TypeError) as exc:
            raise ConfigError(
                f"{type(self._engine).__name__} does not let its {name!r} be replaced: {exc}",
                hint="wire another object that has the manager, `start` and `stop`, such as types.SimpleNamespace",
            ) from exc
        self._undo.append(put_back)

    def _follow(self, relay: Relay, drain_s: float) -> None:
        """Let the relay start and stop with the engine."""
        start, stop = getattr(self._engine, "start", None), getattr(self._engine, "stop", None)
        if callable(start):

            @functools.wraps(start)
            def started(*args: Any, **kwargs: Any) -> Any:
                if self.relay is None:  # closed before another wiring of this engine
                    return start(*args, **kwargs)
                relay.start()
                self._out_of_start.clear()
                return _then(functools.partial(start, *args, **kwargs), self._out_of_start.set)

            self._replace("start", started)
        if callable(stop):

            @functools.wraps(stop)
            def stopped(*args: Any, **kwargs: Any) -> Any:
                return _then(functools.partial(stop, *args, **kwargs), wind_down)

            def wind_down() -> None:
                if self.relay is None:
                    return
                # Not here: `stop` may run in a signal handler, and the engine's last writes come after it.
                self._winding_down = threading.Thread(
                    target=self._wind_down, args=(relay, drain_s), name="outbox-stop", daemon=True
                )
                self._winding_down.start()

            self._replace("stop", stopped)

    def _wind_down(self, relay: Relay, drain_s: float) -> None:
        self._out_of_start.wait(drain_s)
        if relay.running and _deliver(relay, drain_s):
            relay.stop()


def wire(
    engine: Any,
    *,
    config: OutboxConfig | None = None,
    manager_attribute: str = "db_manager",
    halt_method: str | None = None,
    operations: Iterable[Operation | ManagerRead] | None = None,
    write_behind: bool | None = None,
    wait_s: float | None = None,
    relay_here: bool = True,
    drain_s: float = 10.0,
    hooks: Hooks | None = None,
    password: Callable[[], str] | None = None,
    learned_from: str | PathLike[str] | None = None,
) -> Wiring:
    """Make the critical writes of `engine` durable; call it before the engine starts.

    Settings come from the environment unless `config` is given; `OUTBOX_ENABLED=false` leaves the engine as it was.
    `engine` gets a `get_outbox_status()`.  `halt_method` names the method that is called with a reason when trading
    must halt; by default it is `enter_close_only`, and an engine without it is warned of.  `operations` are the
    manager's critical calls, and its reads (`ManagerRead`): by default `TRADING_OPERATIONS`, or those that the engine's
    `DurableDatabaseManager` was made with.  `write_behind=True` never waits for PostgreSQL; calls wait for at most
    `wait_s` seconds otherwise.  `relay_here=False` leaves the delivery to a relay in another process.  After `stop`,
    and at the end of the block, the relay delivers for at most `drain_s` seconds what is left.  PostgreSQL may be
    away if this store was used before and the engine's manager is one of `DurableDatabaseManager.of(...)`.  Where it
    is a plain one, the durable one replaces it in everything that can be reached from the engine; a holder that
    cannot be changed is a `ConfigError`.  `hooks` are called when something happens to the outbox.  `password`
    returns the password of the relay's connections, and is asked at each, so that it may change while the engine
    runs; see `PostgresTarget`.  `learned_from`: a file of `atb outbox learned`, for a store that has learned nothing
    of the manager yet.

    Raises `ConfigError`, `StoreLocked` and what opening an outbox raises; the engine is then as it was.
    """
    _leave_to_parent(engine)
    wiring = Wiring(engine)
    settings = config or OutboxConfig.from_env()
    if not hasattr(engine, manager_attribute):
        raise ConfigError(f"the engine has no attribute {manager_attribute!r}", hint="pass manager_attribute=...")
    manager = getattr(engine, manager_attribute)
    if not settings.enabled:
        _refuse_leftovers(settings)
        if isinstance(manager, DurableDatabaseManager):
            manager.bypass_outbox()
        return wiring
    try:
        durable = manager if isinstance(manager, DurableDatabaseManager) else DurableDatabaseManager(manager)
        outbox = wiring._open(settings, hooks)
        halt = wiring._find_halt(halt_method)
        durable.attach_outbox(
            outbox, operations=operations, write_behind=write_behind, wait_s=wait_s, on_halt=halt,
            learned_from=learned_from,
        )  # fmt: skip
        wiring._undo.append(durable.detach_outbox)
        if durable is not manager:
            wiring._put_durable(manager_attribute, manager, durable)
        wiring._managers = manager, durable
        wiring._replace("get_outbox_status", wiring.get_outbox_status)
        for one in _wirings(engine):
            with suppress(OutboxError):  # it goes on by itself
                one._look_for_others()
        if relay_here:
            wiring._start_relay(durable, settings, password, drain_s)
    except BaseException:
        wiring.close()
        raise
    _log.info("engine wired with the outbox at %(outbox)s", outbox=outbox.path)
    return wiring


def _leave_to_parent(engine: Any) -> None:
    """In a forked child: undo what the parent has wired, so that the engine can get an outbox of the child's own."""
    while (wired := _newest(engine)) is not None and wired.outbox is not None and wired.outbox.store.forked:
        wired.close()


def _newest(engine: Any) -> Wiring | None:
    wired = getattr(getattr(engine, "get_outbox_status", None), "__self__", None)
    return wired if isinstance(wired, Wiring) else None


def _wirings(engine: Any) -> Iterator[Wiring]:
    """All wirings of an engine, the newest first."""
    one = _newest(engine)
    while one is not None:
        yield one
        one = one._before


def _refuse_leftovers(settings: OutboxConfig) -> None:
    """Raise `ConfigError` where an earlier run has left entries: PostgreSQL alone would answer without them."""
    try:
        with Outbox.attach(config=settings, readonly=True) as left:
            pending, place = left.store.figures().pending, left.path
    except StoreMissing:
        return
    except OutboxError as exc:
        _log.warning("the outbox is off, and entries that may be left there are not seen: %(error)s", error=exc)
        return
    if pending:
        raise ConfigError(
            f"the outbox is off, and {pending} entries at {place} are not delivered: the plain manager lacks them",
            hint="deliver them first, by a run with the outbox on or `atb outbox drain`; or set another OUTBOX_DIR",
        )


def _is_durable(manager: Any) -> bool:
    return isinstance(manager, DurableDatabaseManager) and manager._durable.adapter is not None


def _then(call: Callable[[], Any], then: Callable[[], None]) -> Any:
    """What `call` returns; `then` is called once it has ended, which a coroutine does when it has been awaited."""
    try:
        value = call()
    except BaseException:
        then()
        raise
    if not inspect.isawaitable(value):
        then()
        return value

    async def ended() -> Any:
        try:
            return await value
        finally:
            then()

    return ended()


def _deliver(relay: Relay, drain_s: float) -> bool:
    """Deliver what is left; whether nothing is.  The next relay delivers the rest."""
    try:
        done = relay.drain(timeout=drain_s)
    except OutboxError as exc:
        # The wiring was closed meanwhile.
        _log.info("the relay was stopped before everything was delivered: %(error)s", error=exc)
        return False
    if not done:
        _log.warning("not everything was delivered within %(drain_s)s s; it stays on disk", drain_s=drain_s)
    return done


def _url_of(durable: DurableDatabaseManager, *, with_password: bool) -> str:
    """The address of the manager's database, by the manager, or by what its class is given."""
    host = durable._durable.host
    given = [engine_of(host.built).url] if host.built is not None else host.urls_given or []
    if len(given) != 1:
        raise ConfigError(
            "DATABASE_URL is not set, and the manager cannot be built to ask it",
            hint="set DATABASE_URL: the relay needs it to deliver",
        )
    (full,) = given
    if not with_password:
        # `URL.set` takes None for what is to stay.
        full = URL.create(full.drivername, full.username, None, full.host, full.port, full.database, full.query)
    url: str = full.render_as_string(hide_password=False)
    return url
