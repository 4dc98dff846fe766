"""Calls that are put off: what only sets the manager up, such as an observer, while PostgreSQL is away at the start.

The constructor has not run to its end then, and the attribute into which such a call puts something is not there.  It
is made once the manager is built, before that is used.
"""

from __future__ import annotations

import ast
import functools
import inspect
from collections.abc import Mapping
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from ...log import Log
from ...words import first_line
from ..code.class_code import remembered
from ..code.members import class_member
from ..code.method_code import facts_of
from ..manager.away import is_away
from ..manager.host import Host
from ..preflight import ways_around
from ..preflight.evidence import Evidence

_log = Log("outbox.integrations")


def put_off(host: Host, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Put a call off until the manager can be built; False where it can be made now, or not be put off."""
    cls = host.manager_class
    if host.built is not None or cls is None or not host.declared.isdisjoint(_reached(cls, name)):
        return False
    needed = _needs(cls, name)
    if needed is None or needed <= host.early.keys():
        return False
    # Wrong arguments are the caller's error, now.
    host.signature(name).bind(*args, **kwargs)
    try:
        host.manager()
    except SQLAlchemyError as exc:
        if not is_away(exc):
            raise
        _log.debug("%(method)s is called when the manager is built: %(error)s", method=name, error=first_line(exc))
        host.when_built(functools.partial(_make, name, args, kwargs))
        return True
    return False


def _make(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], manager: Any) -> None:
    try:
        class_member(type(manager), name).__get__(manager)(*args, **kwargs)
    except Exception as exc:  # noqa: BLE001 - its caller has gone on long ago
        _log.error("%(method)s, called before the manager was built, failed: %(error)s", method=name, error=exc)


@remembered(256)
def _reached(cls: type, name: str) -> frozenset[str]:
    """The names of the methods and attributes of self that a method turns to, and its own."""
    return frozenset({name, *Evidence(cls, None).code.uses_of(name)})


@remembered(256)
def _needs(cls: type, name: str) -> frozenset[str] | None:
    """The attributes that a method needs; None where it answers something, or may turn to the database."""
    evidence, member = Evidence(cls, None), class_member(cls, name)
    if not inspect.isfunction(member) or inspect.isgeneratorfunction(member) or inspect.iscoroutinefunction(member):
        return None
    functions = [function for function, _ in evidence.code.reached(name)]
    if not functions or not all(facts_of(function).read for function in functions):
        return None
    answers = [one for function in evidence.code.functions(name) for one in facts_of(function).returns]
    if any(not isinstance(one, ast.Constant) or one.value is not None for one in answers):
        return None
    if evidence.turns_to_the_database(name) or ways_around.hands_itself_over(name, evidence):
        return None
    return frozenset(one for one in evidence.code.uses_of(name) if not hasattr(cls, one))
