"""What a failure means for the line; whatever is not known never drops an entry."""

from __future__ import annotations

import pytest

from outbox.failures import STALLS, Verdict, classify


@pytest.mark.parametrize(
    ("sqlstate", "verdict"),
    [
        ("08006", Verdict.UNAVAILABLE),  # connection_failure
        ("08P01", Verdict.UNAVAILABLE),  # protocol_violation
        ("25006", Verdict.UNAVAILABLE),  # read_only_sql_transaction
        ("25P03", Verdict.UNAVAILABLE),  # idle_in_transaction_session_timeout
        ("25P04", Verdict.UNAVAILABLE),  # transaction_timeout
        ("40001", Verdict.UNAVAILABLE),  # serialization_failure
        ("40P01", Verdict.UNAVAILABLE),  # deadlock_detected
        ("53100", Verdict.UNAVAILABLE),  # disk_full
        ("53300", Verdict.UNAVAILABLE),  # too_many_connections
        ("55006", Verdict.UNAVAILABLE),  # object_in_use
        ("55P03", Verdict.UNAVAILABLE),  # lock_not_available
        ("57014", Verdict.UNAVAILABLE),  # query_canceled
        ("57P01", Verdict.UNAVAILABLE),  # admin_shutdown
        ("57P03", Verdict.UNAVAILABLE),  # cannot_connect_now
        ("58030", Verdict.UNAVAILABLE),  # io_error
        ("0A000", Verdict.MISCONFIGURED),  # feature_not_supported
        ("28P01", Verdict.MISCONFIGURED),  # invalid_password
        ("3D000", Verdict.MISCONFIGURED),  # invalid_catalog_name
        ("3F000", Verdict.MISCONFIGURED),  # invalid_schema_name
        ("42501", Verdict.MISCONFIGURED),  # insufficient_privilege
        ("42703", Verdict.MISCONFIGURED),  # undefined_column
        ("42P01", Verdict.MISCONFIGURED),  # undefined_table
        ("55000", Verdict.MISCONFIGURED),  # object_not_in_prerequisite_state
        ("F0000", Verdict.MISCONFIGURED),  # config_file_error
        ("HV00N", Verdict.MISCONFIGURED),  # fdw_unable_to_establish_connection
        ("22003", Verdict.REJECTED),  # numeric_value_out_of_range
        ("22P02", Verdict.REJECTED),  # invalid_text_representation
        ("23502", Verdict.REJECTED),  # not_null_violation
        ("23505", Verdict.REJECTED),  # unique_violation
        ("44000", Verdict.REJECTED),  # with_check_option_violation
        ("25001", Verdict.UNKNOWN),  # active_sql_transaction
        ("P0001", Verdict.UNKNOWN),  # raise_exception
        ("XX000", Verdict.UNKNOWN),  # internal_error
        ("ZZZZZ", Verdict.UNKNOWN),
        ("", Verdict.UNKNOWN),
        (None, Verdict.UNKNOWN),
    ],
)
def test_sqlstates_on_a_working_connection(sqlstate: str | None, verdict: Verdict) -> None:
    assert classify(sqlstate, connected=True, data_error=False) is verdict


@pytest.mark.parametrize("sqlstate", ["08001", "08006", "25006"])
def test_another_servers_outage_concerns_the_operation(sqlstate: str) -> None:
    assert classify(sqlstate, connected=True, data_error=False, applying=True) is Verdict.MISCONFIGURED
    assert classify(sqlstate, connected=False, data_error=False, applying=True) is Verdict.UNAVAILABLE


@pytest.mark.parametrize("sqlstate", [None, "23505", "42P01", "XX000"])
@pytest.mark.parametrize("data_error", [False, True])
def test_a_lost_connection_is_an_outage_whatever_else_was_said(sqlstate: str | None, data_error: bool) -> None:
    assert classify(sqlstate, connected=False, data_error=data_error) is Verdict.UNAVAILABLE


@pytest.mark.parametrize("sqlstate", [None, "XX000"])
def test_a_value_that_cannot_be_applied_is_rejected(sqlstate: str | None) -> None:
    assert classify(sqlstate, connected=True, data_error=True) is Verdict.REJECTED


def test_stalled_statement_is_an_outage() -> None:
    assert {classify(state, connected=True, data_error=False) for state in STALLS} == {Verdict.UNAVAILABLE}
