"""Away: whether PostgreSQL cannot answer, also where the manager swallows the error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any
from weakref import WeakSet

from sqlalchemy import Dialect, Engine, ExceptionContext, event
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from ...fate import PRIVILEGE, Fate, classify
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
