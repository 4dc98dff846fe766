"""The sessions of a replay, and the watch over what happens in them and past them."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from sqlalchemy import Connection, Engine, event
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.orm import Session

from ..errors import TargetMisconfigured
from . import sessions

_READS = re.compile(r"\s*(SELECT|SHOW)\b", re.IGNORECASE)


class Watch:
    """What happened in the sessions of one replay."""

    def __init__(self) -> None:
        # Whether a session that had written was committed.
        self.committed = False
        # The last error of the database, whoever caught it.
        self.error: DBAPIError | None = None
        # Set when the manager opened a connection of its own.
        self.bypass: TargetMisconfigured | None = None
        # Settings that the replay changed: name -> (value before, whether the change ends with the transaction).
        self.settings: dict[str, tuple[str | None, bool]] = {}

    def bypassed(self) -> TargetMisconfigured:
        """The manager opened a connection of its own; what to raise."""
        self.bypass = TargetMisconfigured(
            "a replayed method of the manager opened a connection of its own",
            hint="its writes must go through self.session_factory, or they could be applied twice",
        )
        return self.bypass

    def error_behind(self, exc: BaseException) -> BaseException | None:
        """The database error that `exc` is, or was raised from."""
        seen: BaseException | None = exc
        while seen is not None:
            if isinstance(seen, DBAPIError):
                return seen
            seen = seen.__cause__ or seen.__context__
        return None

    def restore_settings(self, connection: Connection) -> None:
        """Undo what the call set: it would go on for the rest of the relay's transaction, or even behind it."""
        if self.settings:
            cursor = connection.connection.cursor()
            for name, (value, local) in self.settings.items():
                cursor.execute("SELECT set_config(%s, %s, %s)", (name, value, local))


class ReplaySession(Session):
    """A session whose transactions are savepoints of the relay's.

    Savepoints nest, and the manager's sessions need not: one that only reads (again after its commit, say) while
    another one commits must not take that one's rows with it when it is closed.  So what has written nothing is
    released, not rolled back.
    """

    wrote = False

    def rollback(self) -> None:
        """Roll back what was written; a mere reader lets go."""
        watch: Watch = self.info["watch"]
        if self.wrote or watch.error is not None or not self.in_transaction():
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


def listen_to(session_class: type[Session]) -> None:
    """Keep track of what the sessions of a replay write and commit."""

    @event.listens_for(session_class, "after_flush")
    def flushed(session: ReplaySession, *_: Any) -> None:
        session.wrote = True

    @event.listens_for(session_class, "do_orm_execute")
    def executed(state: Any) -> None:
        text = str(getattr(state.statement, "text", ""))
        if not state.is_select and not _READS.match(text) and sessions.setting_of(text) is None:
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


def watch_engine(engine: Engine, watch_here: Callable[[], Watch | None]) -> Callable[[], None]:
    """Note errors and settings of the statements that a watched thread executes; returns how to undo it."""

    def before(_: Connection, cursor: Any, statement: str, *__: Any) -> None:
        watch, setting = watch_here(), sessions.setting_of(statement)
        if watch is not None and setting is not None and setting[0] not in watch.settings:
            cursor.execute("SELECT current_setting(%s, true)", (setting[0],))
            watch.settings[setting[0]] = (cursor.fetchone()[0], setting[1])

    def failed(context: Any) -> None:
        watch = watch_here()
        if watch is not None and isinstance(context.sqlalchemy_exception, DBAPIError):
            watch.error = context.sqlalchemy_exception

    event.listen(engine, "before_cursor_execute", before)
    event.listen(engine, "handle_error", failed)

    def undo() -> None:
        event.remove(engine, "before_cursor_execute", before)
        event.remove(engine, "handle_error", failed)

    return undo


def refuse_connections(engine: Engine, refusal: Callable[[], BaseException | None]) -> Callable[[], None]:
    """Raise what `refusal()` gives, if anything, for connections of `engine`; returns how to undo it."""

    def refuse(_: Connection) -> None:
        error = refusal()
        if error is not None:
            raise error

    event.listen(engine, "engine_connect", refuse)
    return lambda: event.remove(engine, "engine_connect", refuse)
