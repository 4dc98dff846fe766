"""The manager's connection: gives a replay the manager's own settings, in the relay's transaction.

It is a connection of the manager's own engine, with its events, execution options, dialect and JSON functions, around
the driver's connection of the relay.  The settings of a session (search_path, role, time zone, variables for row-level
security) are compared with those of a connection of the manager, and what differs is set for the replay.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import psycopg2
import psycopg2.extensions
from sqlalchemy import Connection, Engine
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DBAPIError, OperationalError, SQLAlchemyError
from sqlalchemy.orm import scoped_session
from sqlalchemy.pool import Pool, QueuePool

from ...errors import ConfigError, TargetMisconfigured, TargetUnavailable
from ...postgres.address import Address
from ...postgres.piggyback import PiggybackConnection
from ...postgres.watchdog import Watchdog
from ...words import first_line
from .away import is_away, look_at, own_statements
from .host import Host
from .session_state import HINT, SessionState, check, difference, refused, state_of, take_over, variables_known

# What was deferred is checked now, and is as deferred as before.
_CHECK_DEFERRED = (
    "SAVEPOINT outbox_check; SET CONSTRAINTS ALL IMMEDIATE; "
    "ROLLBACK TO SAVEPOINT outbox_check; RELEASE SAVEPOINT outbox_check"
)
_LOOK = (
    "SELECT EXISTS (SELECT FROM pg_catalog.pg_constraint WHERE condeferrable), "
    "current_setting('statement_timeout') <> '0'"
)
_PACKAGE = __name__.partition(".")[0]
# These questions take milliseconds, and wait for a lock for two seconds at most.
_SILENT_S = 10.0


def engine_of(manager: Any) -> Engine:
    """The engine of a manager's sessions.  Raises `ConfigError` where it has none, or one that is not psycopg2's."""
    engine, binds = engine_held(manager), _binds(manager)
    if not isinstance(engine, Engine):
        raise ConfigError(
            "the manager's sessions have no engine", hint="give sessionmaker bind=engine, or the manager an .engine"
        )
    if any(getattr(other, "url", None) != engine.url for other in binds):
        raise ConfigError(
            "the manager's session factory binds tables to several engines", hint="calls of one manager go to one"
        )
    if engine.dialect.name != "postgresql" or engine.dialect.driver != "psycopg2":
        raise ConfigError(
            f"the manager's engine is of {engine.dialect.name}+{engine.dialect.driver}",
            hint="make it with postgresql+psycopg2://; other drivers need operations with handlers",
        )
    look_at(engine)
    return engine


def engine_held(manager: Any) -> Any:
    """What a manager's sessions are bound to, or what it has in its attribute `engine`; None for nothing."""
    bind = _options(manager).get("bind") or next(iter(_binds(manager)), None)
    return _engine(getattr(manager, "engine", None) if bind is None else bind)


def is_used_up(manager: Any) -> bool:
    """Whether others use all connections that the manager's pool may have."""
    pool = getattr(engine_held(manager), "pool", None)
    limit = getattr(pool, "_max_overflow", -1)
    return isinstance(pool, QueuePool) and limit > -1 and pool.checkedout() >= pool.size() + limit


def _binds(manager: Any) -> list[Any]:
    return list(dict.fromkeys(_engine(bind) for bind in (_options(manager).get("binds") or {}).values()))


def _options(manager: Any) -> Mapping[str, Any]:
    factory = getattr(manager, "session_factory", None)
    maker = factory.session_factory if isinstance(factory, scoped_session) else factory
    return getattr(maker, "kw", None) or {}


def _engine(bind: Any) -> Any:
    return bind.engine if isinstance(bind, Connection) else bind


def check_connection(manager: Any, database_url: str | None, password: Callable[[], str] | None = None) -> None:
    """Raise `ConfigError` where calls of `manager` cannot be replayed in a relay's transaction at `database_url`.

    Looks at a connection of each, and at nothing while PostgreSQL is away; without a URL at the manager's only.
    `password` as for `PostgresTarget`; raises `TargetMisconfigured` where it is of no use.
    """
    engine = engine_of(manager)
    try:
        with fresh_connection(engine) as connection:
            raw = driver_connection(connection.connection.dbapi_connection)
            with _limited(raw):
                theirs = state_of(raw, variables_known(raw))
        address = None if database_url is None else Address(database_url, password).parameters()
        relay = None if address is None else psycopg2.connect(**address)
    except (SQLAlchemyError, psycopg2.OperationalError, TargetUnavailable) as exc:
        if isinstance(exc, SQLAlchemyError) and not is_away(exc):
            raise
        return
    if relay is None:
        check(theirs, None)
        return
    try:
        with _limited(relay):
            ours = state_of(relay, frozenset(theirs.variables))
        check(theirs, ours)
        try:
            take_over(relay, theirs, ours)
        except psycopg2.Error as exc:
            raise ConfigError(refused(exc, theirs, ours), hint=HINT) from exc
    finally:
        relay.close()


@contextmanager
def _limited(raw: Any) -> Iterator[None]:
    """What is asked on the driver's connection past SQLAlchemy must not wait for ever for a server that is frozen."""
    watchdog = Watchdog(_SILENT_S, time.monotonic)
    watchdog.watch(raw.fileno())
    try:
        with watchdog.guard():
            yield
    finally:
        watchdog.close()


@contextmanager
def fresh_connection(engine: Engine) -> Iterator[Connection]:
    """A connection as the manager's sessions have it when they begin.

    From a pool of its own, with the same listeners: the host may hold all of the engine's pool, and wait for us; and
    what a listener has set for a connection is gone after the first rollback there.  What is not committed ends here.
    """
    pool = engine.pool.recreate()
    try:
        with _taken_from(pool, engine) as connection:
            yield connection
    finally:
        pool.dispose()


@contextmanager
def _taken_from(pool: Pool, engine: Engine) -> Iterator[Connection]:
    try:
        with own_statements():
            raw = pool.connect()
    except psycopg2.Error as exc:
        raise OperationalError("connect", None, exc) from exc
    with own_statements(), Connection(engine, raw) as connection:
        # Listeners may have begun already.
        if not connection.in_transaction():
            connection.begin()
        yield connection


def _has_hooks(engine: Engine) -> bool:
    """Whether the host has listeners for a connection that a session takes: they may set another thing each time."""
    hooks: Any = engine.pool.dispatch
    return any(not str(getattr(one, "__module__", "")).startswith(f"{_PACKAGE}.") for one in hooks.checkout)


def driver_connection(raw: DBAPIConnection | None) -> Any:
    """The driver's connection.  Raises `ConfigError` for another driver's, and for one in autocommit."""
    if not isinstance(raw, psycopg2.extensions.connection):
        raise ConfigError(
            f"the manager's connections are of {type(raw).__module__}, not psycopg2",
            hint="make its engine with postgresql+psycopg2://",
        )
    if raw.autocommit:
        raise ConfigError(
            "the manager's connections are in autocommit", hint="a call must be a transaction to be replayed in one"
        )
    return raw


class ReplayConnection(Connection):
    """Its savepoints are made and released in the round trip of the statement behind them.

    The engine's listeners see it beside the host's own connections.
    """

    # The `Watch` of the replay that it belongs to: gets each statement, and judges what a rollback undoes.
    watch: Any = None
    # Whether the database has constraints that may be checked at the end of a transaction only.
    defers = False
    # Whether the manager's own connections limit the time of a statement.
    is_limited = True
    _made = 0

    @property
    def _piggyback(self) -> PiggybackConnection:
        raw = self.connection.dbapi_connection
        assert isinstance(raw, PiggybackConnection)
        return raw

    def _savepoint_impl(self, name: str | None = None) -> str:
        self._made += 1
        name = name or f"outbox_savepoint_{self._made}"
        inner = None if self._nested_transaction is None else self._nested_transaction._savepoint
        if inner and self.watch and self.watch.is_of_another(inner) and self._piggyback.is_broken:
            # A session begins beside one that has failed, which can only end: what it did is undone now.
            self._undo(inner)
        return name if self._piggyback.owe_savepoint(name) else super()._savepoint_impl(name)

    def _release_savepoint_impl(self, name: str) -> None:
        if self.defers and self.watch is not None and self.watch.has_written(name):
            self._check_deferred(name)
        self._end_savepoint(name)

    def _check_deferred(self, name: str) -> None:
        """The manager's commit would do it, and it may have an answer to a refusal."""
        try:
            with self._piggyback.rolling_back():
                self.exec_driver_sql(_CHECK_DEFERRED)
        except DBAPIError:
            # A failed commit is undone here: the manager does not roll it back.
            self._undo(name)
            self._end_savepoint(name)
            raise

    def _end_savepoint(self, name: str) -> None:
        if not self._piggyback.owe_release(name):
            super()._release_savepoint_impl(name)

    def _rollback_to_savepoint_impl(self, name: str) -> None:
        if not self._still_open_and_dbapi_connection_is_valid:
            return
        only_read = self.watch is not None and self.watch.only_read(name)
        if not only_read or self._piggyback.is_broken:
            self._undo(name)
        self._end_savepoint(name)

    def _undo(self, name: str) -> None:
        if self.watch is not None:
            self.watch.undoes(name, gone=self._piggyback.is_merged(name))
        with self._piggyback.rolling_back():
            super()._rollback_to_savepoint_impl(name)


class ManagerConnection:
    """Gives a replay the manager's connection.  Used by the relay's thread."""

    def __init__(self, host: Host) -> None:
        self._host = host
        # What was compared last: the driver's connection, the engine and its pool, which is another one after
        # `engine.dispose()`.  Then both states, what to set, and the manager's types.
        self._compared: tuple[Any, Engine, Pool] | None = None
        self._states: tuple[SessionState, SessionState] | None = None
        self._statement = ""
        # Where the pool has listeners of the host: one that is kept, of a single connection.
        self._kept: Pool | None = None
        self._defers, self._is_limited = False, True
        self._types: tuple[dict[int, Any], dict[int, Any]] = ({}, {})

    @contextmanager
    def around(self, relay: Connection) -> Iterator[ReplayConnection]:
        """The manager's connection in the transaction of `relay`; what it has set ends with the relay's next reset.

        Raises `TargetMisconfigured` where the session of the manager cannot be taken over, `TargetUnavailable` where
        its engine cannot connect.
        """
        try:
            engine = engine_of(self._host.undoubled())
        except ConfigError as exc:
            raise TargetMisconfigured(str(exc)) from exc
        raw = relay.connection.dbapi_connection
        known, present = self._compared, (raw, engine, engine.pool)
        if known is None or any(one is not other for one, other in zip(known, present, strict=True)):
            self._compare(raw, engine)
        elif _has_hooks(engine):
            self._look_again(engine)
        if self._statement:
            self._set(raw)
        with _types_of(raw, self._types):
            connection = ReplayConnection(engine, relay.connection, _has_events=True, _allow_revalidate=False)
            # The listeners of the engine, but not those for a new connection: it is the relay's, in a transaction.
            connection.dispatch = connection.dispatch._join(engine.dispatch)
            connection.defers, connection.is_limited = self._defers, self._is_limited
            connection.begin()
            try:
                yield connection
            finally:
                # The transaction and the driver's connection are the relay's to end.
                connection._transaction = connection._nested_transaction = connection._dbapi_connection = None

    def close(self) -> None:
        """Close a connection that was kept; may be called twice."""
        self._compared = None
        kept, self._kept = self._kept, None
        if kept is not None:
            kept.dispose()

    def _compare(self, raw: Any, engine: Engine) -> None:
        self.close()
        pool = engine.pool
        with _looking(), fresh_connection(engine) as connection:
            own = driver_connection(connection.connection.dbapi_connection)
            with _limited(own), own.cursor(cursor_factory=psycopg2.extensions.cursor) as cursor:
                names = variables_known(own)
                theirs = state_of(own, names)
                # Past the engine's listeners: a guard would let it wait for the delivery that it is part of.
                cursor.execute(_LOOK)
                self._defers, self._is_limited = cursor.fetchone()
            self._types = (dict(own.string_types), dict(own.binary_types))
        self._take_over(theirs, state_of(raw, names))
        self._compared = (raw, engine, pool)

    def _look_again(self, engine: Engine) -> None:
        """Take over what the host's listeners set for the session of this call, such as the schema of a tenant."""
        assert self._states is not None
        before, ours = self._states
        try:
            if self._kept is None:
                self._kept = engine.pool.recreate()
            with _looking(), _taken_from(self._kept, engine) as connection:
                own = driver_connection(connection.connection.dbapi_connection)
                with _limited(own):
                    theirs = state_of(own, frozenset(before.variables))
            if theirs != before:
                self._take_over(theirs, ours)
        except BaseException:
            self.close()
            raise

    def _take_over(self, theirs: SessionState, ours: SessionState) -> None:
        with _looking():
            check(theirs, ours)
        self._statement, self._states = difference(theirs, ours), (theirs, ours)

    def _set(self, raw: Any) -> None:
        with raw.cursor(cursor_factory=psycopg2.extensions.cursor) as cursor:
            try:
                cursor.execute(self._statement)
            except psycopg2.Error as exc:
                if raw.closed or exc.pgcode is None:
                    raise
                raise TargetMisconfigured(
                    f"the manager's session cannot be taken over: {first_line(exc)}", hint=HINT
                ) from exc


@contextmanager
def _looking() -> Iterator[None]:
    """Raise what a relay understands."""
    try:
        yield
    except ConfigError as exc:
        raise TargetMisconfigured(str(exc)) from exc
    except SQLAlchemyError as exc:
        raise TargetUnavailable(f"the manager's engine cannot connect: {exc}") from exc
    except psycopg2.OperationalError as exc:
        raise TargetUnavailable(f"the manager's session cannot be looked at: {first_line(exc)}") from exc


@contextmanager
def _types_of(raw: Any, types: tuple[dict[int, Any], dict[int, Any]]) -> Iterator[None]:
    """Values are read as the manager's connections read them (its own JSON functions), within the block."""
    kept = [(registered, dict(registered)) for registered in (raw.string_types, raw.binary_types)]
    for (registered, _), wanted in zip(kept, types, strict=True):
        registered.update(wanted)
    try:
        yield
    finally:
        for registered, before in kept:
            registered.clear()
            registered.update(before)
