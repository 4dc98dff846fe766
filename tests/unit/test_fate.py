"""What a failure means for the line; whatever is not known never drops an entry."""

from __future__ import annotations

import pytest

from outbox.fate import STALLS, Fate, classify


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
        ("25001", Fate.RETRIED),  # active_sql_transaction
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
