"""Fate: what becomes of entries that were not applied.  All of that is decided in this file.

A unit's fate is found step by step, since each step knows more than the one before:

1. `classify`: one failure, by phase, connection state and SQLSTATE.
2. `of_unit`: the unit was tried alone, and `postgres/blame.py` has asked PostgreSQL whether its data is the cause.
3. `of_batch`: what became of the other entries of the batch: the cause may be their operation.
4. `spare_children`: older entries wait, and the row may refer to one of theirs.
5. `of_refusal`: its attempts, and whether its operation is best effort.

The relay carries the result out (`relay/settling.py`).  An `OUTAGE` and a `STOPPED` line concern no unit: nothing is
delivered, and no attempt is counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass, replace
from enum import Enum

from .errors import EntryRejected, OutboxError, RetryLater, TargetMisconfigured, TargetUnavailable
from .store.envelope import Unit


class Fate(Enum):
    """What becomes of a unit that was not applied; the first two: of the line."""

    # PostgreSQL cannot take writes now: everything is tried again, for ever.
    OUTAGE = "outage"
    # Nothing can be delivered until an operator corrects something; it is tried again all the same.
    STOPPED = "stopped"
    # The operation cannot be applied: all of its entries wait, and are tried again with backoff.
    PARKED = "parked"
    # The unit alone waits, and is tried again with backoff; no attempt is counted.
    WAITS = "waits"
    # It was refused and may pass: tried again with backoff, and an attempt is counted.
    RETRIED = "retried"
    # The same at a try before its time, for a caller: not counted.
    UNCOUNTED = "uncounted"
    # Refused for good: a dead letter, or given up where all of the unit is best effort.
    DEAD = "dead"
    DISCARDED = "discarded"

    @property
    def waits(self) -> bool:
        """Whether the unit's data is not the cause."""
        return self in (Fate.PARKED, Fate.WAITS)


class OperationFault(TargetMisconfigured):
    """An operation cannot be applied, with the SQLSTATE that PostgreSQL gave, or None."""

    def __init__(self, message: str, *, hint: str = "", sqlstate: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.sqlstate = sqlstate


class UnknownClass(EntryRejected):
    """An entry holds a member of an Enum that this process does not know: renamed, or not registered here."""


@dataclass(frozen=True, slots=True)
class Failed:
    """A unit that was not applied, and what becomes of it."""

    unit: Unit
    error: OutboxError
    fate: Fate
    # Whose trouble that is; None where only this unit is known to be concerned.
    operation: str | None = None

    @property
    def seq(self) -> int:
        """The sequence number of its first entry."""
        return self.unit[0].seq

    @property
    def holds_back(self) -> bool:
        """Whether later entries of its ordering keys wait for it; those of a group always do."""
        return not isinstance(self.error, EntryRejected) or self.error.holds_back or any(one.group for one in self.unit)


# -- one failure

# Never by message text, which is translated and changes between versions.  Codes of PostgreSQL: its documentation,
# appendix A.  Whole codes first, then classes (the first two characters).
_FATES = {
    "2200H": Fate.PARKED,  # sequence_generator_limit_exceeded
    "25001": Fate.PARKED,  # active_sql_transaction: a handler sets what only the first statement may
    "25006": Fate.OUTAGE,  # read_only_sql_transaction: a standby, or a full disk's read-only mode
    "25P03": Fate.OUTAGE,  # idle_in_transaction_session_timeout
    "25P04": Fate.OUTAGE,  # transaction_timeout
    "55000": Fate.PARKED,  # object_not_in_prerequisite_state: a view, no replica identity, no currval yet
    "55P03": Fate.OUTAGE,  # lock_not_available
    "55006": Fate.OUTAGE,  # object_in_use
    "44000": Fate.DEAD,  # with_check_option_violation
    "08": Fate.OUTAGE,  # connection exception
    "40": Fate.OUTAGE,  # transaction rollback: serialisation, deadlock, statement completion unknown
    "53": Fate.OUTAGE,  # insufficient resources: disk full, out of memory, too many connections
    "57": Fate.OUTAGE,  # operator intervention: shutdown, cannot connect now, query canceled
    "58": Fate.OUTAGE,  # system error: I/O error
    "28": Fate.PARKED,  # invalid authorization
    "2D": Fate.PARKED,  # invalid transaction termination: a procedure or a DO block commits
    "3D": Fate.PARKED,  # no such database
    "3F": Fate.PARKED,  # no such schema
    "42": Fate.PARKED,  # undefined table or column, insufficient privilege, syntax
    "0A": Fate.PARKED,  # feature not supported
    "F0": Fate.PARKED,  # configuration file error
    "HV": Fate.PARKED,  # foreign data wrapper
    "22": Fate.DEAD,  # data exception
    "23": Fate.DEAD,  # integrity constraint violation
}
# Server-side timeouts: the batch may have been too large.
STALLS = frozenset({"57014", "25P04"})
# Fewer entries at once may pass: they need less memory and fewer locks, and meet fewer other transactions.
CONTENTIONS = frozenset({"53200", "53400", "40001", "40P01"})
# Another transaction was in the way: under SERIALIZABLE a matter of course.
CONFLICTS = frozenset({"40001", "40P01"})


# Violations that name a table and no constraint: of a row that belongs to no partition.
UNNAMED = frozenset({"23514"})
# While an entry is applied on a working connection, these come from another server, behind a foreign table or dblink.
_ELSEWHERE = frozenset({"08", "25006"})
FOREIGN_KEY = "23503"
UNIQUE = "23505"
INTEGRITY = "23"
OUT_OF_RANGE = "22003"
PRIVILEGE = "42501"


def classify(sqlstate: str | None, *, connected: bool, data_error: bool, applying: bool = False) -> Fate:
    """The fate that one failure calls for: `OUTAGE`, `PARKED` (or `STOPPED`, where no entry is concerned), `DEAD`.

    `RETRIED` where nothing is known: unknown never means drop.  `sqlstate` is None where the driver gave none, as it
    does for connection failures of all kinds and for values it cannot send.  `connected`: whether the connection still
    works.  `data_error`: whether the handler raised `Reject`: the entry can never be applied.  `applying`: whether a
    statement of an entry failed, not one of the relay's own.
    """
    if not connected:
        return Fate.OUTAGE
    if data_error:
        return Fate.DEAD
    if sqlstate is None:
        return Fate.RETRIED
    if applying and not _ELSEWHERE.isdisjoint((sqlstate, sqlstate[:2])):
        return Fate.PARKED
    return _FATES.get(sqlstate) or _FATES.get(sqlstate[:2]) or Fate.RETRIED


def of_line(error: OutboxError) -> Fate | None:
    """The fate of the line where a delivery ended with `error`; None where the store failed, and not the target."""
    if isinstance(error, TargetUnavailable):
        return Fate.OUTAGE
    return Fate.STOPPED if isinstance(error, TargetMisconfigured) else None


def of_unit(unit: Unit, error: OutboxError, operation: str | None) -> Failed:
    """A unit that failed when it was tried alone; `operation` as in `Failed`."""
    if isinstance(error, EntryRejected):
        return Failed(unit, error, Fate.DEAD if error.permanent else Fate.RETRIED, operation)
    alone = operation is None or isinstance(error, RetryLater)
    return Failed(unit, error, Fate.WAITS if alone else Fate.PARKED, operation)


# -- one batch

# So many failures by unknown classes are the operation's fault, not that of single entries.
_MANY_UNKNOWN = 16


def of_batch(failed: Iterable[Failed], works: Set[str]) -> tuple[list[Failed], dict[str, OutboxError]]:
    """What becomes of units whose batch has ended, and the parked operations with the reasons.

    An operation is parked while its table is missing, its handler is broken, or triggers keep its rows out.  `works`
    are the operations of which entries were applied: of those only what failed waits.
    """
    parked: dict[str, OutboxError] = {}
    found = [_beside_others(one, works) for one in failed]
    for one in found:
        if one.fate is Fate.PARKED:
            parked.setdefault(str(one.operation), one.error)
    found = _park_where_none_is_known(found, works, parked)
    if not works and not any(one.fate is Fate.DEAD for one in found):
        found = _park_where_all_fail(found, parked)
    # A unit that asked for time waits with its operation.
    parking = (one.fate is Fate.WAITS and one.operation in parked for one in found)
    return [replace(one, fate=Fate.PARKED) if parks else one for one, parks in zip(found, parking, strict=True)], parked


def _beside_others(one: Failed, works: Set[str]) -> Failed:
    if one.fate is not Fate.PARKED:
        return one
    refused = isinstance(one.error, OperationFault) and one.error.sqlstate == PRIVILEGE
    if refused and (one.operation in works or one.unit[0].attempts):
        # Others may be written: it is a policy that refuses this row.
        return Failed(one.unit, EntryRejected(str(one.error), permanent=False, sqlstate=PRIVILEGE), Fate.RETRIED)
    return replace(one, fate=Fate.WAITS) if one.operation in works else one


def _park_where_none_is_known(found: list[Failed], works: Set[str], parked: dict[str, OutboxError]) -> list[Failed]:
    """Many entries with an unknown class, and none that works: the process has registered nothing, most likely."""
    unknown: dict[str, list[Failed]] = {}
    for one in found:
        if isinstance(one.error, UnknownClass):
            unknown.setdefault(one.unit[0].operation, []).append(one)
    for operation, concerned in unknown.items():
        if len(concerned) >= _MANY_UNKNOWN and operation not in works:
            parked.setdefault(operation, concerned[0].error)
            parks = {one.seq for one in concerned}
            found = [Failed(one.unit, one.error, Fate.PARKED, operation) if one.seq in parks else one for one in found]
    return found


def _park_where_all_fail(found: list[Failed], parked: dict[str, OutboxError]) -> list[Failed]:
    """Everything failed at its first try, and no error names the data: the handler or the database is the cause."""
    fresh = {one.seq for one in found if one.fate is Fate.RETRIED and not one.unit[0].attempts}
    if len(fresh) < 2:
        return found
    parking = []
    for one in found:
        if one.seq in fresh:
            operation = one.unit[0].operation
            parked.setdefault(operation, TargetMisconfigured(f"every entry of {operation!r} fails: {one.error}"))
            parking.append(Failed(one.unit, one.error, Fate.PARKED, operation))
        else:
            parking.append(one)
    return parking


# -- what the relay knows besides


def spare_children(
    failed: Sequence[Failed],
    *,
    is_best_effort: Callable[[Unit], bool],
    waits_before: Callable[[int], bool],
    may_be_late: Callable[[Unit], bool],
) -> list[Failed]:
    """Rows may refer to a row that is still to come: they wait while an older entry does.

    `waits_before`: whether an entry older than a sequence number may still be applied.  `may_be_late`: whether the
    other row may come from another connection or another store, which has been in the same outage: what was late is
    tried again.  Not for a parked best-effort operation: each would wait for the other for ever.
    """
    older = [
        one.seq
        for one in failed
        if one.fate in (Fate.WAITS, Fate.RETRIED) or (one.fate is Fate.PARKED and not is_best_effort(one.unit))
    ]
    found = []
    for one in failed:
        if isinstance(one.error, EntryRejected) and one.fate is Fate.DEAD and one.error.sqlstate == FOREIGN_KEY:
            if min(older, default=one.seq) < one.seq or waits_before(one.seq):
                one = Failed(one.unit, one.error, Fate.WAITS)
            elif may_be_late(one.unit):
                passing = EntryRejected(str(one.error), permanent=False, sqlstate=FOREIGN_KEY)
                one = Failed(one.unit, passing, Fate.RETRIED)
        found.append(one)
    return found


def of_refusal(one: Failed, *, early: bool, may_retry: bool, is_best_effort: bool) -> Fate:
    """What becomes of a refused unit.

    `early`: whether it was tried before its time, for a caller: such a try is not counted, else a caller who waits
    would turn a refusal that passes into a dead letter.  `may_retry`: whether attempts are left.
    """
    if one.fate is Fate.RETRIED and early:
        return Fate.UNCOUNTED
    if one.fate is Fate.RETRIED and may_retry:
        return Fate.RETRIED
    return Fate.DISCARDED if is_best_effort else Fate.DEAD
