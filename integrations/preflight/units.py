"""Units of work: methods that hand out an object by which the caller itself writes in a session of the manager's."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from ..code.class_code import ClassCode
from ..code.method_code import Facts, dotted, facts_of, meaning
from ..sql_text import writes_plainly
from . import ways_around
from .evidence import Evidence

# In a class that is given a session: calls by which it may write, whatever it calls the session.
_OF_UNITS = frozenset({"add", "delete", "commit", "begin", "flush"})
_FACTORIES = ("a session factory", "a scoped_session")
WAY = "write a method for each unit, such as save_fill(self, fill), and declare that"


def handed_out(name: str, evidence: Evidence) -> str | None:
    """The class of an object with a session, or a session factory, that a method yields or returns, and that writes."""
    for function in evidence.code.functions(name):
        facts = facts_of(function)
        for node in (node for statement in facts.body for node in ast.walk(statement)):
            if not isinstance(node, ast.Yield | ast.Return):
                continue
            for made in _made(node.value, facts):
                kind = meaning(function, dotted(made.func))
                if not isinstance(kind, type) or ways_around.module_of(kind).startswith("sqlalchemy"):
                    continue
                by_factory = any(_is_factory(one, facts, evidence) for one in _given(made))
                in_session = isinstance(node, ast.Yield) and made.args and evidence.turns_to_the_database(name)
                if by_factory or in_session:
                    return None if _only_reads(kind) else kind.__name__
    return None


def _made(value: ast.expr | None, facts: Facts) -> Iterator[ast.Call]:
    """The calls that may have made a value, also one that was entered by `with`."""
    if isinstance(value, ast.Call):
        yield value
    elif isinstance(value, ast.Name):
        known = facts.locals.get(value.id)
        if isinstance(known, ast.Call):
            yield known
        for node in (node for statement in facts.body for node in ast.walk(statement)):
            for item in node.items if isinstance(node, ast.With) else ():
                entered = isinstance(item.optional_vars, ast.Name) and item.optional_vars.id == value.id
                if entered and isinstance(item.context_expr, ast.Call):
                    yield item.context_expr


def _given(call: ast.Call) -> list[ast.expr]:
    return [*call.args, *(keyword.value for keyword in call.keywords)]


def _is_factory(given: ast.expr, facts: Facts, evidence: Evidence) -> bool:
    """Whether an argument is a session factory of the manager's, or a session from it."""
    name = dotted(given.func if isinstance(given, ast.Call) else given)
    owner, _, attribute = name.rpartition(".")
    if facts.myself is None or owner != facts.myself:
        return False
    return attribute == "session_factory" or evidence.held.get(attribute) in _FACTORIES


def _only_reads(kind: type) -> bool:
    """Whether the code of a class shows methods, and none that writes, commits, or makes a part of the session."""
    facts = {function: facts_of(function) for _, function in ClassCode(kind).everything()}
    calls = [(call, function) for function, one in facts.items() for call in one.calls]
    return (
        any(not function.__name__.startswith("_") for function in facts)
        and all(one.read and not one.changes and not any(map(writes_plainly, one.texts)) for one in facts.values())
        and not any(
            call.last in _OF_UNITS
            or ways_around.is_write(call.name, function)
            or (call.last[:1].isupper() and call.node.args)
            for call, function in calls
        )
    )
