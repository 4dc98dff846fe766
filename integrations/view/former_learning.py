"""Former learning: what was learned of a manager by another store, or by another version of the code.

An engine that has traded on a test system has shown what its calls do; with the learned file of that store its first
day with real money begins with that knowledge.  What was learned of methods whose code is another one now is left out.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import orjson

from ... import Entry, Outbox
from ...errors import ConfigError
from ...log import Log
from ...results import decode_result
from ..manager.host_classes import HostClasses
from .learned import Learning
from .local_view import LocalView
from .reads import BALANCE, READ_ORDERS, READ_POSITIONS

# Where a store keeps what was learned.
KEPT_UNDER = "local_view:learned"

_FORMAT = 1
_WAY_OUT = "write it with `atb outbox learned --output FILE`, in the store of an engine that has traded"


@dataclass(frozen=True, slots=True)
class Kind:
    """Calls of one kind: a method, and what decides the effect of a call."""

    method: str
    decided_by: tuple[str, ...]
    # How many of them were seen.
    seen: int
    # What of their rows an outage does not answer.
    unexplained: tuple[str, ...]


def content(outbox: Outbox) -> bytes | None:
    """The file's content; None where the store has learned nothing."""
    learned = outbox.store.get_meta(KEPT_UNDER)
    if learned is None:
        return None
    enums = HostClasses.kept(outbox)
    return orjson.dumps({"format": _FORMAT, "enums": enums, "learned": orjson.Fragment(learned)}) + b"\n"


def carried_over(outbox: Outbox, path: str | PathLike[str]) -> bytes | None:
    """What the file says, for a store that has learned nothing itself; None for any other.

    The enum classes that its answers need are allowed in the store.  Raises `ConfigError`.
    """
    if outbox.store.get_meta(KEPT_UNDER) is not None:
        return None
    try:
        found = orjson.loads(Path(path).read_bytes())
        if found["format"] != _FORMAT:
            raise ConfigError(f"learned_from: {path} has format {found['format']!r}, not {_FORMAT}", hint=_WAY_OUT)
        learned = orjson.dumps(found["learned"])
        Learning().load(decode_result(learned))
        HostClasses.keep(outbox, {*map(str, found["enums"])})
    except OSError as exc:
        raise ConfigError(f"learned_from: {path} cannot be read: {exc.strerror}", hint=_WAY_OUT) from exc
    except (ValueError, LookupError, TypeError, AttributeError) as exc:
        raise ConfigError(f"learned_from: {path} says nothing that was learned of a manager", hint=_WAY_OUT) from exc
    return learned


def kinds(outbox: Outbox) -> list[Kind]:
    """The kinds of calls that the store has learned from, by method."""
    learned = outbox.store.get_meta(KEPT_UNDER)
    learning = Learning()
    if learned is not None:
        learning.load(decode_result(learned))
    found = sorted((kind, effect) for kind, effect in learning.effects.items() if effect.count)
    return [Kind(*_parts(kind), effect.count, tuple(sorted(effect.unexplained()))) for kind, effect in found]


def _parts(kind: str) -> tuple[str, tuple[str, ...]]:
    method, *decided_by = kind.split("|")
    return method, tuple(map(_in_words, decided_by))


def _in_words(part: str) -> str:
    if part.startswith("in "):
        return f"a row of {part[3:]}"
    return f"side={part[3:]} of the position" if part.startswith("of=") else part


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
