"""Row queries: in which order a read asks for its rows, and for how many at most, found in its code.

The local view may not have seen two rows yet, or not as many as the read shows.  The code may write the query out as
SQL, also put together from parts, and take a limit from an expression that is the same in every call.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from .class_code import ClassCode
from .method_code import Facts, dotted, facts_of, meaning

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


# Stands in a text for the part of that number, which is an expression.
_PART = "\x00{}\x00"
_ENDS = "\x02"
_ORDER = re.compile(
    rf"\bORDER\s+BY\s+(.+?)(?=\bLIMIT\b|\bOFFSET\b|\bFETCH\b|\bFOR\b|[;){_ENDS}]|$)", re.IGNORECASE | re.DOTALL
)
_TERM = re.compile(r'\s*(?:\w+\.)*"?(\w+)"?(?:\s+(ASC|DESC))?\s*', re.IGNORECASE)
# A number, a part, or a parameter with a name or without one.
_LIMIT = re.compile(
    r"\b(?:LIMIT|FETCH\s+(?:FIRST|NEXT))\s+(?:(\d+)|\x00(\d+)\x00|:(\w+)|%\((\w+)\)s|(%s|\?|\$\d+|\{))", re.IGNORECASE
)
_GROUP = re.compile(r"(\w*)(\s*)\(([^()]*)\)")
_WINDOW = re.compile(r"\)\s*OVER\s*[(\w]", re.IGNORECASE)
_SELECT = re.compile(r"\bSELECT\b", re.IGNORECASE)
# What stands before a query in parentheses whose rows are those of the whole.
_FROM = frozenset({"FROM", "JOIN", "AS", "LATERAL", "MATERIALIZED"})


@dataclass(frozen=True, slots=True)
class SqlText:
    """A text with SQL, or what may be a part of it: its orders, empty where one is not understood, and its limits.

    A limit is an expression, or the name of a parameter.
    """

    queries: int
    orders: tuple[tuple[tuple[str, bool], ...], ...]
    limits: tuple[tuple[ast.expr, str], ...]
    # Whether it computes something of a row beside others.
    has_window: bool


def texts_in(body: Iterable[ast.stmt]) -> Iterator[SqlText]:
    """The texts in a function's code, as far as they tell of orders and limits."""
    for text, parts in _texts_in(body):
        yield _read(text, parts)


def written_in(body: Iterable[ast.stmt]) -> Iterator[str]:
    """The texts in a function's code, each as one, that are SQL."""
    return (text for text, _ in _texts_in(body) if _SELECT.search(text))


def _texts_in(body: Iterable[ast.stmt]) -> Iterator[tuple[str, list[ast.expr]]]:
    todo: list[ast.AST] = list(body)
    while todo:
        node = todo.pop()
        parts: list[ast.expr] = []
        text = _written(node, parts)
        if text is not None:
            yield text, parts
            todo += parts
        else:
            todo += ast.iter_child_nodes(node)


def _written(node: ast.AST, parts: list[ast.expr]) -> str | None:
    """A text with the numbers of its `parts` where it is put together; None for what is no text."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        return "".join(
            str(one.value) if isinstance(one, ast.Constant) else _part(one.value, parts)  # type: ignore[attr-defined]
            for one in node.values
        )
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        sides = [_written(side, own) for side, own in ((node.left, []), (node.right, []))]  # type: ignore[var-annotated]
        if sides == [None, None]:
            return None
        return "".join(_written(side, parts) or _part(side, parts) for side in (node.left, node.right))
    return None


def _part(node: ast.expr, parts: list[ast.expr]) -> str:
    parts.append(node)
    return _PART.format(len(parts) - 1)


def _read(text: str, parts: list[ast.expr]) -> SqlText:
    flat = _flat(text)
    orders = []
    for found in _ORDER.findall(flat):
        terms = [_TERM.fullmatch(one) for one in found.split(",")]
        known = tuple((one[1], (one[2] or "").upper() == "DESC") for one in terms if one)
        orders.append(known if all(terms) else ())
    limits = [_limit(found, parts) for found in _LIMIT.finditer(flat)]
    return SqlText(len(_SELECT.findall(flat)), tuple(orders), tuple(limits), _WINDOW.search(text) is not None)


def _limit(found: re.Match[str], parts: list[ast.expr]) -> tuple[ast.expr, str]:
    number, part, name, other, _ = found.groups()
    if number is not None:
        return ast.Constant(int(number)), ""
    return (parts[int(part)], "") if part is not None else (ast.Name("?", ast.Load()), name or other or "?")


def _flat(text: str) -> str:
    """SQL without what is in parentheses, such as the order of a window, but for queries from which it selects."""
    while (group := _GROUP.search(text)) is not None:
        word, space, inner = group.groups()
        begins = not text[: group.start()].strip() and not word
        keeps = _SELECT.search(inner) is not None and (begins or word.upper() in _FROM)
        text = f"{text[: group.start()]}{word}{space} {inner + _ENDS if keeps else ''} {text[group.end() :]}"
    return text


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
        self._texts = list(texts_in(body))
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
