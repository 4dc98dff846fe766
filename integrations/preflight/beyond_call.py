"""Beyond the call: what a method's code has to do with that no entry of the call holds.

Globals, which another call, or another process, finds with other values: an entry holds arguments, attributes and
context variables only.  Writes that a method leaves to another thread: they may come after the call, and so after its
delivery.  Units of work: methods that hand out an object by which the caller itself writes in a session of the
manager's.  Switches: attributes that a manager turns when PostgreSQL fails, and by which a method then does not write.
`if not self.connected: return None` spares a plain manager a useless try.  Behind an outbox it loses the call: the copy
on which it is rehearsed has the switch, too, and comes to no write that could be recorded.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from functools import lru_cache
from types import ModuleType
from typing import Any

from ..code.class_code import ClassCode, remembered
from ..code.method_code import Facts, dotted, facts_of, meaning, parse
from ..operations import ManagerOperation
from ..plain_data import SCALARS
from ..sql_text import writes_plainly
from . import ways_around
from .evidence import Evidence

# Functions that give each process, or each call, another value.
_OTHERS_EACH_TIME = frozenset(
    {
        *("uuid1", "uuid4", "uuid6", "uuid7", "token_hex", "token_urlsafe", "token_bytes", "getpid"),
        *("now", "utcnow", "today", "time", "time_ns", "random", "randint", "randrange", "getrandbits", "choice"),
    }
)


def global_warning(name: str, evidence: Evidence) -> str | None:
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


_STARTING = frozenset({"Thread", "Timer", "submit", "apply_async", "run_in_executor", "start_new_thread", "spawn"})
# A function that waits may end its threads before the call ends.
_WAITING = frozenset({"result", "get", "join", "wait", "as_completed", "shutdown", "gather", "run_until_complete"})
_WAY = "write in the call's own thread, or let that thread make a declared call of the durable manager"


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
        yield f"it leaves self.{name} to another thread and does not wait for it, so a replay would lose it: {_WAY}"


def _handed(call: ast.Call, facts: Facts) -> Iterator[str]:
    """The attributes of self that are named in the arguments of a call."""
    for given in (*call.args, *(keyword.value for keyword in call.keywords)):
        for node in ast.walk(given):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == facts.myself:
                yield node.attr


def _turns(name: str, evidence: Evidence) -> bool:
    return bool(evidence.code.functions(name)) and evidence.turns_to_the_database(name)


# In a class that is given a session: calls by which it may write, whatever it calls the session.
_OF_UNITS = frozenset({"add", "delete", "commit", "begin", "flush"})
_FACTORIES = ("a session factory", "a scoped_session")
UNITS_WAY = "write a method for each unit, such as save_fill(self, fill), and declare that"


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


def switch_warning(name: str, evidence: Evidence) -> str | None:
    """A warning where a method may return or raise by such a switch."""
    found = found_in(name, evidence)
    if not found:
        return None
    named = ", ".join(f"self.{attribute} ({by})" for attribute, by in sorted(found.items()))
    return f"it may leave by what an outage has set, {named}, and is not recorded then: {SWITCHES_WAY}"


SWITCHES_WAY = "let it write without that test, and leave outages to the outbox"


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
