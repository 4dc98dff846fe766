"""Blame: why a unit failed that was tried alone: for its data, its operation, or a sequence that is behind its rows.

Only for its data is an entry given up; for anything else it waits.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import EntryRejected, OutboxError, TargetMisconfigured, TargetUnavailable
from ..fate import UNIQUE, OperationFault
from ..operation import Operation
from ..target import Unit
from .alterations import Alterations, RefusedStatement
from .connection import GuardedConnection, UnitFailed
from .left_out import given_by, why_left_out
from .rows import quote_table
from .sequences import Taken, taken_number


class Blame:
    """Asks PostgreSQL on one lane's connection; used by the thread that uses that."""

    def __init__(self, link: GuardedConnection, operations: Mapping[str, Operation], alterations: Alterations) -> None:
        self._link, self._operations, self._alterations = link, operations, alterations

    def number_of(self, failed: UnitFailed) -> Taken | None:
        """The number of a sequence that a unique index may have refused; only the session that got it knows."""
        refused = failed.refused
        if refused is None or refused.sqlstate != UNIQUE or (connection := self._link.current) is None:
            return None
        try:
            with self._link.translated(), self._link.guard(), self._link.own_statements(), connection.begin():
                return taken_number(self._link.opening_cursor(connection), refused)
        except (TargetUnavailable, TargetMisconfigured):
            failed.error, failed.refused = EntryRejected(str(failed.error), permanent=False), None
            return None

    def of(self, unit: Unit, failed: UnitFailed, number: Taken | None) -> tuple[OutboxError, str | None]:
        """Why the unit failed, and whose operation's trouble that is, if it is one's.

        `number`: what a sequence has given the unit's rows that is in use already.
        """
        operations = {item.operation for item in unit}
        operation = failed.operation or (operations.pop() if len(operations) == 1 else None)
        refused = failed.refused
        if refused is None:
            return failed.error, operation
        if number is not None:
            hint = f"set sequence {number.sequence} forward, it is behind its rows; the entries wait"
            return OperationFault(str(failed.error), hint=hint), operation
        try:
            way_out = self._way_out(unit, refused, operation)
        except (TargetUnavailable, TargetMisconfigured):
            # Not known, so the entry is not given up for it.
            return EntryRejected(str(failed.error), permanent=False), operation
        return OperationFault(str(failed.error), hint=way_out) if way_out else failed.error, operation

    def _way_out(self, unit: Unit, refused: RefusedStatement, operation: str | None) -> str | None:
        """What an operator can do where the data is not the cause, or None where it is."""
        table = self._operations[operation].table_path if operation and operation in self._operations else ()
        item = next((one for one in unit if one.operation == operation), unit[0])
        given = given_by(refused, table, [one for one in unit if one.operation == operation])
        if given is None and not self._alterations.may_concern(item):
            return None
        with self._link.translated(), self._link.own_statements():
            connection = self._link.get()
            with self._link.guard(), connection.begin():
                cursor = self._link.opening_cursor(connection)
                why = None if given is None else why_left_out(cursor, refused, given)
                path = quote_table(table) if table else None
                altered = self._alterations.between(cursor, item, refused, path)
        if why is None and altered is not None:
            return f"altered since the entry was enqueued: {altered}; alter it back, or discard the entry; it waits"
        return why
