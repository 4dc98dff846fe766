"""Found rows: whether a method's code may answer with a row that is there already: `if found: return found.id`."""

from __future__ import annotations

import ast

from .class_code import ClassCode
from .method_code import Facts, dotted, facts_of

_ASKING = frozenset({"select", "query", "filter", "filter_by", "scalar", "scalars", "first", "one_or_none", "fetchone"})


def answers_found_row(cls: type, name: str) -> bool:
    """Whether `name` tests a row that it has asked for, and answers with it."""
    return any(_answers(facts_of(function)) for function in ClassCode(cls).functions(name))


def _answers(facts: Facts) -> bool:
    nodes = [node for statement in facts.body for node in ast.walk(statement)]
    tested = {one for node in nodes if isinstance(node, ast.If | ast.IfExp) for one in _names(node.test)}
    returned = {one for value in facts.returns for one in _names(value)}
    return any(_asks(facts.locals[one]) for one in tested & returned & facts.locals.keys())


def _names(node: ast.AST) -> set[str]:
    return {one.id for one in ast.walk(node) if isinstance(one, ast.Name)}


def _asks(value: ast.expr) -> bool:
    calls = {dotted(one.func).rpartition(".")[2] for one in ast.walk(value) if isinstance(one, ast.Call)}
    texts = [one.value for one in ast.walk(value) if isinstance(one, ast.Constant) and isinstance(one.value, str)]
    is_select = any(one.lstrip().upper().startswith("SELECT") for one in texts)
    return "insert" not in calls and (is_select or not calls.isdisjoint(_ASKING))
