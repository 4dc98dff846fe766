"""Module state: globals that a method reads, and that another call, or another process, finds with other values.

What an entry holds are arguments, attributes and context variables.  A global is read when the entry is delivered.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from functools import lru_cache
from types import ModuleType
from typing import Any

from ..code.method_code import dotted, facts_of, parse
from ..plain_data import SCALARS
from .evidence import Evidence

# Functions that give each process, or each call, another value.
_OTHERS_EACH_TIME = frozenset(
    {
        *("uuid1", "uuid4", "uuid6", "uuid7", "token_hex", "token_urlsafe", "token_bytes", "getpid"),
        *("now", "utcnow", "today", "time", "time_ns", "random", "randint", "randrange", "getrandbits", "choice"),
    }
)


def warning(name: str, evidence: Evidence) -> str | None:
    """A warning where the row of a method may depend on such a global."""
    found: dict[str, str] = {}
    for function, _ in evidence.code.reached(name):
        for named, module, attribute in _globals_read(function):
            how = _changing(module).get(attribute)
            value = vars(module).get(attribute)
            if how is not None and value is not None and isinstance(value, SCALARS):
                found[named] = how
    if not found:
        return None
    named = ", ".join(f"{one} ({how})" for one, how in sorted(found.items()))
    return (
        f"it reads {named}, and a call that waits for PostgreSQL finds the value of its delivery: pass it as an "
        "argument, or keep it in an attribute"
    )


def _globals_read(function: Any) -> Iterator[tuple[str, ModuleType, str]]:
    """The globals that a function reads of its module, and of modules that it names there."""
    home = inspect.getmodule(function)
    if home is None:
        return
    names = {dotted(node) for statement in facts_of(function).body for node in ast.walk(statement) if _is_read(node)}
    own = {*function.__code__.co_varnames, *function.__code__.co_cellvars, *function.__code__.co_freevars}
    for name in names:
        *path, attribute = name.split(".")
        module: Any = home
        if (path or [attribute])[0] in own:
            continue
        for part in path:
            module = vars(module).get(part) if isinstance(module, ModuleType) else None
        if isinstance(module, ModuleType):
            yield name, module, attribute


def _is_read(node: ast.AST) -> bool:
    return isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Load)


@lru_cache(maxsize=256)
def _changing(module: ModuleType) -> dict[str, str]:
    """The globals of a module that its functions set, or that it makes anew at each start, and how."""
    try:
        tree = parse(inspect.getsource(module))
    except (OSError, TypeError, SyntaxError):
        return {}
    found: dict[str, str] = {}
    for statement in tree.body:
        targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
        made = getattr(statement, "value", None)
        if isinstance(made, ast.expr) and any(map(_is_other_each_time, ast.walk(made))):
            found |= {one.id: "made anew at each start" for one in targets if isinstance(one, ast.Name)}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            shared = [name for one in ast.walk(node) if isinstance(one, ast.Global) for name in one.names]
            found |= dict.fromkeys(shared, f"set by {node.name}")
    return found


def _is_other_each_time(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and dotted(node.func).rpartition(".")[2] in _OTHERS_EACH_TIME
