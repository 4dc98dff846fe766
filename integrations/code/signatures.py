"""Signatures: the arguments of a manager's methods, computed once, and kept in a form that can be stored.

An argument that a decorator of the manager gives its method, such as a session, is none of its callers'.
"""

from __future__ import annotations

import ast
import functools
import inspect
import operator
import typing
from collections.abc import Mapping
from contextlib import suppress
from types import FunctionType, UnionType
from typing import Any

from .members import class_member
from .method_code import facts_of, meaning

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def signature_of(manager_class: Any, name: str) -> inspect.Signature:
    """The signature of a class's method as objects of the class have it: without `self`."""
    bare = isinstance(class_member(manager_class, name), staticmethod | classmethod)
    return _signature(getattr(manager_class, name), not bare)


@functools.lru_cache(maxsize=1024)
def _signature(function: Any, without_first: bool) -> inspect.Signature:
    """Computed once: a signature costs more than the rest of a call's binding."""
    signature = inspect.signature(function)
    parameters = list(signature.parameters.values())
    # A wrapper of any arguments takes self among them.
    takes_any = bool(parameters) and parameters[0].kind is inspect.Parameter.VAR_POSITIONAL
    if not without_first or takes_any:
        return signature
    return signature.replace(parameters=for_callers(function, parameters[1:]))


def arguments(signature: inspect.Signature, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The arguments of a call by name.  Raises `TypeError` with the text of the call itself, where Python gives one."""
    try:
        return signature.bind(*args, **kwargs).arguments
    except TypeError:
        inner = inspect.unwrap(function)
        if inspect.isfunction(inner) and not _takes(inner, args, kwargs):
            inner(None, *args, **kwargs)  # raises before its first line
        raise


def _takes(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    try:
        inspect.signature(function, follow_wrapped=False).bind(None, *args, **kwargs)
    except TypeError:
        return False
    return True


def parameter_names(function: Any) -> list[str]:
    """The names of a function's own parameters, without those of `*args` and `**kwargs`."""
    code = function.__code__
    return list(code.co_varnames[: code.co_argcount + code.co_kwonlyargcount])


def signature_of_bound(method: Any) -> inspect.Signature:
    """The signature of a method that is bound to its object."""
    if inspect.ismethod(method) and inspect.isfunction(method.__func__):
        return _signature(method.__func__, True)
    return inspect.signature(method)


def invoke(method: Any, call: Mapping[str, Any]) -> Any:
    """Call `method` with arguments by name, also those that Python takes by position only."""
    left, args = dict(call), list[Any]()
    for name, one in signature_of_bound(method).parameters.items():
        kind = one.kind
        # Further keywords may have any name, that of `**kwargs` itself included.
        if name not in left or kind is one.KEYWORD_ONLY or kind is one.VAR_KEYWORD:
            break
        args += left.pop(name) if kind is one.VAR_POSITIONAL else (left.pop(name),)
    return method(*args, **left)


def described(signature: inspect.Signature) -> list[list[Any]]:
    """The names of a signature, their kinds, and which of them have a default, to be stored."""
    return [
        [parameter.name, int(parameter.kind), parameter.default is parameter.empty]
        for parameter in signature.parameters.values()
    ]


def signature_from(parameters: list[list[Any]]) -> inspect.Signature:
    """The inverse of `described`."""
    kinds = {int(kind): kind for kind in inspect._ParameterKind}
    return inspect.Signature(
        [
            # Only whether there is a default counts: calls are stored as they were made.
            inspect.Parameter(name, kinds[kind], default=inspect.Parameter.empty if required else None)
            for name, kind, required in parameters
        ]
    )


def hints_of(annotated: Any) -> dict[str, Any]:
    """The annotations of a function or class, aliases resolved; none where one of them cannot be had."""
    with suppress(Exception):  # a name that only type checkers import, or whatever an annotation runs
        return {name: _resolved(hint) for name, hint in typing.get_type_hints(annotated).items()}
    return {}


def _resolved(hint: Any, aliases: tuple[Any, ...] = ()) -> Any:
    """An annotation with what its aliases stand for: after `type Id = int`, Id is int (Python 3.12; numpy's NDArray).

    An alias within its own value, of which JSON's is one, is anything.
    """
    made_of, inside = typing.get_origin(hint), tuple(hint) if isinstance(hint, list) else typing.get_args(hint)
    alias = hint if made_of is None else made_of
    # There is a backport of the class of aliases, too.
    if hasattr(alias, "__value__") and hasattr(alias, "__type_params__"):
        if alias in aliases:
            return Any
        value = alias.__value__
        return _resolved(value[inside] if inside else value, (*aliases, alias))
    resolved = tuple(_resolved(one, aliases) for one in inside)
    if all(map(operator.is_, resolved, inside)):
        return hint
    if isinstance(hint, list):  # the arguments of a Callable
        return [*resolved]
    return functools.reduce(operator.or_, resolved) if made_of is UnionType else made_of[resolved]


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
