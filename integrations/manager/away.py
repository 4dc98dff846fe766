"""Away: whether PostgreSQL cannot answer, also where the manager swallows the error, or where no answer comes.

A server that is frozen (its disk hangs, its host is suspended) keeps the driver waiting for ever, while TCP looks well.
The relay has a time limit for that: a statement that takes long makes the relay look, and ends when the relay reports
an outage (`Silence`).  A server that is only slow is waited for.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any
from weakref import WeakSet

import psycopg2.extensions
from sqlalchemy import Dialect, Engine, ExceptionContext, event
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from ...fate import PRIVILEGE, Fate, classify
from ...log import Log
from ..sql_text import is_of_session

_INTERNAL, _CANCELED = "XX", "57014"
_LIMIT = "statement_timeout"
# So many statements are remembered, of at most so many characters: longer ones have their values in them.
_REMEMBERED, _LONGEST = 4096, 10_000

# Statements that PostgreSQL has answered in this process: when such a one fails, something has changed there.
_answered: set[str] = set()
# Of the engines that managers ask.
_dialects: WeakSet[Dialect] = WeakSet()


def look_at(engine: Engine) -> None:
    """Take what this engine fails with for a failure of PostgreSQL; a manager may have others, such as a cache's."""
    _dialects.add(engine.dialect)


def is_away(error: BaseException | None) -> bool:
    """Whether PostgreSQL cannot be reached, was lost, or does not do now what it will do later.

    Not all of that are operational errors: what a standby refuses is an `InternalError`, and a pool of which all
    connections are in use raises a `TimeoutError` of SQLAlchemy.
    """
    if isinstance(error, (OperationalError, InterfaceError, PoolTimeoutError)):
        return True
    return isinstance(error, DBAPIError) and _fate(error) is Fate.OUTAGE


def is_unreachable(error: BaseException | None) -> bool:
    """Whether no connection works, whatever is asked: PostgreSQL itself gives each error of its own a code."""
    return isinstance(error, DBAPIError) and is_away(error) and (not _sqlstate(error) or error.connection_invalidated)


def cannot_take(error: BaseException | None) -> bool:
    """Whether a call has to wait until PostgreSQL is back, or until its schema or its privileges are corrected."""
    return is_away(error) or (isinstance(error, DBAPIError) and _fate(error) is Fate.PARKED)


def cannot_answer(error: BaseException | None) -> bool:
    """Whether a read has no answer: it would have to wait, or PostgreSQL has an internal error (a corrupt index)."""
    return cannot_take(error) or (isinstance(error, DBAPIError) and _sqlstate(error).startswith(_INTERNAL))


def _meets_any(error: BaseException) -> bool:
    """Whether PostgreSQL would have failed with any statement then; one that takes too long may always do so."""
    if not isinstance(error, DBAPIError) or _sqlstate(error) in ("", _CANCELED):
        return False
    return _fate(error) is Fate.OUTAGE


def _sqlstate(error: DBAPIError) -> str:
    return getattr(error.orig, "pgcode", None) or ""


def _fate(error: DBAPIError) -> Fate:
    return classify(_sqlstate(error) or None, connected=not error.connection_invalidated, data_error=False)


class Failures:
    """Errors of PostgreSQL while a manager was asked, for statements that it has not answered since.

    A manager that repeats the statement has an answer.  One that swallows the error and goes on has made its answer up.
    But managers try whether a column exists: if the schema refuses a statement that was never answered, an answer to
    another statement counts.
    """

    def __init__(self, *, is_limited: bool = True) -> None:
        """`is_limited`: the manager itself limits the time of its statements, so that one may always be canceled."""
        self._is_limited = is_limited
        # By statement; None for a connection.
        self._found: dict[str | None, BaseException] = {}
        self._known: set[str | None] = set()
        self._tried: set[str | None] = set()

    def note(self, error: BaseException, statement: str | None = None) -> None:
        """A statement, a connection or a call made meanwhile has failed."""
        if not cannot_answer(error):
            return
        self._found.setdefault(statement, error)
        if statement is None or statement in _answered:
            self._known.add(statement)
        elif not is_away(error) and _sqlstate(error) != PRIVILEGE:  # type: ignore[arg-type]
            self._tried.add(statement)

    def answered(self, statement: str) -> None:
        """PostgreSQL has answered a statement."""
        self._is_limited = self._is_limited or _LIMIT in statement.lower()
        if self._found:
            good = {statement, None} if is_of_session(statement) else {statement, None, *self._tried}
            self._found = {by: error for by, error in self._found.items() if by not in good}
        if len(_answered) >= _REMEMBERED:
            _answered.clear()
        if len(statement) <= _LONGEST:
            _answered.add(statement)

    @property
    def first(self) -> BaseException | None:
        """The first that is left."""
        return next(iter(self._found.values()), None)

    @property
    def passing(self) -> BaseException | None:
        """The first one that may pass: an outage, at a statement that PostgreSQL has answered before.

        Or at any statement where it is not the statement's fault, such as a deadlock, or the relay's limit for a
        statement that the manager would wait for: after a restart none is known.
        """
        found = ((by in self._known, one) for by, one in self._found.items())
        return next((one for known, one in found if (known and is_away(one)) or self._passes(one)), None)

    def _passes(self, error: BaseException) -> bool:
        canceled = isinstance(error, DBAPIError) and _sqlstate(error) == _CANCELED
        return not self._is_limited if canceled else _meets_any(error)


_failures: ContextVar[Failures | None] = ContextVar("outbox_failures", default=None)


@event.listens_for(Engine, "handle_error")
def _failed(context: ExceptionContext) -> None:
    failures, error = _failures.get(), context.sqlalchemy_exception
    # A pool tests its connections and replaces those that are lost.
    if failures is not None and error is not None and not context.is_pre_ping and context.dialect in _dialects:
        failures.note(error, context.statement)


@event.listens_for(Engine, "after_cursor_execute")
def _succeeded(_: Any, __: Any, statement: str, *___: Any) -> None:
    failures = _failures.get()
    if failures is not None:
        failures.answered(statement)


def note_failure(error: BaseException) -> None:
    """The manager cannot be built, which the method that needs it may swallow."""
    failures = _failures.get()
    if failures is not None:
        failures.note(error)


@contextmanager
def noting(*, is_limited: bool = True) -> Iterator[Failures]:
    """While the manager is asked: what PostgreSQL fails with; `is_limited` as for `Failures`."""
    failures, around = Failures(is_limited=is_limited), _failures.get()
    try:
        _failures.set(failures)
        yield failures
    finally:
        if _failures.get() is failures:
            _failures.set(around)


@contextmanager
def unswallowed() -> Iterator[None]:
    """While the manager is asked: raises what PostgreSQL failed with, also where the manager has swallowed it.

    Managers answer 0 or an empty list then, or raise an error of their own, which must not be taken for what they make
    of PostgreSQL's data.
    """
    with noting() as failures:
        try:
            yield
        except Exception as exc:
            if failures.first is not None and not cannot_answer(exc):
                raise failures.first from exc
            raise
    if failures.first is not None:
        raise failures.first


_log = Log("outbox.integrations")

# How long a statement may take before the relay is asked, and how often this is checked.
_PATIENCE_S = 2.0
_LOOK_S = 0.5
# For a new connection, where neither the URL nor the engine gives a time.
_CONNECT_S = 5

_begun: ContextVar[list[Callable[[], None]] | None] = ContextVar("outbox_begun_statements", default=None)
_ours: ContextVar[object] = ContextVar("outbox_own_statement", default=None)


class Silence:
    """Watches over the statements of one manager.  Thread-safe."""

    def __init__(self, is_away: Callable[[], bool], ask: Callable[[], None], monotonic: Callable[[], float]) -> None:
        """`is_away()`: whether PostgreSQL is away, as far as a relay knows; `ask()` lets the relay look."""
        self._is_away, self._ask, self._monotonic = is_away, ask, monotonic
        self._lock = threading.RLock()
        # By the driver's connection: when its last statement began.
        self._waiting: dict[Any, float] = {}
        self._thread: threading.Thread | None = None
        self._closed = threading.Event()

    def begins(self, raw: Any) -> None:
        """A statement is sent on a driver's connection; it ends with the block of `ending`, and without one is free."""
        begun = _begun.get()
        if begun is None or not isinstance(raw, psycopg2.extensions.connection):
            return
        with self._lock:
            new = raw not in self._waiting
            self._waiting[raw] = self._monotonic()
            if self._thread is None and not self._closed.is_set():
                self._thread = threading.Thread(target=self._run, name="outbox-silence", daemon=True)
                self._thread.start()
        if new:
            begun.append(lambda: self._ends(raw))

    def watch_pings(self, dialect: Any) -> Callable[[], None]:
        """A pool with `pool_pre_ping` asks before any event of SQLAlchemy; returns how to undo it."""
        ping = dialect.do_ping

        def do_ping(raw: Any) -> Any:
            self.begins(raw)
            return ping(raw)

        def undo() -> None:
            if vars(dialect).get("do_ping") is do_ping:
                del dialect.do_ping

        dialect.do_ping = do_ping
        return undo

    def _ends(self, raw: Any) -> None:
        with self._lock:
            self._waiting.pop(raw, None)

    def close(self) -> None:
        """Watch no more; may be called twice."""
        self._closed.set()
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join()

    def _run(self) -> None:
        while not self._closed.wait(_LOOK_S):
            with self._lock:
                since = min(self._waiting.values(), default=None)
            if since is None or self._monotonic() - since < _PATIENCE_S:
                continue
            try:
                if self._is_away():
                    self._end_late()
                else:
                    self._ask()
            except Exception as exc:  # noqa: BLE001 - without this thread a silent server stops the host's reads
                # The store was closed or is halted, or memory is short; it may be asked again.
                _log.warning("whether PostgreSQL is away is unknown: %(error)s", error=exc)

    def _end_late(self) -> None:
        # Within the lock: else a connection may be closed meanwhile, and another socket would be shut.
        with self._lock:
            late = [raw for raw, began in self._waiting.items() if self._monotonic() - began >= _PATIENCE_S]
            for raw in late:
                del self._waiting[raw]
                with suppress(psycopg2.Error, OSError):  # it is closed already
                    _shut(raw.fileno())
        if late:
            _log.warning("PostgreSQL is silent, and %(count)s connections of the manager were shut", count=len(late))


def _shut(descriptor: int) -> None:
    duplicate = socket.socket(fileno=os.dup(descriptor))
    try:
        duplicate.shutdown(socket.SHUT_RDWR)
    finally:
        duplicate.close()


@contextmanager
def ending() -> Iterator[None]:
    """In this block statements end where PostgreSQL is silent."""
    begun, around = list[Callable[[], None]](), _begun.get()
    try:
        _begun.set(begun)
        yield
    finally:
        if _begun.get() is begun:
            _begun.set(around)
        for end in begun:
            end()


def limit_connecting(_dialect: Any, _record: Any, _arguments: Any, parameters: dict[str, Any]) -> None:
    """For SQLAlchemy's event `do_connect`: in a block of `ending` connecting has a time limit."""
    if _begun.get() is not None:
        parameters.setdefault("connect_timeout", _CONNECT_S)


@contextmanager
def own_statements() -> Iterator[None]:
    """Statements that the adapter itself sends through the manager's engine pass every guard, and end in silence."""
    ours, around = object(), _ours.get()
    try:
        _ours.set(ours)
        with ending():
            yield
    finally:
        if _ours.get() is ours:
            _ours.set(around)


def is_own() -> bool:
    """Whether the adapter itself sends a statement."""
    return _ours.get() is not None
