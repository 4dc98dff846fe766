"""Found rows: whether a method's code may answer with a row that is there already.

`if found: return found.id`, or `INSERT ... ON CONFLICT (name) ...`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from typing import Any

from .class_code import ClassCode
from .method_code import Facts, dotted, facts_of, meaning

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
