"""Row queries: in which order a read asks for its rows, and for how many at most, found in its code.

The local view may not have seen two rows yet, or not as many as the read shows.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from . import written_sql
from .class_code import ClassCode
from .constants import UNKNOWN, Constants
from .method_code import Facts, dotted, facts_of

# A column, and whether rows descend by it.
Term = tuple[str, bool]

# What puts rows into another order after the query.
_SORTING = frozenset({"sorted", "sort", "reversed", "reverse"})
_NULLS = frozenset({"nulls_last", "nulls_first", "nullslast", "nullsfirst"})
_QUERYING = frozenset({"select", "query"})
# Functions that give rows: of a slice of what they give the end is a limit.
_GIVING = frozenset(
    {"all", "execute", "fetchall", "filter", "filter_by", "join", "list", "mappings", "options", "order_by", "query"}
    | {"reversed", "scalars", "sorted", "tuple", "where"}
)
# Functions that take a limit, and which argument it is.
_LIMITING = {"limit": 0, "fetch": 0, "slice": 1, "fetchmany": 0, "islice": 1, "nlargest": 0, "nsmallest": 0}
# Those whose names others have, too.
_COMMON = frozenset({"fetch", "slice"})


@dataclass(frozen=True, slots=True)
class RowQuery:
    """`order`: None where the code names none, empty where it is not understood; `most`: the limit, None for none.

    `is_limited`: whether more rows than were seen may be shown in another way: there is a limit that is not known, or
    that may be of a query beside, or the rows are numbered.
    """

    order: tuple[Term, ...] | None = None
    most: int | None = None
    is_limited: bool = False


def row_query(cls: type, method: str, attributes: Mapping[str, Any] = {}) -> RowQuery:
    """How `method` of a class asks for its rows, as far as its own code and that of the class's methods shows.

    `attributes`: what the manager's attributes hold.
    """
    orders, limits, queries, numbers = set[tuple[Term, ...]](), list[Any](), 0, False
    code = ClassCode(cls)
    own = code.functions(method)
    for function, _ in code.reached(method):
        facts = facts_of(function)
        if not facts.read:
            continue
        found = _Found(facts, Constants(cls, function, facts, attributes), is_read=function in own)
        orders.update(found.orders())
        limits += found.limits()
        queries += found.queries()
        numbers = numbers or found.numbers()
    # A limit of 1 is mostly that of a query beside, such as the last price.
    known = [one for one in limits if one is not UNKNOWN and one > 1]
    is_own = 1 in limits and queries == 1
    order = None if not orders else orders.pop() if len(orders) == 1 else ()
    return RowQuery(order, min(known, default=None), UNKNOWN in limits or is_own or numbers)


class _Found:
    """What the code of one function asks for."""

    def __init__(self, facts: Facts, constants: Constants, *, is_read: bool) -> None:
        """`is_read`: what it returns are the rows."""
        self._facts, self._constants = facts, constants
        body = facts.body[1:] if ast.get_docstring(ast.Module(facts.body, [])) else facts.body
        self._nodes = list(ast.walk(ast.Module(body, [])))
        self._texts = list(written_sql.texts_in(body))
        self._returned = {id(node.value) for node in self._nodes if is_read and isinstance(node, ast.Return)}

    def queries(self) -> int:
        """How many queries there are."""
        calls = [node for node in self._nodes if isinstance(node, ast.Call) and _name(node) in _QUERYING]
        return len(calls) + sum(one.queries for one in self._texts)

    def numbers(self) -> bool:
        """Whether a row may show something of the others, such as its number among them."""
        counts = any(isinstance(node, ast.Call) and _name(node) == "enumerate" for node in self._nodes)
        return counts or any(one.has_window for one in self._texts)

    def orders(self) -> Iterator[tuple[Term, ...]]:
        """Each order that is asked for; empty for one that is not understood."""
        for text in self._texts:
            yield from text.orders
        for node in self._nodes:
            if isinstance(node, ast.Call) and _name(node) in _SORTING:
                yield ()
            elif isinstance(node, ast.Call) and _name(node) == "order_by":
                found = [_term(one) for one in node.args]
                yield tuple(one for one in found if one is not None) if all(found) else ()
            elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Slice):
                step = node.slice.step
                if step is not None and self._is_of_rows(node):
                    yield ()

    def limits(self) -> Iterator[Any]:
        """Each limit; `UNKNOWN` for one that is not understood."""
        for text in self._texts:
            for one, name in text.limits:
                yield from self._limit(self._constants.given(name) if name else self._constants.value(one))
        for node in self._nodes:
            if isinstance(node, ast.Call) and _name(node) in _LIMITING:
                yield from self._limit_of_call(node)
            elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Slice) and self._is_of_rows(node):
                yield from self._limit(self._size(node.slice))

    def _limit_of_call(self, node: ast.Call) -> Iterator[Any]:
        name, count = _name(node), len(node.args)
        at = (1 if count == 2 else 2) if name == "islice" else _LIMITING[name]
        value = self._constants.value(node.args[at]) if count > at else UNKNOWN
        if value is not UNKNOWN or name not in _COMMON:
            yield from self._limit(value)

    def _size(self, part: ast.Slice) -> Any:
        """How many rows a slice has at most."""
        if part.upper is not None:
            end = self._constants.value(part.upper)
            return UNKNOWN if type(end) is int and end < 0 else end
        first = None if part.lower is None else self._constants.value(part.lower)
        return -first if type(first) is int and first < 0 else UNKNOWN if first else None

    @staticmethod
    def _limit(value: Any) -> Iterator[Any]:
        # None is no limit.
        if value is UNKNOWN or type(value) is int:
            yield value

    def _is_of_rows(self, node: ast.Subscript) -> bool:
        """Whether a slice is one of rows, and not of a text."""
        if id(node) in self._returned:
            return True
        value = node.value
        if isinstance(value, ast.Name):
            value = self._facts.locals.get(value.id, value)
        return isinstance(value, ast.Call) and dotted(value.func).rpartition(".")[2] in _GIVING


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


def _name(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
