"""No-ops: calls that find nothing to do, such as a sweep of expired orders: they answer None and write no row.

A manager that hides its errors answers the same for a row that it failed to write, so its code must show that it does
not.
"""

from __future__ import annotations

import ast
from typing import Any
from weakref import WeakKeyDictionary

from ...fate import Fate, classify
from ..code.class_code import ClassCode
from ..code.method_code import Facts, dotted, facts_of
from ..operations import ManagerOperation, answered
from ..view import checks

# What catches more than one kind of refusal, by the last part of its name: errors of the driver, which are seen
# wherever they are caught, and others.
_OF_THE_DRIVER = frozenset({"DBAPIError", "DatabaseError", "OperationalError", "InterfaceError"})
_OTHERS = frozenset({"Exception", "BaseException", "SQLAlchemyError", "StatementError", "Error"})

# class -> operation, and what is broad -> whether its code hides no errors.
_honest: WeakKeyDictionary[type, dict[tuple[str, frozenset[str]], bool]] = WeakKeyDictionary()


def applied(operation: ManagerOperation, cls: type, value: Any, *, wrote: bool, error: BaseException | None) -> bool:
    """Whether a replay that answered with `value` succeeded; `error`: the last one of the database."""
    if operation.success(value, wrote):
        return True
    # Its caller was told None, too.  An operation that creates a row or has its own `success` never does nothing.
    if value is not None or operation.returns is not None or operation.creates or operation.success is not answered:
        return False
    return (error is None or is_refusal(error)) and _is_honest(cls, operation.name, _OTHERS | _OF_THE_DRIVER)


def declined(operation: ManagerOperation, cls: type, value: Any) -> bool:
    """Whether the manager has looked and found that the call must not be: a plain engine would go on after that.

    No error of the driver was seen.  Not where later calls build on the id or the balance that the caller was given.
    """
    if value is not False or operation.creates or operation.balance is not None or operation.success is not answered:
        return False
    return _is_honest(cls, operation.name, _OTHERS)


def is_refusal(error: BaseException) -> bool:
    """Whether an error of the database is about the data, or raised by a function, and would come again."""
    invalidated = getattr(error, "connection_invalidated", False)
    sqlstate = getattr(getattr(error, "orig", None), "pgcode", None)
    rejected = classify(sqlstate, connected=not invalidated, data_error=False) is Fate.DEAD
    return rejected or checks.is_raised(error)


def _is_honest(cls: type, name: str, broad: frozenset[str]) -> bool:
    known = _honest.setdefault(cls, {})
    if (name, broad) not in known:
        found = [facts_of(function) for function, _ in ClassCode(cls).reached(name)]
        known[name, broad] = bool(found) and all(facts.read and not _hides_errors(facts, broad) for facts in found)
    return known[name, broad]


def _hides_errors(facts: Facts, broad: frozenset[str]) -> bool:
    for node in (inner for statement in facts.body for inner in ast.walk(statement)):
        if isinstance(node, ast.ExceptHandler) and not any(isinstance(one, ast.Raise) for one in node.body):
            caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
            if any(one is None or _is_broad(one, broad) for one in caught):
                return True
        is_suppress = isinstance(node, ast.Call) and dotted(node.func).rpartition(".")[2] == "suppress"
        if is_suppress and any(_is_broad(one, broad) for one in node.args):  # type: ignore[attr-defined]
            return True
    return False


def _is_broad(node: ast.expr, broad: frozenset[str]) -> bool:
    # A name that stands for something else, such as `ERRORS`, may be anything.
    last = dotted(node).rpartition(".")[2]
    return last in broad or last.isupper() or "?" in last
