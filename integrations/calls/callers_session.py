"""The caller's session: the one that a `scoped_session` of the manager keeps for the code that runs here.

On the plain manager a method works in it, so its commit also saves objects that the caller has changed, and what the
caller reads afterwards is new.  A durable call is delivered in another session, so both are done here.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from sqlalchemy import Connection, event
from sqlalchemy.exc import PendingRollbackError, SQLAlchemyError
from sqlalchemy.orm import Session, scoped_session

from ... import OutboxError
from ...log import Log, Repeated
from ...words import first_line
from ..code.class_code import remembered
from ..code.method_code import facts_of
from ..manager.away import is_away
from ..manager.host import Host
from ..operations import ManagerOperation
from ..outage import Outage
from ..preflight.evidence import Evidence
from ..replay.sessions import left_open, maker_of
from ..view.containers import taken_up
from .guard import Guard

_log = Log("outbox.integrations")

# Keys in a session's `info`: its connection, that calls were recorded since its transaction began, and that PostgreSQL
# failed in it.
_CONNECTION = "outbox:connection"
_BEHIND = "outbox:behind"
_BROKEN = "outbox:broken"
# Calls that take objects out of their session.
_ENDS = frozenset({"remove", "close", "close_all", "expunge", "expunge_all"})
_WAY = "let a declared method change the row"


class NotSaved(OutboxError):
    """Objects of the manager's session were changed, and PostgreSQL is away: the change cannot be made durable."""


class CallersSession:
    """Keeps the caller's session level with the durable calls.  Each thread has a session of its own."""

    def __init__(self, host: Host, guard: Guard, outage: Outage) -> None:
        self._host, self._guard, self._outage = host, guard, outage
        self._repeated = Repeated(_log)
        self._watched: Any = None

    def attach(self, manager: Any) -> None:
        """Note the connections of the manager's sessions."""
        factory = getattr(manager, "session_factory", None)
        if isinstance(factory, scoped_session):
            self._watched = maker_of(factory)
            event.listen(self._watched, "after_begin", _note_connection)

    def close(self) -> None:
        """Take the listener away again; may be called twice."""
        watched, self._watched = self._watched, None
        if watched is not None:
            event.remove(watched, "after_begin", _note_connection)

    def save(self, operation: ManagerOperation) -> None:
        """Save what the caller has changed in its session, before a call.  Raises `NotSaved`, and what a commit raises.

        A best-effort call leaves that to the next one.
        """
        session = self._session()
        if session is None or operation.best_effort or not self._has_changes(session):
            return
        try:
            session.commit()
        except SQLAlchemyError as exc:
            if not (is_away(exc) or isinstance(exc, PendingRollbackError)):
                raise
            with suppress(SQLAlchemyError):
                session.rollback()
            raise NotSaved(
                f"{operation.name} was to save changed objects too, which are not durable: {first_line(exc)}",
                hint=f"the changes are undone, and nothing is recorded; {_WAY}",
            ) from exc
        self._repeated.warn(
            operation.name,
            "%(operation)s saves objects that were changed in the session, and an outage refuses that: %(way)s",
            operation=operation.name,
            way=_WAY,
        )

    def follow(self) -> None:
        """A call was recorded: what the caller has read before is old, from its delivery on."""
        session = self._session()
        if session is not None:
            session.info[_BEHIND] = True
            if self._guard.own_passed():
                self._renew(session)

    def catch_up(self) -> None:
        """Before the manager is asked: let the caller's session read anew, if calls were recorded since."""
        session = self._session()
        if session is None:
            return
        behind = session.info.get(_BEHIND) and self._outage.delivers is not False
        if behind or session.info.get(_BROKEN):
            self._renew(session)

    def broken(self) -> None:
        """PostgreSQL failed in a read that has another answer: the caller will not roll its session back."""
        session = self._session()
        if session is not None:
            session.info[_BROKEN] = True

    def shown(self, name: str, answer: Any) -> Any:
        """The objects that read `name` shows without PostgreSQL, in the session that the read would have left them in.

        There a change of them is seen, and not lost in silence by the commit of a session that does not know them.
        """
        host = self._host
        factory = None if host.built is None else host.built.session_factory
        if not isinstance(factory, scoped_session) or _lets_go(type(host.built), name):
            return answer
        session = factory()
        # What the view shows is read anew once PostgreSQL is back.
        session.info[_BEHIND] = True
        return taken_up(session, answer)

    def _session(self) -> Session | None:
        return None if self._host.built is None else left_open(self._host.built.session_factory)

    def _renew(self, session: Session) -> None:
        """End a transaction that has only read; what the caller holds is read again when it is used."""
        if self._has_changes(session) or session.in_nested_transaction():
            return
        session.info.pop(_BEHIND, None)
        session.info.pop(_BROKEN, None)
        # On a lost connection the transaction is over all the same.
        with suppress(SQLAlchemyError):
            session.rollback()
        session.expire_all()

    def _has_changes(self, session: Session) -> bool:
        if session.new or session.dirty or session.deleted:
            return True
        return session.in_transaction() and session.info.get(_CONNECTION) in self._guard.unsaved


@remembered(256)
def _lets_go(cls: type, read: str) -> bool:
    """Whether the code of a read ends its session, so that what it shows belongs to none."""
    functions = Evidence(cls).code.functions(read)
    return not functions or any(call.last in _ENDS for function in functions for call in facts_of(function).calls)


def _note_connection(session: Session, _: Any, connection: Connection) -> None:
    session.info[_CONNECTION] = connection
