"""Columns before: what earlier statements of a function have made of the columns of rows, as its code shows.

Behind `row.filled += qty` the comparison `row.filled >= row.size` decides by the sum, and not by what the row had.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Mapping

# Local name of a row, and column -> its value; the nodes of it are those of the code.
Columns = Mapping[tuple[str, str], ast.expr]

# Names no function: what is given to it decides about the value in a way that no expression tells.
CHANGED = "changed"


def columns_before(
    body: Iterable[ast.stmt],
    given: Columns,
    changed_by: Callable[[ast.Call, Columns], Columns],
    found: dict[int, Columns],
) -> Columns:
    """Put into `found`, by the id of each node in `body`, the columns that were assigned before it; those behind all.

    `given`: those that were assigned before the function was called; `changed_by(call, before)`: those that a call in
    it assigns.
    """
    return _Walk(changed_by, found).block(body, given)


class _Walk:
    """Follows the statements of one function in their order."""

    def __init__(
        self, changed_by: Callable[[ast.Call, Columns], Columns], found: dict[int, Columns] | None = None
    ) -> None:
        self._changed_by, self._found = changed_by, {} if found is None else found

    def block(self, body: Iterable[ast.stmt], columns: Columns) -> Columns:
        """Take in these statements; the columns behind them."""
        for statement in body:
            columns = self._statement(statement, columns)
        return columns

    def _statement(self, node: ast.stmt, columns: Columns) -> Columns:
        match node:
            case ast.If():
                self._note(node.test, columns)
                ways = [(one, self.block(one, columns)) for one in (node.body, node.orelse)]
                return _joined([after for one, after in ways if not _ends(one)] or [columns])
            case ast.With() | ast.AsyncWith():
                for item in node.items:
                    self._note(item.context_expr, columns)
                return self.block(node.body, columns)
            case ast.Try() | ast.TryStar():
                after = self.block(node.body, columns)
                # Any statement of the body may have failed.
                between = _joined([columns, after])
                ways = [(one.body, self.block(one.body, between)) for one in node.handlers]
                ways.append((node.body, self.block(node.orelse, after)))
                return self.block(node.finalbody, _joined([end for one, end in ways if not _ends(one)] or [after]))
            case ast.For() | ast.AsyncFor() | ast.While():
                # The round before may have changed them.
                inside = _joined([columns, _Walk(self._changed_by).block(node.body, columns)])
                self._note(node.test if isinstance(node, ast.While) else node.iter, inside)
                return self.block(node.orelse, _joined([inside, self.block(node.body, inside)]))
            case ast.Match():
                self._note(node.subject, columns)
                return _joined([columns, *(self.block(one.body, columns) for one in node.cases)])
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                return columns
        self._note(node, columns)
        calls = [one for one in ast.walk(node) if isinstance(one, ast.Call)]
        for call in reversed(calls):
            # Those inside first.
            columns = {**columns, **self._changed_by(call, columns)}
        return {**columns, **_assigned(node)}

    def _note(self, node: ast.AST, columns: Columns) -> None:
        self._found |= dict.fromkeys(map(id, ast.walk(node)), columns)


def _assigned(node: ast.stmt) -> dict[tuple[str, str], ast.expr]:
    match node:
        case ast.AnnAssign(target=target, value=ast.expr() as value):
            return _set(target, value)
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript() as target], value=value):
            return _set(target, value)
        case ast.Assign(targets=targets, value=value):
            parts = [one for target in targets for one in (target.elts if isinstance(target, ast.Tuple) else [target])]
            return {key: changed_in_part([value]) for one in parts for key in _set(one, value)}
        case ast.AugAssign(target=target, op=op, value=value):
            # It is read here, and no more assigned.
            return _set(target, ast.BinOp(target, op, value))
        case ast.Expr(value=ast.Call(func=ast.Attribute(value=changed), args=args, keywords=keywords)):
            return _set(changed, changed_in_part([*args, *(one.value for one in keywords)]))
    return {}


def _set(target: ast.expr, value: ast.expr) -> dict[tuple[str, str], ast.expr]:
    match target:
        case ast.Attribute(value=ast.Name(id=row), attr=column):
            return {(row, column): value}
        case ast.Subscript(value=part):
            return {key: changed_in_part([value]) for key in _set(part, value)}
    return {}


def changed_in_part(by: list[ast.expr]) -> ast.expr:
    """The value of a column that was changed by these, in a way that no expression tells."""
    return ast.Call(ast.Name(CHANGED, ast.Load()), by, [])


def _joined(ways: list[Columns]) -> Columns:
    """The columns where one of several ways was taken."""
    keys = dict.fromkeys(key for one in ways for key in one)
    found = {key: [one[key] for one in ways if key in one] for key in keys}
    return {
        key: values[0]
        if len(values) == len(ways) and all(one is values[0] for one in values)
        else changed_in_part(values)
        for key, values in found.items()
    }


def _ends(body: list[ast.stmt]) -> bool:
    return bool(body) and isinstance(body[-1], ast.Return | ast.Raise | ast.Continue | ast.Break)
