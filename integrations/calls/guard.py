"""Guard: no statement of the manager's engine may overtake the calls queued before it.

It listens to the engine, so it sees the writes of every method and thread, declared or not, and of sessions that the
host opened itself, and the reads of the manager's methods.  Only the adapter's own statements pass without it.
It also finds the tables that a statement reads, as PostgreSQL has locked them for it, also those behind a view or a
function.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import psycopg2
import psycopg2.extensions
from sqlalchemy import Connection, Engine, ExceptionContext, event
from sqlalchemy.orm import scoped_session, sessionmaker
from sqlalchemy.pool import Pool

from ... import OutboxError
from ...log import Log
from ...words import first_line
from ..manager.away import (
    Failures,
    Silence,
    cannot_answer,
    ending,
    is_own,
    limit_connecting,
    look_at,
    noting,
    own_statements,
)
from ..manager.manager_connection import ReplayConnection, engine_held
from ..replay.border import Writes, called_in
from ..replay.sessions import maker_of
from ..sql_text import defines, is_harmless, locks, looks_for_rows, tables_written
from .delivery_waits import DeliveryWaits

# Keys in a connection's `info`: the last call that was queued when its transaction got its first lock (0: it has waited
# for that), and the lock timeout of the manager's role.
_BAR = "outbox:bar"
_LIMIT = "outbox:lock_timeout"
_FINDS_NONE = "changes no row of what PostgreSQL holds"
# What a manager holds engines by.
_HOLDERS = (Engine, sessionmaker, scoped_session)
_log = Log("outbox.integrations")

_KEPT = 1000
# Longer statements have their values in them, and do not come again.
_KEPT_CHARS = 10_000
# A partition counts as the table that it belongs to.  And whether nothing but its own name stands for a relation, as a
# view, a policy and a parent table do for others.
_LOCKED = """
    SELECT named.relname, bool_and(
        named.relkind IN ('r', 'p', 'f') AND NOT named.relrowsecurity
        AND NOT (named.relkind = 'r' AND named.relhassubclass)
    ) FROM pg_locks AS held
    JOIN pg_class AS used ON used.oid = held.relation
    JOIN pg_class AS named ON named.oid = coalesce(pg_partition_root(used.oid), used.oid)
    WHERE held.pid = pg_backend_pid() AND held.locktype = 'relation' AND named.relkind IN ('r', 'p', 'v', 'm', 'f')
    AND held.database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND named.relnamespace <> 'pg_catalog'::regnamespace
    GROUP BY named.relname
"""
_FUNCTIONS = """
    SELECT 1 FROM pg_catalog.pg_proc JOIN pg_catalog.pg_namespace n ON n.oid = pronamespace
    WHERE lower(proname) = ANY(%s) AND nspname NOT IN ('pg_catalog', 'information_schema') LIMIT 1
"""


class NotCaughtUp(OutboxError):
    """A call that is not queued needs the calls before it to be delivered first, and they are not yet."""


@dataclass(slots=True)
class PassingCall:
    """One call of the manager that is not queued, while it runs."""

    name: str
    # Declared with `reads_stale`: PostgreSQL's present state is enough.
    stale: bool = False
    # Whether the local view answers if the manager cannot soon.
    replaceable: bool = False
    error: OutboxError | None = None
    # Whether a statement was sent, or refused.
    asked: bool = False
    # Errors of the database; the manager may have swallowed them.
    failures: Failures = field(default_factory=Failures)
    # The tables that it has written, without their schemas; "" for a statement that does not name one.
    wrote: set[str] = field(default_factory=set)
    # The tables that it has used; None where nobody asks.
    used: set[str] | None = None


_watched: ContextVar[PassingCall | None] = ContextVar("outbox_watched_call", default=None)


class Guard:
    """Watches over the engines of one manager.  Thread-safe."""

    def __init__(
        self,
        delivery: DeliveryWaits,
        elsewhere: Callable[[], BaseException | None],
        in_block: Callable[[], bool],
        silence: Silence,
        redefined: Callable[[str], None],
    ) -> None:
        """`elsewhere()`: what to raise for a statement of a rehearsal or a replay, which have sessions of their own.

        `in_block()`: whether calls were made in the balance block that the caller is in, which are recorded at its end.
        `redefined(statement)`: called after one that defines tables, or empties them.
        """
        self._redefined = redefined
        self._delivery, self._elsewhere, self._in_block, self._silence = delivery, elsewhere, in_block, silence
        self._writes, self._tables = Writes(), TablesUsed()
        # Connections whose transaction has written.
        self.unsaved: WeakSet[Connection] = WeakSet()
        self._lock = threading.RLock()
        self._manager: Any = None
        # The engines that are watched, and how to undo what was done to their dialects.
        self._engines: WeakKeyDictionary[Engine, Callable[[], None]] = WeakKeyDictionary()
        self._listeners: tuple[tuple[str, Callable[..., Any]], ...] = (
            ("begin", self._begun),
            ("before_cursor_execute", self._executes),
            ("after_cursor_execute", self._executed),
            ("do_executemany", self._executes_many),
            ("handle_error", self._failed),
            ("do_connect", limit_connecting),
        )

    def attach(self, manager: Any) -> None:
        """Watch over the engines that a manager holds, and over those that it gets later, as after a reconnect."""
        self._manager = manager
        self._watch_engines()
        # Before the connection knows its engine's listeners, in whichever code of the manager or the host.
        event.listen(Pool, "checkout", self._watch_engines)

    def _watch_engines(self, *_: Any) -> None:
        new = [engine for engine in _engines_of(self._manager) if engine not in self._engines]
        if not new:
            return
        with self._lock:
            own = engine_held(self._manager)
            for engine in new:
                # Another database holds nothing of what is queued.
                if engine in self._engines or _is_elsewhere(engine, own):
                    continue
                look_at(engine)
                for name, listener in self._listeners:
                    event.listen(engine, name, listener)
                self._engines[engine] = self._silence.watch_pings(engine.dialect)

    def close(self) -> None:
        """Take the listeners away; may be called twice."""
        self._silence.close()
        with self._lock:
            if self._manager is not None:
                event.remove(Pool, "checkout", self._watch_engines)
            self._manager = None
            for engine, undo in list(self._engines.items()):
                for name, listener in self._listeners:
                    event.remove(engine, name, listener)
                undo()
            self._engines.clear()

    # -- calls

    @contextmanager
    def watching(self, name: str, *, stale: bool = False, replaceable: bool = False) -> Iterator[PassingCall]:
        """Run a call of the manager.  Raises `NotCaughtUp`, also where the manager has swallowed it."""
        watched, around = PassingCall(name, stale=stale, replaceable=replaceable), _watched.get()
        # What a read calls belongs to it.
        watched.used = set() if replaceable else None if around is None else around.used
        try:
            _watched.set(watched)
            with ending(), noting() as watched.failures:
                yield watched
        finally:
            if _watched.get() is watched:
                _watched.set(around)
            if around is not None and watched.asked:
                # The method that called this one may swallow the error, or try again with success.
                around.asked, around.error = True, watched.error
            if watched.error is not None:
                raise watched.error

    def is_watching(self) -> bool:
        """Whether a call of the manager that is not queued is running here."""
        return _watched.get() is not None

    def note(self, error: BaseException) -> None:
        """Note that a call that is not queued has failed: the call around it has no answer of the manager's then."""
        watched = _watched.get()
        if watched is not None and isinstance(error, OutboxError):
            watched.error, watched.asked = error, True
        elif watched is not None and cannot_answer(error):
            watched.failures.note(error)

    def answered_otherwise(self) -> None:
        """Note that a read which the manager could not answer in time has an answer all the same."""
        watched = _watched.get()
        if watched is not None:
            watched.error = None

    def own_passed(self) -> bool:
        """Whether the calls that this thread has queued are delivered."""
        return self._delivery.passed(self._delivery.last_here)

    def not_caught_up(self, why: str) -> NotCaughtUp:
        """What to raise where calls before this one are not delivered."""
        return NotCaughtUp(
            f"{why}, and calls before it are not delivered yet",
            hint="try again when `atb outbox status` shows nothing pending",
        )

    # -- statements

    def _begun(self, connection: Connection) -> None:
        connection.info.pop(_BAR, None)
        self.unsaved.discard(connection)
        watched = _watched.get()
        if watched is not None and watched.replaceable and not isinstance(connection, ReplayConnection):
            with own_statements():
                self._wait_briefly(connection)

    def _wait_briefly(self, connection: Connection) -> None:
        """A migration may lock a table for long.  The limit of the manager's role stays, and it may set another.

        By statements that are no queries: the manager may set an isolation level behind them.
        """
        info = connection.info
        if _LIMIT not in info:
            info[_LIMIT] = connection.exec_driver_sql("SHOW lock_timeout").scalar()
        if info[_LIMIT] == "0":
            connection.exec_driver_sql(f"SET LOCAL lock_timeout = {max(1, round(self._delivery.wait_s * 1000))}")

    def _executes(self, connection: Connection, cursor: Any, statement: str, *_: Any) -> None:
        if isinstance(connection, ReplayConnection):
            return
        watched = _watched.get()
        self._silence.begins(cursor.connection)
        if is_own():
            return
        stray = self._elsewhere()
        if stray is not None:
            raise stray
        if is_harmless(statement):
            return
        may_write = self._writes.may_write(cursor.connection, statement)
        if may_write:
            self.unsaved.add(connection)
        # A delivery may wait for a lock of this transaction, so that it cannot wait for calls that come behind that.
        bar = self._delivery.last_seq
        if not getattr(cursor.connection, "autocommit", False):
            bar = connection.info.get(_BAR, bar)
            if may_write or locks(statement):
                connection.info.setdefault(_BAR, bar)
        # A read by the host itself sees PostgreSQL's present state.
        if (watched is None or watched.stale) and not may_write:
            return
        passed = self._delivery.wait_until_passed(bar, once=watched is not None and watched.replaceable)
        if watched is not None:
            watched.error, watched.asked = None, True
        if not passed:
            raise self._refused(watched, "works on what PostgreSQL holds")
        if _BAR in connection.info:
            connection.info[_BAR] = 0
        if watched is not None and may_write:
            watched.wrote |= tables_written(statement)

    def _executed(self, connection: Connection, cursor: Any, statement: str, *_: Any) -> None:
        if isinstance(connection, ReplayConnection) or is_own():
            return
        if defines(statement):
            self._tables.forget()
            self._redefined(statement)
        watched = _watched.get()
        if watched is not None and watched.used is not None and not is_harmless(statement):
            watched.used |= self._tables.by(cursor.connection, statement)
        # A call that was made within the transaction, or within a block, may come after this statement.  But one that
        # finds no row most likely looks for a row of such a call.
        if cursor.rowcount == 0 and looks_for_rows(statement) and self._comes_behind():
            raise self._refused(watched, _FINDS_NONE)

    def _executes_many(self, cursor: Any, statement: str, parameters: Any, context: Any) -> bool:
        """Execute a statement once for each row, where the sum that the driver gives may hide one that finds none."""
        connection = context.root_connection
        if (
            is_own()
            or isinstance(connection, ReplayConnection)
            or not looks_for_rows(statement)
            or not self._comes_behind()
        ):
            return False
        total = 0
        for each in parameters:
            cursor.execute(statement, each)
            if cursor.rowcount == 0:
                raise self._refused(_watched.get(), _FINDS_NONE)
            total += cursor.rowcount
        context._rowcount = total
        return True

    def _comes_behind(self) -> bool:
        """Whether this thread has made calls that are not delivered yet."""
        return self._in_block() or not self.own_passed()

    def _failed(self, _: ExceptionContext) -> None:
        self._writes.forget()

    def _refused(self, watched: PassingCall | None, why: str) -> NotCaughtUp:
        name = "a statement of the host" if watched is None else watched.name
        error = self.not_caught_up(f"{name} {why}")
        if watched is not None:
            watched.error, watched.asked = error, True
        return error


def _is_elsewhere(engine: Engine, own: Any) -> bool:
    """Whether an engine goes to another database; one that is named alike may be the same one behind a pooler."""
    if not isinstance(own, Engine):
        return False
    # An engine with a `creator` names none.
    names = {engine.url.database, own.url.database} - {None}
    return engine.dialect.name != own.dialect.name or len(names) > 1


def _engines_of(manager: Any) -> set[Engine]:
    # Of these classes only, since it is asked at each checkout: another object may run code of the host.
    held = [value for value in tuple(getattr(manager, "__dict__", {}).values()) if isinstance(value, _HOLDERS)]
    held += [maker_of(value).kw.get("bind") for value in held if not isinstance(value, Engine)]
    return {value for value in (*held, engine_held(manager)) if isinstance(value, Engine)}


class TablesUsed:
    """Asks PostgreSQL once for each statement.  Thread-safe."""

    def __init__(self) -> None:
        self._known: dict[str, frozenset[str]] = {}
        self._can_tell = True

    def forget(self) -> None:
        """Views and functions may have been made anew."""
        self._known.clear()

    def by(self, raw: Any, statement: str) -> frozenset[str]:
        """The tables of a statement that was just executed on the driver's connection `raw`; empty if unknown.

        Those of earlier statements of its transaction are among them where the statement may use more than it names:
        a view, a function, a policy.
        """
        found = self._known.get(statement)
        # Without a transaction the locks are gone.
        in_transaction = raw.info.transaction_status == psycopg2.extensions.TRANSACTION_STATUS_INTRANS
        if found is None and self._can_tell and in_transaction:
            found = self._ask(raw, statement)
            if len(statement) <= _KEPT_CHARS and len(self._known) < _KEPT:
                self._known[statement] = found
        return found or frozenset()

    def _ask(self, raw: Any, statement: str) -> frozenset[str]:
        with raw.cursor(cursor_factory=psycopg2.extensions.cursor) as cursor:
            cursor.execute("SAVEPOINT outbox_tables")
            try:
                cursor.execute(_LOCKED)
                locked = dict(cursor)
                text = statement.lower()
                named = {name for name in locked if name.lower() in text}
                # A transaction that goes on holds the locks of all that was read in it.
                if not named or len(named) == len(locked) or not all(map(locked.get, named)):
                    return frozenset(locked)
                cursor.execute(_FUNCTIONS, (sorted(called_in(statement)),))
                return frozenset(locked if cursor.fetchall() else named)
            except psycopg2.Error as exc:
                # A server that only speaks PostgreSQL's protocol may not show its locks.
                self._can_tell = False
                _log.info("the tables of reads are not looked up: %(error)s", error=first_line(exc))
                cursor.execute("ROLLBACK TO SAVEPOINT outbox_tables")
                return frozenset()
            finally:
                if raw.info.transaction_status == psycopg2.extensions.TRANSACTION_STATUS_INTRANS:
                    cursor.execute("RELEASE SAVEPOINT outbox_tables")
