"""Rounding: whether a method's own code rounds amounts, and to how many places, found without running it."""

from __future__ import annotations

import ast
import re
from decimal import Decimal
from types import CodeType, FunctionType
from typing import Any

from .method_code import Call, dotted, facts_of, meaning
from .tables_named import Search

_FUNCTIONS = frozenset({"round", "quantize", "trunc", "floor", "ceil", "around", "rint", "to_integral_value"})
_IN_SQL = re.compile(r"\b(?:ROUND|TRUNC|FLOOR|CEIL|CEILING)\s*\(", re.IGNORECASE)
# Of `f"{total:.2f}"`, `"%.2f"` and `format(total, ".2f")`.
_FORMAT = re.compile(r"[:%]?[,_]?\.\d+[fFeEgG%]\}?")


def places_kept(cls: type, method: str) -> int | None:
    """The decimal places that `method` of a class leaves of an amount, also in the functions that it calls.

    None where it rounds nothing; 0 where it rounds in a way that is not understood.
    """
    functions = Search.of(cls, method).functions
    docs = {one.__doc__ for one in functions}
    return min((kept for one in functions for kept in _kept_by(one, docs)), default=None)


def _kept_by(function: FunctionType, docs: set[str | None]) -> list[int]:
    """The places that each rounding of one function keeps."""
    todo, named = [function.__code__], set[str]()
    while todo:
        code = todo.pop()
        texts = [one for one in code.co_consts if isinstance(one, str) and one not in docs]
        if any(_IN_SQL.search(one) or _FORMAT.fullmatch(one) for one in texts):
            return [0]
        named |= _FUNCTIONS.intersection(code.co_names)
        todo += [one for one in code.co_consts if isinstance(one, CodeType)]
    calls = [call for call in facts_of(function).calls if call.last in _FUNCTIONS] if named else []
    return [_places(function, call) for call in calls] if named == {call.last for call in calls} else [0]


def _places(function: FunctionType, call: Call) -> int:
    given = call.node.args
    if call.name == "round" and len(given) == 2 and isinstance(given[1], ast.Constant):
        return int(given[1].value) if isinstance(given[1].value, int) else 0
    step: Any = None
    if call.last == "quantize" and given:
        step = meaning(function, dotted(given[0]))
        if isinstance(given[0], ast.Call) and dotted(given[0].func).rpartition(".")[2] == "Decimal":
            step = next((Decimal(str(one.value)) for one in given[0].args if isinstance(one, ast.Constant)), None)
    exponent = step.as_tuple().exponent if isinstance(step, Decimal) else 0
    return max(0, -exponent) if isinstance(exponent, int) else 0
