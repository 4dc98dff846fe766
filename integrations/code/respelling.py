"""Respelling: whether code changes the letters of texts, so that a row shows another text than the call gives."""

from __future__ import annotations

import re
from types import CodeType, FunctionType

from .tables_named import Search

_FUNCTIONS = frozenset({"upper", "lower", "casefold", "title", "capitalize", "swapcase", "initcap"})
_FUNCTIONS |= {"strip", "lstrip", "rstrip", "trim", "ltrim", "rtrim"}
_IN_SQL = re.compile(r"\b(?:UPPER|LOWER|INITCAP|[LRB]?TRIM)\s*\(", re.IGNORECASE)


def respells(cls: type, method: str) -> bool:
    """Whether `method` of a class does so, also in the functions and validators that it uses."""
    return any(map(_respells, Search.of(cls, method).functions))


def _respells(function: FunctionType) -> bool:
    todo = [function.__code__]
    while todo:
        code = todo.pop()
        todo += [one for one in code.co_consts if isinstance(one, CodeType)]
        texts = [one for one in code.co_consts if isinstance(one, str) and one != function.__doc__]
        if not _FUNCTIONS.isdisjoint(code.co_names) or any(map(_IN_SQL.search, texts)):
            return True
    return False
