"""Context state: context variables that a call reads, such as the tenant or the user of a request.

They belong to the context in which the call is made.  The relay's thread has none of them, nor has another process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from types import FunctionType
from typing import Any

from ..code.class_code import ClassCode
from ..code.method_code import facts_of, meaning
from .read_state import can_be_stored

# So far functions are followed that a method calls by their names.
_DEEPEST = 3


@lru_cache(maxsize=256)
def variables(cls: type, method: str) -> Mapping[str, ContextVar[Any]]:
    """The context variables that a method reads, as far as its code shows, by a name that outlives the process."""
    found: dict[str, ContextVar[Any]] = {}
    todo = [(function, 0) for function, _ in ClassCode(cls).reached(method)]
    seen: set[Any] = set()
    while todo:
        function, depth = todo.pop()
        if function in seen:
            continue
        seen.add(function)
        for call in facts_of(function).calls:
            owner, _, last = call.name.rpartition(".")
            value = meaning(function, owner) if owner and last == "get" else None
            if isinstance(value, ContextVar):
                found[f"{function.__module__}:{owner}"] = value
            called = meaning(function, call.name) if depth < _DEEPEST and "(" not in call.name else None
            if isinstance(called, FunctionType):
                todo.append((called, depth + 1))
    return found


def noted(cls: type | None, method: str, learn: Callable[[Any], bool]) -> dict[str, Any]:
    """The present values of those that are set and can be stored."""
    found: dict[str, Any] = {}
    for name, variable in variables(cls, method).items() if cls is not None else ():
        try:
            value = variable.get()
        except LookupError:
            continue
        if can_be_stored(value, learn):
            found[name] = value
    return found


@contextmanager
def restored(cls: type, method: str, values: Mapping[str, Any]) -> Iterator[None]:
    """Within the block the variables have the values that were noted."""
    known = variables(cls, method) if values else {}
    tokens = [(known[name], known[name].set(value)) for name, value in values.items() if name in known]
    try:
        yield
    finally:
        for variable, token in reversed(tokens):
            variable.reset(token)
