"""Ids left: the arguments in which a method leaves the id of its new row, found in its code: `fill.id = row.id`.

If the code looks at the field before, an object that has an id is saved under it: `if fill.id is None`.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TypeVar

from ... import Operation, Outbox
from ..code.class_code import ClassCode
from ..code.method_code import facts_of
from ..operations import ManagerOperation

_O = TypeVar("_O", bound=Operation)
# By operation: argument and field.
_META = "manager:ids_left"
# Calls that change no more than an id's type.
_CONVERTING = frozenset({"int", "str", "UUID"})


def with_ids_left(operations: Iterable[_O], manager_class: type | None, outbox: Outbox) -> tuple[_O, ...]:
    """Operations whose `sets_id` and `keeps_id` have those that the manager's code shows.

    The store keeps what was found, for a start at which the manager's class is not known yet.
    """
    given, stored = tuple(operations), outbox.store.get_meta(_META)
    known: dict[str, dict[str, tuple[str, bool]]] = {} if stored is None else json.loads(stored)
    if manager_class is not None:
        code = ClassCode(manager_class)
        found = {one.name: left_by(one, code) for one in given if isinstance(one, ManagerOperation) and one.creates}
        known = {name: left for name, left in found.items() if left}
        data = json.dumps(known, sort_keys=True).encode()
        if (known or stored is not None) and data != stored:
            outbox.store.put_meta(_META, data)
    return tuple(_with(one, known.get(one.name)) for one in given)


def _with(operation: _O, found: dict[str, tuple[str, bool]] | None) -> _O:
    if not isinstance(operation, ManagerOperation) or not found:
        return operation
    left = {name: field for name, (field, _) in found.items()}
    kept = {name for name, (_, is_kept) in found.items() if is_kept}
    return replace(operation, sets_id={**left, **operation.sets_id}, keeps_id=sorted({*kept, *operation.keeps_id}))


def left_by(operation: ManagerOperation, code: ClassCode) -> dict[str, tuple[str, bool]]:
    """By argument of its method, the field or key that gets the id of the row, and whether it is looked at before."""
    column, found = operation.id_column.column, dict[str, tuple[str, bool]]()
    for function in code.functions(operation.name):
        nodes = [node for one in facts_of(function).body for node in ast.walk(one)]
        assigned = [one for one in nodes if isinstance(one, ast.Assign) and len(one.targets) == 1]
        ids = {
            one.targets[0].id
            for one in assigned
            if isinstance(one.targets[0], ast.Name) and _is_id(one.value, column, ())
        }
        names = function.__code__.co_varnames[1 : function.__code__.co_argcount + function.__code__.co_kwonlyargcount]
        for argument, field, value in _changes(assigned):
            if argument in names and _is_id(value, column, ids, but=argument):
                before = [one for one in nodes if getattr(one, "lineno", value.lineno) < value.lineno]
                found[argument] = field, any(_looks_at(one, argument, field) for one in before)
    return found


def _looks_at(node: ast.AST, argument: str, field: str) -> bool:
    match node:
        case ast.Attribute(value=ast.Name(id=name), attr=key, ctx=ast.Load()):
            return (name, key) == (argument, field)
        case ast.Subscript(value=ast.Name(id=name), slice=ast.Constant(value=key), ctx=ast.Load()):
            return (name, key) == (argument, field)
        case ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr="get"), args=[ast.Constant(value=key), *_]):
            return (name, key) == (argument, field)
        case ast.Compare(left=ast.Constant(value=key), comparators=[ast.Name(id=name)]):
            return (name, key) == (argument, field)
    return False


def _is_id(node: ast.expr, column: str, ids: Iterable[str], but: str = "") -> bool:
    match node:
        case ast.Call(func=ast.Name(id=name), args=[inner]):
            return name in _CONVERTING and _is_id(inner, column, ids, but)
        case ast.Attribute(value=ast.Name(id=row), attr=attribute):
            return attribute == column and row not in (but, "self")
        case ast.Name(id=name):
            return name in ids
    return False


def _changes(assigned: Iterable[ast.Assign]) -> Iterator[tuple[str, str, ast.expr]]:
    """The fields and items of local names that are assigned."""
    for one in assigned:
        match one.targets[0]:
            case ast.Attribute(value=ast.Name(id=name), attr=field):
                yield name, field, one.value
            case ast.Subscript(value=ast.Name(id=name), slice=ast.Constant(value=str(key))):
                yield name, key, one.value
