"""The sessions of a replay, and a watch over their statements and over statements that bypass them.

A `ContactSession` reports where a call turns to the database: a rehearsal ends at the first such place, and a replay
takes its fingerprint there, before the host's listeners, of which none runs in a rehearsal: else sound values differ.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, Engine, TextClause, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session
from sqlalchemy.pool import Pool

from ...errors import TargetMisconfigured
from ..manager.manager_connection import ReplayConnection
from ..sql_text import is_contact, is_setting, isolates, only_reads
from . import sessions
from .asof import AsOf
from .fingerprint import Digests, of_contact

_THREAD = "write in the call's own thread, or wait there until the other one has ended"


class _Begun(NamedTuple):
    session: ReplaySession
    nested: bool
    commits: int
    id_left: Any


class Watch:
    """What happened in the sessions of one replay."""

    def __init__(self, as_of: AsOf | None = None) -> None:
        """`as_of` is asked before each statement."""
        self.as_of = as_of
        # Called before each statement for which a rehearsal would have ended.
        self.on_contact: Callable[[], None] = _ignore
        # What the call had made ready when it first turned to the database; None before that.
        self.fingerprint: Digests | None = None
        # Called before each flush, when the rows have their ids.
        self.on_flush: Callable[[Session], None] = _ignore
        # Called with the table of each INSERT, UPDATE and DELETE that is no text.
        self.on_write: Callable[[Any], None] = _ignore
        # Called with what to raise for a session that writes behind the end of the replay, in a thread of its own.
        self.on_late: Callable[[TargetMisconfigured], None] = _ignore
        self._is_over = False
        # The thread of each session whose transaction is open.
        self._threads: dict[ReplaySession, int] = {}
        # The session that turned to its connection last.
        self.user: ReplaySession | None = None
        # How many sessions have committed what they wrote.
        self.commits = 0
        # By savepoint, in order: the session that began there, or made it, and what was so at that time.
        self._begun: dict[str, _Begun] = {}
        # By transaction of a session: the id that its caller had when it was opened, and no row.
        self._ids_left: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()
        # Whether a session that had written was committed.
        self.committed = False
        # The last error of the database, also if the manager caught it.
        self.error: DBAPIError | None = None
        # Set when the manager did something that cannot be part of the relay's transaction.
        self.misfit: TargetMisconfigured | None = None

    def misfits(self, what: str, hint: str) -> TargetMisconfigured:
        """The manager did something that cannot be part of the relay's transaction; what to raise."""
        self.misfit = TargetMisconfigured(f"a replayed method of the manager {what}", hint=hint)
        return self.misfit

    def end(self) -> None:
        """The replay has ended: what its sessions write from now on is lost."""
        self._is_over = True

    def may_write(self) -> None:
        """A session is going to write.  Raises `TargetMisconfigured` behind the end of the replay."""
        if self._is_over:
            error = TargetMisconfigured(
                "a thread that a method of the manager began writes after the call", hint=_THREAD
            )
            self.on_late(error)
            raise error

    def works(self, session: ReplaySession) -> None:
        """A transaction of a session comes to the database.

        Raises `TargetMisconfigured` where another thread's is open: both would be savepoints of one transaction.
        """
        here = threading.get_ident()
        if any(thread != here for thread in list(self._threads.values())):
            raise self.misfits("writes in two threads at once", _THREAD)
        self._threads[session] = here

    def rests(self, session: ReplaySession) -> None:
        """The transaction of a session has ended."""
        self._threads.pop(session, None)

    def opens(self, transaction: Any) -> None:
        """A transaction of a session is opened; rows may get ids before it comes to the database."""
        self._ids_left[transaction] = self.as_of and self.as_of.id_left

    def begins(self, savepoint: str, session: ReplaySession, transaction: Any) -> None:
        """A transaction of a session, or a savepoint of its own, comes to the database."""
        id_left = self._ids_left.get(transaction)
        self._begun[savepoint] = _Begun(session, transaction.nested, self.commits, id_left)

    def only_read(self, savepoint: str) -> bool:
        """Whether a session that has written nothing began there, so that there is nothing of its own to undo."""
        begun = self._begun.get(savepoint)
        return begun is not None and not begun.nested and not begun.session.wrote

    def has_written(self, savepoint: str) -> bool:
        """Whether a session that has written began there."""
        begun = self._begun.get(savepoint)
        return begun is not None and not begun.nested and begun.session.wrote

    def is_of_another(self, savepoint: str) -> bool:
        """Whether the session that began there is not the one that turned to its connection last."""
        begun = self._begun.get(savepoint)
        return begun is not None and begun.session is not self.user

    def undoes(self, savepoint: str, *, gone: bool) -> None:
        """All since the savepoint is undone.  Raises `TargetMisconfigured` where some of that is another session's."""
        begun = self._begun.get(savepoint)
        if begun is None:
            return
        session, watch = begun.session, begun.session.info["watch"]
        later = [one.session for one in list(self._begun.values())[list(self._begun).index(savepoint) :]]
        if gone or watch.commits > begun.commits or any(one.wrote for one in later if one is not session):
            raise watch.misfits(
                "rolled back a session while another one was open or had committed within it",
                "end the one session before the other begins",
            )
        if not begun.nested:
            session.wrote = False
        if self.as_of is not None:
            # The row that had it is gone, and another one may be tried.
            self.as_of.id_left = begun.id_left

    def apart(self) -> Watch:
        """A watch for sessions beside those of the replay, whose rows get ids as theirs do."""
        made = Watch(self.as_of)
        made.on_flush, made._begun = self.on_flush, self._begun
        return made

    def comes(self, session: Session, statement: Any = None, given: Any = None) -> None:
        """The call turns to the database by a session, a statement, and the parameters beside it."""
        if self.fingerprint is None:
            self.fingerprint = of_contact(session.new, statement, given)

    def sees(self, statement: str) -> None:
        """Raise `TargetMisconfigured` for a statement that would not do here what it did for the manager."""
        if is_contact(statement):
            self.on_contact()
        if isolates(statement):
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
    """Do nothing: there is no listener."""


class ContactSession(Session):
    """A session whose methods call `comes` before they turn to the database."""

    def comes(self, statement: Any = None, given: Any = None) -> None:
        """The call turns to the database, with a statement and the parameters beside it."""
        raise NotImplementedError

    def execute(self, statement: Any, params: Any = None, **kwargs: Any) -> Any:
        """See `Session`.  A setting of the transaction is no contact: a rehearsal goes on behind it."""
        if not is_setting(str(getattr(statement, "text", ""))):
            self.comes(statement, params)
        return super().execute(statement, params, **kwargs)

    def scalar(self, statement: Any, params: Any = None, **kwargs: Any) -> Any:
        """See `Session`."""
        self.comes(statement, params)
        return super().scalar(statement, params, **kwargs)

    def scalars(self, statement: Any, params: Any = None, **kwargs: Any) -> Any:
        """See `Session`."""
        self.comes(statement, params)
        return super().scalars(statement, params, **kwargs)


def _at_contact(name: str) -> Callable[..., Any]:
    def method(self: ContactSession, *args: Any, **kwargs: Any) -> Any:
        self.comes()
        return getattr(super(ContactSession, self), name)(*args, **kwargs)

    return method


for _name in (
    *("get", "get_one", "flush", "commit", "query", "merge", "refresh", "connection", "delete"),
    *("bulk_save_objects", "bulk_insert_mappings", "bulk_update_mappings"),
):
    setattr(ContactSession, _name, _at_contact(_name))


class ReplaySession(ContactSession):
    """A session whose transactions are savepoints of the relay's.

    Savepoints nest, and the manager's sessions need not: one that only reads (again after its commit, say) while
    another one commits must not take that one's rows with it when it is closed.  So the savepoint of one that has
    written nothing is released, not rolled back; see `Watch.only_read`.
    """

    wrote = False

    def comes(self, statement: Any = None, given: Any = None) -> None:
        """The call turns to the database here.

        Before any listener of the host's has seen it: none runs in a rehearsal.
        """
        watch: Watch = self.info["watch"]
        watch.comes(self, statement, given)

    def connection(self, *args: Any, **kwargs: Any) -> Connection:
        """The relay's connection, whose isolation level is not the manager's to choose."""
        options = next((value for value in (*args, *kwargs.values()) if "isolation_level" in (value or {})), None)
        if options is not None:
            watch: Watch = self.info["watch"]
            raise watch.isolated()
        return super().connection(*args, **kwargs)

    def get_bind(self, *args: Any, **kwargs: Any) -> Any:
        """Every way to the connection leads here: what is sent there from now on is this session's."""
        watch: Watch = self.info["watch"]
        if _may_write(kwargs.get("clause")):
            watch.may_write()
        watch.user = self
        return super().get_bind(*args, **kwargs)


def _may_write(clause: Any) -> bool:
    return not only_reads(clause.text) if isinstance(clause, TextClause) else getattr(clause, "is_dml", False)


def _listen_to(session_class: type[Session]) -> None:
    """Keep track of what the sessions of replays write and commit; each has the watch of its own in its `info`."""

    @event.listens_for(session_class, "after_transaction_create")
    def opened(session: ReplaySession, transaction: Any) -> None:
        session.info["watch"].opens(transaction)

    @event.listens_for(session_class, "after_begin")
    def begun(session: ReplaySession, transaction: Any, connection: Connection) -> None:
        savepoint: Any = connection.get_nested_transaction()
        watch: Watch = session.info["watch"]
        watch.begins(savepoint._savepoint, session, transaction)
        watch.works(session)

    @event.listens_for(session_class, "after_transaction_end")
    def ended(session: ReplaySession, transaction: Any) -> None:
        if transaction.parent is None:
            session.info["watch"].rests(session)

    @event.listens_for(session_class, "after_soft_rollback")
    def rolled_back(session: ReplaySession, transaction: Any) -> None:
        if transaction.parent is None:
            session.wrote = False

    @event.listens_for(session_class, "before_flush")
    def flushes(session: ReplaySession, *_: Any) -> None:
        watch: Watch = session.info["watch"]
        watch.may_write()
        if watch.as_of is not None:
            watch.as_of.give_ids(session)
        watch.on_flush(session)

    @event.listens_for(session_class, "after_flush")
    def flushed(session: ReplaySession, *_: Any) -> None:
        session.wrote = True

    @event.listens_for(session_class, "after_commit")
    def committed(session: ReplaySession) -> None:
        if session.wrote and not session.in_nested_transaction():
            session.info["watch"].committed = True
            session.info["watch"].commits += 1
            session.wrote = False


def work_on(connection: Connection, replica: Any, watch: Watch) -> None:
    """Let the sessions of a copy of a manager work on `connection`, where their commits are savepoints."""
    replica.session_factory = sessions.factory_like(
        replica.session_factory,
        ReplaySession,
        _listen_to,
        bind=connection,
        binds=None,
        join_transaction_mode="create_savepoint",
        info={"watch": watch},
    )


# Watches over the statements that replays execute.  On the class, since listening anew for each call takes longer than
# many a call; each connection has the watch of its replay, but while the engine's own listeners begin it.


@event.listens_for(ReplayConnection, "before_execute", retval=True)
def _before_execute(connection: ReplayConnection, statement: Any, many: Any, one: Any, _: Any) -> tuple[Any, Any, Any]:
    watch: Watch | None = connection.watch
    if watch is None:
        return statement, many, one
    if getattr(statement, "is_dml", False):
        watch.on_write(statement.table)
    return (statement, many, one) if watch.as_of is None else watch.as_of.prepare(statement, many, one)


@event.listens_for(ReplayConnection, "before_cursor_execute", retval=True)
def _before_cursor_execute(
    connection: ReplayConnection, _: Any, statement: str, parameters: Any, __: Any, many: bool
) -> tuple[str, Any]:
    watch: Watch | None = connection.watch
    if watch is None:
        return statement, parameters
    if watch.as_of is not None:
        statement = watch.as_of.completed(statement, many=many)
    watch.sees(statement)
    if watch.as_of is None:
        return statement, parameters
    return watch.as_of.at_time(statement), watch.as_of.restore(parameters)


def adapt_statements(connection: Connection, as_of_here: Callable[[], AsOf | None]) -> None:
    """Let the statements of a connection, which is no replay's, get ids and times from what `as_of_here` gives."""

    @event.listens_for(connection, "before_execute", retval=True)
    def prepare(_: Any, statement: Any, many: Any, one: Any, __: Any) -> tuple[Any, Any, Any]:
        as_of = as_of_here()
        return (statement, many, one) if as_of is None else as_of.prepare(statement, many, one)

    @event.listens_for(connection, "before_cursor_execute", retval=True)
    def complete(_: Any, __: Any, statement: str, parameters: Any, ___: Any, many: bool) -> tuple[str, Any]:
        as_of = as_of_here()
        if as_of is None:
            return statement, parameters
        return as_of.at_time(as_of.completed(statement, many=many)), as_of.restore(parameters)


@event.listens_for(ReplayConnection, "commit")
@event.listens_for(ReplayConnection, "rollback")
def _ended(connection: ReplayConnection) -> None:
    if connection.watch is not None:
        raise connection.watch.misfits(
            "ended the relay's transaction", "it must commit its sessions, not their connection"
        )


def watch_errors(engine: Engine, watch_here: Callable[[], Watch | None]) -> Callable[[], None]:
    """Keep a watched thread's errors of the database, also those that the manager catches; returns how to undo it."""

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
