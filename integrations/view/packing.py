"""Packing: answers of a manager in a form that can be stored, with its objects, rows, and dicts in their order."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from ... import InvalidEntry
from ...codec import encode
from .containers import SIMPLE, is_value, put_together, taken_apart

# Deeper than this an object holds one that holds it.
_DEEPEST = 12
_LEAF, _KEYS = "=", "{}"
_OBJECTS = ("mapped", "named", "row", "row mapping", "mapping")


def packed(answer: Any, met: Callable[[Any], bool] = lambda _: False, depth: int = 0) -> list[Any]:
    """An answer in lists and what can be stored as it is.

    `met(values)` gets what may hold members of new enum classes, and returns whether there were any.
    Raises `InvalidEntry`.
    """
    if depth > _DEEPEST:
        raise InvalidEntry(
            f"the answer is nested deeper than {_DEEPEST} levels, or contains itself",
            hint="declare the read without keep_last",
        )
    kind = type(answer)
    if answer is None or kind in SIMPLE:
        return [_LEAF, answer]
    if kind in (list, tuple):
        return [kind.__name__, [packed(one, met, depth + 1) for one in answer]]
    if kind is dict:
        return [_KEYS, [[key, packed(one, met, depth + 1)] for key, one in answer.items()]]
    try:
        encode(answer)
    except InvalidEntry:
        container, values = taken_apart(answer)
        if container[0] in _OBJECTS or dataclasses.is_dataclass(answer) or is_value(container, values, answer):
            return [container, [[name, packed(one, met, depth + 1)] for name, one in values.items()]]
        if not met(answer):
            raise
        encode(answer)
    return [_LEAF, answer]


def unpacked(form: list[Any]) -> Any:
    """The inverse of `packed`.  Raises `LookupError` where a class is not loaded any more."""
    kind, inside = form
    if kind == _LEAF:
        return inside
    if kind in ("list", "tuple"):
        items = [unpacked(one) for one in inside]
        return items if kind == "list" else tuple(items)
    values = {key: unpacked(one) for key, one in inside}
    if kind == _KEYS:
        return values
    made = put_together(kind, values)
    if made is None:
        raise LookupError(f"the class of the answer is not loaded: {kind[1]}")
    return made[0]
