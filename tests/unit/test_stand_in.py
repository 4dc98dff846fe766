"""Stand-in: what a durable manager does before it has an outbox."""

from __future__ import annotations

from typing import Any

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
