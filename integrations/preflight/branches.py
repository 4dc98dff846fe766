"""Branches: where a declared method decides by the value of an argument, which the local view does not tell apart.

Calls are told apart by flags, enums and the like, not by amounts.  A check that only refuses is no such decision: what
it lets pass takes one way.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from ..operations import ManagerOperation
from .evidence import Evidence
from .method_code import Facts, facts_of

_ORDERING = (ast.Lt, ast.LtE, ast.Gt, ast.GtE)
_SHOWN = 3


def by_value(operation: ManagerOperation, evidence: Evidence) -> str | None:
    """What to say of a method whose effect depends on how large an argument is; None for others."""
    if not operation.has_role:
        return None
    found: dict[str, None] = {}
    for function in evidence.code.functions(operation.name):
        code, facts = function.__code__, facts_of(function)
        given = {*code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]} - {facts.myself}
        # Also what is made of arguments alone: `amount = Decimal(pnl)`.
        given |= {name for name, value in facts.locals.items() if (used := _variables(value)) and used <= given}
        found |= dict.fromkeys(_comparisons(facts, given))
    texts = list(found)
    more = f" and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else ""
    return f"an outage takes the branch that was seen: {', '.join(texts[:_SHOWN])}{more}" if texts else None


def _comparisons(facts: Facts, given: set[str]) -> Iterator[str]:
    for statement in facts.body:
        for node in ast.walk(statement):
            if isinstance(node, ast.IfExp) or (isinstance(node, ast.If) and not _only_refuses(node)):
                yield from (ast.unparse(one) for one in ast.walk(node.test) if _compares(one, given))


def _only_refuses(node: ast.If) -> bool:
    return not node.orelse and isinstance(node.body[-1], ast.Raise)


def _compares(node: ast.AST, given: set[str]) -> bool:
    """Whether it compares an argument with a number."""
    if not isinstance(node, ast.Compare) or not all(isinstance(one, _ORDERING) for one in node.ops):
        return False
    sides = [node.left, *node.comparators]
    return any(_variables(one) and _variables(one) <= given for one in sides) and any(map(_is_number, sides))


def _variables(node: ast.expr) -> set[str]:
    """The names in an expression, but for those of what it calls."""
    called = {id(one.func) for one in ast.walk(node) if isinstance(one, ast.Call)}
    return {one.id for one in ast.walk(node) if isinstance(one, ast.Name) and id(one) not in called}


def _is_number(node: ast.expr) -> bool:
    """Whether it is a number, also with a sign or as in `Decimal("10")`."""
    if isinstance(node, ast.Call):
        return len(node.args) == 1 and isinstance(node.args[0], ast.Constant)
    node = node.operand if isinstance(node, ast.UnaryOp) else node
    return isinstance(node, ast.Constant) and isinstance(node.value, int | float)
