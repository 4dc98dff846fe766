"""Entered: whether a `with` block lets every error through, which decides whether the steps in it are certain."""

from __future__ import annotations

import ast
import threading
from collections.abc import Sequence
from contextlib import nullcontext
from types import FunctionType
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from .members import class_member
from .method_code import dotted, facts_of, layers

_LOCKS = (type(threading.Lock()), type(threading.RLock()), threading.Condition, threading.Semaphore)
# Their blocks roll back, give back or unlock, and raise what was raised.
_KNOWN = (*_LOCKS, nullcontext, Engine, Session, sessionmaker, scoped_session)


def lets_through(value: Any, path: Sequence[str]) -> bool:
    """Whether `with value.a()` swallows no error, as far as its code shows; `path`: the names behind the value."""
    if isinstance(value, _KNOWN):
        return True
    if not path:
        functions = layers(class_member(type(value), "__exit__"))
        return len(functions) == 1 and _answers_nothing(functions[0])
    functions = layers(class_member(type(value), path[0])) if len(path) == 1 else []
    # What `contextmanager` has made, and the generator in it.
    is_generator = len(functions) == 2 and functions[0].__globals__["__name__"] == "contextlib"
    return is_generator and _raises_again(functions[1], value)


def path_of(entered: ast.expr) -> list[str]:
    """The names in `a.b.c` or `a.b.c()`."""
    return dotted(entered).replace("()", "").split(".")


def _answers_nothing(function: FunctionType) -> bool:
    """Whether a function is sure to return nothing, or False."""
    facts = facts_of(function)
    return facts.read and all(isinstance(one, ast.Constant) and not one.value for one in facts.returns)


def _raises_again(function: FunctionType, owner: Any) -> bool:
    """Whether a generator, a method of `owner`, raises what is raised where it yields."""
    facts = facts_of(function)
    nodes = list(ast.walk(ast.Module(facts.body, [])))
    caught = [one for one in nodes if isinstance(one, ast.ExceptHandler)]
    entered = [path_of(item.context_expr) for one in nodes if isinstance(one, ast.With) for item in one.items]
    return (
        facts.read
        and all(isinstance(one.body[-1], ast.Raise) for one in caught)
        and not any(isinstance(one, ast.Return) for one in nodes)
        and all(
            one[0] == facts.myself
            and len(one) > 1
            and lets_through(getattr(owner, "__dict__", {}).get(one[1]), one[2:])
            for one in entered
        )
    )
