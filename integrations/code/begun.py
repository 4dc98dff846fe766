"""Begun: a manager's first attributes, read from its constructor, for an engine that starts in an outage.

A constructor that connects ends where PostgreSQL is away, and a counter that it would have set is read in the loop
nevertheless.  `self.pnl = Decimal(0)` is certain without running anything; what comes from the database, from an
argument or from a call is not, and is left to the constructor.
"""

from __future__ import annotations

import ast
import builtins
import threading
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from types import FunctionType
from typing import Any

from .class_code import ClassCode, remembered
from .method_code import facts_of, meaning

_MAKES = (int, float, str, bool, Decimal)
_LOCKS = (threading.Lock, threading.RLock, threading.Condition, threading.Semaphore)
# The adapter knows it better.
_NOT_STATE = frozenset({"_current_session_id"})


def begun(cls: type) -> dict[str, Any]:
    """The attributes that every object of `cls` has after its constructor, with their values, where that is certain."""
    code = ClassCode(cls)
    functions = [one for one, _ in code.reached("__init__")]
    facts = [facts_of(one) for one in functions]
    if not all(one.read for one in facts) or any(None in one.sets for one in facts):
        return {}
    own = {id(one) for one in code.functions("__init__")}
    assigned = Counter(name for one in facts for name in _changed(one.body, one.myself))
    found: dict[str, Any] = {}
    for function, fact in zip(functions, facts, strict=True):
        for name, expression in _assignments(fact.body, fact.myself) if id(function) in own else ():
            if assigned[name] == 1 and name not in _NOT_STATE:
                found |= _value(name, expression, function)
    return found


def locks_begun(cls: type) -> dict[str, Any]:
    """New locks for those that the constructor of `cls` makes without arguments, by attribute."""
    return {name: kind() for name, kind in _locks_of(cls).items()}


@remembered(64)
def _locks_of(cls: type) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for function, _ in ClassCode(cls).reached("__init__"):
        for name, calls in facts_of(function).assigned.items():
            plain = [call for call in calls if not call.node.args and not call.node.keywords]
            kind = meaning(function, plain[0].name) if len(plain) == len(calls) == 1 else None
            if kind in _LOCKS:
                found[name] = kind
    return found


def _assignments(body: list[ast.stmt], myself: str | None) -> Iterator[tuple[str, ast.expr]]:
    """`self.NAME = expression` on every way through a constructor."""
    for statement in body:
        if isinstance(statement, ast.Assign):
            targets, value = statement.targets, statement.value
        elif isinstance(statement, ast.AnnAssign) and statement.value is not None:
            targets, value = [statement.target], statement.value
        elif any(isinstance(node, ast.Return) for node in ast.walk(statement)):
            return
        else:
            continue
        for target in targets:
            if isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id == myself:
                yield target.attr, value


def _changed(body: list[ast.stmt], myself: str | None) -> Iterator[str]:
    for statement in body:
        for node in ast.walk(statement):
            is_own = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == myself
            if isinstance(node, ast.Attribute) and is_own and not isinstance(node.ctx, ast.Load):
                yield node.attr


def _value(name: str, expression: ast.expr, function: FunctionType) -> dict[str, Any]:
    """The value of a constant, or of a number made of one; empty for anything else."""
    sign = 1
    if isinstance(expression, ast.UnaryOp) and isinstance(expression.op, ast.USub):
        expression, sign = expression.operand, -1
    made: Any = None
    if isinstance(expression, ast.Call) and isinstance(expression.func, ast.Name) and not expression.keywords:
        found = function.__globals__.get(expression.func.id) or getattr(builtins, expression.func.id, None)
        constants = [one.value for one in expression.args if isinstance(one, ast.Constant)]
        if found not in _MAKES or len(constants) < len(expression.args):
            return {}
        try:
            made = found(*constants)
        except (TypeError, ValueError, ArithmeticError):
            return {}
    elif isinstance(expression, ast.Constant):
        made = expression.value
    else:
        return {}
    if sign < 0 and (isinstance(made, bool) or not isinstance(made, int | float | Decimal)):
        return {}
    return {name: made if sign > 0 else -made}
