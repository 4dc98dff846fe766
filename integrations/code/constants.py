"""Constants: the value of an expression in a method's code, as far as it is the same in every call."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from .method_code import Facts, dotted, meaning

# For a value that is not known before the call.
UNKNOWN: Any = object()
_DEEPEST = 8
_SIMPLE = (int, float, str, type(None))


class Constants:
    """The constants of one function of a manager's class."""

    def __init__(self, cls: type, function: Any, facts: Facts, attributes: Mapping[str, Any]) -> None:
        """`attributes`: what the manager's attributes hold."""
        self._cls, self._function, self._facts, self._attributes = cls, function, facts, attributes
        nodes = [node for statement in facts.body for node in ast.walk(statement)]
        self._nodes = nodes
        stored = [node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]
        self._stored = {name: stored.count(name) for name in stored}

    def value(self, node: ast.expr, depth: int = 0) -> Any:
        """The value of an expression; an argument has its default."""
        if depth > _DEEPEST:
            return UNKNOWN
        if isinstance(node, ast.Constant):
            return node.value if isinstance(node.value, _SIMPLE) else UNKNOWN
        if isinstance(node, ast.Name | ast.Attribute):
            return self._named(dotted(node), depth)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            value = self.value(node.operand, depth + 1)
            return -value if type(value) is int else UNKNOWN
        if isinstance(node, ast.BinOp):
            return _computed(node.op, self.value(node.left, depth + 1), self.value(node.right, depth + 1))
        if isinstance(node, ast.BoolOp) and isinstance(node.op, ast.Or):
            values = [self.value(one, depth + 1) for one in node.values]
            return UNKNOWN if UNKNOWN in values else next(filter(None, values), values[-1])
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
            return self._called(node.func.id, [self.value(one, depth + 1) for one in node.args])
        return UNKNOWN

    @staticmethod
    def _called(name: str, values: list[Any]) -> Any:
        if not values or any(type(one) is not int for one in values):
            return UNKNOWN
        return {"int": values[0], "min": min(values), "max": max(values)}.get(name, UNKNOWN)

    def given(self, name: str) -> Any:
        """The value that the function gives to a parameter of a query."""
        found: list[ast.expr] = []
        for node in self._nodes:
            if isinstance(node, ast.Dict):
                keys = zip(node.keys, node.values, strict=True)
                found += [one for key, one in keys if isinstance(key, ast.Constant) and key.value == name]
            elif isinstance(node, ast.Call):
                found += [one.value for one in node.keywords if one.arg == name]
        return self.value(found[0]) if len(found) == 1 else UNKNOWN

    def _named(self, name: str, depth: int) -> Any:
        first, _, rest = name.partition(".")
        if first == self._facts.myself and rest:
            own = self._attributes.get(rest, UNKNOWN)
            own = inspect.getattr_static(self._cls, rest, UNKNOWN) if own is UNKNOWN else own
            return own if isinstance(own, _SIMPLE) else UNKNOWN
        defaults = _defaults(self._function)
        if name in defaults:
            return UNKNOWN if name in self._stored else defaults[name]
        if name in self._facts.locals:
            return self.value(self._facts.locals[name], depth + 1) if self._stored.get(name) == 1 else UNKNOWN
        found = meaning(self._function, first)
        for part in rest.split(".") if rest else ():
            # No code of the host is run.
            found = (
                vars(found).get(part) if isinstance(found, ModuleType) else inspect.getattr_static(found, part, None)
            )
        return found if found is not None and isinstance(found, _SIMPLE) else UNKNOWN


def _computed(op: ast.operator, left: Any, right: Any) -> Any:
    if type(left) is not int or type(right) is not int:
        return UNKNOWN
    if isinstance(op, ast.Mult):
        return left * right
    return left + right if isinstance(op, ast.Add) else left - right if isinstance(op, ast.Sub) else UNKNOWN


def _defaults(function: Any) -> dict[str, Any]:
    code = function.__code__
    names = code.co_varnames[: code.co_argcount][::-1]
    found = dict(zip(names, (function.__defaults__ or ())[::-1], strict=False)) | (function.__kwdefaults__ or {})
    return {name: value for name, value in found.items() if isinstance(value, _SIMPLE)}
