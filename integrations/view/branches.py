"""Branches: by which values a declared method decides, found in its code and in the functions that it calls.

What can be computed from the arguments of a call, and from the row that it names, tells kinds of calls apart in the
local view.  The rest is named, since an outage answers it by the branch that was seen.
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..code.class_code import ClassCode, remembered
from ..code.code_version import LOGS
from ..code.method_code import dotted, facts_of
from ..code.signatures import parameter_names
from .decisions import ARGUMENT, TAKEN, TEXT, Decision, Unreadable
from .learning import is_id
from .written_out import (
    CHOOSING,
    Scope,
    arguments_in,
    constant_of,
    is_none,
    parameters_not_given,
    simple_defaults,
    written_out,
)

if TYPE_CHECKING:
    from ..operations import ManagerOperation

# How many calls of helpers are looked at for one method.
_LOOKS = 60
_SHOWN = 3
_ORDERING = (ast.Lt, ast.LtE, ast.Gt, ast.GtE)
_COMPARING = (*_ORDERING, ast.Eq, ast.NotEq, ast.In, ast.NotIn)
_Test = ast.If | ast.IfExp | ast.While
_TESTS = (ast.If, ast.IfExp, ast.While)


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


@remembered(512)
def of(operation: ManagerOperation, cls: type) -> Branches:
    """By which values the method of an operation decides; nothing for one that has no part in what is answered."""
    found, code = Branches(), ClassCode(cls)
    for function in code.functions(operation.name) if operation.has_role else ():
        given = parameter_names(function)[parameters_not_given(cls, operation.name) :]
        names = {name: ast.Name(f"{ARGUMENT}{operation.standard_name(name)}", ast.Load()) for name in given}
        defaults = {operation.standard_name(name): value for name, value in simple_defaults(function).items()}
        _Finder(found, defaults).look(Scope(code, function, facts_of(function), names))
    return found


class _Finder:
    """Collects the comparisons of one method, and of what it calls."""

    def __init__(self, found: Branches, defaults: Mapping[str, Any]) -> None:
        self._found, self._defaults, self._looks = found, defaults, 0

    def look(self, scope: Scope) -> None:
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

    def _call(self, node: ast.Call, scope: Scope, *, is_compared: bool) -> None:
        name = dotted(node.func)
        if name in CHOOSING:
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
            for called in scope.called(node, scope.columns.get(id(node), {})) if self._looks < _LOOKS else ():
                given = (*called.names.values(), *called.given.values())
                if any(map(arguments_in, given)) and not called.converts:
                    self.look(called)

    def _decide_truth(self, node: ast.Call, scope: Scope) -> None:
        # An id that is given is true.
        if not all(is_id(one.removeprefix(ARGUMENT)) for one in arguments_in(written_out(node, scope))):
            self._decide(node, scope, node.args[0])

    def _decide(
        self,
        node: ast.expr,
        scope: Scope,
        shown: ast.expr,
        *,
        is_test: bool = False,
        sets: frozenset[str] | None = None,
    ) -> None:
        resolved = written_out(node, scope)
        arguments = arguments_in(resolved)
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


def _set_by(test: _Test | None, scope: Scope, shown: Collection[int]) -> frozenset[str] | None:
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


def _shown_in(node: ast.AST, scope: Scope) -> Iterator[ast.expr]:
    """The expressions that go into a column, or into a value of a dict."""
    match node:
        case ast.Dict(values=values):
            yield from values
        case ast.Call(func=func, keywords=keywords) if isinstance(constant_of(dotted(func), scope), type):
            yield from (one.value for one in keywords)
        case ast.Assign(targets=targets, value=value):
            columns = [one for one in targets if isinstance(one, ast.Attribute)]
            if len(columns) == len(targets) and not any(dotted(one.value) == scope.facts.myself for one in columns):
                yield value


def _is_text(node: ast.expr) -> bool:
    if isinstance(node, ast.IfExp):
        return _is_text(node.body) and _is_text(node.orelse)
    is_constant = isinstance(node, ast.Constant) and isinstance(node.value, str)
    return is_constant or is_none(node) or isinstance(node, ast.JoinedStr)


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
