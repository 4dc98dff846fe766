"""Rounding: whether a method's own code rounds amounts, found without running it."""

from __future__ import annotations

import re
from types import CodeType

from .tables_named import Search

_FUNCTIONS = frozenset({"round", "quantize", "trunc", "floor", "ceil", "around", "rint", "to_integral_value"})
_IN_SQL = re.compile(r"\b(?:ROUND|TRUNC|FLOOR|CEIL|CEILING)\s*\(", re.IGNORECASE)
# Of `f"{total:.2f}"`, `"%.2f"` and `format(total, ".2f")`.
_FORMAT = re.compile(r"[:%]?[,_]?\.\d+[fFeEgG%]\}?")


def rounds(cls: type, method: str) -> bool:
    """Whether `method` of a class names a rounding, also in the functions that it calls."""
    functions = Search.of(cls, method).functions
    todo: list[CodeType] = [one.__code__ for one in functions]
    docs = {one.__doc__ for one in functions}
    while todo:
        code = todo.pop()
        texts = [one for one in code.co_consts if isinstance(one, str) and one not in docs]
        if not _FUNCTIONS.isdisjoint(code.co_names):
            return True
        if any(_IN_SQL.search(one) or _FORMAT.fullmatch(one) for one in texts):
            return True
        todo += [one for one in code.co_consts if isinstance(one, CodeType)]
    return False
