"""Plain answers: what a method answers, as far as its annotation and its return statements show.

Until such a call was seen, an outage answers by that: with the new id, unless the code shows something else.  What
cannot be told is the declaration's word: `creates=` says that the method returns an id.
"""

from __future__ import annotations

import ast
import inspect
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from types import UnionType
from typing import Any
from uuid import UUID

from .class_code import ClassCode
from .method_code import dotted, facts_of
from .signatures import hints_of

_ID_TYPES = (int, str, UUID)
# Calls that make no id, what takes a row of an answer of the database, and what makes an id of another type.
_OTHERS = frozenset({"bool", "dict", "float", "list", "set", "tuple", "Decimal", "all", "fetchall", "to_dict"})
_ONE_ROW = frozenset({"inserted_primary_key", "fetchone", "first", "one"})
_MADE = frozenset({"int", "str", "UUID"})
_DEEPEST = 4


@dataclass(frozen=True, slots=True)
class PlainAnswer:
    """`shown`: the answer as it is written.  `ids`: the types that it may have where it is an id; none: it is no id.

    None where any type fits, or nothing is known.
    """

    shown: str
    ids: frozenset[str] | None = frozenset()

    def fits(self, told: Any) -> bool:
        """Whether that may be the id which an outage answers."""
        return self.ids is None or type(told).__name__ in self.ids


def plain_answer(code: ClassCode, name: str, column: str = "id") -> PlainAnswer:
    """What a method answers; `column`: of the id that it may answer."""
    functions = code.functions(name)
    if not functions:
        return PlainAnswer("a value", None)
    raw, hint = inspect.signature(functions[0]).return_annotation, hints_of(functions[0]).get("return", Any)
    by_hint = _by_hint(hint, shown(raw))
    return by_hint or _AnswerReader(code, column).by_code(functions, (name,))


def answering(functions: list[Any]) -> Any:
    """The function whose answer a method gives: behind decorators that only pass it on."""
    for function in functions:
        facts = facts_of(function)
        passed = [facts.locals.get(one.id) if isinstance(one, ast.Name) else one for one in facts.returns]
        if "__wrapped__" not in vars(function) or not all(isinstance(one, ast.Call) for one in passed):
            break
    return function


def shown(hint: Any) -> str:
    """An annotation as it is written."""
    if isinstance(hint, str):
        return hint
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)


def _by_hint(hint: Any, written: str) -> PlainAnswer | None:
    """What an annotation says; None where it says nothing of the kind of answer."""
    hint = getattr(hint, "__supertype__", hint)
    if hint in (None, Any, object) or isinstance(hint, typing.TypeVar):
        return None
    is_union = typing.get_origin(hint) in (typing.Union, UnionType)
    parts = [getattr(one, "__supertype__", one) for one in (typing.get_args(hint) if is_union else (hint,))]
    known = [one for one in parts if one is not type(None)]
    if not known or Any in known:
        # The code may return something all the same.
        return None
    return PlainAnswer(written, frozenset(one.__name__ for one in known if one in _ID_TYPES))


@dataclass(frozen=True, slots=True)
class _AnswerReader:
    """`column`: of the new id."""

    code: ClassCode
    column: str

    def by_code(self, functions: list[Any], outer: tuple[str, ...]) -> PlainAnswer:
        """What the return statements come to; `outer`: the names that are followed already."""
        function = answering(functions)
        facts = facts_of(function)
        if not facts.read:
            return PlainAnswer("a value", None)
        found = [each for one in facts.returns for each in self._answers(one, function, outer)]
        if not found:
            return PlainAnswer("None")
        other = next((one for one in found if one.ids == frozenset()), None)
        known = [one.ids for one in found if one.ids is not None]
        return other or PlainAnswer(found[0].shown, frozenset[str]().union(*known) if known else None)

    def _answers(self, node: ast.expr, function: Any, outer: tuple[str, ...]) -> Iterator[PlainAnswer]:
        """What an expression may come to; nothing for None."""
        written, assigned = ast.unparse(node), facts_of(function).locals
        match node:
            case ast.Constant(value=None):
                return
            case ast.Name(id=name) if name in assigned and name not in outer:
                yield from self._answers(assigned[name], function, (*outer, name))
            case ast.BoolOp(values=parts):
                yield from (each for one in parts for each in self._answers(one, function, outer))
            case ast.IfExp(body=one, orelse=other):
                yield from (each for part in (one, other) for each in self._answers(part, function, outer))
            case ast.Name(id=name):
                is_given = name in function.__code__.co_varnames[: _parameters(function)]
                yield PlainAnswer(written, frozenset() if is_given else None)
            case ast.Attribute(attr=name) | ast.Subscript(slice=ast.Constant(value=str(name))):
                yield PlainAnswer(written, None if name in (self.column, "id") else frozenset())
            case ast.Subscript(value=owner, slice=ast.Constant(value=int())):
                is_row = dotted(owner).removesuffix("()").rpartition(".")[2] in _ONE_ROW
                yield PlainAnswer(written, None if is_row else frozenset())
            case ast.Call():
                yield from self._called(node, function, outer)
            case _:
                yield PlainAnswer(written)

    def _called(self, node: ast.Call, function: Any, outer: tuple[str, ...]) -> Iterator[PlainAnswer]:
        owner, _, last = dotted(node.func).rpartition(".")
        if last in _MADE:
            yield PlainAnswer(ast.unparse(node), frozenset({last}))
        elif last == "cast" and len(node.args) > 1:
            yield from self._answers(node.args[1], function, outer)
        elif owner in (facts_of(function).myself, "super()") and len(outer) < _DEEPEST:
            functions = self.code.functions(last)
            behind = functions.index(function) + 1 if owner == "super()" and function in functions else 0
            if functions[behind:] and (last not in outer or behind):
                yield self.by_code(functions[behind:], (*outer, last))
            else:
                yield PlainAnswer(ast.unparse(node), None)
        else:
            yield PlainAnswer(ast.unparse(node), frozenset() if last in _OTHERS else None)


def _parameters(function: Any) -> int:
    code = function.__code__
    return int(code.co_argcount + code.co_kwonlyargcount)
