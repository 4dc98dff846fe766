"""Switches: attributes that a manager turns when PostgreSQL fails, and by which a method then does not write.

`if not self.connected: return None` spares a plain manager a useless try.  Behind an outbox it loses the call: the copy
on which it is rehearsed has the switch, too, and comes to no write that could be recorded.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Any

from ..code.class_code import remembered
from ..code.method_code import Facts, facts_of
from .evidence import Evidence


def warning(name: str, evidence: Evidence) -> str | None:
    """A warning where a method may return or raise by such a switch."""
    found = found_in(name, evidence)
    if not found:
        return None
    named = ", ".join(f"self.{attribute} ({by})" for attribute, by in sorted(found.items()))
    return f"it may leave by what an outage has set, {named}, and is not recorded then: {WAY}"


WAY = "let it write without that test, and leave outages to the outbox"


@remembered(256)
def of_class(cls: type, name: str) -> tuple[str, ...]:
    """The switches by which method `name` of a class may leave."""
    return tuple(sorted(found_in(name, Evidence(cls))))


def found_in(name: str, evidence: Evidence) -> dict[str, str]:
    """The switches by which a method may leave, and the method that turns each.

    What it sets in handlers of its own is none: in an outage it is not run.
    """
    own = evidence.code.functions(name)
    turned: dict[str, str] = {}
    for by, function in evidence.code.everything():
        if function not in own:
            turned |= dict.fromkeys(_set_in_handlers(facts_of(function)), by)
    tested = set[str]()
    for function, _ in evidence.code.reached(name):
        for attribute in _tested(facts_of(function)):
            # A property, or a method that answers by the switch.
            tested |= {attribute, *evidence.code.uses_of(attribute)}
    return {attribute: by for attribute, by in turned.items() if attribute in tested}


def _set_in_handlers(facts: Facts) -> Iterator[str]:
    for handler in _nodes(facts.body, ast.ExceptHandler):
        for node in _nodes(handler.body, ast.Attribute):
            if not isinstance(node.ctx, ast.Load) and _is_own(node, facts):
                yield node.attr


def _tested(facts: Facts) -> Iterator[str]:
    """The attributes by which a function leaves."""
    for branch in _nodes(facts.body, ast.If):
        if any(isinstance(one, ast.Return | ast.Raise) for one in (*branch.body, *branch.orelse)):
            yield from (node.attr for node in _nodes([branch.test], ast.Attribute) if _is_own(node, facts))


def _is_own(node: ast.Attribute, facts: Facts) -> bool:
    return isinstance(node.value, ast.Name) and node.value.id == facts.myself


def _nodes(roots: Any, kind: Any) -> Iterator[Any]:
    return (node for root in roots for node in ast.walk(root) if isinstance(node, kind))
