"""Written out: expressions of a method's code, with its names replaced by what they stand for.

What remains are arguments of the operation, columns of rows, and constants: what can be computed before the call.
"""

from __future__ import annotations

import ast
import builtins
import copy
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from enum import Enum
from types import FunctionType, ModuleType
from typing import Any

from ..code.class_code import ClassCode, row_methods
from ..code.method_code import Facts, dotted, facts_of, layers, meaning
from ..code.signatures import parameter_names
from .columns_before import CHANGED, Columns, changed_in_part, columns_before
from .decisions import ARGUMENT, COLUMN
from .learning import is_id

# How far calls of helpers are followed.
_DEEPEST = 4
# The largest expression that is written out: what each line makes of those before it may double with each.
_LARGEST = 200
_SIMPLE = (str, int, float, Decimal, Enum)
# Functions that decide by the values that they are given.
CHOOSING = ("min", "max", "abs")


@dataclass(slots=True)
class Scope:
    """One function, and what its names stand for: arguments of the operation, or expressions of them."""

    code: ClassCode
    function: Any
    facts: Facts
    names: Mapping[str, ast.expr]
    depth: int = 0
    # Parameters that are given a row, and its name where the function is called; with `self` of a mapped class.
    rows: Mapping[str, str] = field(default_factory=dict)
    # Columns of these that were assigned before the call, written out.
    given: Columns = field(default_factory=dict)
    # What local names were found to stand for, and those that are being looked at.
    made: dict[str, ast.expr] = field(default_factory=dict)
    open: set[str] = field(default_factory=set)
    # The same by the ids of values of columns, which are kept for as long as their ids are known.
    values: dict[int, tuple[ast.expr, ast.expr]] = field(default_factory=dict)
    # By the id of a node of its code, the columns of rows that were assigned before it; and those behind all of it.
    columns: dict[int, Columns] = field(default_factory=dict)
    after: Columns = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.after = columns_before(self.facts.body, self.given, self._changed_by, self.columns)

    @property
    def returned(self) -> ast.expr | None:
        """What the function returns, if it does nothing else."""
        body = self.facts.body[1:] if ast.get_docstring(ast.Module(self.facts.body, [])) else self.facts.body
        only = body[0] if len(body) == 1 else None
        return only.value if isinstance(only, ast.Return) else None

    @property
    def converts(self) -> bool:
        """Whether the function gives back the argument that it was given, as another type or rounded."""
        given = [one.value for one in ast.walk(ast.Module(self.facts.body, [])) if isinstance(one, ast.Return)]
        parts = [part for value in given if value is not None for part in _alternatives(value)]
        resolved = [written_out(part, self) for part in parts if not is_none(part)]
        whole = all(arguments_in(one) and not any(map(_computes, ast.walk(one))) for one in resolved)
        return bool(resolved) and whole

    def called(self, node: ast.Call, columns: Columns) -> Iterator[Scope]:
        """The functions of the class, of a module or of a row that a call runs, with what it gives them.

        `columns`: those that were assigned before the call.
        """
        name = dotted(node.func)
        first, _, rest = name.partition(".")
        if self.depth >= _DEEPEST or any(isinstance(one, ast.Starred) for one in node.args):
            return
        if first == self.facts.myself and rest.isidentifier():
            skipped = parameters_not_given(self.code.cls, rest)
            for function in self.code.functions(rest):
                yield self._inner(node, self.code, function, skipped, columns, first if first in self.rows else "")
        elif isinstance(known := meaning(self.function, name), FunctionType):
            for function in layers(known):
                yield self._inner(node, self.code, function, 0, columns, "")
        else:
            for one in row_methods(self.function, name):
                yield self._inner(node, ClassCode(one.cls), one.function, one.skipped, columns, first)

    def _inner(
        self, node: ast.Call, code: ClassCode, function: Any, skipped: int, columns: Columns, owner: str
    ) -> Scope:
        """`owner`: the name of the row whose method it is; empty for another function."""
        facts, bound = facts_of(function), _bound(node, function, skipped)
        names = {one: written_out(value, self) for one, value in bound.items()}
        rows = {one: value.id for one, value in bound.items() if isinstance(value, ast.Name) and self.is_row(value.id)}
        if owner and skipped and facts.myself:
            rows[facts.myself] = owner
        resolver = _Resolver(self, columns)
        known = [
            (column, resolver.assigned(value), of) for (of, column), value in columns.items() if of in rows.values()
        ]
        given = {(row, column): value for row, name in rows.items() for column, value, of in known if of == name}
        return Scope(code, function, facts, names, self.depth + 1, rows, given)

    def is_row(self, name: str) -> bool:
        """Whether a local name was given what a call found, and no object that was made here."""
        if name in self.rows:
            return True
        made = self.facts.locals.get(name)
        if name in self.names or not isinstance(made, ast.Call):
            return False
        return not isinstance(constant_of(dotted(made.func), self), type)

    def _changed_by(self, node: ast.Call, columns: Columns) -> Columns:
        """The columns of rows that the functions which a call runs assign."""
        given = [node.func.value if isinstance(node.func, ast.Attribute) else node.func, *node.args]
        given += [one.value for one in node.keywords]
        found: dict[tuple[str, str], list[ast.expr]] = {}
        if any(isinstance(one, ast.Name) and self.is_row(one.id) for one in given):
            for inner in self.called(node, columns):
                for (row, column), value in inner.after.items():
                    if row in inner.rows and inner.given.get((row, column)) is not value:
                        found.setdefault((inner.rows[row], column), []).append(written_out(value, inner))
        return {key: one[0] if len(one) == 1 else changed_in_part(one) for key, one in found.items()}


def _alternatives(node: ast.expr) -> list[ast.expr]:
    return [*_alternatives(node.body), *_alternatives(node.orelse)] if isinstance(node, ast.IfExp) else [node]


def is_none(node: ast.expr) -> bool:
    """Whether an expression is `None`."""
    return isinstance(node, ast.Constant) and node.value is None


def _computes(node: ast.AST) -> bool:
    chooses = isinstance(node, ast.Call) and dotted(node.func) in CHOOSING
    return chooses or isinstance(node, ast.BinOp | ast.BoolOp | ast.Compare)


class _Resolver(ast.NodeTransformer):
    """Writes names out: arguments, what is made of them, columns of a row, and constants."""

    def __init__(self, scope: Scope, columns: Columns) -> None:
        self._scope, self._columns = scope, columns

    def visit_Name(self, node: ast.Name) -> ast.expr:
        known = self._scope.names.get(node.id)
        if known is not None:
            return copy.deepcopy(known)
        made = self._scope.facts.locals.get(node.id)
        if made is None or node.id in self._scope.open:
            return self._constant(node)
        if node.id not in self._scope.made:
            self._scope.open.add(node.id)
            resolved = written_out(made, self._scope)
            self._scope.open.remove(node.id)
            self._scope.made[node.id] = _kept_small(resolved, otherwise=node)
        return copy.deepcopy(self._scope.made[node.id])

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        if isinstance(node.value, ast.Name) and self._scope.is_row(node.value.id) and not is_id(node.attr):
            assigned = self._columns.get((node.value.id, node.attr))
            if assigned is not None:
                return self.assigned(assigned)
            return ast.Name(f"{COLUMN}{node.attr}", ast.Load())
        return self._constant(node)

    def assigned(self, value: ast.expr) -> ast.expr:
        """The value of a column that was assigned before, written out."""
        key, scope = id(value), self._scope
        if key not in scope.values:
            # Until it is written out: a loop makes it of itself.
            scope.values[key] = value, ast.Name(CHANGED, ast.Load())
            scope.values[key] = value, _kept_small(written_out(value, scope))
        return copy.deepcopy(scope.values[key][1])

    def visit_Call(self, node: ast.Call) -> ast.expr:
        for called in self._scope.called(node, self._columns):
            if called.returned is not None:
                return written_out(called.returned, called)
        if isinstance(node.func, ast.Attribute):
            # Of `decimal.Decimal` the last part counts.
            is_module = isinstance(meaning(self._scope.function, dotted(node.func.value)), ModuleType)
            node.func = ast.Name(node.func.attr, ast.Load()) if is_module else node.func
        if isinstance(node.func, ast.Attribute):
            node.func.value = self.visit(node.func.value)
        node.args = [self.visit(one) for one in node.args]
        return node

    def _constant(self, node: ast.Name | ast.Attribute) -> ast.expr:
        name = dotted(node)
        value = constant_of(name, self._scope)
        # The classes of `isinstance`; those that are built in are no globals.
        value = vars(builtins).get(name) if value is None else value
        many = isinstance(value, tuple | list | set | frozenset) and all(isinstance(one, _SIMPLE) for one in value)
        return ast.Constant(value) if many or isinstance(value, (*_SIMPLE, type)) else node


def written_out(node: ast.expr, scope: Scope) -> ast.expr:
    """`node` with its names written out; those of its parts that are of the code tell what comes before it."""
    before = next((scope.columns[id(one)] for one in ast.walk(node) if id(one) in scope.columns), {})
    resolved: ast.expr = _Resolver(scope, before).visit(copy.deepcopy(node))
    return resolved


def _kept_small(resolved: ast.expr, otherwise: ast.expr | None = None) -> ast.expr:
    """An expression that was written out; a large one as no more than the arguments that it is made of."""
    if sum(1 for _ in ast.walk(resolved)) <= _LARGEST:
        return resolved
    arguments: list[ast.expr] = [ast.Name(one, ast.Load()) for one in sorted(arguments_in(resolved))]
    return ast.Call(ast.Name(CHANGED, ast.Load()), arguments, []) if otherwise is None else otherwise


def constant_of(name: str, scope: Scope) -> Any:
    """What a dotted name stands for, if that is a constant, also of the class, or a member of an enum."""
    first, _, rest = name.partition(".")
    if first == scope.facts.myself:
        value = inspect.getattr_static(scope.code.cls, rest, None)
        return value if rest.isupper() else None
    found, parts = meaning(scope.function, first), rest.split(".") if rest else []
    for part in parts:
        if isinstance(found, ModuleType):
            found = vars(found).get(part)
        elif isinstance(found, type) and issubclass(found, Enum):
            found = found.__members__.get(part)
        else:
            found = getattr(found, part) if isinstance(found, Enum) and part in ("value", "name") else None
    return found


def arguments_in(node: ast.expr) -> set[str]:
    """The arguments of the operation in an expression that is written out."""
    return {one.id for one in ast.walk(node) if isinstance(one, ast.Name) and one.id.startswith(ARGUMENT)}


def parameters_not_given(cls: type, name: str) -> int:
    """How many of a method's parameters no caller gives."""
    return 0 if isinstance(inspect.getattr_static(cls, name, None), staticmethod) else 1


def simple_defaults(function: Any) -> dict[str, Any]:
    """The defaults of a function's parameters that are constants, by name."""
    code = function.__code__
    positional = code.co_varnames[: code.co_argcount]
    given = function.__defaults__ or ()
    if len(given) > len(positional):
        # A decorator such as tenacity's gives its wrapper the defaults of the function.
        given = ()
    found = dict(zip(positional[len(positional) - len(given) :], given, strict=True)) | (function.__kwdefaults__ or {})
    return {name: value for name, value in found.items() if value is None or isinstance(value, _SIMPLE)}


def _bound(node: ast.Call, function: Any, skipped: int) -> dict[str, ast.expr]:
    """The expressions that a call gives for the parameters of a function, of which the first may be `self`."""
    parameters = parameter_names(function)[skipped:]
    left_out = {name: ast.Constant(value) for name, value in simple_defaults(function).items()}
    named = {one.arg: one.value for one in node.keywords if one.arg in parameters}
    return {**left_out, **dict(zip(parameters, node.args, strict=False)), **named}
