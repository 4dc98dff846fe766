"""Applied answers: what a method answers to each call that is applied, where its code leaves one such answer only.

False is none: a call that answers it was not applied.  What an `except` returns is none either.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from typing import Any

from .class_code import ClassCode
from .method_code import facts_of, parsed
from .plain_answers import answering
from .signatures import hints_of

_PLAIN = (bool, float, int, str, type(None))
# Expressions that may come to True or False.
_TRUTHS = (ast.Attribute, ast.BoolOp, ast.Call, ast.Compare, ast.IfExp, ast.Name, ast.UnaryOp)


def applied_answer(code: ClassCode, name: str) -> tuple[Any] | None:
    """The one answer to a call that is applied; None where there may be several, or another than the code shows."""
    functions = code.functions(name)
    function = answering(functions) if functions else None
    node = None if function is None else parsed(function.__code__)
    if function is None or node is None or not facts_of(function).read:
        return None
    if any(isinstance(one, ast.Yield | ast.YieldFrom | ast.Await) for one in ast.walk(node)):
        return None
    # A decorator passes it on, and may show another annotation than the method.
    is_truth = hints_of(function).get("return") is bool
    found = set[tuple[type, Any]]()
    for each in _returned(node.body):
        if isinstance(each, ast.Constant) and isinstance(each.value, _PLAIN):
            found.add((type(each.value), each.value))
        elif is_truth and isinstance(each, _TRUTHS):
            found |= {(bool, True), (bool, False)}
        else:
            return None
    if not _ends(node.body):
        found.add((type(None), None))
    found.discard((bool, False))
    return (next(iter(found))[1],) if len(found) == 1 else None


def _returned(body: Sequence[ast.stmt]) -> Iterator[ast.expr]:
    """What the statements return, but those of functions inside and of handlers of errors."""
    for one in body:
        match one:
            case ast.Return(value=value):
                yield ast.Constant(None) if value is None else value
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                continue
            case ast.Match(cases=cases):
                yield from (each for case in cases for each in _returned(case.body))
            case _:
                for part in ("body", "orelse", "finalbody"):
                    yield from _returned(getattr(one, part, ()))


def _ends(body: Sequence[ast.stmt]) -> bool:
    """Whether the statements cannot be passed to their end without a return, unless an error was caught."""
    match body[-1]:
        case ast.Return() | ast.Raise():
            return True
        case ast.If(body=body, orelse=orelse):
            return bool(orelse) and _ends(body) and _ends(orelse)
        case ast.With(body=body):
            return _ends(body)
        case ast.Try(body=body, orelse=orelse, finalbody=finalbody):
            return (bool(finalbody) and _ends(finalbody)) or _ends(orelse or body)
        case ast.While(test=ast.Constant(value=True), body=body):
            return not any(isinstance(one, ast.Break) for statement in body for one in ast.walk(statement))
        case _:
            return False
