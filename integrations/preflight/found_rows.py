"""Found rows: whether a method's code may answer with a row that is there already: `if found: return found.id`."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping

from .class_code import ClassCode
from .method_code import Facts, dotted, facts_of

_ASKING = frozenset({"select", "query", "filter", "filter_by", "scalar", "scalars", "first", "one_or_none", "fetchone"})


def asked_by(cls: type, name: str) -> set[str] | None:
    """The names by which `name` asks for a row that it tests and answers with; None where it does not do that."""
    found = [asked for function in ClassCode(cls).functions(name) for asked in _asked(facts_of(function))]
    return set().union(*found) if found else None


def _asked(facts: Facts) -> Iterator[set[str]]:
    nodes = [node for statement in facts.body for node in ast.walk(statement)]
    tested = {one for node in nodes if isinstance(node, ast.If | ast.IfExp) for one in _names(node.test)}
    returned = {one for value in facts.returns for one in _names(value)}
    for one in tested & returned & facts.locals.keys():
        if _asks(facts.locals[one]):
            yield _behind(one, facts.locals)


def _behind(name: str, values: Mapping[str, ast.expr]) -> set[str]:
    """The names in the value of a local name, and in those of the local names in it."""
    found, left = set[str](), {name}
    while left:
        found |= left
        left = {inner for one in left & values.keys() for inner in _names(values[one])} - found
    return found


def _names(node: ast.AST) -> set[str]:
    return {one.id for one in ast.walk(node) if isinstance(one, ast.Name)}


def _asks(value: ast.expr) -> bool:
    calls = {dotted(one.func).rpartition(".")[2] for one in ast.walk(value) if isinstance(one, ast.Call)}
    texts = [one.value for one in ast.walk(value) if isinstance(one, ast.Constant) and isinstance(one.value, str)]
    is_select = any(one.lstrip().upper().startswith("SELECT") for one in texts)
    return "insert" not in calls and (is_select or not calls.isdisjoint(_ASKING))
