"""The sessions of a replay, and the watch over what happens in them and past them."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from psycopg2.extensions import TRANSACTION_STATUS_INERROR
from sqlalchemy import Connection, Engine, event
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.orm import Session
from sqlalchemy.pool import Pool

from ...errors import TargetMisconfigured
from ..manager_connection import ReplayConnection
from . import sessions
from .asof import AsOf

_ISOLATION = re.compile(r"\s*SET\s+(TRANSACTION|SESSION\s+CHARACTERISTICS)\b", re.IGNORECASE)
_OF_TRANSACTION = re.compile(r"\s*(SAVEPOINT|RELEASE|ROLLBACK)\b", re.IGNORECASE)
_READS = re.compile(r"\s*(SELECT|SHOW)\b", re.IGNORECASE)


class Watch:
    """What happened in the sessions of one replay."""

    def __init__(self, as_of: AsOf | None = None) -> None:
        """`as_of` is asked before each statement."""
        self.as_of = as_of
        # Called before each statement for which a rehearsal would have ended.
        self.on_contact: Callable[[], None] = _ignore
        # Called before each flush, when the rows have their ids.
        self.on_flush: Callable[[Session], None] = _ignore
        # Whether a session that had written was committed.
        self.committed = False
        # The last error of the database, whoever caught it.
        self.error: DBAPIError | None = None
        # Set when the manager did something that cannot be part of the relay's transaction.
        self.misfit: TargetMisconfigured | None = None

    def misfits(self, what: str, hint: str) -> TargetMisconfigured:
        """The manager did something that cannot be part of the relay's transaction; what to raise."""
        self.misfit = TargetMisconfigured(f"a replayed method of the manager {what}", hint=hint)
        return self.misfit

    def apart(self) -> Watch:
        """A watch for sessions beside those of the replay, whose rows get ids as theirs do."""
        made = Watch(self.as_of)
        made.on_flush = self.on_flush
        return made

    def sees(self, statement: str) -> None:
        """Raise `TargetMisconfigured` for a statement that would not do here what it did for the manager."""
        if not _OF_TRANSACTION.match(statement) and not sessions.is_setting(statement):
            self.on_contact()
        if _ISOLATION.match(statement):
            raise self.isolated()
        if self.as_of is not None and self.as_of.goes_without_id(statement):
            raise self.misfits(
                "inserted the row of which it returns the id past the ORM, so it has not the id that the caller has",
                "insert it with the ORM or insert(); or declare the operation without creates=, and no id is given "
                "during an outage",
            )

    def isolated(self) -> TargetMisconfigured:
        """The manager set an isolation level; what to raise."""
        return self.misfits("set an isolation level", "all calls of a batch share one transaction: lock rows instead")

    def error_behind(self, exc: BaseException) -> BaseException | None:
        """The database error that `exc` is, or was raised from."""
        seen: BaseException | None = exc
        while seen is not None:
            if isinstance(seen, DBAPIError):
                return seen
            seen = seen.__cause__ or seen.__context__
        return None


def _ignore(*_: Any) -> None:
    """Nobody listens."""


class ReplaySession(Session):
    """A session whose transactions are savepoints of the relay's.

    Savepoints nest, and the manager's sessions need not: one that only reads (again after its commit, say) while
    another one commits must not take that one's rows with it when it is closed.  So what has written nothing is
    released, not rolled back.
    """

    wrote = False

    def connection(self, *args: Any, **kwargs: Any) -> Connection:
        """The relay's connection, whose isolation level is not the manager's to choose."""
        options = next((value for value in (*args, *kwargs.values()) if "isolation_level" in (value or {})), None)
        if options is not None:
            watch: Watch = self.info["watch"]
            raise watch.isolated()
        return super().connection(*args, **kwargs)

    def rollback(self) -> None:
        """Roll back what was written; a mere reader lets go."""
        if self.wrote or not self.in_transaction() or _is_broken(self.get_bind()):
            super().rollback()
        else:
            self.expunge_all()
            try:
                super().commit()
            except SQLAlchemyError:
                super().rollback()
        self.wrote = False

    def close(self) -> None:
        """See `rollback`."""
        if self.in_transaction():
            self.rollback()
        super().close()


def _is_broken(bind: Any) -> bool:
    """Whether a statement has failed since the last savepoint: then that one must be rolled back."""
    raw = None if bind.closed or bind.invalidated else bind.connection.dbapi_connection
    return raw is None or raw.info.transaction_status == TRANSACTION_STATUS_INERROR


def listen_to(session_class: type[Session]) -> None:
    """Keep track of what the sessions of replays write and commit; each has the watch of its own in its `info`."""

    @event.listens_for(session_class, "before_flush")
    def flushes(session: ReplaySession, *_: Any) -> None:
        watch: Watch = session.info["watch"]
        if watch.as_of is not None:
            watch.as_of.give_ids(session)
        watch.on_flush(session)

    @event.listens_for(session_class, "after_flush")
    def flushed(session: ReplaySession, *_: Any) -> None:
        session.wrote = True

    @event.listens_for(session_class, "do_orm_execute")
    def executed(state: Any) -> None:
        text = str(getattr(state.statement, "text", ""))
        if not state.is_select and not _READS.match(text) and not sessions.is_setting(text):
            state.session.wrote = True

    @event.listens_for(session_class, "after_bulk_update")
    @event.listens_for(session_class, "after_bulk_delete")
    def changed_many(context: Any) -> None:
        context.session.wrote = True

    @event.listens_for(session_class, "after_commit")
    def committed(session: ReplaySession) -> None:
        if session.wrote and not session.in_nested_transaction():
            session.info["watch"].committed = True
            session.wrote = False


# Watches over the statements that replays execute.  On the class, since listening anew for each call takes longer than
# many a call; each connection has the watch of its replay.


@event.listens_for(ReplayConnection, "before_execute", retval=True)
def _before_execute(connection: ReplayConnection, statement: Any, many: Any, one: Any, _: Any) -> tuple[Any, Any, Any]:
    as_of = connection.watch.as_of
    return (statement, many, one) if as_of is None else as_of.prepare(statement, many, one)


@event.listens_for(ReplayConnection, "before_cursor_execute", retval=True)
def _before_cursor_execute(
    connection: ReplayConnection, _: Any, statement: str, parameters: Any, __: Any, many: bool
) -> tuple[str, Any]:
    watch: Watch = connection.watch
    if watch.as_of is not None:
        statement = watch.as_of.with_id(statement, many=many)
    watch.sees(statement)
    if watch.as_of is None:
        return statement, parameters
    return watch.as_of.at_time(statement), watch.as_of.restore(parameters)


@event.listens_for(ReplayConnection, "commit")
@event.listens_for(ReplayConnection, "rollback")
def _ended(connection: ReplayConnection) -> None:
    raise connection.watch.misfits("ended the relay's transaction", "it must commit its sessions, not their connection")


def watch_errors(engine: Engine, watch_here: Callable[[], Watch | None]) -> Callable[[], None]:
    """Keep the errors of the database in a watched thread, whoever catches them; returns how to undo it."""

    def failed(context: Any) -> None:
        watch = watch_here()
        if watch is not None and isinstance(context.sqlalchemy_exception, DBAPIError):
            watch.error = context.sqlalchemy_exception

    event.listen(engine, "handle_error", failed)
    return lambda: event.remove(engine, "handle_error", failed)


def refuse_connections(refusal: Callable[[Any], BaseException | None]) -> Callable[[], None]:
    """Raise what `refusal(driver's connection)` gives, if anything, for those that any engine's pool hands out.

    Returns how to undo it.
    """

    def refuse(raw: Any, *_: Any) -> None:
        error = refusal(raw)
        if error is not None:
            raise error

    event.listen(Pool, "checkout", refuse)
    return lambda: event.remove(Pool, "checkout", refuse)
