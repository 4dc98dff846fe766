"""Foreseen: predicts from a method's code how a queued call will change the manager's numbers.

`self.pnl += amount` behind a write is certain, and so is its sum while PostgreSQL is away: the manager gets it at the
call.  What is only likely (in a branch, behind an early return, of a value that the database gives) is not foreseen.
"""

from __future__ import annotations

import ast
import builtins
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from types import CodeType, FunctionType
from typing import Any

from ..host import Host
from ..preflight.class_code import ClassCode
from ..preflight.method_code import facts_of, layers

_NUMBERS = (int, float, Decimal)
# Expressions that mean something else when they are evaluated apart from their function.
_BOUND = (ast.Await, ast.Yield, ast.YieldFrom, ast.NamedExpr, ast.Lambda, ast.comprehension)


@dataclass(frozen=True, slots=True)
class _Sum:
    """`self.NAME += expression` or `-=`."""

    negative: bool
    expression: CodeType
    function: FunctionType


class Foreseen:
    """The sums of one manager's methods.  Thread-safe."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._sums: dict[str, dict[str, list[_Sum]]] = {}

    def of(self, name: str, call: Mapping[str, Any]) -> dict[str, Any]:
        """By how much method `name` changes which attributes of the manager, where that is certain."""
        cls, own = self._host.manager_class, self._host.attributes()
        if cls is None:
            return {}
        if name not in self._sums:
            self._sums[name] = dict(_sums_of(ClassCode(cls), name))
        found: dict[str, Any] = {}
        for attribute, sums in self._sums[name].items():
            amount = _evaluated(sums, call)
            present = own.get(attribute)
            if amount is not None and _is_number(present) and _adds_up(present, amount):
                found[attribute] = amount
        return found


def _is_number(value: Any) -> bool:
    return isinstance(value, _NUMBERS) and not isinstance(value, bool)


def _adds_up(present: Any, amount: Any) -> bool:
    # A float and a Decimal do not: the method raises there.
    return {type(present), type(amount)} != {float, Decimal}


def _evaluated(sums: list[_Sum], call: Mapping[str, Any]) -> Any:
    total: Any = None
    for one in sums:
        try:
            amount = eval(one.expression, one.function.__globals__, dict(call))  # noqa: S307 - the manager's own code
        except Exception:  # noqa: BLE001 - the method will raise that itself
            return None
        if not _is_number(amount):
            return None
        amount = -amount if one.negative else amount
        total = amount if total is None else total + amount
    return total


def _sums_of(code: ClassCode, name: str) -> Iterator[tuple[str, list[_Sum]]]:
    chain = layers(inspect.getattr_static(code.cls, name, None))
    if not chain or not all(facts_of(one).read for one in chain):
        return
    # Behind its decorators; what a base's method does depends on whether it is called.
    own = chain[-1]
    elsewhere: set[str | None] = set()
    for function, _ in code.reached(name):
        if function is not own:
            facts = facts_of(function)
            elsewhere |= facts.sets | facts.puts | facts.counts
            if not facts.read:
                return
    if None in elsewhere | facts_of(own).sets:
        return
    for attribute, statements in _counted(own).items():
        sums = [_sum(one, own) for one in statements]
        if attribute not in elsewhere and None not in sums:
            yield attribute, [one for one in sums if one is not None]


def _counted(function: FunctionType) -> dict[str, list[ast.AugAssign]]:
    """Attributes that a function changes by sums only, each on every way through it."""
    facts = facts_of(function)
    found: dict[str, list[ast.AugAssign]] = {}
    for statement in facts.body:
        target = statement.target if isinstance(statement, ast.AugAssign) else None
        if (
            isinstance(statement, ast.AugAssign)
            and isinstance(target, ast.Attribute)
            and _is_self(target, facts.myself)
        ):
            found.setdefault(target.attr, []).append(statement)
        elif any(isinstance(node, ast.Return | ast.Yield | ast.YieldFrom) for node in ast.walk(statement)):
            break
    changed = [
        node.attr
        for statement in facts.body
        for node in ast.walk(statement)
        if isinstance(node, ast.Attribute) and _is_self(node, facts.myself) and not isinstance(node.ctx, ast.Load)
    ]
    return {name: statements for name, statements in found.items() if changed.count(name) == len(statements)}


def _is_self(node: ast.Attribute, myself: str | None) -> bool:
    return isinstance(node.value, ast.Name) and node.value.id == myself


def _sum(statement: ast.AugAssign, function: FunctionType) -> _Sum | None:
    if not isinstance(statement.op, ast.Add | ast.Sub):
        return None
    code = function.__code__
    arguments = set(code.co_varnames[1 : code.co_argcount + code.co_kwonlyargcount])
    assigned = {
        node.id
        for one in facts_of(function).body
        for node in ast.walk(one)
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)
    }
    for node in ast.walk(statement.value):
        if isinstance(node, _BOUND):
            return None
        if isinstance(node, ast.Name):
            known = node.id in arguments or node.id in function.__globals__ or hasattr(builtins, node.id)
            if not known or node.id in assigned or (node.id in code.co_varnames and node.id not in arguments):
                return None
    expression = compile(ast.fix_missing_locations(ast.Expression(statement.value)), "<sum>", "eval")
    return _Sum(isinstance(statement.op, ast.Sub), expression, function)
