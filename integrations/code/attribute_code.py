"""Attribute code: what a method's code does to the manager's attributes, as steps that can be run ahead of the call.

Steps hold what is computed of arguments, local names and attributes.  What needs the database, or changes attributes in
another way, is a `Lose`: what it may change is not known behind it.
"""

from __future__ import annotations

import ast
import builtins
import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from decimal import Decimal
from types import CodeType, FunctionType, MemberDescriptorType
from typing import Any

from .class_code import ClassCode
from .effects import (
    attribute_got,
    changes_nothing,
    gives_away,
    hands_on,
    items_of,
    names_changed_by,
    path_of,
    reads_changing,
)
from .method_code import dotted, facts_of, layers, meaning

SET = "="
# Stands for every attribute, where the code does not say which it changes.
ANY = "*"
_OPERATORS: Mapping[type, str] = {ast.Add: "+", ast.Sub: "-"}
# Called to compute a value: nothing that could give another one each time, such as a token or the time.
_CALLED = (int, float, Decimal, str, bool, abs, min, max, round, len, isinstance)
_METHODS = frozenset({"upper", "lower", "strip", "quantize"})
# Expressions that mean something else when they are evaluated apart from their function.
_BOUND = (ast.Await, ast.Yield, ast.YieldFrom, ast.NamedExpr, ast.Lambda, ast.comprehension)
_DEEPEST = 4


@dataclass(frozen=True, slots=True)
class Expression:
    """`needs`: the arguments, local names and attributes (`self.NAME`) that it is computed of."""

    code: CodeType
    function: FunctionType
    needs: frozenset[str]

    def evaluate(self, find: Callable[[str], Any]) -> Any:
        """Its value, of what `find(name)` gives; raises what that and the manager's own code raise."""
        names = {name: find(name) for name in self.needs}
        return eval(self.code, self.function.__globals__, names)  # noqa: S307 - the manager's own code


@dataclass(frozen=True, slots=True)
class AttributeChange:
    """`self.ATTRIBUTE += expression`, or `-=`, or `=`; None for an expression that cannot be computed apart."""

    attribute: str
    operator: str
    expression: Expression | None


@dataclass(frozen=True, slots=True)
class Assign:
    """`name = expression`."""

    name: str
    expression: Expression


@dataclass(frozen=True, slots=True)
class Lose:
    """Code that may change these attributes and local names; `leaves`: it may also end its function."""

    attributes: frozenset[str] = frozenset()
    names: frozenset[str] = frozenset()
    leaves: bool = False


@dataclass(frozen=True, slots=True)
class Leave:
    """The function ends here; `refuses`: and the call is refused."""

    refuses: bool = False


@dataclass(frozen=True, slots=True)
class Entered:
    """Whether blocks of attributes, each with the names behind it, let every error through."""

    paths: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Branch:
    """`if test: ... else: ...`; None for a test that cannot be computed apart."""

    test: Expression | Entered | None
    ways: tuple[CodeBlock, CodeBlock]


@dataclass(frozen=True, slots=True)
class Inner:
    """A call of another method of the manager, with the arguments that can be computed apart."""

    given: Mapping[str, Expression]
    block: CodeBlock


@dataclass(frozen=True, slots=True)
class Final:
    """`try: ... finally: ...`; the second of the ways runs however the first one ends."""

    ways: tuple[CodeBlock, CodeBlock]


Step = AttributeChange | Assign | Lose | Leave | Branch | Inner | Final


@dataclass(frozen=True, slots=True)
class CodeBlock:
    """Steps in their order."""

    steps: tuple[Step, ...] = ()
    # What they may change: attributes and local names.
    attributes: frozenset[str] = field(init=False)
    names: frozenset[str] = field(init=False)
    # Whether they may end the function, with its call applied.
    leaves: bool = field(init=False)

    def __post_init__(self) -> None:
        losing = [step for step in self.steps if isinstance(step, Lose)]
        # Names of another function are its own, and so is its end.
        ways = [block for step in self.steps if isinstance(step, Branch | Final) for block in step.ways]
        calls = [step.block for step in self.steps if isinstance(step, Inner)]
        parts: list[Lose | CodeBlock] = [*losing, *ways]
        attributes = {one.attribute for one in self.steps if isinstance(one, AttributeChange)}
        attributes |= {name for one in (*parts, *calls) for name in one.attributes}
        names = {one.name for one in self.steps if isinstance(one, Assign)}
        names |= {name for one in parts for name in one.names}
        ends = any(isinstance(one, Leave) and not one.refuses for one in self.steps)
        object.__setattr__(self, "attributes", frozenset(attributes))
        object.__setattr__(self, "names", frozenset(names))
        object.__setattr__(self, "leaves", ends or any(one.leaves for one in parts))

    @property
    def refuses(self) -> bool:
        """Whether it ends by refusing the call, on every way."""
        last = self.steps[-1] if self.steps else None
        return isinstance(last, Leave) and last.refuses and not self.leaves

    def changes(self) -> Iterator[AttributeChange]:
        """Every change in it, at any depth."""
        for step in self.steps:
            if isinstance(step, AttributeChange):
                yield step
            inside = (step.block,) if isinstance(step, Inner) else getattr(step, "ways", ())
            for block in inside:
                yield from block.changes()


def block_of(code: ClassCode, name: str) -> CodeBlock:
    """What a method does to attributes; an empty block where its code cannot be read."""
    chain = layers(inspect.getattr_static(code.cls, name, None))
    if not chain or not all(facts_of(one).read for one in chain) or not all(map(hands_on, chain[:-1])):
        return CodeBlock()
    if inspect.getattr_static(code.cls, "__setattr__") is not object.__dict__["__setattr__"]:
        return CodeBlock()
    around = frozenset[str]().union(*(_changed_by(one, code) for one in chain[:-1]))
    own = _StepReader(code, chain[-1], (), is_refusing=True).block(facts_of(chain[-1]).body)
    return CodeBlock((Lose(around), *own.steps))


def parameters_of(function: FunctionType) -> list[str]:
    """The names of a method's parameters, without self."""
    code = function.__code__
    return list(code.co_varnames[1 : code.co_argcount + code.co_kwonlyargcount])


class _StepReader:
    """Reads one function; `outer`: those by which it is called."""

    def __init__(
        self, code: ClassCode, function: FunctionType, outer: tuple[FunctionType, ...], *, is_refusing: bool
    ) -> None:
        """`is_refusing`: whether the function's answer is that of the method, so that False refuses the call."""
        self._code, self._function, self._outer, self._is_refusing = code, function, outer, is_refusing
        self._myself = facts_of(function).myself
        # Names that other functions may assign, too.
        body = ast.Module(facts_of(function).body, [])
        declaring = [node for node in ast.walk(body) if isinstance(node, ast.Global | ast.Nonlocal)]
        self._shared = frozenset(name for node in declaring for name in node.names)

    def block(self, body: list[ast.stmt]) -> CodeBlock:
        """The steps of statements."""
        return CodeBlock(tuple(step for statement in body for step in self._steps(statement)))

    def _steps(self, statement: ast.stmt) -> Iterator[Step]:
        match statement:
            case (
                ast.Assign(targets=[ast.Name(id=name)], value=value)
                | ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value)
            ):
                inner = list(self._inner(value))
                yield from inner
                read = None if inner else self._read(value)
                yield Assign(name, read) if read is not None else self._lost(value, called=bool(inner), names={name})
            case ast.Assign(targets=[ast.Attribute() as target], value=value) if self._is_stored(target):
                yield self._lost(value)
                yield AttributeChange(target.attr, SET, self._read(value))
            case ast.AugAssign(target=ast.Attribute() as target, op=op, value=value) if self._is_stored(target):
                yield self._lost(value)
                operator = _OPERATORS.get(type(op))
                amount = self._read(value, by_functions=True) if operator else None
                yield AttributeChange(target.attr, operator or SET, amount)
            case ast.Expr(value=value) if not _yields(statement):
                inner = list(self._inner(value))
                yield from inner or [self._lost(value)]
            case ast.Return(value=value):
                inner = [] if value is None else list(self._inner(value, is_answer=True))
                yield from inner or [self._lost(statement)]
                says_no = isinstance(value, ast.Constant) and value.value is False
                yield Leave(refuses=self._is_refusing and says_no)
            case ast.Raise():
                yield Leave(refuses=True)
            case ast.If(test=test):
                yield self._lost(test)
                yield Branch(self._read(test), (self.block(statement.body), self.block(statement.orelse)))
            case ast.With() if all(self._is_of_attribute(one.context_expr) for one in statement.items):
                for item in statement.items:
                    yield self._lost(item)
                entered = Entered(tuple(tuple(path_of(one.context_expr)[1:]) for one in statement.items))
                yield Branch(entered, (self.block(statement.body), CodeBlock((self._lost(statement),))))
            case ast.Try(finalbody=last) if all(self.block(one.body).refuses for one in statement.handlers) and not any(
                isinstance(node, ast.Return) for node in ast.walk(ast.Module(last, []))
            ):
                tried = self.block([*statement.body, *statement.orelse])
                yield from (Final((tried, self.block(last))),) if last else tried.steps
            case _:
                yield self._lost(statement)

    def _inner(self, value: ast.expr, *, is_answer: bool = False) -> Iterator[Step]:
        """The step of a call of another method, if that can be followed."""
        called = self._called(value) if isinstance(value, ast.Call) else None
        if called is None or len(self._outer) >= _DEEPEST or called in (*self._outer, self._function):
            return
        assert isinstance(value, ast.Call)
        if any(isinstance(one, ast.Starred) for one in value.args) or any(one.arg is None for one in value.keywords):
            return
        given = dict(zip(parameters_of(called), value.args, strict=False))
        given |= {str(one.arg): one.value for one in value.keywords}
        left_out = inspect.signature(called).parameters
        read = {name: self._read(one) for name, one in given.items()} | {
            name: Expression(compile(repr(one.default), "<default>", "eval"), called, frozenset())
            for name, one in left_out.items()
            if name not in given and type(one.default) in (bool, int, float, str, type(None))
        }
        refusing = self._is_refusing and is_answer
        reader = _StepReader(self._code, called, (*self._outer, self._function), is_refusing=refusing)
        for one in (*value.args, *(one.value for one in value.keywords)):
            yield self._lost(one)
        yield Inner({name: one for name, one in read.items() if one is not None}, reader.block(facts_of(called).body))

    def _called(self, node: ast.Call) -> FunctionType | None:
        """The method of the manager, or of its bases, that a call runs, if it is a plain one."""
        bases, name = self._code.cls.__mro__, dotted(node.func)
        owner, _, last = name.rpartition(".")
        if owner == "super()":
            own = self._function.__name__
            defining = [at for at, one in enumerate(bases, 1) if self._function in layers(vars(one).get(own))]
            bases = bases[defining[0] :] if defining else ()
        elif owner != self._myself:
            return None
        found = next((vars(one)[last] for one in bases if last in vars(one)), None)
        if not isinstance(found, FunctionType) or len(layers(found)) > 1 or not facts_of(found).read:
            return None
        is_plain = not found.__code__.co_flags & (inspect.CO_GENERATOR | inspect.CO_COROUTINE)
        return found if is_plain else None

    def _read(self, value: ast.expr, *, by_functions: bool = False) -> Expression | None:
        """An expression of arguments, local names, attributes and globals; None for anything else.

        `by_functions`: also one that functions of the manager's module compute.
        """
        function, needs = self._function, items_of(value)
        if reads_changing(value, function):
            return None
        own = {*function.__code__.co_varnames, *function.__code__.co_cellvars, *function.__code__.co_freevars}
        for node in ast.walk(value):
            if isinstance(node, _BOUND) or (isinstance(node, ast.Name) and node.id in self._shared):
                return None
            if isinstance(node, ast.Call) and not _is_computing(node, function, by_functions=by_functions):
                return None
            if isinstance(node, ast.Name) and node.id != self._myself:
                if node.id in own:
                    needs.add(node.id)
                elif node.id not in function.__globals__ and not hasattr(builtins, node.id):
                    return None
        plain = _Attributes(self._myself, needs).visit(ast.Expression(deepcopy(value)))
        if any(isinstance(node, ast.Name) and node.id == self._myself for node in ast.walk(plain)):
            return None
        return Expression(compile(ast.fix_missing_locations(plain), "<foreseen>", "eval"), function, frozenset(needs))

    def _lost(self, node: ast.AST, *, names: Collection[str] = (), called: bool = False) -> Lose:
        """What code that is not followed may change: by itself, and by the methods that it calls.

        `names`: to which its value is assigned; `called`: it is the call of a method that was followed.
        """
        found, assigned, leaves = set[str](), set(names), False
        found |= {ANY} if not called and gives_away(node, self._function) else set()
        for one in ast.walk(node) if not called else ():
            assigned |= names_changed_by(one)
            used = attribute_got(one, self._myself)
            if isinstance(one, ast.Attribute) and not isinstance(one.ctx, ast.Load):
                if self._is_mine(one):
                    found |= self._set_by(one.attr)
                elif self._is_class(one.value):
                    found.add(one.attr)
            elif used is not None:
                for function, _ in self._code.reached(used):
                    found |= _changed_by(function, self._code)
            leaves = leaves or isinstance(one, ast.Return | ast.Yield | ast.YieldFrom)
        return Lose(frozenset(found), frozenset(assigned), leaves and not isinstance(node, ast.Return))

    def _set_by(self, name: str) -> frozenset[str]:
        """The attributes that an assignment to one of that name changes."""
        member = inspect.getattr_static(self._code.cls, name, None)
        if isinstance(member, property) and isinstance(member.fset, FunctionType):
            inner = (one for used in facts_of(member.fset).uses for one, _ in self._code.reached(used))
            return frozenset[str]().union(*(_changed_by(one, self._code) for one in (member.fset, *inner)))
        is_plain = isinstance(member, MemberDescriptorType) or not hasattr(type(member), "__set__")
        return frozenset({name if is_plain else ANY})

    def _is_class(self, node: ast.expr) -> bool:
        name = dotted(node)
        return (
            name in (f"{self._myself}.__class__", "type()") or meaning(self._function, name) in self._code.cls.__mro__
        )

    def _is_of_attribute(self, entered: ast.expr) -> bool:
        """Whether a block is of an attribute, such as a lock: a method of the manager's own may swallow an error."""
        owner, *rest = path_of(entered)
        return owner == self._myself and bool(rest) and not self._code.functions(rest[0])

    def _is_stored(self, target: ast.Attribute) -> bool:
        return self._is_mine(target) and self._set_by(target.attr) == {target.attr}

    def _is_mine(self, node: ast.Attribute) -> bool:
        return isinstance(node.value, ast.Name) and node.value.id == self._myself


class _Attributes(ast.NodeTransformer):
    """Makes a name of each attribute of self, and notes it among what is needed."""

    def __init__(self, myself: str | None, needs: set[str]) -> None:
        self._myself, self._needs = myself, needs

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        if not isinstance(node.value, ast.Name) or node.value.id != self._myself:
            self.generic_visit(node)
            return node
        self._needs.add(f"self.{node.attr}")
        return ast.Name(f"self.{node.attr}", ast.Load())


def _is_computing(node: ast.Call, function: FunctionType, *, by_functions: bool) -> bool:
    if isinstance(node.func, ast.Attribute) and node.func.attr in _METHODS:
        return True
    name = dotted(node.func)
    found = meaning(function, name)
    found = getattr(builtins, name, None) if found is None else found
    return any(found is one for one in _CALLED) or (
        by_functions and isinstance(found, FunctionType) and changes_nothing(found)
    )


def _yields(node: ast.AST) -> bool:
    return any(isinstance(one, ast.Yield | ast.YieldFrom) for one in ast.walk(node))


def _changed_by(function: FunctionType, code: ClassCode) -> frozenset[str]:
    """The attributes that a function changes itself; `ANY` where that cannot be read."""
    facts = facts_of(function)
    is_method = not isinstance(inspect.getattr_static(code.cls, function.__name__, None), staticmethod | classmethod)
    if not facts.read or None in facts.sets or (is_method and any(gives_away(one, function) for one in facts.body)):
        return frozenset({ANY})
    return frozenset(name for name in facts.sets | facts.puts | facts.counts if name is not None)
