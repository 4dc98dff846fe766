"""Classes of failures at PostgreSQL: by phase, connection state and SQLSTATE, never by message text.

Never by message text, which is translated and changes between versions.  What is not listed is UNKNOWN, and unknown
never means drop.  Codes: PostgreSQL documentation, appendix A.
"""

from __future__ import annotations

from enum import Enum


class Verdict(Enum):
    """UNAVAILABLE: an outage, retried for ever.  MISCONFIGURED: the same, and a person is called.

    REJECTED: this entry's data is refused for good.  UNKNOWN: this entry failed for a reason that may pass.
    """

    UNAVAILABLE = "unavailable"
    MISCONFIGURED = "misconfigured"
    REJECTED = "rejected"
    UNKNOWN = "unknown"


# Whole codes first, then classes (the first two characters).
_VERDICTS = {
    "2200H": Verdict.MISCONFIGURED,  # sequence_generator_limit_exceeded
    "25006": Verdict.UNAVAILABLE,  # read_only_sql_transaction: a standby, or a full disk's read-only mode
    "25P03": Verdict.UNAVAILABLE,  # idle_in_transaction_session_timeout
    "25P04": Verdict.UNAVAILABLE,  # transaction_timeout
    "55000": Verdict.MISCONFIGURED,  # object_not_in_prerequisite_state: a view, no replica identity, no currval yet
    "55P03": Verdict.UNAVAILABLE,  # lock_not_available
    "55006": Verdict.UNAVAILABLE,  # object_in_use
    "44000": Verdict.REJECTED,  # with_check_option_violation
    "08": Verdict.UNAVAILABLE,  # connection exception
    "40": Verdict.UNAVAILABLE,  # transaction rollback: serialisation, deadlock, statement completion unknown
    "53": Verdict.UNAVAILABLE,  # insufficient resources: disk full, out of memory, too many connections
    "57": Verdict.UNAVAILABLE,  # operator intervention: shutdown, cannot connect now, query canceled
    "58": Verdict.UNAVAILABLE,  # system error: I/O error
    "28": Verdict.MISCONFIGURED,  # invalid authorization
    "3D": Verdict.MISCONFIGURED,  # no such database
    "3F": Verdict.MISCONFIGURED,  # no such schema
    "42": Verdict.MISCONFIGURED,  # undefined table or column, insufficient privilege, syntax
    "0A": Verdict.MISCONFIGURED,  # feature not supported
    "F0": Verdict.MISCONFIGURED,  # configuration file error
    "HV": Verdict.MISCONFIGURED,  # foreign data wrapper
    "22": Verdict.REJECTED,  # data exception
    "23": Verdict.REJECTED,  # integrity constraint violation
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


def classify(sqlstate: str | None, *, connected: bool, data_error: bool, applying: bool = False) -> Verdict:
    """The verdict on one failure.

    `sqlstate` is None where the driver gave none, as it does for connection failures of all kinds and for values it
    cannot send.  `connected`: whether the connection still works.  `data_error`: whether the handler raised `Reject`:
    the entry can never be applied.  `applying`: whether a statement of an entry failed, not one of the relay's own.
    """
    if not connected:
        return Verdict.UNAVAILABLE
    if data_error:
        return Verdict.REJECTED
    if sqlstate is None:
        return Verdict.UNKNOWN
    if applying and not _ELSEWHERE.isdisjoint((sqlstate, sqlstate[:2])):
        return Verdict.MISCONFIGURED
    return _VERDICTS.get(sqlstate) or _VERDICTS.get(sqlstate[:2]) or Verdict.UNKNOWN
