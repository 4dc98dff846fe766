"""Resumptions: calls that begin a session, or go on with the active one of the same strategy and symbol.

An engine that resumes by name makes the same call at each start.  In an outage it must get the id that it had.
"""

from __future__ import annotations

from typing import Any

from ..operations import Call, ManagerOperation
from .local_view import LocalView


def resumed(view: LocalView, operation: ManagerOperation, call: Call, *, likely: bool) -> Any:
    """The session with which a call will go on; None for a new one.  `likely`: what counts before any was seen."""
    with view.lock:
        return _alike(view, operation, call, None) if view.learning.habits.resumes.get(operation.name, likely) else None


def learn(view: LocalView, operation: ManagerOperation, call: Call, told: Any, answer: Any) -> bool:
    """Learn from a call to whose caller the id `told` was given; whether it went on with an earlier session."""
    learning, alike = view.learning, _alike(view, operation, call, told)
    if isinstance(answer, bool) or type(answer) is not type(told):
        return False
    if answer == told:
        if alike is not None:
            learning.habits.resumes[operation.name] = False
            learning.version += 1
        return False
    learning.habits.resumes[operation.name] = True
    learning.version += 1
    # Under the new id there is nothing.
    view.sessions.pop(told, None)
    if answer in view.sessions:
        names = {name: operation.standard(call).get(name) for name in ("strategy_name", "symbol")}
        view.sessions[answer] = {**view.sessions[answer], **names}
    return True


def _alike(view: LocalView, operation: ManagerOperation, call: Call, but: Any) -> Any:
    standard = operation.standard(call)
    wanted = [standard.get(name) for name in ("strategy_name", "symbol")]
    found = (
        id_
        for id_, row in view.sessions.items()
        if id_ != but and row["active"] and [row["strategy_name"], row["symbol"]] == wanted
    )
    return max(found, default=None)
