"""Rehearsal: a call is tried on a copy of the manager up to its first contact with the database.

What the manager refuses before that (a bad side, an amount that is no number) it refuses here, in its own way, before
anything is stored.  The rows that it has prepared by then are checked against their columns, as PostgreSQL would.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID
from weakref import WeakKeyDictionary

from sqlalchemy import ClauseElement
from sqlalchemy import inspect as inspect_orm
from sqlalchemy.dialects.postgresql.psycopg2 import dialect as psycopg2_dialect
from sqlalchemy.exc import DataError, StatementError

from ... import OutboxError
from ...operation import is_beyond
from ..code.signatures import invoke
from ..manager.away import is_away
from ..manager.manager_connection import engine_held
from ..sql_text import is_setting
from ..state.kept_state import Changes, KeptState
from . import sessions
from .fingerprint import Digests, code_of, of_contact, stored
from .replay_session import ContactSession
from .sessions import everywhere

# Binds where the engine is not known: its JSON functions may take anything.
_ANY_JSON = psycopg2_dialect(json_serializer=repr)  # type: ignore[no-untyped-call]


class Reached(BaseException):
    """The manager turned to the database; not an Exception, since managers catch those."""


class Rehearsal:
    """One try of a call on a copy of the manager."""

    def __init__(self, kept: KeptState | None = None, at: datetime | None = None, *, is_built: bool = True) -> None:
        """`kept`: the state of the copy; `at`: when it begins; `is_built`: whether the manager has been constructed."""
        self._kept, self.at, self._is_built = kept, at, is_built
        # Whether the call came to the database; otherwise `answer` or `error` is the manager's own.
        self.reached = False
        self.answer: Any = None
        # The id that the caller is told, where it is a UUID.
        self.uuid: UUID | None = None
        self.error: Exception | None = None
        # Why a replay of the call could not be part of the relay's transaction.
        self.misfit: str | None = None
        # Whether a row was refused that PostgreSQL would have refused.
        self.refused = False
        # What the call had changed in the manager's attributes when it came to the database, or ended without.
        self.changes = Changes({})
        # What it had made ready there.
        self.fingerprint: Digests = {}
        # Whether the call could not be tried, so that only its delivery shows what it changes.
        self.is_skipped = False
        self._over = False

    @classmethod
    def skipped(cls) -> Rehearsal:
        """The rehearsal of a call that cannot be rehearsed."""
        made = cls()
        made.reached = made.is_skipped = True
        return made

    def reach(self) -> BaseException:
        """The call comes to the database; what to raise there."""
        if self._over:
            # Something of the rehearsal was kept and is used later: no BaseException may reach the host.
            return OutboxError(
                "a session of a rehearsed call is used after the call", hint="close sessions where they are opened"
            )
        if not self.reached:
            self.reached = True
            self._look()
        return Reached()

    def end(self) -> Rehearsal:
        """The call has ended."""
        if not self.reached:
            self._look()
        self._over = True
        return self

    def still_fits(self, manager: Any, names: Iterable[str]) -> bool:
        """Whether the manager has the values with which the call began, of what the call changed and of `names`."""
        return self.changes.still_fit(manager) and (self._kept is None or self._kept.began_with(manager, names))

    def noted(self, cls: type, method: str) -> dict[str, Any]:
        """What is noted of a rehearsal of this method for the replay to compare."""
        # Attributes that only the constructor sets are missing until then, so the replay may find other values.
        if self.at is None or not self._is_built or not self.fingerprint:
            return {}
        return {"fingerprint": stored(self.fingerprint, code_of(cls, method), self.at)}

    def _look(self) -> None:
        if self._kept is not None:
            self.changes = self._kept.changes()


class _RefusedByColumn(Exception):
    """What the driver would report for a value that its column cannot hold."""

    pgcode = "22000"


def rehearse(
    rehearsal: Rehearsal, replica: Any, method: str, call: dict[str, Any], *, context: bool, mocked: bool = False
) -> Rehearsal:
    """Try `method` on `replica`, which must be a copy, up to its first contact with the database.

    `mocked`: a mock of a test may raise what the database would; it is the manager's answer.
    """
    replica.session_factory = sessions.factory_like(
        getattr(replica, "session_factory", None),
        _RehearsalSession,
        info={"rehearsal": rehearsal, "dialect": _dialect_of(replica)},
    )
    try:
        with everywhere(replica.session_factory):
            result = invoke(getattr(replica, method), call)
            if context:
                with result:
                    rehearsal.reach()
            else:
                _send_left(replica.session_factory)
                rehearsal.answer = result
    except Reached:
        rehearsal.reach()
    except Exception as exc:  # noqa: BLE001 - it is the manager's answer, and given to the caller
        if is_away(exc) and not mocked:
            rehearsal.reach()
        # Where the manager made an error of its own out of ours, it has said nothing about the call.
        rehearsal.error = exc
    return rehearsal.end()


def _send_left(factory: Any) -> None:
    """Send rows that a method leaves in a scoped_session for a later commit: they are the call's."""
    session: Any = sessions.left_open(factory)
    if session is not None and session.new:
        session.flush()


def _dialect_of(replica: Any) -> Any:
    """The dialect that binds the manager's values: engines may have a JSON serializer of their own."""
    return getattr(engine_held(replica), "dialect", None) or _ANY_JSON


class _Savepoint:
    """A savepoint needs no database until something happens in it."""

    is_active = True

    def __init__(self, session: _RehearsalSession) -> None:
        self._session = session

    def __enter__(self) -> _Savepoint:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None and self._session.new:
            self.commit()

    def commit(self) -> None:
        """Here the rows would be sent."""
        self._session.comes()

    def rollback(self) -> None:
        """Nothing was begun."""

    close = rollback


class _RehearsalSession(ContactSession):
    """A session without a database: the first thing that would need one ends the rehearsal."""

    def comes(self, statement: Any = None, given: Any = None) -> None:
        """The call turns to the database; raises what ends the rehearsal."""
        rehearsal: Rehearsal = self.info["rehearsal"]
        if not rehearsal.reached:
            rehearsal.fingerprint = of_contact(self.new, statement, given)
        for row in self.new:
            # A refusal is the manager's to answer, and then it has not come to the database.
            rehearsal.refused = True
            _check_row(row, self.info["dialect"])
        rehearsal.refused = False
        raise rehearsal.reach()

    def execute(self, statement: Any, *args: Any, **kwargs: Any) -> Any:
        """Settings of the transaction change nothing here; everything else needs the database."""
        if is_setting(str(getattr(statement, "text", ""))):
            return None
        return super().execute(statement, *args, **kwargs)

    def begin_nested(self) -> _Savepoint:  # type: ignore[override]
        """What is new goes out before a savepoint; otherwise see `_Savepoint`."""
        if self.new:
            self.comes()
        return _Savepoint(self)

    def rollback(self) -> None:
        """Nothing was begun."""

    def close(self) -> None:
        """Let go of its objects; not behind the contact, where nobody uses them any more."""
        if not self.info["rehearsal"].reached:
            super().close()


# mapped class -> dialect -> how to check what its columns take; worked out once.
_checks: WeakKeyDictionary[Any, WeakKeyDictionary[Any, list[_Check]]] = WeakKeyDictionary()


class _Check(NamedTuple):
    """What one column takes: characters, digits, and what its type can bind."""

    attribute: str
    column: Any
    length: int | None
    digits: tuple[int, int] | None
    bind: Callable[[Any], Any] | None


def _checks_of(mapper: Any, dialect: Any) -> list[_Check]:
    by_dialect = _checks.setdefault(mapper, WeakKeyDictionary())
    found = by_dialect.get(dialect)
    if found is None:
        found = by_dialect[dialect] = [_check_of(one.key, one.columns[0], dialect) for one in mapper.column_attrs]
    return found


def _check_of(attribute: str, column: Any, dialect: Any) -> _Check:
    length, precision, scale = (getattr(column.type, name, None) for name in ("length", "precision", "scale"))
    digits = (precision, scale) if isinstance(precision, int) and isinstance(scale, int) else None
    bind = column.type.dialect_impl(dialect).bind_processor(dialect)
    return _Check(attribute, column, length if isinstance(length, int) else None, digits, bind)


def _check_row(row: Any, dialect: Any) -> None:
    """Raise, as a flush would, where a new row has a value that its column cannot hold or cannot bind."""
    state = inspect_orm(row)
    for attribute, column, length, digits, bind in _checks_of(state.mapper, dialect):
        value = state.dict.get(attribute)
        if value is None:
            continue
        if length is not None and isinstance(value, str) and len(value) > length:
            _refuse(f"{column} has {len(value)} characters, at most {length}", value)
        if digits is not None and is_beyond(value, *digits):
            _refuse(f"{column} is {value}, beyond numeric({digits[0]},{digits[1]})", value)
        if bind is None or isinstance(value, ClauseElement):
            continue
        try:
            bind(value)
        except Exception as exc:
            what = f"({type(exc).__module__}.{type(exc).__qualname__}) {exc}"
            raise StatementError(what, "INSERT (not sent)", {column.name: value}, exc) from exc


def _refuse(why: str, value: Any) -> None:
    raise DataError("INSERT (not sent)", {"value": value}, _RefusedByColumn(why))
