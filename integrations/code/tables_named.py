"""Tables named: the tables that a method's code names, found without running it."""

from __future__ import annotations

import dis
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from types import CodeType, FunctionType, ModuleType
from typing import Any, get_args

from sqlalchemy import ClauseElement, Column, Table, TextClause
from sqlalchemy import inspect as inspect_orm
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Mapper
from sqlalchemy.sql.visitors import iterate

from ..sql_text import is_query
from .class_code import ClassCode
from .method_code import facts_of, layers

# A name before a parenthesis is a function's, which may write any table.
_IN_TEXT = re.compile(r'\b(?:INTO|UPDATE|(?:FROM|JOIN)(?!\s+[\w".]+\s*\())\s+(?:ONLY\s+)?([\w".]+)', re.IGNORECASE)


def tables_named(cls: type, method: str) -> frozenset[str]:
    """The tables that `method` of a class names: mapped classes, tables and SQL text, also in what it calls.

    Without their schemas.  Empty where its code names none, or imports what it needs while it runs, other than from
    Python's own library.
    """
    search = Search.of(cls, method)
    return frozenset() if search.imports else frozenset(search.tables)


class Search:
    """What a method names, and what the functions and classes name that it names."""

    def __init__(self, cls: type, held: dict[str, list[type]]) -> None:
        """`held`: the classes of objects in attributes of the manager."""
        self._cls, self._held = cls, held
        self._packages = {_package(base) for base in cls.__mro__[:-1]} - sys.stdlib_module_names
        self.tables: set[str] = set()
        # Of the tables that it names otherwise than in SQL text, with their types.
        self.columns: set[str] = set()
        # Whether one of the functions imports something that may name tables.
        self.imports = False
        self._names: set[str] = set()
        self.functions: set[FunctionType] = set()
        self._classes: dict[type, None] = {}

    @classmethod
    def of(cls, manager_class: type, method: str) -> Search:
        """All that `method` of a manager's class runs and names."""
        code = ClassCode(manager_class)
        search = cls(manager_class, _classes_held(code))
        for function, _ in code.reached(method):
            search.follow(function)
        search.go_on()
        return search

    def take(self, thing: Any) -> None:
        """Take in a thing that is named."""
        if isinstance(thing, str):
            names = _IN_TEXT.findall(thing) if is_query(thing) else ()
            self.tables |= {name.rpartition(".")[2].strip('"') for name in names}
        elif isinstance(thing, TextClause):
            self.take(thing.text)
        elif isinstance(thing, Table):
            self.tables.add(thing.name)
            self.columns |= {f"{thing.name}.{one.name} {one.type!r}" for one in thing.columns}
        elif isinstance(thing, ClauseElement):
            for one in iterate(thing):
                if isinstance(one, Table | TextClause):
                    self.take(one)
            # What a statement writes is no child of it.
            if isinstance(table := getattr(thing, "table", None), Table):
                self.take(table)
        elif isinstance(thing, dict | list | tuple):
            for one in thing.values() if isinstance(thing, dict) else thing:
                if isinstance(one, str | ClauseElement):
                    self.take(one)
        elif isinstance(thing, FunctionType) and self._is_ours(thing):
            self.follow(thing)
        elif isinstance(thing, type) and thing not in self._cls.__mro__:
            self._classes[thing] = None

    def follow(self, function: FunctionType) -> None:
        """Take in what a function names."""
        if function in self.functions:
            return
        self.functions.add(function)
        self.imports = self.imports or _imports_unseen(function)
        self._names |= _names_in(function)
        for thing in _things(function):
            self.take(thing)

    def go_on(self) -> None:
        """Follow the names of attributes into the classes, until there is nothing new."""
        before = None
        while before != (now := (len(self._names), len(self.functions), len(self._classes))):
            before = now
            for value in (
                value for base in self._cls.__mro__ for name, value in vars(base).items() if name in self._names
            ):
                if isinstance(value, str | ClauseElement | dict | list | tuple):
                    self.take(value)
            for name in self._names & self._held.keys():
                for kind in self._held[name]:
                    self.take(kind)
            for kind in tuple(self._classes):
                for one in (*_mapped_by(kind, self._names), *self._members(kind)):
                    self.take(one)

    def _members(self, kind: type) -> Iterator[Any]:
        """The functions of a class of the program that may be called, and what else its attributes are."""
        for base in kind.__mro__ if self._is_ours(kind) else ():
            yield from (one for generic in vars(base).get("__orig_bases__", ()) for one in get_args(generic))
            for name, value in vars(base).items() if self._is_ours(base) else ():
                functions = layers(getattr(value, "fget", value))
                is_special = name.startswith("__")
                is_validator = any(hasattr(one, "__sa_validators__") for one in functions)
                if functions and (is_special or is_validator or name in self._names):
                    yield from functions
                elif not functions and not is_special:
                    yield value

    def _is_ours(self, thing: Any) -> bool:
        return _package(thing) in self._packages


def _package(thing: Any) -> str:
    return str(thing.__module__).partition(".")[0]


def _mapped_by(kind: type, names: set[str]) -> Iterator[Any]:
    """The tables of a mapped class, those that its columns select from, and the classes of relationships by names."""
    mapper: Any = inspect_orm(kind, raiseerr=False)
    if not isinstance(mapper, Mapper):
        return
    yield from mapper.tables
    # Where mappers do not fit together, the manager's own queries fail too.
    with suppress(SQLAlchemyError):
        for attribute in mapper.column_attrs:
            yield from (
                one for column in attribute.columns if not isinstance(column, Column) for one in iterate(column)
            )
        proxies = (one for name, one in mapper.all_orm_descriptors.items() if name in names)
        used = names | {str(getattr(one, "target_collection", "")) for one in proxies}
        yield from (one.mapper.class_ for one in mapper.relationships if one.key in used)


def _classes_held(code: ClassCode) -> dict[str, list[type]]:
    """The classes of the objects that a manager's constructor puts into its attributes, by attribute."""
    found: dict[str, list[type]] = {}
    for function, _ in code.reached("__init__"):
        known = getattr(function, "__globals__", {})
        for attribute, calls in facts_of(function).assigned.items():
            kinds = [known.get(call.name) for call in calls]
            found.setdefault(attribute, []).extend(kind for kind in kinds if isinstance(kind, type))
    return found


def _imports_unseen(function: FunctionType) -> bool:
    """Whether it imports something that may name tables while it runs: Python's own library does not."""
    steps = list(dis.get_instructions(function))
    for index, step in enumerate(steps):
        # The level of a relative import is pushed two steps before.
        relative = step.opname == "IMPORT_NAME" and steps[index - 2].argval != 0
        if relative or (step.opname == "IMPORT_NAME" and step.argval.partition(".")[0] not in sys.stdlib_module_names):
            return True
    return False


def _names_in(function: FunctionType) -> set[str]:
    """The names of globals and attributes in a function and in those within it."""
    return {name for code in _codes(function) for name in code.co_names}


def _codes(function: FunctionType) -> Iterator[CodeType]:
    todo = [function.__code__]
    while todo:
        code = todo.pop()
        todo += [one for one in code.co_consts if isinstance(one, CodeType)]
        yield code


def _things(function: FunctionType) -> Iterator[Any]:
    """The texts of a function, and what its names stand for in its module and in modules that it names."""
    names = _names_in(function)
    yield from (one for code in _codes(function) for one in code.co_consts if isinstance(one, str))
    known = [function.__globals__[name] for name in names if name in function.__globals__]
    yield from known
    for module in known:
        if isinstance(module, ModuleType):
            yield from (vars(module)[name] for name in names if name in vars(module))
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # a cell that is not filled yet
            continue
