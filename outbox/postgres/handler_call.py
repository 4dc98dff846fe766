"""Handler call: runs one entry's handler inside the relay's transaction, and finds out what it did to the connection.

A handler is the host's code: it may end the transaction, lose the connection, swallow an error or return unfinished
work.  Each of these is a failure with its own verdict, so that no receipt is committed without its effect.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, TypeGuard

import psycopg2.extensions
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError, InvalidRequestError, SQLAlchemyError

from ..entry import EntryStatus
from ..errors import EntryRejected, RetryLater, TargetMisconfigured, TargetUnavailable, Unrestorable
from ..fate import OperationFault, UnknownClass
from ..handlers import discard, is_for_the_thread, is_unfinished
from ..operation import Operation
from ..store.envelope import Record
from .connection import GuardedConnection, UnitFailed, raw_of, usable

_BROKEN = psycopg2.extensions.TRANSACTION_STATUS_INERROR
_INSIDE = psycopg2.extensions.TRANSACTION_STATUS_INTRANS


def slowest(begun: Sequence[tuple[int | None, float]], now: float, limit_s: float) -> int | None:
    """The place of the unit whose handler took more than half of the limit, or None.

    `begun`: the places of the units whose handlers began, in order, and when; None where something else began.
    """
    ends = [began for _, began in begun[1:]] + [now]
    took = [(end - began, at) for (at, began), end in zip(begun, ends, strict=False) if at is not None]
    longest, at = max(took, default=(0.0, None))
    return at if longest > limit_s / 2 else None


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
    options, raw = connection.get_execution_options(), raw_of(connection)
    commits, raw.kept_out, raw.was_left = raw.commits, None, True
    try:
        with link.commits_refused(partial(_committed, operation)), raw.kept_as_it_is(), _in_this_process(operation):
            value = operation.handler(connection, entry)
    except TargetUnavailable:
        raise
    except TargetMisconfigured as exc:
        raise broken(operation, exc, position) from exc
    except BaseException as exc:
        if is_for_the_thread(exc):
            raise
        failure = _began(exc, connection, operation, position) or link.verdict(exc, position, operation.name)
        # Such as the TypeError of `cursor.fetchone()[0]` behind RETURNING.
        kept_out = _kept_out(raw, operation, position) if _is_its_own(failure) else None
        if usable(connection) and not (transaction.is_active and _is_inside(connection)):
            if raw.commits == commits and kept_out is not None:
                kept_out.suspect = True
            elif raw.commits == commits and _counts_after_a_rollback(failure, exc):
                failure.suspect = True
            else:
                raise broken(operation, ended(operation, _how(raw, commits, transaction)), position) from exc
        raise (kept_out or failure) from exc
    if connection.closed:
        raise broken(operation, ended(operation, "it closed conn"), position)
    if not usable(connection):
        link.disconnect()
        raise TargetUnavailable(f"the connection was lost while {operation.name!r} was applied", stalled=True)
    if not transaction.is_active or connection.get_transaction() is not transaction or not _is_inside(connection):
        raise broken(operation, ended(operation, _how(raw, commits, transaction)), position)
    if raw_of(connection).info.transaction_status == _BROKEN:
        message = f"the handler of {operation.name!r} swallowed a database error"
        raise UnitFailed(EntryRejected(message, permanent=False), position, operation.name)
    kept_out = _kept_out(raw, operation, position)
    if kept_out is not None:
        raise kept_out
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


@contextmanager
def _in_this_process(operation: Operation) -> Iterator[None]:
    """End a process that the block has forked and that leaves the block, by a return or an exception.

    It shares the relay's connection and locks: it would write the next entries once more, and end the transaction.
    """
    relays = os.getpid()
    try:
        yield
    except BaseException as exc:
        if os.getpid() != relays:
            _end_forked(operation, exc)
        raise
    if os.getpid() != relays:
        _end_forked(operation, None)


def _end_forked(operation: Operation, exc: BaseException | None) -> None:
    code: object = 0
    with suppress(Exception):
        if isinstance(exc, SystemExit):
            code = 0 if exc.code is None else exc.code
        elif exc is not None:
            code = 1
            traceback.print_exception(exc)
        sys.stderr.write(
            f"outbox: the handler of {operation.name!r} forked process {os.getpid()} and let it come back; "
            "it ends here: call os._exit() in it\n"
        )
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code & 0xFF if isinstance(code, int) else 1)


def _kept_out(raw: Any, operation: Operation, position: int) -> UnitFailed | None:
    """What to raise where an INSERT of the handler had to write a row and wrote none."""
    if raw.kept_out is None or operation.may_vanish:
        return None
    fault = OperationFault(
        f"an INSERT into {raw.kept_out} by the handler of {operation.name!r} wrote no row: a trigger or a rule keeps "
        "rows out",
        hint="correct it, or declare the operation with may_vanish=True; the entries wait",
    )
    return UnitFailed(fault, position, operation.name)


# Methods of a Connection that SQLAlchemy refuses within a transaction: the relay's has begun before the handler.
_OUTSIDE_ONLY = {
    Connection.begin.__code__: "begin()",
    Connection.begin_twophase.__code__: "begin_twophase()",
    Connection.execution_options.__code__: "execution_options(isolation_level=...)",
}


def _began(exc: BaseException, connection: Connection, operation: Operation, position: int) -> UnitFailed | None:
    """What to raise where SQLAlchemy has refused a method of `connection` that begins a transaction."""
    if not isinstance(exc, InvalidRequestError):
        return None
    for frame, _ in traceback.walk_tb(exc.__traceback__):
        called = _OUTSIDE_ONLY.get(frame.f_code)
        if called is not None and frame.f_locals.get("self") is connection:
            fault = OperationFault(
                f"the handler of {operation.name!r} called conn.{called}, and the relay's transaction has begun",
                hint="leave the call out: the relay begins and commits; to undo a part, use conn.begin_nested()",
            )
            return UnitFailed(fault, position, operation.name)
    return None


def _is_its_own(failure: Exception) -> bool:
    """Whether an error is neither PostgreSQL's nor an answer of the handler to the relay."""
    error = failure.error if isinstance(failure, UnitFailed) and failure.refused is None else None
    return isinstance(error, EntryRejected) and not error.permanent


def unrestorable(item: Record, exc: Unrestorable) -> EntryRejected:
    """The entry alone is concerned, whatever else the program can restore."""
    kind = UnknownClass if exc.class_is_unknown else EntryRejected
    return kind(f"entry {item.seq} cannot be restored: {exc}", permanent=True)


def ended(operation: Operation, how: str) -> OperationFault:
    """The fault of a handler that does not leave the relay's transaction to the relay."""
    return OperationFault(
        f"the handler of {operation.name!r} ended the relay's transaction: {how}",
        hint="it must not commit, roll back or close; to undo a part, use conn.begin_nested()",
    )


def _committed(operation: Operation, of_the_relay: bool) -> OperationFault:
    if of_the_relay:
        return ended(operation, "it called commit()")
    return OperationFault(
        f"the handler of {operation.name!r} commits on a connection of its own, made by conn.engine",
        hint="without the entry's receipt that would be written again; write on conn, and do not commit",
    )


def _how(raw: Any, commits: int, transaction: Any) -> str:
    """How a handler has ended the transaction; a text that only looks like a COMMIT counts as one."""
    if raw.commits != commits:
        return "it sent COMMIT, END or ROLLBACK"
    return "it sent ROLLBACK" if transaction.is_active else "it called rollback()"


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
