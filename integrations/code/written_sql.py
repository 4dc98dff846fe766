"""Written SQL: the order and the limit of queries that a function's code writes out, also put together from parts."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

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
