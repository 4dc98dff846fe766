"""What a failure means for the line; whatever is not known never drops an entry."""

from __future__ import annotations

import pytest

from outbox.errors import EntryRejected, OutboxError, RetryLater
from outbox.fate import (
    STALLS,
    Failed,
    Fate,
    OperationFault,
    UnknownClass,
    classify,
    of_batch,
    of_refusal,
    of_unit,
    spare_children,
)
from outbox.store.envelope import Record


@pytest.mark.parametrize(
    ("sqlstate", "fate"),
    [
        ("08006", Fate.OUTAGE),  # connection_failure
        ("08P01", Fate.OUTAGE),  # protocol_violation
        ("25006", Fate.OUTAGE),  # read_only_sql_transaction
        ("25P03", Fate.OUTAGE),  # idle_in_transaction_session_timeout
        ("25P04", Fate.OUTAGE),  # transaction_timeout
        ("40001", Fate.OUTAGE),  # serialization_failure
        ("40P01", Fate.OUTAGE),  # deadlock_detected
        ("53100", Fate.OUTAGE),  # disk_full
        ("53300", Fate.OUTAGE),  # too_many_connections
        ("55006", Fate.OUTAGE),  # object_in_use
        ("55P03", Fate.OUTAGE),  # lock_not_available
        ("57014", Fate.OUTAGE),  # query_canceled
        ("57P01", Fate.OUTAGE),  # admin_shutdown
        ("57P03", Fate.OUTAGE),  # cannot_connect_now
        ("58030", Fate.OUTAGE),  # io_error
        ("0A000", Fate.PARKED),  # feature_not_supported
        ("28P01", Fate.PARKED),  # invalid_password
        ("3D000", Fate.PARKED),  # invalid_catalog_name
        ("3F000", Fate.PARKED),  # invalid_schema_name
        ("42501", Fate.PARKED),  # insufficient_privilege
        ("42703", Fate.PARKED),  # undefined_column
        ("42P01", Fate.PARKED),  # undefined_table
        ("55000", Fate.PARKED),  # object_not_in_prerequisite_state
        ("F0000", Fate.PARKED),  # config_file_error
        ("HV00N", Fate.PARKED),  # fdw_unable_to_establish_connection
        ("22003", Fate.DEAD),  # numeric_value_out_of_range
        ("22P02", Fate.DEAD),  # invalid_text_representation
        ("23502", Fate.DEAD),  # not_null_violation
        ("23505", Fate.DEAD),  # unique_violation
        ("44000", Fate.DEAD),  # with_check_option_violation
        ("25001", Fate.PARKED),  # active_sql_transaction
        ("2D000", Fate.PARKED),  # invalid_transaction_termination
        ("25P02", Fate.RETRIED),  # in_failed_sql_transaction
        ("P0001", Fate.RETRIED),  # raise_exception
        ("XX000", Fate.RETRIED),  # internal_error
        ("ZZZZZ", Fate.RETRIED),
        ("", Fate.RETRIED),
        (None, Fate.RETRIED),
    ],
)
def test_sqlstates_on_a_working_connection(sqlstate: str | None, fate: Fate) -> None:
    assert classify(sqlstate, connected=True, data_error=False) is fate


@pytest.mark.parametrize("sqlstate", ["08001", "08006", "25006"])
def test_another_servers_outage_concerns_the_operation(sqlstate: str) -> None:
    assert classify(sqlstate, connected=True, data_error=False, applying=True) is Fate.PARKED
    assert classify(sqlstate, connected=False, data_error=False, applying=True) is Fate.OUTAGE


@pytest.mark.parametrize("sqlstate", [None, "23505", "42P01", "XX000"])
@pytest.mark.parametrize("data_error", [False, True])
def test_a_lost_connection_is_an_outage_whatever_else_was_said(sqlstate: str | None, data_error: bool) -> None:
    assert classify(sqlstate, connected=False, data_error=data_error) is Fate.OUTAGE


@pytest.mark.parametrize("sqlstate", [None, "XX000"])
def test_a_value_that_cannot_be_applied_is_rejected(sqlstate: str | None) -> None:
    assert classify(sqlstate, connected=True, data_error=True) is Fate.DEAD


def test_stalled_statement_is_an_outage() -> None:
    assert {classify(state, connected=True, data_error=False) for state in STALLS} == {Fate.OUTAGE}


# -- a unit, and its batch


def failed(seq: int, error: OutboxError, operation: str | None = "log", *, attempts: int = 0) -> Failed:
    record = Record(
        seq, b"k" * 16, b"i" * 16, operation or "log", None, b"p" * 16, b"s" * 8, b"{}", b"", attempts=attempts
    )
    return of_unit([record], error, operation)


PASSING, REFUSED = EntryRejected("passing", permanent=False), EntryRejected("refused", permanent=True)
FAULT = OperationFault("no such table", sqlstate="42P01")
NO_PRIVILEGE = OperationFault("no privilege", sqlstate="42501")
LATER, UNKNOWN = RetryLater("later"), UnknownClass("no such class", permanent=True)


@pytest.mark.parametrize(
    ("error", "operation", "fate"),
    [
        (REFUSED, "log", Fate.DEAD),
        (PASSING, "log", Fate.RETRIED),
        (LATER, "log", Fate.WAITS),
        (FAULT, "log", Fate.PARKED),
        (FAULT, None, Fate.WAITS),
    ],
)
def test_fate_of_a_unit_that_failed_alone(error: OutboxError, operation: str | None, fate: Fate) -> None:
    assert failed(1, error, operation).fate is fate


@pytest.mark.parametrize(
    ("units", "works", "fates", "parked"),
    [
        # Its table is missing, and what asks for time waits with the operation.
        ([failed(1, FAULT), failed(2, LATER)], set(), [Fate.PARKED, Fate.PARKED], {"log"}),
        ([failed(1, FAULT), failed(2, LATER)], {"log"}, [Fate.WAITS, Fate.WAITS], set()),
        # A policy refuses the row where others may be written, or where it was refused before.
        ([failed(1, NO_PRIVILEGE)], set(), [Fate.PARKED], {"log"}),
        ([failed(1, NO_PRIVILEGE)], {"log"}, [Fate.RETRIED], set()),
        ([failed(1, NO_PRIVILEGE, attempts=1)], set(), [Fate.RETRIED], set()),
        # All fail at their first try.
        ([failed(1, PASSING)], set(), [Fate.RETRIED], set()),
        ([failed(1, PASSING), failed(2, PASSING)], set(), [Fate.PARKED, Fate.PARKED], {"log"}),
        ([failed(1, PASSING), failed(2, PASSING, attempts=1)], set(), [Fate.RETRIED, Fate.RETRIED], set()),
        ([failed(1, PASSING), failed(2, PASSING)], {"other"}, [Fate.RETRIED, Fate.RETRIED], set()),
        ([failed(1, PASSING), failed(2, PASSING), failed(3, REFUSED)], set(), [*[Fate.RETRIED] * 2, Fate.DEAD], set()),
        # Many of an unknown class, or few.
        ([failed(seq, UNKNOWN) for seq in range(16)], set(), [Fate.PARKED] * 16, {"log"}),
        ([failed(seq, UNKNOWN) for seq in range(15)], set(), [Fate.DEAD] * 15, set()),
        ([failed(seq, UNKNOWN) for seq in range(16)], {"log"}, [Fate.DEAD] * 16, set()),
    ],
)
def test_fates_by_what_became_of_the_rest_of_the_batch(
    units: list[Failed], works: set[str], fates: list[Fate], parked: set[str]
) -> None:
    found, reasons = of_batch(units, works)
    assert [one.fate for one in found] == fates
    assert set(reasons) == parked


@pytest.mark.parametrize(
    ("error", "early", "may_retry", "best_effort", "fate"),
    [
        (PASSING, False, True, False, Fate.RETRIED),
        (PASSING, True, True, False, Fate.UNCOUNTED),
        (PASSING, True, False, False, Fate.UNCOUNTED),
        (PASSING, False, False, False, Fate.DEAD),
        (PASSING, False, False, True, Fate.DISCARDED),
        (REFUSED, False, True, False, Fate.DEAD),
        (REFUSED, False, True, True, Fate.DISCARDED),
    ],
)
def test_fate_of_a_refusal_by_its_attempts_and_operation(
    error: OutboxError, early: bool, may_retry: bool, best_effort: bool, fate: Fate
) -> None:
    assert of_refusal(failed(1, error), early=early, may_retry=may_retry, is_best_effort=best_effort) is fate


ORPHAN = EntryRejected("no parent", permanent=True, sqlstate="23503")


@pytest.mark.parametrize(
    ("older", "late", "fate"),
    [
        (failed(1, LATER), False, Fate.WAITS),
        (failed(1, PASSING), True, Fate.WAITS),
        (failed(1, FAULT), False, Fate.WAITS),
        (failed(1, FAULT, "note"), False, Fate.DEAD),
        (failed(1, REFUSED), False, Fate.DEAD),
        (failed(3, LATER), False, Fate.DEAD),
        (failed(1, REFUSED), True, Fate.RETRIED),
    ],
)
def test_row_waits_for_a_parent_that_may_still_come(older: Failed, late: bool, fate: Fate) -> None:
    found = spare_children(
        [older, failed(2, ORPHAN)],
        is_best_effort=lambda unit: unit[0].operation == "note",
        waits_before=lambda seq: False,
        may_be_late=lambda unit: late,
    )
    assert found[1].fate is fate


def test_row_waits_while_an_older_entry_of_another_batch_does() -> None:
    known = {"is_best_effort": lambda unit: False, "may_be_late": lambda unit: False}
    [waits] = spare_children([failed(2, ORPHAN)], waits_before=lambda seq: seq > 1, **known)
    [dead] = spare_children([failed(2, REFUSED)], waits_before=lambda seq: seq > 1, **known)
    assert (waits.fate, dead.fate) == (Fate.WAITS, Fate.DEAD)
