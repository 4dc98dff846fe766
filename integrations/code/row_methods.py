"""Row methods: the functions of mapped classes that run where a method calls one of a row, `order.fill(report)`.

The code does not show of which class a row is: each mapped class that its module knows counts, and each that is mapped
together with these.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from types import FunctionType
from typing import Any

from sqlalchemy import inspect as inspect_orm

from .class_code import ClassCode
from .members import class_member, is_mapped_class
from .method_code import meaning


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
