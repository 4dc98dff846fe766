"""Ways around: methods that reach the database past the session factory, or never reach it.

What is certain is a refusal; what depends on a condition is a warning.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from types import FunctionType
from typing import Any

from sqlalchemy.orm import scoped_session

from ...records import attributes
from ..code.class_code import ClassCode, always
from ..code.method_code import Call, Facts, dotted, facts_of, globals_in, layers, meaning, names_in
from ..manager import held
from ..operations import ManagerOperation
from ..sql_text import writes_plainly
from ..state.kept_state import scalars_shared
from . import misfits
from .evidence import Evidence

_OPENING = frozenset({"begin", "connect", "raw_connection"})
_FACTORIES = frozenset({"Session", "sessionmaker", "scoped_session"})
_FACTORY_KINDS = frozenset({"a scoped_session", "a session factory", "an open Session", "an open Connection"})
_WRITING = frozenset(
    {"add_all", "merge", "bulk_save_objects", "bulk_insert_mappings", "bulk_update_mappings", "executemany"}
)
_STATEMENTS = frozenset({"insert", "update", "delete"})
_SCOPED = re.compile(r"self\.(\w+)\(\)\.(?:add|delete)")
THROUGH_FACTORY = "its writes must go through self.session_factory"
_COUNT_HERE = "count in an attribute of the manager, or behind the write"
_HAND_OVER = "hand it the session, since a replay runs on a copy of the manager"


def find(operation: ManagerOperation, evidence: Evidence) -> tuple[list[str], list[str]]:
    """Refusals and warnings: ways to the database past the session factory."""
    refused: dict[str, None] = {}
    warned: dict[str, None] = {}
    for function, path in evidence.code.reached(operation.name, but=evidence.known):
        facts = facts_of(function)
        for attribute in facts.uses if facts.read else names_in(function):
            kind = evidence.held.get(attribute)
            if kind is None or kind == held.ENGINE:
                continue
            text = f"it uses self.{attribute}, which is {kind}"
            # What is held of a component's may be another part of it than the one that is used.
            sure = facts.read and ((path and facts.uses[attribute]) or " with " not in kind)
            if "of another database" in kind:
                warned[f"{text}: what it writes there is no part of the replay, and may be repeated"] = None
            else:
                (refused if sure else warned)[f"{text}: {THROUGH_FACTORY}"] = None
        for call in facts.calls:
            what = _back(call, evidence)
            if what is not None:
                (refused if call.certain and path else warned)[f"{what}: {_HAND_OVER}"] = None
        for what, sure, driver in _opened(function, evidence):
            reason = f"it opens a connection of its own ({what}): {THROUGH_FACTORY}, or it could be applied twice"
            (refused if driver or (sure and path) else warned)[reason] = None
    return list(refused), [one for one in warned if one not in refused]


def _opened(function: Any, evidence: Evidence) -> Iterator[tuple[str, bool, bool]]:
    """Connections that a function opens: how, whether certainly, and whether by the driver itself."""
    for call in facts_of(function).calls:
        parts = call.name.split(".")
        given = [*call.node.args, *(keyword.value for keyword in call.node.keywords)]
        engines = {f"self.{name}" for name in evidence.engines}
        if ".".join(parts[:2]) in engines and len(parts) == 3 and parts[2] in _OPENING:
            yield f"{call.name}()", call.certain, False
        elif call.last in _FACTORIES and any(_written_out(one, function) in engines for one in given):
            yield f"{call.name}(...)", call.certain, False
        elif "?" not in call.name and "(" not in call.name and parts[0] != "self":
            imported = ".".join([facts_of(function).imports.get(parts[0], parts[0]), *parts[1:]])
            if imported.partition(".")[0] in held.DRIVERS and imported.endswith(".connect"):
                yield f"{imported}()", call.certain, True
                continue
            yield from _by_globals(function, call.name, parts, call.certain, evidence)


def _back(call: Call, evidence: Evidence) -> str | None:
    """A call of a component that turns to the database by the manager which it holds, and not by the copy."""
    parts = call.name.split(".")
    if evidence.manager is None or len(parts) != 3 or parts[0] != "self":
        return None
    component = attributes(evidence.manager).get(parts[1])
    method = getattr(type(component), parts[2], None)
    held_back = [name for name, value in held.parts(component) if _is_manager(value, evidence.manager)]
    if not held_back or not isinstance(method, FunctionType):
        return None
    names = names_in(method)
    by_itself = any(callable(dict(held.parts(component))[name]) and name in names for name in held_back)
    if by_itself or any(name in evidence.known or evidence.turns_to_the_database(name) for name in names):
        return f"it calls {call.name}(), whose object holds the manager and turns to the database by it"
    return None


def counting(operation: ManagerOperation, evidence: Evidence) -> list[str]:
    """Refusals: calls of objects that count in themselves and are shared with a replay, before the database is used."""
    found: dict[str, None] = {}
    own = {} if evidence.manager is None else attributes(evidence.manager)
    for function in evidence.code.functions(operation.name) if own else ():
        facts = facts_of(function)
        nodes = [node for statement in facts.body for node in ast.walk(statement)]
        turning = [node.lineno for node in nodes if isinstance(node, ast.expr) and _may_turn(node, facts, evidence)]
        for call in facts.calls:
            parts = call.name.split(".")
            if not call.certain or len(parts) != 3 or parts[0] != "self" or call.node.lineno >= min(turning, default=0):
                continue
            component = own.get(parts[1])
            changed = ClassCode(type(component)).changed_by(parts[2]) & scalars_shared(component).keys()
            if changed:
                names = ", ".join(f"self.{parts[1]}.{name}" for name in sorted(changed))
                found[f"it changes {names} before it writes, and its calls run more than once: {_COUNT_HERE}"] = None
    return list(found)


def _may_turn(node: ast.expr, facts: Facts, evidence: Evidence) -> bool:
    """Whether an expression names something by which the method may turn to the database."""
    if isinstance(node, ast.Call) and dotted(node.func).startswith("super()"):
        return True
    if not isinstance(node, ast.Attribute) or dotted(node.value) != facts.myself:
        return False
    return node.attr in evidence.known or node.attr in evidence.held or evidence.turns_to_the_database(node.attr)


def _is_manager(value: Any, manager: Any) -> bool:
    return value is manager or getattr(value, "__self__", None) is manager


def _written_out(node: ast.AST, function: Any) -> str:
    facts = facts_of(function)
    known = facts.locals.get(node.id) if isinstance(node, ast.Name) else node
    name = dotted(known) if known is not None else ""
    return name.replace(f"{facts.myself}.", "self.", 1) if name.startswith(f"{facts.myself}.") else name


def _scope_of(value: Any) -> Any:
    """The scoped_session that a value is, or of which `query_property()` has made it; None for anything else."""
    if isinstance(value, scoped_session):
        return value
    if type(value).__module__ != scoped_session.__module__:
        return None
    cells = getattr(getattr(type(value), "__get__", None), "__closure__", None) or ()
    return next((one.cell_contents for one in cells if isinstance(one.cell_contents, scoped_session)), None)


def _is_shared(scope: Any, evidence: Evidence) -> bool | None:
    """Whether a scoped_session is the manager's own, which others hold too; None where only the class is known."""
    if scope is None:
        return False
    if evidence.manager is not None:
        return getattr(evidence.manager, "session_factory", None) is scope
    for _, function in evidence.code.everything():
        for node in (node for statement in facts_of(function).body for node in ast.walk(statement)):
            targets = node.targets if isinstance(node, ast.Assign) else ()
            if any(dotted(one).endswith(".session_factory") for one in targets):
                return _is_same(function, node.value, scope)  # type: ignore[attr-defined]
    return None


def works_in_a_scope(name: str, evidence: Evidence) -> bool:
    """Whether a method uses a scoped_session that is held elsewhere than by the manager, such as `Trade.session`."""
    for function, _ in evidence.code.reached(name):
        for call in facts_of(function).calls:
            parts = call.name.split(".")
            if any(_scope_of(meaning(function, ".".join(parts[:end]))) is not None for end in range(len(parts), 0, -1)):
                return True
    return False


def _is_same(function: Any, value: ast.expr, scope: Any) -> bool | None:
    """Whether an expression in a function is this scoped_session; None where that is not known."""
    if isinstance(value, ast.Call):
        return False if dotted(value.func).rpartition(".")[2] == "sessionmaker" else None
    known = meaning(function, dotted(value))
    return None if known is None else known is scope


def _by_globals(
    function: Any, name: str, parts: list[str], certain: bool, evidence: Evidence
) -> Iterator[tuple[str, bool, bool]]:
    for end in range(len(parts), 0, -1):
        found = meaning(function, ".".join(parts[:end]))
        if found is None:
            continue
        kind = held.kind_of(found)
        scope = _scope_of(found)
        if scope is not None:
            if _is_shared(scope, evidence) is False:
                yield f"{name}()", certain, False
        elif kind == held.ENGINE:
            if parts[-1] in _OPENING:
                yield f"{name}()", certain, False
        elif kind is not None:
            yield f"{name}()", certain, kind not in _FACTORY_KINDS
        elif module_of(found).partition(".")[0] in held.DRIVERS and parts[-1] == "connect":
            yield f"{name}()", certain, True
        elif isinstance(found, FunctionType):
            inner = [meaning(layer, used) for layer in layers(found) for used in globals_in(layer)]
            others = [one for one in inner if not _is_shared(_scope_of(one), evidence)]
            if any(held.kind_of(one) in _FACTORY_KINDS for one in others):
                yield f"{name}()", certain, False
        return


def module_of(value: Any) -> str:
    """The module of a class or a function; "" where it has none."""
    return str(getattr(value, "__module__", None) or "")


def buffers(operation: ManagerOperation, evidence: Evidence) -> str | None:
    """A warning where a method may return with what it was given put aside in the manager."""
    put: set[str] = set()
    for function, _ in evidence.code.reached(operation.name):
        facts = facts_of(function)
        put |= facts.counts | (facts.puts & evidence.containers)
    functions = evidence.code.functions(operation.name)
    if not put or not functions or not all(facts_of(one).read for one in functions):
        return None
    if any(_always_turns(one, evidence, frozenset({operation.name})) for one in functions):
        return None
    names = ", ".join(f"self.{name}" for name in sorted(put))
    return f"it puts into {names} and may return before it turns to the database: what it keeps there is not durable"


def _always_turns(function: Any, evidence: Evidence, above: frozenset[str]) -> bool:
    facts = facts_of(function)

    def touches(node: ast.AST) -> bool:
        return any(_turns(one, facts, evidence, above) for one in ast.walk(node))

    return not facts.read or always(facts, touches)


def _turns(node: ast.AST, facts: Facts, evidence: Evidence, above: frozenset[str]) -> bool:
    """Whether an expression may turn to the database."""
    if isinstance(node, ast.Call):
        given = {dotted(one) for one in (*node.args, *(keyword.value for keyword in node.keywords))}
        parts = dotted(node.func).split(".")
        if facts.myself in given or parts[0] == "super()" or "session" in parts[0].lower():
            return True
        if parts[0] == facts.myself and len(parts) > 2:
            return parts[1] not in facts.puts
    if not isinstance(node, ast.Attribute) or dotted(node.value) != facts.myself:
        return False
    if node.attr in evidence.known or node.attr in evidence.held:
        return True
    if node.attr in above:
        return False
    functions = evidence.code.functions(node.attr)
    return any(_always_turns(one, evidence, above | {node.attr}) for one in functions)


def writes(name: str, evidence: Evidence, *, but: frozenset[str]) -> bool:
    """Whether the source of a method shows a write, its calls of methods in `but` left out."""
    return show_a_write((function for function, _ in evidence.code.reached(name, but=but)), evidence)


def show_a_write(functions: Iterable[Any], evidence: Evidence) -> bool:
    """Whether the source of functions that run together shows a write."""
    commits = changes = False
    for function in functions:
        facts = facts_of(function)
        if any(map(writes_plainly, facts.texts)):
            return True
        if any(is_write(one.name, function) or _is_in_scope(one, evidence) for one in facts.calls):
            return True
        commits = commits or any(call.last in {"commit", "begin"} for call in facts.calls)
        changes = changes or facts.changes
    return commits and changes


def _is_in_scope(call: Call, evidence: Evidence) -> bool:
    """Whether a call adds or deletes by what a context manager of the manager's yields: `with self.scope() as s`."""
    found = _SCOPED.fullmatch(call.name)
    return found is not None and misfits.opens_a_scope(found[1], evidence) and evidence.turns_to_the_database(found[1])


def hands_itself_over(name: str, evidence: Evidence) -> bool:
    """Whether a method makes an object that is given the manager, and may write by it: `Log(self, ...)`."""
    for function, _ in evidence.code.reached(name):
        facts = facts_of(function)
        for call in facts.calls:
            given = [*call.node.args, *(keyword.value for keyword in call.node.keywords)]
            if call.last[:1].isupper() and facts.myself in [dotted(one) for one in given]:
                return True
    return False


def is_write(name: str, function: Any) -> bool:
    """Whether a call of that name, in that function, writes."""
    base, _, last = name.rpartition(".")
    if last in _WRITING:
        return True
    made = meaning(function, name)
    if module_of(made).startswith("sqlalchemy") and getattr(made, "__name__", "") in _STATEMENTS:
        # Perhaps imported under another name.
        return True
    if last in _STATEMENTS:
        return "query" in base
    is_session = base in {"s", "db"} or "session" in base.lower() or "begin()" in base
    # A set of the manager's own has an add, too; a session from the factory is made by a call.
    is_own = base.startswith("self.") and "(" not in base
    return last in {"add", "delete"} and is_session and not is_own
