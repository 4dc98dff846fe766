"""Decisions: comparisons in a manager's code whose outcome may decide what a call does.

Calls with another outcome are of another kind, of which the local view knows nothing before it has seen one.  They are
computed from the arguments of the call and from the row that it names.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from types import CodeType, FunctionType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..code.answers import PlainAnswer

# How names in an expression say where their value comes from.
ARGUMENT, COLUMN = "arg:", "row:"
# Among what a comparison decides about: any text.
TEXT = "(text)"
# The function by which `min` or `max` has chosen among several values.
TAKEN = "__taken"


def _taken(value: Any, *values: Any) -> int | None:
    """None where several are equal, so that nothing depends on it."""
    return values.index(value) + 1 if values.count(value) == 1 else None


# What may be computed: nothing else of the host's code is run, and nothing that could change something.
_PARTS = (
    ast.Constant, ast.Name, ast.Load, ast.UnaryOp, ast.BinOp, ast.Compare, ast.IfExp, ast.Tuple, ast.List, ast.Set,
    ast.Attribute, ast.Subscript, ast.Call, ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.Eq, ast.NotEq, ast.In, ast.NotIn,
    ast.Is, ast.IsNot, ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod, ast.UAdd, ast.USub, ast.Not,
)  # fmt: skip
_ALLOWED = (Decimal, float, int, str, bool, isinstance, hasattr, abs, round, len, min, max)
_FUNCTIONS = {one.__name__: one for one in _ALLOWED} | {TAKEN: _taken}
_METHODS = frozenset({"lower", "upper", "casefold", "strip", "startswith", "endswith", "item", "get"})
_ATTRIBUTES = frozenset({"value", "name"})
# What a comparison of values of the wrong types or sizes raises, in the manager too.
_FAILS = (TypeError, ValueError, ArithmeticError, AttributeError, LookupError)


class Unreadable(Exception):
    """The expression has a part that is not computed here."""


@dataclass(frozen=True, slots=True)
class Decision:
    """One comparison.  `text`: as the code has it; `defaults`: of arguments that a call leaves out.

    `sets`: the counters that its branches move, with `TEXT` for texts of any name; None where they may do anything.
    """

    text: str
    names: tuple[str, ...]
    compute: Callable[..., Any]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    sets: frozenset[str] | None = None

    @classmethod
    def read(
        cls, text: str, node: ast.expr, defaults: Mapping[str, Any], sets: frozenset[str] | None = None
    ) -> Decision:
        """The decision by an expression of arguments, columns and constants.  Raises `Unreadable`."""
        names = sorted({one.id for one in ast.walk(node) if isinstance(one, ast.Name) and ":" in one.id})
        return cls(text, tuple(names), _computing(node, names), defaults, sets)

    @property
    def changes_amounts(self) -> bool:
        """Whether more than a text may depend on it."""
        return self.sets is None or bool(self.sets - {TEXT})

    @property
    def only_counts(self) -> bool:
        """Whether nothing but counters depends on it; a text may be that by which a row is closed."""
        return self.sets is not None and TEXT not in self.sets

    def outcome(self, call: Mapping[str, Any], rows: Iterable[Mapping[str, Any]]) -> str | None:
        """What comes out for a call with these arguments that names these rows; None where that cannot be told."""
        values: list[Any] = []
        for name in self.names:
            key = name[len(ARGUMENT) :]
            if name.startswith(ARGUMENT):
                value = call.get(key, self.defaults.get(key))
            else:
                value = next((row[key] for row in rows if key in row), None)
            if value is None:
                # Which arguments are given tells calls apart in any case.
                return None
            values.append(value)
        try:
            result = self.compute(*values)
        except _FAILS:
            return None
        return None if result is None else f"{self.text}: {result}"


@dataclass(slots=True)
class PresentCode:
    """What the code of the manager's class shows; empty while that is not known, and not stored."""

    # method -> the version of its code; operation that makes a row -> what it answers; operation -> its one answer to a
    # call that is applied, if there is only one.
    versions: dict[str, str] = field(default_factory=dict)
    answers: Mapping[str, PlainAnswer] = field(default_factory=dict)
    applied: Mapping[str, tuple[Any]] = field(default_factory=dict)
    # Operations whose code changes the letters of texts.
    respelling: frozenset[str] = frozenset()


def _computing(node: ast.expr, names: Iterable[str]) -> Callable[..., Any]:
    """A function of these names that computes an expression."""
    called: set[int] = set()
    for one in ast.walk(node):
        if isinstance(one, ast.Call):
            known = isinstance(one.func, ast.Name) and one.func.id in _FUNCTIONS
            asked = isinstance(one.func, ast.Attribute) and one.func.attr in _METHODS
            if one.keywords or not (known or asked):
                raise Unreadable(type(one).__name__)
            called.add(id(one.func))
    for one in ast.walk(node):
        strange = isinstance(one, ast.Name) and ":" not in one.id and id(one) not in called
        hidden = isinstance(one, ast.Attribute) and one.attr not in _ATTRIBUTES and id(one) not in called
        if strange or hidden or not isinstance(one, _PARTS):
            raise Unreadable(type(one).__name__)
    constants: dict[str, Any] = {}
    for one in ast.walk(node):
        for name, part in ast.iter_fields(one):
            if isinstance(part, list):
                setattr(one, name, [_named(each, constants) for each in part])
            else:
                setattr(one, name, _named(part, constants))
    given = ast.arguments(
        posonlyargs=[], args=[ast.arg(name) for name in names], kwonlyargs=[], kw_defaults=[], defaults=[]
    )
    code = compile(ast.fix_missing_locations(ast.Expression(ast.Lambda(given, node))), "<decision>", "eval")
    body = next(one for one in code.co_consts if isinstance(one, CodeType))
    return FunctionType(body, {"__builtins__": {}, **_FUNCTIONS, **constants})


def _named(part: Any, constants: dict[str, Any]) -> Any:
    """A name in the place of a constant, since Python compiles only those of its own types."""
    if not isinstance(part, ast.Constant):
        return part
    name = f"constant:{len(constants)}"
    constants[name] = part.value
    return ast.Name(name, ast.Load())
