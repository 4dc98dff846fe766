"""Row tests: by which values of its rows the code of a read decides, and which value it takes one row of only.

A row that the read leaves out, or shows in another way, may be one that it never had to show yet.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from enum import Enum
from typing import Any

from .class_code import ClassCode
from .method_code import Facts, facts_of
from .row_queries import UNKNOWN, Constants, written_in

_OPS: Mapping[type[ast.cmpop], str] = {
    ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Eq: "==", ast.NotEq: "!=",
}  # fmt: skip
_IN_SQL = {"=": "==", "<>": "!="}
_TEST = re.compile(r"(?<![\w.:'])(?:\w+\.)?(\w+)\s*(<=|>=|<>|!=|=|<|>)\s*(?:(-?\d+(?:\.\d+)?)(?![\w.])|'([^']*)')")
_DISTINCT = re.compile(r"\b(?:DISTINCT\s+ON\s*\(|GROUP\s+BY\s)\s*(?:\w+\.)*\"?(\w+)", re.IGNORECASE)
_UNITING = frozenset({"distinct", "group_by"})
_VALUES = (int, float, Decimal, str, Enum)


@dataclass(frozen=True, slots=True)
class RowTest:
    """A comparison of a column with a value, or with another `column` of the row."""

    key: str
    op: str
    value: Any = None
    column: str | None = None

    def __str__(self) -> str:
        return f"{self.key} {self.op} {self.value if self.column is None else self.column}"

    def outcome(self, row: Mapping[str, Any]) -> bool | None:
        """What comes out for a row; None where it does not show the column, or the values cannot be compared."""
        one, other = row.get(self.key), self.value if self.column is None else row.get(self.column)
        if one is None or other is None:
            return None
        try:
            return bool(_COMPARING[self.op](one, other))
        except (TypeError, ArithmeticError):
            return None


_COMPARING: Mapping[str, Any] = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge, "==": operator.eq, "!=": operator.ne,
}  # fmt: skip


def row_tests(cls: type, method: str) -> tuple[frozenset[RowTest], frozenset[str]]:
    """The comparisons in the code of a read, and the columns of which it may show each value once."""
    tests, united = set[RowTest](), set[str]()
    for function, _ in ClassCode(cls).reached(method):
        facts = facts_of(function)
        if facts.read:
            constants = Constants(cls, function, facts, {})
            tests.update(_tests(facts, constants))
            united.update(_united(facts))
    return frozenset(tests), frozenset(united)


def _tests(facts: Facts, constants: Constants) -> Iterator[RowTest]:
    for text in written_in(facts.body):
        for key, op, number, word in _TEST.findall(text):
            yield RowTest(key, _IN_SQL.get(op, op), Decimal(number) if number else word)
    for node in (one for statement in facts.body for one in ast.walk(statement)):
        if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in _OPS:
            op = _OPS[type(node.ops[0])]
            for one, other, way in (
                (node.left, node.comparators[0], op),
                (node.comparators[0], node.left, _turned(op)),
            ):
                found = _test(one, other, way, facts, constants)
                if found is not None:
                    yield found
                    break


def _test(one: ast.expr, other: ast.expr, op: str, facts: Facts, constants: Constants) -> RowTest | None:
    column = _column(one, facts)
    if column is None:
        return None
    value = constants.value(other)
    if value is not UNKNOWN:
        return RowTest(column[1], op, value) if isinstance(value, _VALUES) else None
    second = _column(other, facts)
    # Keys of two tables are equal by chance.
    is_of_row = second is not None and second[0] == column[0] and not _is_id(column[1]) and not _is_id(second[1])
    return RowTest(column[1], op, column=second[1]) if is_of_row and second is not None else None


def _column(node: ast.expr, facts: Facts) -> tuple[str, str] | None:
    """The row or the class, and the column, of `row.size` or `row["size"]`; what is given to a function counts too."""
    if isinstance(node, ast.Call) and len(node.args) == 1 and isinstance(node.func, ast.Name):
        return _column(node.args[0], facts)
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id != facts.myself:
        return node.value.id, node.attr
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and isinstance(node.slice, ast.Constant):
        return (node.value.id, node.slice.value) if isinstance(node.slice.value, str) else None
    return None


def _is_id(column: str) -> bool:
    return column == "id" or column.endswith("_id")


def _turned(op: str) -> str:
    return op.translate(str.maketrans("<>", "><"))


def _united(facts: Facts) -> Iterator[str]:
    for text in written_in(facts.body):
        yield from _DISTINCT.findall(text)
    for node in (one for statement in facts.body for one in ast.walk(statement)):
        keys: list[ast.expr | None] = []
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _UNITING:
            keys += node.args
        elif isinstance(node, ast.DictComp):
            keys.append(node.key)
        elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store):
            keys.append(node.slice)
        for key in keys:
            column = None if key is None else _column(key, facts)
            if column is not None:
                yield column[1]
