"""Written values: whether a method's own code rounds amounts, or changes the letters of texts, before it writes them.

A row then shows another value than the call gives.  Found without running the code.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from decimal import Decimal
from types import CodeType, FunctionType
from typing import Any

from .code_version import LOGS
from .method_code import Facts, dotted, facts_of, meaning
from .tables_named import Search

_FUNCTIONS = frozenset(
    {"round", "quantize", "trunc", "floor", "ceil", "around", "rint", "fix", "divmod", "__round__"}
    | {"to_integral", "to_integral_exact", "to_integral_value"}
)
_IN_SQL = re.compile(r"\b(?:ROUND|TRUNC|FLOOR|CEIL|CEILING)\s*\(|(?:::|\bAS)\s*(?:NUMERIC|DECIMAL)\s*\(", re.IGNORECASE)
# Of `f"{total:.2f}"`, and of `format(total, ".2f")`.
_FORMAT = re.compile(r"(?:[^{}]?[<>=^])?[-+ ]?z?#?\d*[,_]?\.(\d+)([fFeEgGn%])")
# Of `"%.2f"` and `"{:.2f}"`.
_FIELD = re.compile(r"%[-+ #0]*\d*\.(\d+)([fFeEgG])|\{[^{}:]*:[^{}]*?\.(\d+)([fFeEgGn%])\}")


def places_kept(cls: type, method: str) -> int | None:
    """The decimal places that `method` of a class leaves of an amount, also in the functions that it calls.

    None where it rounds nothing; 0 where it rounds in a way that is not understood.
    """
    functions = Search.of(cls, method).functions
    docs = {one.__doc__ for one in functions}
    return min((kept for one in functions for kept in _kept_by(one, docs)), default=None)


def _kept_by(function: FunctionType, docs: set[str | None]) -> Iterator[int]:
    """The places that each rounding of one function keeps."""
    facts = facts_of(function)
    if facts.read:
        nodes = list(_nodes(facts.body))
        called = {id(node.func): node for node in nodes if isinstance(node, ast.Call)}
        for node in nodes:
            yield from _kept_at(node, function, facts, called, docs)
        return
    todo = [function.__code__]
    while todo:
        code = todo.pop()
        todo += [one for one in code.co_consts if isinstance(one, CodeType)]
        texts = [one for one in code.co_consts if isinstance(one, str) and one not in docs]
        if not _FUNCTIONS.isdisjoint(code.co_names) or any(_in_text(one) or _FORMAT.fullmatch(one) for one in texts):
            yield 0


def _nodes(body: Iterable[ast.AST]) -> Iterator[ast.AST]:
    """The nodes of a function but those of what it logs or raises, which no answer shows."""
    todo = list(body)
    while todo:
        node = todo.pop()
        logs = isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
        if isinstance(node, ast.Raise) or (logs and _last(node.value.func) in LOGS):  # type: ignore[attr-defined]
            continue
        yield node
        todo += ast.iter_child_nodes(node)


def _kept_at(
    node: ast.AST, function: FunctionType, facts: Facts, called: dict[int, ast.Call], docs: set[str | None]
) -> Iterator[int]:
    if isinstance(node, ast.Name | ast.Attribute) and _last(node) in _FUNCTIONS:
        call = called.get(id(node))
        yield 0 if call is None else _places(function, call)
    elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value not in docs:
        yield from _in_text(node.value)
    elif isinstance(node, ast.JoinedStr):
        texts = "".join(str(one.value) for one in node.values if isinstance(one, ast.Constant))
        specs = [one.format_spec for one in node.values if isinstance(one, ast.FormattedValue)]
        # A text with words is for people, and no amount.
        for spec in specs if not any(map(str.isalpha, texts)) else ():
            if isinstance(spec, ast.JoinedStr):
                yield from _in_spec(spec)
    elif isinstance(node, ast.Call) and dotted(node.func) == "format" and len(node.args) == 2:
        yield from _in_spec(node.args[1])
    elif isinstance(node, ast.BinOp) and _cuts(node, facts):
        yield 0


def _last(node: ast.AST) -> str:
    return dotted(node).rpartition(".")[2]


def _in_text(text: str) -> list[int]:
    """What a text keeps of amounts: one of SQL, or one that is nothing but fields."""
    if _IN_SQL.search(text):
        return [0]
    if any(map(str.isalpha, _FIELD.sub("", text))):
        return []
    return [_kept_in(*(one for one in found.groups() if one is not None)) for found in _FIELD.finditer(text)]


def _in_spec(spec: ast.expr) -> list[int]:
    """What a format keeps of an amount."""
    parts = spec.values if isinstance(spec, ast.JoinedStr) else [spec]
    texts = [one.value for one in parts if isinstance(one, ast.Constant) and isinstance(one.value, str)]
    if len(texts) < len(parts):
        return [0]
    found = _FORMAT.fullmatch("".join(texts))
    return [] if found is None else [_kept_in(*found.groups())]


def _kept_in(digits: str, kind: str) -> int:
    return int(digits) if kind in "fF" else 0


def _cuts(node: ast.BinOp, facts: Facts) -> bool:
    """Whether it leaves the rest of a step out: `int(x / step) * step`, `x // step * step`, `x - x % step`."""
    left, right = (facts.locals.get(getattr(one, "id", ""), one) for one in (node.left, node.right))
    if isinstance(node.op, ast.Sub):
        return isinstance(right, ast.BinOp) and isinstance(right.op, ast.Mod)
    sides = (left, right) if isinstance(node.op, ast.Mult) else (left,) if isinstance(node.op, ast.Div) else ()
    return any(map(_is_whole, sides))


def _is_whole(node: ast.expr) -> bool:
    """Whether it is a whole number of steps, also as a number of another type: `Decimal(int(x / step))`."""
    if isinstance(node, ast.Call) and len(node.args) == 1:
        return _is_whole(node.args[0]) or (_last(node.func) == "int" and isinstance(node.args[0], ast.BinOp))
    return isinstance(node, ast.BinOp) and isinstance(node.op, ast.FloorDiv)


def _places(function: FunctionType, call: ast.Call) -> int:
    given = call.args
    if dotted(call.func) == "round" and len(given) == 2 and isinstance(given[1], ast.Constant):
        return int(given[1].value) if isinstance(given[1].value, int) else 0
    step: Any = None
    if _last(call.func) == "quantize" and given:
        step = meaning(function, dotted(given[0]))
        if isinstance(given[0], ast.Call) and _last(given[0].func) == "Decimal":
            step = next((Decimal(str(one.value)) for one in given[0].args if isinstance(one, ast.Constant)), None)
    exponent = step.as_tuple().exponent if isinstance(step, Decimal) else 0
    return max(0, -exponent) if isinstance(exponent, int) else 0


_RESPELLING = frozenset({"upper", "lower", "casefold", "title", "capitalize", "swapcase", "initcap"})
_RESPELLING |= {"strip", "lstrip", "rstrip", "trim", "ltrim", "rtrim"}
_RESPELLING_SQL = re.compile(r"\b(?:UPPER|LOWER|INITCAP|[LRB]?TRIM)\s*\(", re.IGNORECASE)


def respells(cls: type, method: str) -> bool:
    """Whether `method` of a class does so, also in the functions and validators that it uses."""
    return any(map(_respells, Search.of(cls, method).functions))


def _respells(function: FunctionType) -> bool:
    todo = [function.__code__]
    while todo:
        code = todo.pop()
        todo += [one for one in code.co_consts if isinstance(one, CodeType)]
        texts = [one for one in code.co_consts if isinstance(one, str) and one != function.__doc__]
        if not _RESPELLING.isdisjoint(code.co_names) or any(map(_RESPELLING_SQL.search, texts)):
            return True
    return False
