"""Stand-in: what a durable manager does before it has an outbox."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from outbox.integrations.durable import DurableDatabaseManager


class Away:
    """A manager whose constructor finds no PostgreSQL."""

    session_factory: Any = None

    def __init__(self) -> None:
        raise OperationalError("SELECT 1", None, Exception("Connection refused"))

    def log_event(self, number: int) -> None:
        """Never called: there is no object."""


def test_best_effort_calls_before_wire_are_kept_up_to_1000() -> None:
    """The oldest are dropped: an engine that is never wired must not use up the memory."""
    manager: Any = DurableDatabaseManager.of(Away)()
    for number in range(1003):
        assert manager.log_event(number) is None
    kept = [args for _, args, _, _ in manager._durable.kept]
    assert kept == [(number,) for number in range(3, 1003)]


def test_kept_calls_of_an_operation_are_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    manager: Any = DurableDatabaseManager.of(Away)()
    with caplog.at_level(logging.INFO, "outbox.integrations"):
        for number in range(3):
            manager.log_event(number)
    assert ["is kept until there is an outbox" in one.message for one in caplog.records] == [True]
