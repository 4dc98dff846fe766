"""Branches: by which values a declared method decides, found in its code and in the functions that it calls.

What can be computed from the arguments of a call, and from the row that it names, tells kinds of calls apart in the
local view.  The rest is named, since an outage answers it by the branch that was seen.
"""

from __future__ import annotations

import ast
import builtins
import copy
import inspect
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from enum import Enum
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any

from ..code.class_code import ClassCode, remembered, row_methods
from ..code.code_version import LOGS
from ..code.method_code import Facts, dotted, facts_of, layers, meaning
from ..code.signatures import parameter_names
from .decisions import ARGUMENT, COLUMN, TAKEN, TEXT, Decision, Unreadable
from .learning import is_id

if TYPE_CHECKING:
    from ..operations import ManagerOperation

# How far calls of helpers are followed, and how many of one method.
_DEEPEST, _LOOKS = 4, 60
# The largest expression that is written out: what each line makes of those before it may double with each.
_LARGEST = 200
_SHOWN = 3
_ORDERING = (ast.Lt, ast.LtE, ast.Gt, ast.GtE)
_COMPARING = (*_ORDERING, ast.Eq, ast.NotEq, ast.In, ast.NotIn)
_Test = ast.If | ast.IfExp | ast.While
_TESTS = (ast.If, ast.IfExp, ast.While)
_SIMPLE = (str, int, float, Decimal, Enum)
_CHOOSING = ("min", "max", "abs")


@dataclass(slots=True)
class Branches:
    """What was found of one method."""

    decisions: dict[str, Decision] = field(default_factory=dict)
    # Comparisons of an argument that cannot be computed before the call.
    hidden: dict[str, None] = field(default_factory=dict)

    @property
    def note(self) -> str | None:
        """What to say of the comparisons that are hidden; None where none are."""
        texts = list(self.hidden)
        more = f" and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else ""
        return f"an outage takes the branch that was seen: {', '.join(texts[:_SHOWN])}{more}" if texts else None


@dataclass(slots=True)
class _Scope:
    """One function, and what its names stand for: arguments of the operation, or expressions of them."""

    code: ClassCode
    function: Any
    facts: Facts
    names: Mapping[str, ast.expr]
    depth: int = 0
    # Whether it is a method of a mapped class, whose `self` is a row.
    is_of_row: bool = False
    # What local names were found to stand for, and those that are being looked at.
    made: dict[str, ast.expr] = field(default_factory=dict)
    open: set[str] = field(default_factory=set)

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
        resolved = [_resolved(part, self) for part in parts if not _is_none(part)]
        whole = all(_arguments(one) and not any(map(_computes, ast.walk(one))) for one in resolved)
        return bool(resolved) and whole

    def called(self, node: ast.Call) -> Iterator[_Scope]:
        """The functions of the class, of a module or of a row that a call runs, with what it gives them."""
        name = dotted(node.func)
        first, _, rest = name.partition(".")
        if self.depth >= _DEEPEST or any(isinstance(one, ast.Starred) for one in node.args):
            return
        if first == self.facts.myself and rest.isidentifier():
            skipped = _skipped(self.code.cls, rest)
            for function in self.code.functions(rest):
                yield self._inner(node, self.code, function, skipped, is_of_row=self.is_of_row)
        elif isinstance(known := meaning(self.function, name), FunctionType):
            for function in layers(known):
                yield self._inner(node, self.code, function, 0)
        else:
            for one in row_methods(self.function, name):
                yield self._inner(node, ClassCode(one.cls), one.function, one.skipped, is_of_row=True)

    def _inner(
        self, node: ast.Call, code: ClassCode, function: Any, skipped: int, *, is_of_row: bool = False
    ) -> _Scope:
        given = _bound(node, function, skipped)
        names = {one: _resolved(value, self) for one, value in given.items()}
        return _Scope(code, function, facts_of(function), names, self.depth + 1, is_of_row)


@remembered(512)
def of(operation: ManagerOperation, cls: type) -> Branches:
    """By which values the method of an operation decides; nothing for one that has no part in what is answered."""
    found, code = Branches(), ClassCode(cls)
    for function in code.functions(operation.name) if operation.has_role else ():
        given = parameter_names(function)[_skipped(cls, operation.name) :]
        names = {name: ast.Name(f"{ARGUMENT}{operation.standard_name(name)}", ast.Load()) for name in given}
        defaults = {operation.standard_name(name): value for name, value in _defaults(function).items()}
        _Finder(found, defaults).look(_Scope(code, function, facts_of(function), names))
    return found


class _Finder:
    """Collects the comparisons of one method, and of what it calls."""

    def __init__(self, found: Branches, defaults: Mapping[str, Any]) -> None:
        self._found, self._defaults, self._looks = found, defaults, 0

    def look(self, scope: _Scope) -> None:
        """Take in the comparisons of one function."""
        self._looks += 1
        deciding = list(_deciding(scope.facts.body))
        compared = {id(one) for node in deciding if isinstance(node, ast.Compare) for one in ast.walk(node)}
        shown = {id(one) for node in deciding for one in _shown_in(node, scope)}
        tests = {id(one): node for node in deciding if isinstance(node, _TESTS) for one in ast.walk(node.test)}
        for node in deciding:
            if isinstance(node, ast.Compare) and all(isinstance(one, _COMPARING) for one in node.ops):
                test = tests.get(id(node))
                self._decide(node, scope, node, is_test=test is not None, sets=_set_by(test, scope, shown))
            elif isinstance(node, ast.Call):
                self._call(node, scope, is_compared=id(node) in compared)
            elif isinstance(node, ast.Match):
                for case in node.cases:
                    if isinstance(case.pattern, ast.MatchValue):
                        equals = ast.Compare(node.subject, [ast.Eq()], [case.pattern.value])
                        self._decide(equals, scope, equals)

    def _call(self, node: ast.Call, scope: _Scope, *, is_compared: bool) -> None:
        name = dotted(node.func)
        if name in _CHOOSING:
            if is_compared or node.keywords:
                return
            if name == "abs":
                is_negative = ast.Compare(node.args[0], [ast.Lt()], [ast.Constant(0)])
                self._decide(is_negative, scope, is_negative)
            elif len(node.args) > 1:
                self._decide(ast.Call(ast.Name(TAKEN, ast.Load()), [node, *node.args], []), scope, node)
        elif name == "bool" and len(node.args) == 1:
            self._decide_truth(node, scope)
        else:
            for called in scope.called(node) if self._looks < _LOOKS else ():
                if any(map(_arguments, called.names.values())) and not called.converts:
                    self.look(called)

    def _decide_truth(self, node: ast.Call, scope: _Scope) -> None:
        # An id that is given is true.
        if not all(is_id(one.removeprefix(ARGUMENT)) for one in _arguments(_resolved(node, scope))):
            self._decide(node, scope, node.args[0])

    def _decide(
        self,
        node: ast.expr,
        scope: _Scope,
        shown: ast.expr,
        *,
        is_test: bool = False,
        sets: frozenset[str] | None = None,
    ) -> None:
        resolved = _resolved(node, scope)
        arguments = _arguments(resolved)
        if not arguments:
            return
        # Kinds of calls are joined with bars.
        text = _text(shown).replace("|", "or")
        if scope.depth:
            # A helper may be called for several arguments.
            text += f" for {' and '.join(sorted(one.removeprefix(ARGUMENT) for one in arguments))}"
        try:
            self._found.decisions[text] = Decision.read(text, resolved, self._defaults, sets)
        except Unreadable:
            # Other comparisons are mostly those of a query, or of ids.
            orders = isinstance(node, ast.Compare) and any(isinstance(one, _ORDERING) for one in node.ops)
            if not scope.depth and ((is_test and orders) or isinstance(shown, ast.Call)):
                self._found.hidden[text] = None


def _deciding(body: list[ast.stmt]) -> Iterator[ast.AST]:
    """The nodes that may decide: not those of a check that only refuses, or for what is only logged."""
    todo: list[ast.AST] = list(reversed(body))
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Assert | ast.Raise) or (isinstance(node, ast.Expr) and _logs(node)):
            continue
        if isinstance(node, ast.If) and (_only_refuses(node) or all(map(_logs, (*node.body, *node.orelse)))):
            todo += reversed(node.orelse)
            continue
        if isinstance(node, _TESTS):
            yield from _truths(node.test)
        if isinstance(node, ast.BoolOp):
            yield from map(_truth, node.values[:-1])
        yield node
        todo += reversed(list(ast.iter_child_nodes(node)))


def _truths(test: ast.expr) -> Iterator[ast.Call]:
    """Whether what a test names is true, as in `if fee:`."""
    test = test.operand if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not) else test
    yield from map(_truth, test.values if isinstance(test, ast.BoolOp) else [test])


def _truth(node: ast.expr) -> ast.Call:
    return ast.Call(ast.Name("bool", ast.Load()), [node if isinstance(node, ast.Name) else ast.Constant(None)], [])


def _set_by(test: _Test | None, scope: _Scope, shown: Collection[int]) -> frozenset[str] | None:
    """What a test only decides about: names of counters, and `TEXT` for texts; None where it may be anything.

    `shown`: the expressions whose value is only shown.  A text that is kept may be looked up later, as a rate by tier.
    """
    if test is None:
        return None
    if isinstance(test, ast.IfExp):
        return frozenset({TEXT}) if id(test) in shown and _is_text(test) else None
    found: set[str] = set()
    for statement in (*test.body, *test.orelse):
        match statement:
            case ast.If() if (inner := _set_by(statement, scope, shown)) is not None:
                found |= inner
            case ast.Assign(value=value) if id(value) in shown and _is_text(value):
                found.add(TEXT)
            case ast.AugAssign(target=ast.Attribute(attr=name), value=ast.Constant()):
                found.add(name)
            case _ if not _logs(statement):
                return None
    return frozenset(found)


def _shown_in(node: ast.AST, scope: _Scope) -> Iterator[ast.expr]:
    """The expressions that go into a column, or into a value of a dict."""
    match node:
        case ast.Dict(values=values):
            yield from values
        case ast.Call(func=func, keywords=keywords) if isinstance(_value(dotted(func), scope), type):
            yield from (one.value for one in keywords)
        case ast.Assign(targets=targets, value=value):
            columns = [one for one in targets if isinstance(one, ast.Attribute)]
            if len(columns) == len(targets) and not any(dotted(one.value) == scope.facts.myself for one in columns):
                yield value


def _is_text(node: ast.expr) -> bool:
    if isinstance(node, ast.IfExp):
        return _is_text(node.body) and _is_text(node.orelse)
    is_constant = isinstance(node, ast.Constant) and isinstance(node.value, str)
    return is_constant or _is_none(node) or isinstance(node, ast.JoinedStr)


def _alternatives(node: ast.expr) -> list[ast.expr]:
    return [*_alternatives(node.body), *_alternatives(node.orelse)] if isinstance(node, ast.IfExp) else [node]


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _computes(node: ast.AST) -> bool:
    chooses = isinstance(node, ast.Call) and dotted(node.func) in _CHOOSING
    return chooses or isinstance(node, ast.BinOp | ast.BoolOp | ast.Compare)


def _text(node: ast.expr) -> str:
    try:
        return ast.unparse(node)
    except ValueError:  # an f-string that older versions of Python cannot write
        return f"a comparison in line {node.lineno} of its function"


def _only_refuses(node: ast.If) -> bool:
    return not node.orelse and isinstance(node.body[-1], ast.Raise)


def _logs(node: ast.stmt) -> bool:
    is_call = isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
    return isinstance(node, ast.Pass) or (is_call and dotted(node.value.func).rpartition(".")[2] in LOGS)  # type: ignore[attr-defined]


class _Resolver(ast.NodeTransformer):
    """Writes names out: arguments, what is made of them, columns of a row, and constants."""

    def __init__(self, scope: _Scope) -> None:
        self._scope = scope

    def visit_Name(self, node: ast.Name) -> ast.expr:
        known = self._scope.names.get(node.id)
        if known is not None:
            return copy.deepcopy(known)
        made = self._scope.facts.locals.get(node.id)
        if made is None or node.id in self._scope.open:
            return self._constant(node)
        if node.id not in self._scope.made:
            self._scope.open.add(node.id)
            resolved = _resolved(made, self._scope)
            self._scope.open.remove(node.id)
            is_large = sum(1 for _ in ast.walk(resolved)) > _LARGEST
            self._scope.made[node.id] = node if is_large else resolved
        return copy.deepcopy(self._scope.made[node.id])

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        if isinstance(node.value, ast.Name) and self._is_row(node.value.id) and not is_id(node.attr):
            return ast.Name(f"{COLUMN}{node.attr}", ast.Load())
        return self._constant(node)

    def visit_Call(self, node: ast.Call) -> ast.expr:
        for called in self._scope.called(node):
            if called.returned is not None:
                return _resolved(called.returned, called)
        if isinstance(node.func, ast.Attribute):
            # Of `decimal.Decimal` the last part counts.
            is_module = isinstance(meaning(self._scope.function, dotted(node.func.value)), ModuleType)
            node.func = ast.Name(node.func.attr, ast.Load()) if is_module else node.func
        if isinstance(node.func, ast.Attribute):
            node.func.value = self.visit(node.func.value)
        node.args = [self.visit(one) for one in node.args]
        return node

    def _is_row(self, name: str) -> bool:
        """Whether a local name was given what a call found, and no object that was made here."""
        if self._scope.is_of_row and name == self._scope.facts.myself:
            return True
        made = self._scope.facts.locals.get(name)
        if name in self._scope.names or not isinstance(made, ast.Call):
            return False
        return not isinstance(_value(dotted(made.func), self._scope), type)

    def _constant(self, node: ast.Name | ast.Attribute) -> ast.expr:
        name = dotted(node)
        value = _value(name, self._scope)
        # The classes of `isinstance`; those that are built in are no globals.
        value = vars(builtins).get(name) if value is None else value
        many = isinstance(value, tuple | list | set | frozenset) and all(isinstance(one, _SIMPLE) for one in value)
        return ast.Constant(value) if many or isinstance(value, (*_SIMPLE, type)) else node


def _resolved(node: ast.expr, scope: _Scope) -> ast.expr:
    resolved: ast.expr = _Resolver(scope).visit(copy.deepcopy(node))
    return resolved


def _value(name: str, scope: _Scope) -> Any:
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


def _arguments(node: ast.expr) -> set[str]:
    return {one.id for one in ast.walk(node) if isinstance(one, ast.Name) and one.id.startswith(ARGUMENT)}


def _skipped(cls: type, name: str) -> int:
    """How many of a method's parameters no caller gives."""
    return 0 if isinstance(inspect.getattr_static(cls, name, None), staticmethod) else 1


def _defaults(function: Any) -> dict[str, Any]:
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
    left_out = {name: ast.Constant(value) for name, value in _defaults(function).items()}
    named = {one.arg: one.value for one in node.keywords if one.arg in parameters}
    return {**left_out, **dict(zip(parameters, node.args, strict=False)), **named}
