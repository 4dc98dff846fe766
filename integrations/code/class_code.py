"""Class code: the functions of a class along its bases, and what they reach through `self` and through rows.

What was concluded from them is remembered until the host puts another function in place of one.

The functions of mapped classes run where a method calls one of a row, `order.fill(report)` (`RowMethod`).  The code
does not show of which class a row is: each mapped class that its module knows counts, and each that is mapped together
with these.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import lru_cache
from types import FunctionType
from typing import Any, TypeVar

from sqlalchemy import inspect as inspect_orm

from .members import class_member, is_mapped_class
from .method_code import Facts, facts_of, layers, meaning, names_in

_NESTED = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)


class ClassCode:
    """The code of a class: functions by name along its bases, and what they reach through self."""

    def __init__(self, cls: type) -> None:
        self.cls = cls

    def functions(self, name: str) -> list[Any]:
        """Every function that runs for `self.name`, decorators and what they wrap included."""
        found: list[Any] = []
        for base in self.cls.__mro__:
            member = vars(base).get(name)
            if member is None:
                continue
            if isinstance(member, property):
                member = member.fget
            elif isinstance(member, functools.cached_property):
                member = member.func
            here = layers(member)
            found += here
            if not any(name in facts_of(one).supers for one in here):
                break
        return found

    def reached(self, name: str, *, but: Collection[str] = ()) -> Iterator[tuple[Any, bool]]:
        """The functions that `name` runs, itself included, with whether they are certain to be run.

        Methods named in `but` are not followed.
        """
        seen: dict[str, bool] = {}
        todo = [(name, True)]
        while todo:
            one, certain = todo.pop()
            if (one in seen and (seen[one] or not certain)) or (one in but and one != name):
                continue
            seen[one] = certain
            for function in self.functions(one):
                yield function, certain
                facts = facts_of(function)
                here = facts.uses if facts.read else dict.fromkeys(names_in(function), True)
                todo += [(used, certain and sure) for used, sure in here.items()]
                todo += [(used, False) for used in facts.supers if used != one]

    def is_read(self, name: str) -> bool:
        """Whether the source of `name` itself could be read."""
        functions = self.functions(name)
        return bool(functions) and all(facts_of(function).read for function in functions)

    def uses_of(self, name: str, *, but: Collection[str] = ()) -> dict[str, bool]:
        """Attributes of self to which `name` turns, at any depth, and whether that is certain.

        Taken from the compiled code where there is no source.
        """
        found: dict[str, bool] = {}
        for function, certain in self.reached(name, but=but):
            facts = facts_of(function)
            here = facts.uses if facts.read else dict.fromkeys(names_in(function), True)
            for used, sure in here.items():
                found[used] = found.get(used, False) or (certain and sure)
        return found

    def changed_by(self, name: str) -> set[str]:
        """Attributes of self that `name` assigns or puts something into, at any depth.

        For a property these are the attributes that it reads: `self.session.add(row)` changes none.
        """
        found: set[str] = set()
        for function, _ in self.reached(name):
            facts = facts_of(function)
            for one in filter(None, facts.sets | facts.counts | facts.puts | facts.alters):
                if isinstance(class_member(self.cls, one), property):
                    found.update(used for used in self.uses_of(one) if not self.functions(used))
                else:
                    found.add(one)
        return found

    def everything(self) -> Iterator[tuple[str, Any]]:
        """Every function of the class and its bases, by name; of an overridden one also the others."""
        for base in self.cls.__mro__:
            if base is object:
                continue
            for name, member in vars(base).items():
                function = member.fget if isinstance(member, property) else member
                for one in layers(function):
                    yield name, one


def always(facts: Facts, touches: Callable[[ast.AST], bool]) -> bool:
    """Whether every way through a function passes an expression for which `touches(expression)` is true."""

    def expressions(*nodes: Any) -> bool:
        return any(touches(node) for node in nodes if node is not None)

    def block(statements: list[ast.stmt]) -> bool:
        return any(statement(one) for one in statements)

    def statement(one: ast.stmt) -> bool:
        if isinstance(one, ast.If):
            return expressions(one.test) or (block(one.body) and block(one.orelse))
        if isinstance(one, ast.Try):
            return block(one.body) or block(one.finalbody)
        if isinstance(one, ast.With | ast.AsyncWith):
            return expressions(*(item.context_expr for item in one.items)) or block(one.body)
        if isinstance(one, ast.For | ast.AsyncFor):
            return expressions(one.iter) or block(one.body)
        if isinstance(one, ast.While):
            return expressions(one.test) or block(one.body)
        if isinstance(one, ast.Match):
            return expressions(one.subject) or all(block(case.body) for case in one.cases)
        return not isinstance(one, _NESTED) and touches(one)

    return block(facts.body)


_Function = TypeVar("_Function", bound=Callable[..., Any])
_forget: list[Callable[[], None]] = []


def remembered(maxsize: int) -> Callable[[_Function], _Function]:
    """As `lru_cache`, for what a function concludes from a class; forgotten where a `CodeWatch` sees a change."""

    def remember(function: _Function) -> _Function:
        known: Any = lru_cache(maxsize=maxsize)(function)
        _forget.append(known.cache_clear)
        return known  # type: ignore[no-any-return]

    return remember


def forget_conclusions() -> None:
    """Forget all that is remembered."""
    for forget in _forget:
        forget()


@dataclass(frozen=True, slots=True)
class RowMethod:
    """A function of a mapped class; `skipped`: how many of its parameters the caller does not give."""

    cls: type
    function: Any
    skipped: int


def row_methods(function: Any, name: str) -> Iterator[RowMethod]:
    """The functions that may run for a dotted `name` in `function`, where its owner is a row or a mapped class."""
    owner, _, last = name.rpartition(".")
    if not owner.isidentifier() or not isinstance(function, FunctionType):
        return
    known = meaning(function, owner)
    is_class = is_mapped_class(known)
    for cls in (known,) if is_class else mapped_classes(function) if known is None else ():
        member = class_member(cls, last)
        is_static = isinstance(member, staticmethod)
        if is_class and not (is_static or isinstance(member, classmethod)):
            # It is given the row, as the first argument.
            continue
        for one in ClassCode(cls).functions(last):
            if not one.__module__.startswith("sqlalchemy."):
                yield RowMethod(cls, one, 0 if is_static else 1)


@functools.lru_cache(512)
def mapped_classes(function: FunctionType) -> tuple[type, ...]:
    """The mapped classes that a function's module knows, and those that are mapped together with them."""
    known = [one for one in tuple(function.__globals__.values()) if is_mapped_class(one)]
    registries = {id(one): one for one in (inspect_orm(cls).registry for cls in known)}
    together = (mapper.class_ for one in registries.values() for mapper in one.mappers)
    return tuple(dict.fromkeys((*known, *sorted(together, key=lambda cls: cls.__qualname__))))
