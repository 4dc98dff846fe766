"""Parking: whether a failure concerns an entry, or its whole operation, whose entries then wait.

An operation is parked while its table is missing, while its handler is broken, or while triggers keep its rows out: the
entries' data is not the cause, and entries of other operations go on.  If other entries of the operation can be
applied, only those that failed wait.
"""

from __future__ import annotations

from ..errors import EntryRejected, OutboxError, RetryLater, TargetMisconfigured
from ..failures import PRIVILEGE
from ..target import Outcome, Unit, Waiting, units

# So many failures by unknown classes are the operation's fault, not that of single entries.
_MANY_UNKNOWN = 16


class OperationFault(TargetMisconfigured):
    """An operation cannot be applied, with the SQLSTATE that PostgreSQL gave, or None."""

    def __init__(self, message: str, *, hint: str = "", sqlstate: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.sqlstate = sqlstate


class UnknownClass(EntryRejected):
    """An entry holds a member of an Enum that this process does not know: renamed, or not registered here."""


def park(outcome: Outcome) -> None:
    """Decide of what waits in `outcome`, and of what may pass, whether all of an operation is concerned."""
    works = {record.operation for record, _ in outcome.completed}
    waiting, outcome.waiting = outcome.waiting, []
    for one in waiting:
        if isinstance(one.error, RetryLater) or one.operation is None:
            outcome.waiting.append(one)
        elif _is_refusal(one.error) and (one.operation in works or one.unit[0].attempts):
            # Others may be written: it is a policy that refuses this row.
            error = EntryRejected(str(one.error), permanent=False, sqlstate=PRIVILEGE)
            outcome.rejected += [(record, error) for record in one.unit]
        elif one.operation not in works:
            outcome.parked.setdefault(one.operation, one.error)
            outcome.waiting.append(one)
        else:
            outcome.waiting.append(one)
    _park_where_none_is_known(outcome, works)
    if not outcome.completed and not any(error.permanent for _, error in outcome.rejected):
        _park_where_all_fail(outcome)


def _park_where_none_is_known(outcome: Outcome, works: set[str]) -> None:
    """Many entries with an unknown class, and none that works: the process has registered nothing, most likely."""
    unknown = {record.seq: error for record, error in outcome.rejected if isinstance(error, UnknownClass)}
    found: dict[str, list[Unit]] = {}
    for unit in units(record for record, _ in outcome.rejected if record.seq in unknown):
        found.setdefault(unit[0].operation, []).append(unit)
    for operation, concerned in found.items():
        if len(concerned) >= _MANY_UNKNOWN and operation not in works:
            outcome.parked.setdefault(operation, unknown[concerned[0][0].seq])
            outcome.waiting += [Waiting(unit, unknown[unit[0].seq], operation) for unit in concerned]
    waiting = {record.seq for one in outcome.waiting for record in one.unit}
    outcome.rejected = [(record, error) for record, error in outcome.rejected if record.seq not in waiting]


def _is_refusal(error: OutboxError) -> bool:
    return isinstance(error, OperationFault) and error.sqlstate == PRIVILEGE


def _park_where_all_fail(outcome: Outcome) -> None:
    """Everything failed at its first try, and no error names the data: the handler or the database is the cause."""
    fresh = [(record, error) for record, error in outcome.rejected if not record.attempts]
    if len({record.group or record.seq for record, _ in fresh}) < 2:
        return
    errors = {record.seq: error for record, error in fresh}
    for unit in units(record for record, _ in fresh):
        operation, error = unit[0].operation, errors[unit[0].seq]
        outcome.parked.setdefault(operation, _all_fail(operation, error))
        outcome.waiting.append(Waiting(unit, error, operation))
    outcome.rejected = [(record, error) for record, error in outcome.rejected if record.attempts]


def _all_fail(operation: str, error: OutboxError) -> OutboxError:
    return TargetMisconfigured(f"every entry of {operation!r} fails: {error}")
