"""Threads: writes that a method leaves to another thread, which may come after the call, and so after its delivery."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from ..code.method_code import Facts, facts_of
from ..operations import ManagerOperation
from .evidence import Evidence

_STARTING = frozenset({"Thread", "Timer", "submit", "apply_async", "run_in_executor", "start_new_thread", "spawn"})
# A function that waits may end its threads before the call ends.
_WAITING = frozenset({"result", "get", "join", "wait", "as_completed", "shutdown", "gather", "run_until_complete"})
WAY = "write in the call's own thread, or let that thread make a declared call of the durable manager"


def left_to_threads(operation: ManagerOperation, evidence: Evidence) -> Iterator[str]:
    """Refusals: methods that turn to the database, which a method hands to a thread that it does not wait for."""
    found: dict[str, None] = {}
    for function, _ in evidence.code.reached(operation.name, but=evidence.known):
        facts = facts_of(function)
        if any(call.last in _WAITING for call in facts.calls):
            continue
        for call in facts.calls:
            if call.last in _STARTING:
                found |= dict.fromkeys(name for name in _handed(call.node, facts) if _turns(name, evidence))
    for name in found:
        yield f"it leaves self.{name} to another thread and does not wait for it, so a replay would lose it: {WAY}"


def _handed(call: ast.Call, facts: Facts) -> Iterator[str]:
    """The attributes of self that are named in the arguments of a call."""
    for given in (*call.args, *(keyword.value for keyword in call.keywords)):
        for node in ast.walk(given):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == facts.myself:
                yield node.attr


def _turns(name: str, evidence: Evidence) -> bool:
    return bool(evidence.code.functions(name)) and evidence.turns_to_the_database(name)
