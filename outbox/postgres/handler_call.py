"""Handler call: runs one entry's handler inside the relay's transaction, and finds out what it did to the connection.

A handler is the host's code: it may end the transaction, lose the connection, swallow an error or return unfinished
work.  Each of these is a failure with its own verdict, so that no receipt is committed without its effect.
"""

from __future__ import annotations

from typing import Any, TypeGuard

import psycopg2.extensions
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from ..entry import EntryStatus
from ..errors import EntryRejected, RetryLater, TargetMisconfigured, TargetUnavailable, Unrestorable
from ..handlers import discard, is_for_the_thread, is_unfinished
from ..operation import Operation
from ..store.envelope import Record
from .connection import GuardedConnection, UnitFailed, raw_of, usable
from .parking import OperationFault, UnknownClass

_BROKEN = psycopg2.extensions.TRANSACTION_STATUS_INERROR
_INSIDE = psycopg2.extensions.TRANSACTION_STATUS_INTRANS


def call_handler(
    link: GuardedConnection,
    connection: Connection,
    transaction: Any,
    operation: Operation,
    item: Record,
    position: int,
) -> Any:
    """Run the handler of one entry and return its result.  Only its effects stay in the relay's transaction.

    `position`: of the entry's unit in the batch.  Raises `UnitFailed` or `TargetUnavailable`.
    """
    assert operation.handler is not None
    try:
        entry = item.entry(status=EntryStatus.SYNCING)
    except Unrestorable as exc:
        raise UnitFailed(unrestorable(item, exc), position, operation.name) from exc
    ended = OperationFault(
        f"the handler of {operation.name!r} ended the relay's transaction",
        hint="it must not commit, roll back or close",
    )
    options, raw = connection.get_execution_options(), raw_of(connection)
    commits = raw.commits
    try:
        with link.commits_refused(ended), raw.kept_as_it_is():
            value = operation.handler(connection, entry)
    except TargetUnavailable:
        raise
    except TargetMisconfigured as exc:
        raise broken(operation, exc, position) from exc
    except BaseException as exc:
        if is_for_the_thread(exc):
            raise
        failure = link.verdict(exc, position, operation.name)
        if usable(connection) and not (transaction.is_active and _is_inside(connection)):
            if raw.commits > commits or not _counts_after_a_rollback(failure, exc):
                raise broken(operation, ended, position) from exc
            failure.suspect = True
        raise failure from exc
    if connection.closed:
        raise broken(operation, ended, position)
    if not usable(connection):
        link.disconnect()
        raise TargetUnavailable(f"the connection was lost while {operation.name!r} was applied", stalled=True)
    if not transaction.is_active or connection.get_transaction() is not transaction or not _is_inside(connection):
        raise broken(operation, ended, position)
    if raw_of(connection).info.transaction_status == _BROKEN:
        message = f"the handler of {operation.name!r} swallowed a database error"
        raise UnitFailed(EntryRejected(message, permanent=False), position, operation.name)
    if is_unfinished(value):
        discard(value)
        fault = OperationFault(
            f"the handler of {operation.name!r} returned {type(value).__name__}, whose work has not been done",
            hint="a handler must be a plain function that ends when its work is done",
        )
        raise broken(operation, fault, position)
    # What it has set must reach neither our commit nor the next entry.  SQLAlchemy cannot take options back.
    connection._execution_options = options
    link.owe_settings(raw_of(connection))
    return value


def unrestorable(item: Record, exc: Unrestorable) -> EntryRejected:
    """The entry alone is concerned, whatever else the program can restore."""
    kind = UnknownClass if exc.class_is_unknown else EntryRejected
    return kind(f"entry {item.seq} cannot be restored: {exc}", permanent=True)


def broken(operation: Operation, error: TargetMisconfigured, position: int | None) -> UnitFailed:
    """A handler that may have left the connection in any state."""
    failed = UnitFailed(error, position, operation.name)
    failed.suspect = True
    return failed


def _is_inside(connection: Connection) -> bool:
    return raw_of(connection).info.transaction_status in (_BROKEN, _INSIDE)


def _counts_after_a_rollback(failure: Exception, exc: BaseException) -> TypeGuard[UnitFailed]:
    """Whether an error may have caused the rollback: a SQLAlchemy session rolls back when an error leaves its block."""
    if isinstance(exc, SQLAlchemyError) and not isinstance(exc, DBAPIError):
        return False
    return isinstance(failure, UnitFailed) and isinstance(failure.error, EntryRejected | RetryLater)
