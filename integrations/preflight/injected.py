"""Injected: arguments that a decorator of the manager gives its method, such as a session, and no caller."""

from __future__ import annotations

import ast
import inspect
from types import FunctionType
from typing import Any

from .method_code import facts_of, meaning


def for_callers(function: Any, parameters: list[inspect.Parameter]) -> list[inspect.Parameter]:
    """Those of a method's parameters, without `self`, that its callers give."""
    named: dict[str, inspect.Parameter | None] = {}
    count = 0
    layer = function
    while isinstance(wrapped := getattr(layer, "__wrapped__", None), FunctionType):
        if not isinstance(layer, FunctionType):
            # An object, as of functools.lru_cache, gives what it got.
            layer = wrapped
            continue
        first, names = _given_by(layer, wrapped)
        own = inspect.signature(layer, follow_wrapped=False).parameters
        # One that the decorator takes itself may be given by name.
        named |= {name: own.get(name) for name in names}
        count, layer = count + first, wrapped
    left = parameters[count:]
    found = [one for one in left if one.name not in named]
    for name, theirs in named.items():
        if theirs is not None and any(one.name == name for one in left):
            found.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=theirs.default))
    return sorted(found, key=lambda one: one.kind) if named else found


def _given_by(wrapper: Any, wrapped: FunctionType) -> tuple[int, set[str]]:
    """How many arguments a decorator puts before those of the caller, and which it gives by name."""
    facts = facts_of(wrapper)
    calls = [call.node for call in facts.calls if meaning(wrapper, call.name) is wrapped]
    counts, names = set[int](), list[set[str]]()
    for node in calls:
        at = next((at for at, one in enumerate(node.args) if isinstance(one, ast.Starred)), None)
        if at is None:
            return 0, set()
        first = node.args[0]
        has_self = at > 0 and isinstance(first, ast.Name) and first.id == facts.myself
        counts.add(at - has_self)
        names.append({one.arg for one in node.keywords if one.arg is not None})
    return (counts.pop(), set.intersection(*names)) if len(counts) == 1 else (0, set())
