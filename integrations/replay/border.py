"""Border: nothing that a replayed or a rehearsed call does may go past the relay's transaction.

A connection of the manager's own, or a session that was open already, would commit what the receipt does not cover.

Bulk inserts, statements on a session's connection, cursors of the driver, COPY and functions of the database go past
the ORM's flush.  `Writes` finds the statements that may write, also those.  PostgreSQL itself tells which functions may
write: those that are volatile.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Any

import psycopg2.extensions
from sqlalchemy import Dialect

from ..manager.away import noting
from ..manager.host import Host
from ..manager.manager_connection import ReplayConnection, engine_held
from ..sql_text import is_of_savepoints, is_setting, only_reads
from .asof import AsOf
from .rehearsal import Rehearsal
from .replay_session import Watch, refuse_connections, watch_errors

_CALL = re.compile(r'(\w+)"?\s*\(')
# Longer statements have their values in them, and do not come again.
_KEPT_CHARS = 10_000
_VOLATILE = """
    SELECT DISTINCT lower(proname) FROM pg_catalog.pg_proc JOIN pg_catalog.pg_namespace n ON n.oid = pronamespace
    WHERE lower(proname) = ANY(%s) AND provolatile = 'v' AND nspname NOT IN ('pg_catalog', 'information_schema')
"""


class Writes:
    """Recognises statements that may write.  Thread-safe."""

    def __init__(self) -> None:
        # By lower-case name, whether the database has a function of that name that may write.
        self._functions: dict[str, bool] = {}

    def forget(self) -> None:
        """Something failed: functions may be made, or made anew, before it is tried again."""
        self._functions.clear()

    def may_write(self, raw: Any, statement: str) -> bool:
        """Whether `statement`, about to be sent on the driver's connection `raw`, may write."""
        found = (_judged if len(statement) <= _KEPT_CHARS else _judged.__wrapped__)(statement)
        return found if isinstance(found, bool) else self._writes(raw, found)

    def _writes(self, raw: Any, names: frozenset[str]) -> bool:
        """Whether one of these functions may write."""
        unknown = names - self._functions.keys()
        if unknown and raw.info.transaction_status != psycopg2.extensions.TRANSACTION_STATUS_INERROR:
            with raw.cursor(cursor_factory=psycopg2.extensions.cursor) as cursor:
                cursor.execute(_VOLATILE, (sorted(unknown),))
                found = {name for (name,) in cursor}
            self._functions |= {name: name in found for name in unknown}
        return any(self._functions.get(name, False) for name in names)


def called_in(statement: str) -> frozenset[str]:
    """The names, in lower case, that stand before a parenthesis in a statement."""
    return frozenset(name.lower() for name in _CALL.findall(statement))


@lru_cache(maxsize=1024)
def _judged(statement: str) -> bool | frozenset[str]:
    """Whether a statement may write; the functions that it calls where that depends on them."""
    if is_setting(statement) or is_of_savepoints(statement):
        return False
    return not only_reads(statement) or called_in(statement)


_ONE_FACTORY = "its writes must go through self.session_factory, or they could be applied twice"


class Border:
    """Of one host's replays and rehearsals.  Thread-safe: each thread has a call of its own."""

    def __init__(self, host: Host) -> None:
        self._host = host
        # The watch of this thread's replay, its database, this thread's rehearsal, and what refuses its connections.
        self._here = threading.local()
        self._writes = Writes()
        self._dialects: set[Dialect] = set()
        self._undo: list[Callable[[], None]] = [refuse_connections(self._refusal)]

    def close(self) -> None:
        """Take the listeners away again."""
        while self._undo:
            self._undo.pop()()

    def forget(self) -> None:
        """A replay failed, and what was found out in its transaction may be undone."""
        self._writes.forget()

    @contextmanager
    def watched(self, connection: ReplayConnection, as_of: AsOf) -> Iterator[Watch]:
        """Within the block a call is replayed on `connection`."""
        if connection.engine.dialect not in self._dialects:
            self._dialects.add(connection.engine.dialect)
            self._undo.append(watch_errors(connection.engine, self._watch_here))
        watch = self._here.watch = connection.watch = Watch(as_of)
        raw: Any = connection.connection.dbapi_connection
        self._here.database = _database_of(raw)
        raw.on_statement = partial(self._sent, raw)
        try:
            yield watch
        finally:
            raw.on_statement = self._here.watch = None
            watch.end()

    @contextmanager
    def unwatched(self) -> Iterator[None]:
        """Let reads of the adapter's own fail without harm to the replay around them."""
        watch, self._here.watch = self._here.watch, Watch()
        # These are no contact of the call with the database.
        on_contact, watch.on_contact = watch.on_contact, Watch().on_contact
        fingerprint = watch.fingerprint
        try:
            # Nor does an answer to them make up for what PostgreSQL failed with in the call.
            with noting():
                yield
        finally:
            self._here.watch, watch.on_contact, watch.fingerprint = watch, on_contact, fingerprint

    @contextmanager
    def rehearsing(self, rehearsal: Rehearsal) -> Iterator[None]:
        """While a call is rehearsed in this thread: a connection of the manager's own ends the rehearsal."""
        self._here.rehearsal = rehearsal
        try:
            yield
        finally:
            self._here.rehearsal = None

    @contextmanager
    def refusing(self, error: Callable[[], BaseException]) -> Iterator[None]:
        """Within the block no other connection to the manager's database is to be had: `error()` is raised."""
        self._here.error = error
        try:
            yield
        finally:
            self._here.error = None

    def statement_elsewhere(self) -> BaseException | None:
        """What to raise where a rehearsal or a replay of this thread sends a statement through the manager's engine."""
        rehearsal: Rehearsal | None = getattr(self._here, "rehearsal", None)
        if rehearsal is not None:
            rehearsal.misfit = "uses a session that is open already"
            return rehearsal.reach()
        watch = self._watch_here()
        return None if watch is None else watch.misfits("used a session that was open already", _ONE_FACTORY)

    def _refusal(self, raw: Any) -> BaseException | None:
        error: Callable[[], BaseException] | None = getattr(self._here, "error", None)
        if error is not None and self._is_of_manager(raw):
            return error()
        rehearsal: Rehearsal | None = getattr(self._here, "rehearsal", None)
        if rehearsal is not None:
            # Noted there too: managers have bare excepts.
            if self._is_of_manager(raw):
                rehearsal.misfit = "opens a connection of its own"
            return rehearsal.reach()
        watch = self._watch_here()
        if watch is None or _database_of(raw) != self._here.database:
            return None
        return watch.misfits("opened a connection of its own", _ONE_FACTORY)

    def _is_of_manager(self, raw: Any) -> bool:
        """Whether a driver's connection is one to the manager's database."""
        url, here = getattr(engine_held(self._host.built), "url", None), _database_of(raw)
        return url is not None and here is not None and here[1:] == (url.port or 5432, url.database)

    def _sent(self, raw: Any, statement: str) -> None:
        watch = self._watch_here()
        session = None if watch is None else watch.user
        if session is not None and not session.wrote and session.in_transaction():
            session.wrote = self._writes.may_write(raw, statement)

    def _watch_here(self) -> Watch | None:
        watch: Watch | None = getattr(self._here, "watch", None)
        return watch


def _database_of(raw: Any) -> tuple[Any, ...] | None:
    """Address and name of a connection's database; None for another driver's connection."""
    info: Any = getattr(raw, "info", None)
    return None if not hasattr(info, "dbname") else (info.host, info.port, info.dbname)
