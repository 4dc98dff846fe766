"""Foreseen: predicts from a method's code how a queued call will change the manager's attributes.

`self.pnl += amount` and `self.halted = True` behind a write are certain, so the manager gets them at the call while
PostgreSQL is away.  An early `return False` refuses the call, as an exception does, and then they are taken back.  What
is only likely (in a branch, behind another early return, of a value that the database gives) is not foreseen.
"""

from __future__ import annotations

import ast
import builtins
import inspect
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from types import CodeType, FunctionType
from typing import Any

from ..host import Host
from ..preflight.class_code import ClassCode
from ..preflight.method_code import dotted, facts_of, layers, meaning
from .kept_state import NOT_STATE
from .plain_data import same

_NUMBERS = (int, float, Decimal)
_SCALARS = frozenset({bool, int, float, Decimal, str, datetime, type(None)})
_SET = "="
_OPERATORS: Mapping[type, str] = {ast.Add: "+", ast.Sub: "-"}
_Statement = ast.Assign | ast.AugAssign
_MISSING: Any = object()
# A sum, or `[_SET, before, after]` of an attribute that is assigned.
Change = Any
# Expressions that mean something else when they are evaluated apart from their function.
_BOUND = (ast.Await, ast.Yield, ast.YieldFrom, ast.NamedExpr, ast.Lambda, ast.comprehension)


@dataclass(frozen=True, slots=True)
class _Sum:
    """`self.NAME += expression`, or `-=`, or `=`."""

    operator: str
    expression: CodeType
    function: FunctionType


def changed(present: Any, change: Change) -> Any:
    """The value of an attribute after a change; one that was assigned again meanwhile stays."""
    if isinstance(change, list):
        _, before, after = change
        return after if same(present, before) else present
    return present + change if _is_number(present) and _adds_up(present, change) else present


def behind(wrong: Change, later: Change) -> Change:
    """What is left to correct where a sum has been added to a wrong value."""
    return [_SET, changed(wrong[1], later), changed(wrong[2], later)] if isinstance(wrong, list) else wrong


def correction(foreseen: Change, made: tuple[Any, Any] | None) -> Change | None:
    """What turns a foreseen change into the one that was made, of a value into another; None where it was right."""
    if isinstance(foreseen, list):
        _, before, after = foreseen
        found = before if made is None else made[1]
        return None if same(after, found) else [_SET, after, found]
    if made is None:
        return -foreseen
    return None if made[1] == made[0] + foreseen else made[1] - made[0] - foreseen


class Foreseen:
    """The changes of one manager's methods.  Thread-safe."""

    def __init__(self, host: Host, methods: Collection[str]) -> None:
        self._host, self._methods = host, methods
        # The class that was looked at, and the sums of its methods by attribute.
        self._known: tuple[type | None, Mapping[str, Mapping[str, list[_Sum]]]] = (None, {})
        self._names: frozenset[str] = frozenset()

    def names(self) -> frozenset[str]:
        """The attributes that some of the methods change so."""
        self._sums()
        return self._names

    def of(self, name: str, call: Mapping[str, Any]) -> dict[str, Any]:
        """How method `name` changes which attributes of the manager, where that is certain."""
        own = self._host.attributes()
        found: dict[str, Any] = {}
        for attribute, sums in self._sums().get(name, {}).items():
            change = _evaluated(sums, call, own.get(attribute, _MISSING))
            if change is not None:
                found[attribute] = change
        return found

    def _sums(self) -> Mapping[str, Mapping[str, list[_Sum]]]:
        cls = self._host.manager_class
        if cls is not None and cls is not self._known[0]:
            code = ClassCode(cls)
            found = {name: dict(_sums_of(code, name)) for name in self._methods}
            self._names = frozenset(attribute for sums in found.values() for attribute in sums)
            self._known = (cls, found)
        return self._known[1]


def _is_number(value: Any) -> bool:
    return isinstance(value, _NUMBERS) and not isinstance(value, bool)


def _adds_up(present: Any, amount: Any) -> bool:
    # A float and a Decimal do not: the method raises there.
    return {type(present), type(amount)} != {float, Decimal}


def _evaluated(sums: list[_Sum], call: Mapping[str, Any], present: Any) -> Change | None:
    total: Any = None
    for one in sums:
        try:
            value = eval(one.expression, one.function.__globals__, dict(call))  # noqa: S307 - the manager's own code
        except Exception:  # noqa: BLE001 - the method will raise that itself
            return None
        if one.operator == _SET:
            return [_SET, present, value] if type(present) in _SCALARS and type(value) in _SCALARS else None
        if not _is_number(value):
            return None
        value = -value if one.operator == "-" else value
        total = value if total is None else total + value
    return total if _is_number(present) and _adds_up(present, total) else None


def _sums_of(code: ClassCode, name: str) -> Iterator[tuple[str, list[_Sum]]]:
    chain = layers(inspect.getattr_static(code.cls, name, None))
    if not chain or not all(facts_of(one).read for one in chain):
        return
    # Behind its decorators; what a base's method does depends on whether it is called.
    own = chain[-1]
    elsewhere: set[str | None] = {*NOT_STATE}
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


def _counted(function: FunctionType) -> dict[str, list[_Statement]]:
    """Attributes that a function changes by sums only, or by one assignment, on every way that refuses nothing."""
    facts = facts_of(function)
    found: dict[str, list[_Statement]] = {}
    for statement in facts.body:
        target: ast.expr | None = None
        if isinstance(statement, ast.AugAssign):
            target = statement.target
        elif isinstance(statement, ast.Assign) and len(statement.targets) == 1:
            target = statement.targets[0]
        if isinstance(target, ast.Attribute) and _is_self(target, facts.myself):
            found.setdefault(target.attr, []).append(statement)  # type: ignore[arg-type]
        elif any(_leaves(node) for node in ast.walk(statement)):
            break
    changed = [
        node.attr
        for statement in facts.body
        for node in ast.walk(statement)
        if isinstance(node, ast.Attribute) and _is_self(node, facts.myself) and not isinstance(node.ctx, ast.Load)
    ]
    return {
        name: statements
        for name, statements in found.items()
        if changed.count(name) == len(statements)
        and (len(statements) == 1 or all(isinstance(one, ast.AugAssign) for one in statements))
    }


def _leaves(node: ast.AST) -> bool:
    """Whether the function may end here with its call applied."""
    if isinstance(node, ast.Return):
        return not (isinstance(node.value, ast.Constant) and node.value.value is False)
    return isinstance(node, ast.Yield | ast.YieldFrom)


def _is_self(node: ast.Attribute, myself: str | None) -> bool:
    return isinstance(node.value, ast.Name) and node.value.id == myself


def _sum(statement: _Statement, function: FunctionType) -> _Sum | None:
    operator = _SET if isinstance(statement, ast.Assign) else _OPERATORS.get(type(statement.op))
    if operator is None:
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
        # What is assigned may be made by a call, such as a token, and another one each time.
        is_made = isinstance(node, ast.Call) and meaning(function, dotted(node.func)) not in _NUMBERS
        if isinstance(node, _BOUND) or (operator == _SET and is_made):
            return None
        if isinstance(node, ast.Name):
            known = node.id in arguments or node.id in function.__globals__ or hasattr(builtins, node.id)
            if not known or node.id in assigned or (node.id in code.co_varnames and node.id not in arguments):
                return None
    expression = compile(ast.fix_missing_locations(ast.Expression(statement.value)), "<sum>", "eval")
    return _Sum(operator, expression, function)
