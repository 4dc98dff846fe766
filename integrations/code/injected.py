"""Injected: arguments that a decorator of the manager gives its method, such as a session, and no caller."""

from __future__ import annotations

import ast
import inspect
from types import FunctionType
from typing import Any

from .method_code import facts_of, meaning

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def for_callers(function: Any, parameters: list[inspect.Parameter]) -> list[inspect.Parameter]:
    """Those of a method's parameters, without `self`, that its callers give."""
    layers: list[tuple[Any, FunctionType]] = []
    layer = function
    while isinstance(wrapped := getattr(layer, "__wrapped__", None), FunctionType):
        if _says_itself(layer, wrapped):
            # Its signature is that of its callers already.
            break
        # Others, as those of functools.lru_cache, give what they got.
        if isinstance(layer, FunctionType):
            layers.append((layer, wrapped))
        layer = wrapped
    found = parameters
    # The innermost decorator gives its arguments to the method itself.
    for wrapper, wrapped in reversed(layers):
        found = _left_by(wrapper, wrapped, found)
    return found


def _says_itself(layer: Any, wrapped: FunctionType) -> bool:
    """Whether a decorator has set the signature of its wrapper; functools.wraps copies one that was there before."""
    own = getattr(layer, "__dict__", {}).get("__signature__")
    return own is not None and own is not vars(wrapped).get("__signature__")


def _left_by(wrapper: Any, wrapped: FunctionType, parameters: list[inspect.Parameter]) -> list[inspect.Parameter]:
    """Those of the parameters that one decorator does not give."""
    own = inspect.signature(wrapper, follow_wrapped=False).parameters
    # The first is `self`.
    taken = [name for name, one in own.items() if one.kind in _POSITIONAL][1:]
    calls = [call.node for call in facts_of(wrapper).calls if meaning(wrapper, call.name) is wrapped]
    places = {_places_in(call, taken) for call in calls}
    if len(places) != 1 or None in places:
        return parameters
    given = places.pop() or ()
    left = [one for at, one in enumerate(parameters) if at not in given]
    named = set.intersection(*({one.arg for one in call.keywords if one.arg is not None} for call in calls)) - {*taken}
    found = [one for one in left if one.name not in named]
    # One that the decorator takes itself may be given by name.
    found += [
        one.replace(kind=one.KEYWORD_ONLY, default=own[one.name].default)
        for one in left
        if one.name in named & own.keys()
    ]
    return sorted(found, key=lambda one: one.kind) if named else found


def _places_in(call: ast.Call, taken: list[str]) -> tuple[int, ...] | None:
    """At which places, behind `self`, a decorator puts arguments of its own; None where that cannot be told.

    `taken`: the arguments that it takes from its caller, and passes on, perhaps changed.
    """
    stars = [at for at, one in enumerate(call.args) if isinstance(one, ast.Starred)]
    if not stars:
        return None
    before = call.args[1 : stars[0]]
    count = max(0, len(before) - len(taken))
    names = [{inner.id for inner in ast.walk(one) if isinstance(inner, ast.Name)} for one in before]
    own = [at for at, one in enumerate(names) if one.isdisjoint(taken)]
    return tuple(own if len(own) == count else range(count))
