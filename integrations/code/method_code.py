"""Method code: facts from the source of a manager's methods, found without running it, from any thread.

Source may be missing (a REPL, compiled or generated code): then the facts say so, and nothing is concluded from them.
"""

from __future__ import annotations

import ast
import dis
import functools
import inspect
import textwrap
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from types import CodeType, FunctionType, ModuleType
from typing import Any, Final

from .members import class_member

# CPython counts the depth of a tree in one place for all threads. A collection of garbage in the middle of a tree may
# let another thread parse, and both then raise SystemError for sound source (github.com/python/cpython/issues/106905).
_ONE_AT_A_TIME: Final = threading.RLock()
_TRIES: Final = 100


def parse(source: str) -> ast.Module:
    """The tree of a module's source.

    Thread-safe, beside the host's own parsing too: a tree that another thread broke is made again.

    Raises:
        SyntaxError, ValueError: The source is not Python, or holds a null byte.
    """
    with _ONE_AT_A_TIME:
        for _ in range(_TRIES):
            try:
                return ast.parse(source)
            except SystemError:
                continue
    raise SyntaxError("other threads parse at the same time, again and again")


# Of containers: methods that put something in.
_PUTTING = frozenset({"append", "appendleft", "add", "extend", "extendleft", "insert", "put", "put_nowait", "update"})
# Those that take something out, or change the order.
_TAKING = frozenset(
    {
        *("pop", "popleft", "popitem", "remove", "discard", "clear", "setdefault", "sort", "reverse", "rotate"),
        *("difference_update", "intersection_update", "symmetric_difference_update", "subtract"),
    }
)
_CONTAINERS = frozenset({"list", "dict", "set", "deque", "defaultdict", "OrderedDict", "Queue", "SimpleQueue"})
_LITERALS = (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp)


@dataclass(frozen=True, slots=True)
class Call:
    """A call in a method: the dotted name that is called, whether it is sure to happen, and its arguments."""

    name: str
    certain: bool
    node: ast.Call

    @property
    def last(self) -> str:
        """The last part of the name."""
        return self.name.rpartition(".")[2]


@dataclass(slots=True)
class Facts:
    """What one function does, as far as its source shows."""

    read: bool = False
    body: list[ast.stmt] = field(default_factory=list)
    myself: str | None = None
    # Attributes of self by name, and whether they are certain to be turned to.
    uses: dict[str, bool] = field(default_factory=dict)
    supers: set[str] = field(default_factory=set)
    calls: list[Call] = field(default_factory=list)
    # Attributes of self that are assigned the result of a call, by name.
    assigned: dict[str, list[Call]] = field(default_factory=dict)
    # Attributes of self that are assigned or deleted at all, also by setattr (None: which is not known).
    sets: set[str | None] = field(default_factory=set)
    # Attributes of self that are counted up, or into which something is put; those that are made as containers.
    counts: set[str] = field(default_factory=set)
    puts: set[str] = field(default_factory=set)
    # Attributes of self of whose parts one is changed or taken out.
    alters: set[str] = field(default_factory=set)
    containers: set[str] = field(default_factory=set)
    # Names that are imported inside, and what they stand for.
    imports: dict[str, str] = field(default_factory=dict)
    # Local names, and the call whose result they were given.
    locals: dict[str, ast.expr] = field(default_factory=dict)
    returns: list[ast.expr] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    # Whether attributes of other objects are assigned, as rows are changed.
    changes: bool = False


def layers(function: Any) -> list[Any]:
    """List a function and what it wraps, openly or in its closure."""
    found: list[Any] = []
    todo = [function]
    while todo and len(found) < 32:
        one = todo.pop(0)
        if isinstance(one, functools.partial | functools.partialmethod):
            todo.append(one.func)
            continue
        one = getattr(one, "__func__", one)
        if not isinstance(one, FunctionType):
            # An object in its place, as of functools.lru_cache, names what it calls.
            wrapped = getattr(one, "__dict__", {}).get("__wrapped__")
            todo += [] if wrapped is None else [wrapped]
            continue
        if one in found:
            continue
        found.append(one)
        wrapped = vars(one).get("__wrapped__")
        if wrapped is not None:
            todo.append(wrapped)
        elif is_opaque(one):
            todo += [value for value in _cells(one) if isinstance(value, FunctionType)]
    return found


def is_opaque(function: Any) -> bool:
    """Whether it is a wrapper whose signature hides that of what it calls: `wrapper(*args, **kwargs)`."""
    code = getattr(function, "__code__", None)
    if code is None or hasattr(function, "__wrapped__"):
        return False
    takes_all = bool(code.co_flags & inspect.CO_VARARGS and code.co_flags & inspect.CO_VARKEYWORDS)
    named = code.co_argcount + code.co_kwonlyargcount
    return takes_all and named == 0


def _cells(function: FunctionType) -> list[Any]:
    found = []
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # a cell that is not filled yet
            found.append(cell.cell_contents)
    return found


def meaning(function: Any, name: str) -> Any:
    """Resolve a name in a function's closure and module; None if not known."""
    first, *rest = name.split(".")
    code = function.__code__
    if first in _locals_of(code):
        return None
    if first in code.co_freevars:
        cell = (function.__closure__ or ())[code.co_freevars.index(first)]
        with suppress(ValueError):
            found = cell.cell_contents
            return found if not rest else None
        return None
    found = function.__globals__.get(first)
    for part in rest:
        # Of modules and classes only: an attribute of anything else may run code of the host.
        found = vars(found).get(part) if isinstance(found, ModuleType) else class_member(found, part)
    return found


@functools.lru_cache(4096)
def _locals_of(code: CodeType) -> frozenset[str]:
    nested = [const for const in code.co_consts if isinstance(const, CodeType)]
    return frozenset((*code.co_varnames, *code.co_cellvars)).union(*map(_locals_of, nested))


def names_in(function: Any) -> frozenset[str]:
    """List attributes and globals that a function's compiled code names."""
    code = getattr(function, "__code__", None)
    return frozenset() if code is None else _names_in_code(code)


@functools.lru_cache(4096)
def _names_in_code(code: CodeType) -> frozenset[str]:
    nested = [const for const in code.co_consts if isinstance(const, CodeType)]
    return frozenset(code.co_names).union(*map(_names_in_code, nested))


def globals_in(function: Any) -> frozenset[str]:
    """Names of its module, or of the function around it, that a function uses."""
    code = getattr(function, "__code__", None)
    return frozenset() if code is None else _globals_in_code(code)


@functools.lru_cache(4096)
def _globals_in_code(code: CodeType) -> frozenset[str]:
    used = {str(one.argval) for one in dis.get_instructions(code) if one.opname in {"LOAD_GLOBAL", "LOAD_NAME"}}
    nested = [const for const in code.co_consts if isinstance(const, CodeType)]
    return frozenset(used).union(code.co_freevars, *map(_globals_in_code, nested))


def facts_of(function: Any) -> Facts:
    """The facts of one function, without those of what it calls."""
    code = getattr(function, "__code__", None)
    return Facts() if code is None else _facts_of_code(code)


@functools.lru_cache(4096)
def _facts_of_code(code: CodeType) -> Facts:
    node = parsed(code)
    if node is None:
        return Facts()
    given = [*node.args.posonlyargs, *node.args.args]
    facts = Facts(read=True, body=node.body, myself=given[0].arg if given else None)
    collector = _Collector(facts)
    for statement in node.body:
        collector.visit(statement)
    return facts


@functools.lru_cache(4096)
def parsed(code: CodeType) -> ast.FunctionDef | ast.AsyncFunctionDef | None:
    """The source of a function; None where it cannot be read."""
    try:
        tree = parse(textwrap.dedent(inspect.getsource(code)))
    except (OSError, TypeError, SyntaxError, ValueError, IndexError):
        return None
    node = tree.body[0] if tree.body else None
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return None
    # A file that was changed since it was loaded, or another one of that name, has other code.
    given = [one.arg for one in (*node.args.posonlyargs, *node.args.args)]
    return node if node.name == code.co_name and given == list(code.co_varnames[: code.co_argcount]) else None


def dotted(node: ast.AST) -> str:
    """`a.b.c` of an expression; a call in it becomes `()`, anything else `?`."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    if isinstance(node, ast.Call):
        return f"{dotted(node.func)}()"
    return "?"


class _Collector(ast.NodeVisitor):
    """Fills the facts of one function."""

    def __init__(self, facts: Facts) -> None:
        self._facts, self._certain = facts, True

    def _perhaps(self, nodes: list[Any]) -> None:
        before, self._certain = self._certain, False
        for node in nodes:
            self.visit(node)
        self._certain = before

    def _mine(self, node: ast.AST) -> str | None:
        """The name of an attribute of self."""
        facts = self._facts
        is_mine = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
        return node.attr if is_mine and node.value.id == facts.myself else None  # type: ignore[attr-defined]

    def _part_of(self, node: ast.AST) -> str | None:
        """The name of an attribute of self of which an expression is a part: `self.open[symbol]["size"]`."""
        while isinstance(node, ast.Subscript):
            node = node.value
        return self._mine(node)

    def visit_Subscript(self, node: ast.Subscript) -> None:
        mine = None if isinstance(node.ctx, ast.Load) else self._part_of(node)
        if mine is not None:
            self._facts.alters.add(mine)
        self.generic_visit(node)

    def visit_If(self, node: ast.If) -> None:
        self.visit(node.test)
        self._perhaps([*node.body, *node.orelse])

    def visit_IfExp(self, node: ast.IfExp) -> None:
        self.visit(node.test)
        self._perhaps([node.body, node.orelse])

    def visit_Match(self, node: ast.Match) -> None:
        self.visit(node.subject)
        self._perhaps([statement for case in node.cases for statement in case.body])

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> None:
        self._perhaps(node.body)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        returns = list(self._facts.returns)
        self._perhaps(node.body)
        self._facts.returns = returns

    visit_AsyncFunctionDef = visit_FunctionDef  # type: ignore[assignment]  # noqa: N815 - as ast calls it

    def visit_Lambda(self, node: ast.Lambda) -> None:
        self._perhaps([node.body])

    def visit_Return(self, node: ast.Return) -> None:
        if node.value is not None:
            self._facts.returns.append(node.value)
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, str):
            self._facts.texts.append(node.value)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        mine = self._mine(node)
        if mine is not None:
            if isinstance(node.ctx, ast.Load):
                self._facts.uses[mine] = self._facts.uses.get(mine, False) or self._certain
            else:
                self._facts.sets.add(mine)
        elif dotted(node.value) == "super()":
            self._facts.supers.add(node.attr)
        elif not isinstance(node.ctx, ast.Load):
            self._facts.changes = True
        self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> None:
        for target in node.targets:
            self._assign(target, node.value)
        self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self._assign(node.target, node.value)
            self.visit(node.value)
        self.visit(node.target)

    def visit_NamedExpr(self, node: ast.NamedExpr) -> None:
        self._assign(node.target, node.value)
        self.visit(node.value)

    def visit_With(self, node: ast.With) -> None:
        for item in node.items:
            if item.optional_vars is not None:
                self._assign(item.optional_vars, item.context_expr)
        self.generic_visit(node)

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            top = alias.name.partition(".")[0]
            self._facts.imports[alias.asname or top] = alias.name if alias.asname else top

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        for alias in node.names if not node.level else ():
            self._facts.imports[alias.asname or alias.name] = f"{node.module}.{alias.name}"

    def _assign(self, target: ast.AST, value: ast.expr) -> None:
        mine = self._mine(target)
        is_made = isinstance(value, ast.Call) and dotted(value.func).rpartition(".")[2] in _CONTAINERS
        if mine is not None and (is_made or isinstance(value, _LITERALS)):
            self._facts.containers.add(mine)
        if isinstance(target, ast.Name):
            self._facts.locals.setdefault(target.id, value)
        elif mine is not None and isinstance(value, ast.Call):
            self._facts.assigned.setdefault(mine, []).append(Call(self._name(value), self._certain, value))
        elif isinstance(target, ast.Attribute) and isinstance(value, ast.Call) and self._mine(target.value) is not None:
            # In a namespace of its own, such as a threading.local.
            name = self._name(value)
            self._facts.assigned.setdefault(str(self._mine(target.value)), []).append(Call(name, self._certain, value))
        elif isinstance(target, ast.Subscript) and (mine := self._mine(target.value)) is not None:
            self._facts.puts.add(mine)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        mine = self._mine(node.target)
        if mine is not None:
            self._facts.counts.add(mine)
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        facts, name = self._facts, self._name(node)
        facts.calls.append(Call(name, self._certain, node))
        if isinstance(node.func, ast.Attribute) and node.func.attr in _PUTTING:
            mine = self._mine(node.func.value)
            facts.puts |= {mine} if mine is not None else set()
        if isinstance(node.func, ast.Attribute) and node.func.attr in _PUTTING | _TAKING:
            mine = self._part_of(node.func.value)
            facts.alters |= {mine} if mine is not None else set()
        if name == "setattr" and len(node.args) > 1 and dotted(node.args[0]) == facts.myself:
            known = node.args[1]
            facts.sets.add(known.value if isinstance(known, ast.Constant) and isinstance(known.value, str) else None)
        if dotted(node.func).startswith(f"{facts.myself}.__dict__") or name == "vars":
            facts.sets.add(None)
        self.generic_visit(node)

    def _name(self, node: ast.Call) -> str:
        """Name the callee; an alias (`engine = self.engine`) is written out."""
        name = dotted(node.func)
        first, dot, rest = name.partition(".")
        known = self._facts.locals.get(first)
        if isinstance(known, ast.Attribute | ast.Call) and dot:
            name = f"{dotted(known)}.{rest}"
        if self._facts.myself is not None and name.startswith(f"{self._facts.myself}."):
            name = "self" + name[len(self._facts.myself) :]
        return name
