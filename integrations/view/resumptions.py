"""Resumptions: calls that begin a session, or go on with the active one of the same strategy and symbol.

An engine that resumes by name makes the same call at each start.  In an outage it must get the id that it had.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .local_view import NAMES, LocalView

if TYPE_CHECKING:
    from ..operations import ManagerOperation

Call = Mapping[str, Any]


def resumed(view: LocalView, operation: ManagerOperation, call: Call, *, likely: bool) -> Any:
    """The session with which a call will go on; None for a new one.  `likely`: what counts before any was seen."""
    with view.lock:
        return _alike(view, operation, call, None) if view.learning.habits.resumes.get(operation.name, likely) else None


def learn(view: LocalView, operation: ManagerOperation, call: Call, notes: Call, answer: Any) -> bool:
    """Learn from a call; whether its caller was given, or the manager went on with, an earlier session."""
    told: Any = notes.get("id")
    expected = "resumes" in notes
    if isinstance(answer, bool) or type(answer) is not type(told):
        return expected
    went_on = (answer == told) is expected
    if went_on or expected or _alike(view, operation, call, told) is not None:
        view.learning.habits.resumes[operation.name] = went_on
        view.learning.version += 1
    if went_on and not expected:
        # Under the new id there is nothing.
        view.sessions.pop(told, None)
        if answer in view.sessions:
            names = {name: operation.standard(call).get(name) for name in NAMES}
            view.sessions[answer] = {**view.sessions[answer], **names}
    return went_on or expected


def _alike(view: LocalView, operation: ManagerOperation, call: Call, but: Any) -> Any:
    standard = operation.standard(call)
    wanted = [standard.get(name) for name in NAMES]
    found = (
        id_
        for id_, row in view.sessions.items()
        if id_ != but and row["active"] and [row[name] for name in NAMES] == wanted
    )
    return max(found, default=None)
