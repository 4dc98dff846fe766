"""Answers: what a method answers, as far as its annotation and its return statements show.

Until such a call was seen, an outage answers by that: with the new id, unless the code shows something else.  That is
an id that the caller has made, as in `return fill.position_id`, or a row that may be there already, as in `if found:
return found.id` or `INSERT ... ON CONFLICT (name) ...`.  What cannot be told is the declaration's word: `creates=` says
that the method returns an id.  Where the code leaves one answer only to a call that is applied, another answer shows a
call that was not.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import UnionType
from typing import Any
from uuid import UUID

from .class_code import ClassCode, remembered
from .method_code import Facts, dotted, facts_of, meaning, parsed
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


@remembered(256)
def given_id_of(cls: type, method: str) -> tuple[str, ...] | None:
    """The argument that a method returns in all cases, alone or with the field of it; None where it does not."""
    functions = ClassCode(cls).functions(method)
    if not functions:
        return None
    function = answering(functions)
    facts, code = facts_of(function), function.__code__
    arguments = code.co_varnames[1 : code.co_argcount + code.co_kwonlyargcount]
    found = {_path(one, facts) for one in facts.returns}
    path = found.pop() if facts.read and len(found) == 1 else None
    if path is None or path[0] not in arguments or _is_changed(path, facts):
        return None
    return path


def given_id(path: tuple[str, ...], call: Mapping[str, Any]) -> Any:
    """The id that a call gives; None where it gives none, or where the method may put another one in its place."""
    value = call.get(path[0])
    if len(path) > 1:
        if not _is_frozen(value):
            return None
        value = getattr(value, path[1], None)
    return value if isinstance(value, int | UUID) and not isinstance(value, bool) else None


def _path(node: ast.expr, facts: Facts) -> tuple[str, ...] | None:
    match node:
        case ast.Name(id=name):
            known = facts.locals.get(name)
            return (name,) if known is None else _path(known, facts) if not isinstance(known, ast.Name) else None
        case ast.Attribute(value=ast.Name(id=name), attr=field):
            return name, field
    return None


def _is_changed(path: tuple[str, ...], facts: Facts) -> bool:
    """Whether the method puts something else under the argument's name."""
    nodes = (node for statement in facts.body for node in ast.walk(statement))
    return any(isinstance(one, ast.Name) and one.id == path[0] and not isinstance(one.ctx, ast.Load) for one in nodes)


def _is_frozen(value: Any) -> bool:
    """Whether nothing can change the fields of an object: what it has now, the row gets."""
    is_data = dataclasses.is_dataclass(value) and not isinstance(value, type)
    return isinstance(value, tuple) or (is_data and bool(value.__dataclass_params__.frozen))


_ASKING = frozenset({"select", "query", "filter", "filter_by", "scalar", "scalars", "first", "one_or_none", "fetchone"})
_CONFLICT = re.compile(r"\bINTO\s+([\w.\"]+).*\bON\s+CONFLICT\s*(?:\(([^)]*)\))?", re.IGNORECASE | re.DOTALL)


def asked_by(cls: type, name: str, table: str) -> set[str] | None:
    """The names by which `name` asks for a row that it tests and answers with; None where it does not do that.

    `table`: of the row; an upsert into another one decides nothing.
    """
    found: list[set[str]] = []
    for function in ClassCode(cls).functions(name):
        facts = facts_of(function)
        found += [*_asked(function, facts), *_conflicting(facts, table, _inserted_into(function, facts))]
    return set().union(*found) if found else None


def _asked(function: Any, facts: Facts) -> Iterator[set[str]]:
    nodes = [node for statement in facts.body for node in ast.walk(statement)]
    tested = {one for node in nodes if isinstance(node, ast.If | ast.IfExp) for one in _names(node.test)}
    returned = {one for value in facts.returns for one in _names(value)}
    for one in tested & returned & facts.locals.keys():
        if _asks(function, facts.locals[one]):
            yield _behind(one, facts.locals)


def _conflicting(facts: Facts, table: str, inserted_into: set[str | None]) -> Iterator[set[str]]:
    """The columns by which an INSERT finds that its row is there already, if the method answers with a value."""
    if not any(not isinstance(one, ast.Constant) for one in facts.returns):
        return
    for found in filter(None, map(_CONFLICT.search, facts.texts)):
        if found[1].rpartition(".")[2].strip('"') == table:
            yield set(re.findall(r"\w+", found[2] or ""))
    for call in facts.calls if inserted_into == {table} else ():
        if call.last in ("on_conflict_do_update", "on_conflict_do_nothing"):
            given = (one.value for one in call.node.keywords if one.arg == "index_elements")
            nodes = [node for one in given for node in ast.walk(one)]
            columns = {node.attr for node in nodes if isinstance(node, ast.Attribute) and node.attr != "c"}
            yield columns | {str(node.value) for node in nodes if isinstance(node, ast.Constant)}


def _inserted_into(function: Any, facts: Facts) -> set[str | None]:
    """The tables of a method's `insert(Row)`; None for one that is not known."""
    given = (call.node.args[0] for call in facts.calls if call.node.args and _is_insert(function, call.node))
    found = [meaning(function, dotted(one)) for one in given]
    return {getattr(one, "__tablename__", getattr(one, "name", None)) for one in found}


def _is_insert(function: Any, call: ast.Call) -> bool:
    """Whether a call makes an INSERT, also under another name: `insert as pg_insert`."""
    name = dotted(call.func)
    made: Any = meaning(function, name)
    known = str(getattr(made, "__module__", "")).startswith("sqlalchemy.") and getattr(made, "__name__", "") == "insert"
    return known or name.rpartition(".")[2] == "insert"


def _behind(name: str, values: Mapping[str, ast.expr]) -> set[str]:
    """The names in the value of a local name, and in those of the local names in it."""
    found, left = set[str](), {name}
    while left:
        found |= left
        left = {inner for one in left & values.keys() for inner in _names(values[one])} - found
    return found


def _names(node: ast.AST) -> set[str]:
    return {one.id for one in ast.walk(node) if isinstance(one, ast.Name)}


def _asks(function: Any, value: ast.expr) -> bool:
    made = [one for one in ast.walk(value) if isinstance(one, ast.Call)]
    calls = {dotted(one.func).rpartition(".")[2] for one in made}
    texts = [one.value for one in ast.walk(value) if isinstance(one, ast.Constant) and isinstance(one.value, str)]
    is_select = any(one.lstrip().upper().startswith("SELECT") for one in texts)
    inserts = any(_is_insert(function, one) for one in made)
    return not inserts and (is_select or not calls.isdisjoint(_ASKING))
