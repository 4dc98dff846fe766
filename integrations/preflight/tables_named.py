"""Tables named: the tables that a method's code names, found without running it."""

from __future__ import annotations

import dis
import re
import sys
from collections.abc import Iterator
from types import CodeType, FunctionType, ModuleType
from typing import Any

from sqlalchemy import Table

from .class_code import ClassCode

_SQL = re.compile(r"\s*(SELECT|INSERT|UPDATE|DELETE|WITH|MERGE)\b", re.IGNORECASE)
_IN_TEXT = re.compile(r'\b(?:FROM|JOIN|INTO|UPDATE)\s+(?:ONLY\s+)?([\w".]+)', re.IGNORECASE)


def tables_named(cls: type, method: str) -> frozenset[str]:
    """The tables that `method` of a class names: mapped classes, tables and SQL text, also in what it calls.

    Without their schemas.  Empty where its code names none, or imports what it needs while it runs, other than from
    Python's own library.
    """
    found: set[str] = set()
    todo = [function for function, _ in ClassCode(cls).reached(method)]
    seen: set[Any] = set()
    while todo:
        function = todo.pop()
        if function in seen:
            continue
        seen.add(function)
        if _imports_unseen(function):
            return frozenset()
        for thing in _things(function):
            if isinstance(thing, str):
                names = _IN_TEXT.findall(thing) if _SQL.match(thing) else ()
                found |= {name.rpartition(".")[2].strip('"') for name in names}
            elif isinstance(thing, FunctionType) and _of_one_program(thing, cls):
                todo.append(thing)
            else:
                table = vars(thing).get("__table__") if isinstance(thing, type) else thing
                found |= {table.name} if isinstance(table, Table) else set()
    return frozenset(found)


def _imports_unseen(function: FunctionType) -> bool:
    """Whether it imports something that may name tables while it runs: Python's own library does not."""
    steps = list(dis.get_instructions(function))
    for index, step in enumerate(steps):
        # The level of a relative import is pushed two steps before.
        relative = step.opname == "IMPORT_NAME" and steps[index - 2].argval != 0
        if relative or (step.opname == "IMPORT_NAME" and step.argval.partition(".")[0] not in sys.stdlib_module_names):
            return True
    return False


def _of_one_program(function: FunctionType, cls: type) -> bool:
    return function.__module__.partition(".")[0] == cls.__module__.partition(".")[0]


def _things(function: FunctionType) -> Iterator[Any]:
    """The texts of a function, and what its names stand for in its module and in modules that it names."""
    names: set[str] = set()
    todo = [function.__code__]
    while todo:
        code = todo.pop()
        names |= set(code.co_names)
        todo += [one for one in code.co_consts if isinstance(one, CodeType)]
        yield from (one for one in code.co_consts if isinstance(one, str))
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
