"""Learned file: what one store has learned of a manager, for another store of the same manager and tables.

An engine that has traded on a test system has shown what its calls do; with the file its first day with real money
begins with that knowledge.
"""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import orjson

from ... import Outbox
from ...errors import ConfigError
from ...results import decode_result
from ..manager.host_classes import HostClasses
from .learned import Learning

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
