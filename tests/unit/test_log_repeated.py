"""Warnings that hold for a while are logged once."""

from __future__ import annotations

import logging

import pytest

from outbox.log import Log, Repeated


def test_repeated_warning_is_logged_once_until_it_is_over(caplog: pytest.LogCaptureFixture) -> None:
    repeated = Repeated(Log("outbox.integrations"))
    with caplog.at_level(logging.DEBUG, logger="outbox.integrations"):
        for age_s in (1, 2):
            repeated.warn("halt", "answered as of %(age_s)s s ago", age_s=age_s)
        repeated.warn("peak", "answered as of %(age_s)s s ago", age_s=3)
        repeated.over("halt")
        repeated.warn("halt", "answered as of %(age_s)s s ago", age_s=4)
    said = [(record.levelname, record.getMessage().split()[3]) for record in caplog.records]
    assert said == [("WARNING", "1"), ("DEBUG", "2"), ("WARNING", "3"), ("WARNING", "4")]


def test_repeated_error_has_a_traceback_once(caplog: pytest.LogCaptureFixture) -> None:
    repeated = Repeated(Log("outbox.integrations"))
    with caplog.at_level(logging.DEBUG, logger="outbox.integrations"):
        for _ in range(2):
            try:
                raise ValueError("of the manager's")
            except ValueError:
                repeated.error("look", "the account could not be looked up")
    assert [(record.levelname, bool(record.exc_info)) for record in caplog.records] == [
        ("ERROR", True),
        ("DEBUG", False),
    ]


def test_error_behind_a_warning_of_its_subject_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """The background work that an outage has stopped meets a defect when PostgreSQL is back."""
    repeated = Repeated(Log("outbox.integrations"))
    with caplog.at_level(logging.INFO, logger="outbox.integrations"):
        repeated.warn("look", "the account could not be looked up")
        try:
            raise ValueError("of the manager's")
        except ValueError:
            repeated.error("look", "the account could not be looked up")
    assert [record.levelname for record in caplog.records] == ["WARNING", "ERROR"]
