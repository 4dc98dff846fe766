"""Row queries: in which order a read asks for its rows, and for how many at most, found in its code.

The local view may not have seen two rows yet, or not as many as the read shows.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from .class_code import ClassCode
from .method_code import facts_of, meaning

# A column, and whether rows descend by it.
Term = tuple[str, bool]

_ORDER = re.compile(r"\bORDER\s+BY\s+(.+?)(?=\bLIMIT\b|\bOFFSET\b|\bFOR\b|[;)]|$)", re.IGNORECASE | re.DOTALL)
_TERM = re.compile(r'\s*(?:\w+\.)*"?(\w+)"?(?:\s+(ASC|DESC))?\s*', re.IGNORECASE)
_LIMIT = re.compile(r"\bLIMIT\s+(\d+)", re.IGNORECASE)
# What puts rows into another order after the query.
_SORTING = frozenset({"sorted", "sort", "reversed", "reverse"})
_NULLS = frozenset({"nulls_last", "nulls_first", "nullslast", "nullsfirst"})


@dataclass(frozen=True, slots=True)
class RowQuery:
    """`order`: None where the code names none, empty where it is not understood; `most`: the limit, None for none."""

    order: tuple[Term, ...] | None = None
    most: int | None = None


def row_query(cls: type, method: str) -> RowQuery:
    """How `method` of a class asks for its rows, as far as its own code and that of the class's methods shows."""
    orders, limits = set[tuple[Term, ...]](), list[int]()
    for function, _ in ClassCode(cls).reached(method):
        facts = facts_of(function)
        body = facts.body[1:] if ast.get_docstring(ast.Module(facts.body, [])) else facts.body
        for node in ast.walk(ast.Module(body, [])) if facts.read else ():
            orders.update(_orders(node))
            limits += _limits(node, function)
    # A limit of 1 is that of a query beside, such as the last price.
    most = min((one for one in limits if one > 1), default=None)
    return RowQuery(None if not orders else orders.pop() if len(orders) == 1 else (), most)


def _orders(node: ast.AST) -> Iterator[tuple[Term, ...]]:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        for text in _ORDER.findall(node.value):
            terms = [_TERM.fullmatch(one) for one in text.split(",")]
            yield tuple((one[1], (one[2] or "").upper() == "DESC") for one in terms if one) if all(terms) else ()
    elif isinstance(node, ast.Call) and _name(node) in _SORTING:
        yield ()
    elif isinstance(node, ast.Call) and _name(node) == "order_by":
        found = [_term(one) for one in node.args]
        yield tuple(one for one in found if one is not None) if all(found) else ()


def _term(node: ast.expr) -> Term | None:
    if isinstance(node, ast.Attribute):
        return node.attr, False
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return (node.value, False) if node.value.isidentifier() else None
    if isinstance(node, ast.Call):
        # Of a method of the column, or of a function that takes it.
        of: Sequence[ast.expr] = node.args or ([node.func.value] if isinstance(node.func, ast.Attribute) else [])
        inner = _term(of[0]) if len(of) == 1 else None
        if inner is not None and _name(node) in ("asc", "desc"):
            return inner[0], _name(node) == "desc"
        return inner if _name(node) in _NULLS else None
    return None


def _limits(node: ast.AST, function: Any) -> Iterator[int]:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield from map(int, _LIMIT.findall(node.value))
    elif isinstance(node, ast.Call) and _name(node) == "limit" and len(node.args) == 1:
        one = node.args[0]
        value = one.value if isinstance(one, ast.Constant) else None
        if isinstance(one, ast.Name):
            defaults = function.__code__.co_varnames[: function.__code__.co_argcount][::-1]
            value = dict(zip(defaults, (function.__defaults__ or ())[::-1], strict=False)).get(one.id)
            value = meaning(function, one.id) if value is None else value
        if type(value) is int:
            yield value


def _name(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
