"""Rehearsal: a call is tried on a copy of the manager up to its first contact with the database.

What the manager refuses before that (a bad side, an amount that is no number) it refuses here, in its own way, before
anything is stored.  The rows that it has prepared by then are checked against their columns, as PostgreSQL would.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import ClauseElement
from sqlalchemy import inspect as inspect_orm
from sqlalchemy.dialects.postgresql.psycopg2 import dialect as psycopg2_dialect
from sqlalchemy.exc import DataError, StatementError
from sqlalchemy.orm import Session

from ..operation import is_beyond
from . import sessions
from .host import AWAY, invoke


class Reached(BaseException):
    """The manager turned to the database; not an Exception, since managers catch those."""


@dataclass(slots=True)
class Rehearsal:
    """`reached`: whether the call came to the database.  Otherwise `answer` is what the manager answered by itself."""

    reached: bool = False
    answer: Any = None
    # Text that the manager made up for the first new row of each table, such as names that contain the time.
    made: dict[str, dict[str, str]] = field(default_factory=dict)


class _RefusedByColumn(Exception):
    """What the driver would report for a value that its column cannot hold."""

    pgcode = "22000"


def rehearse(rehearsal: Rehearsal, replica: Any, method: str, call: dict[str, Any], *, context: bool) -> Rehearsal:
    """Try `method` on `replica`, which must be a copy.  Raises what the manager raises before it needs the database."""
    replica.session_factory = sessions.factory_like(
        getattr(replica, "session_factory", None),
        _RehearsalSession,
        info={"rehearsal": rehearsal, "dialect": _dialect_of(replica)},
    )
    try:
        result = invoke(getattr(replica, method), call)
        if context:
            with result:
                rehearsal.reached = True
        else:
            rehearsal.answer = result
    except (Reached, *AWAY):
        rehearsal.reached = True
    except Exception:
        # Where the manager made an error of its own out of ours, it has said nothing about the call.
        if not rehearsal.reached:
            raise
    return rehearsal


def _dialect_of(replica: Any) -> Any:
    """The dialect that binds the manager's values: engines may have a JSON serializer of their own."""
    return getattr(getattr(replica, "engine", None), "dialect", None) or psycopg2_dialect()  # type: ignore[no-untyped-call]


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
        self._session._reach()

    def rollback(self) -> None:
        """Nothing was begun."""

    close = rollback


class _RehearsalSession(Session):
    """A session without a database: the first thing that would need one ends the rehearsal."""

    def _reach(self, *_: Any, **__: Any) -> Any:
        rehearsal: Rehearsal = self.info["rehearsal"]
        for row in self.new:
            # A refusal is the manager's to answer, and then it has not come to the database.
            _check_row(row, self.info["dialect"])
            mapper = inspect_orm(row).mapper
            made = {
                attribute.key: value
                for attribute in mapper.column_attrs
                if type(value := inspect_orm(row).dict.get(attribute.key)) is str
            }
            rehearsal.made.setdefault(str(mapper.local_table.name), made)
        rehearsal.reached = True
        raise Reached

    def execute(self, statement: Any, *_: Any, **__: Any) -> Any:
        """Settings of the transaction change nothing here; everything else needs the database."""
        if sessions.is_setting(str(getattr(statement, "text", ""))):
            return None
        return self._reach()

    def begin_nested(self) -> _Savepoint:  # type: ignore[override]
        """What is new goes out before a savepoint; otherwise see `_Savepoint`."""
        if self.new:
            self._reach()
        return _Savepoint(self)

    def rollback(self) -> None:
        """Nothing was begun."""

    scalar = scalars = get = get_one = flush = commit = query = merge = refresh = connection = _reach
    bulk_save_objects = bulk_insert_mappings = bulk_update_mappings = delete = _reach


def _check_row(row: Any, dialect: Any) -> None:
    """Raise, as a flush would, where a new row has a value that its column cannot hold or cannot bind."""
    state = inspect_orm(row)
    for attribute in state.mapper.column_attrs:
        column, value = attribute.columns[0], state.dict.get(attribute.key)
        length = getattr(column.type, "length", None)
        if isinstance(value, str) and isinstance(length, int) and len(value) > length:
            _refuse(f"{column} has {len(value)} characters, at most {length}", value)
        precision, scale = getattr(column.type, "precision", None), getattr(column.type, "scale", None)
        if isinstance(precision, int) and isinstance(scale, int) and is_beyond(value, precision, scale):
            _refuse(f"{column} is {value}, beyond numeric({precision},{scale})", value)
        bind = column.type.dialect_impl(dialect).bind_processor(dialect)
        if bind is None or value is None or isinstance(value, ClauseElement):
            continue
        try:
            bind(value)
        except Exception as exc:
            what = f"({type(exc).__module__}.{type(exc).__qualname__}) {exc}"
            raise StatementError(what, "INSERT (not sent)", {column.name: value}, exc) from exc


def _refuse(why: str, value: Any) -> None:
    raise DataError("INSERT (not sent)", {"value": value}, _RefusedByColumn(why))
