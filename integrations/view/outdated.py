"""Outdated: leaves out what was learned of methods whose code is another one now."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from ... import Entry
from ...log import Log
from .learned import Learning
from .local_view import LocalView
from .reads import BALANCE, READ_ORDERS, READ_POSITIONS

_log = Log("outbox.integrations")

# Reads by whose answers everything is learned.
_SHOWING = frozenset({BALANCE, READ_POSITIONS, READ_ORDERS})
# What is known by the name of a method, and what by a name that begins with it and a separator.
_BY_NAME = ("reads", "yields", "current", "merges", "resumes", "written", "side_rows")
_BY_BEGINNING = {"agrees": "(", "effects": "|", "shapes": "|", "limits": ":"}


def take_over(learning: Learning, state: Mapping[str, Any], *, elsewhere: bool = False) -> set[str]:
    """Take over what `Learning.dump` gave, but for methods that have another code now; returns those.

    `elsewhere`: of another store.
    """
    code = learning.present.versions
    # A store of an earlier version of this library does not say from which code it has learned.
    known = state.get("code") or code
    former = {name for name in {*known, *code} if _is_other(known.get(name), code.get(name))} if code else set[str]()
    if former:
        state = _without(state, former)
        _log.warning(
            "the code of %(methods)s has changed: an outage answers reads after such calls once they were seen again",
            methods=", ".join(sorted(former)),
        )
    if elsewhere:
        learning.take_over(state)
    else:
        learning.load(state)
    learning.code = code or learning.code
    return former


def _is_other(former: str | None, present: str | None) -> bool:
    if former is None or present is None:
        return former is not present
    # One with its source and one without cannot be compared: see `code_version`.
    return former != present and former.partition(":")[0] == present.partition(":")[0]


def _without(state: Mapping[str, Any], methods: Collection[str]) -> dict[str, Any]:
    if not _SHOWING.isdisjoint(methods):
        return {**Learning().dump(), "taken": state["taken"]}
    left = dict(state)
    for part in _BY_NAME:
        left[part] = {name: one for name, one in state.get(part, {}).items() if name not in methods}
    for part, separator in _BY_BEGINNING.items():
        found = state.get(part, {})
        left[part] = {name: one for name, one in found.items() if name.partition(separator)[0] not in methods}
    return left


def doubt(view: LocalView, methods: Collection[str], pending: Iterable[Entry]) -> set[Any]:
    """Doubt what the view has by former code of `methods`; returns the sessions.

    `pending`: the entries that wait and that the view has followed: their deliveries run the present code.
    """
    everything = not _SHOWING.isdisjoint(methods)
    waiting = {one.args["_outbox"].get("session") for one in pending if one.operation in methods}
    found = {session_id for session_id in view.sessions if everything or session_id in waiting}
    for session_id in found:
        view.doubt_apart(session_id, f"the code of {', '.join(sorted(methods))} has changed since")
    return found
