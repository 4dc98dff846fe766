"""Records: which arguments of a method hold fields that it takes itself, or takes the id of its new row.

Both are found in its code and its annotations. `trade["pnl"]`, `trade.get("pnl")`, `Trade(**trade)`,
`insert(Trade).values(trade)` and `trade.pnl` take items; a dict that goes into one column, as it is or as a copy, stays
one argument.  `fill.id = row.id` leaves the id; if the code looks at the field before, an object that has an id is
saved under it: `if fill.id is None`.
"""

from __future__ import annotations

import ast
import json
import re
import typing
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from types import FunctionType, UnionType
from typing import Any, TypeVar, cast

from ... import Operation, Outbox
from ...records import is_record_class, names_of
from ..code.class_code import ClassCode, row_methods
from ..code.method_code import dotted, facts_of, meaning
from ..code.signatures import hints_of, parameter_names, signature_of
from ..operations import ManagerOperation

_ONE_ITEM = frozenset({"get", "pop", "setdefault"})
_EVERY_ITEM = frozenset({"items", "keys", "values"})
# Calls that take every item of a dict that they are given.
_EXECUTING = frozenset({"values", "execute", "scalar", "scalars"})
_TAKING = _EXECUTING | {"dict"}
# Calls that make one value of a dict.
_WHOLE = frozenset({"dumps", "Json"})
# As annotations are written.
_SCALARS = frozenset({"str", "int", "float", "bool", "bytes", "list", "Decimal", "datetime", "UUID"})
_DEEPEST = 3
_O = TypeVar("_O", bound=Operation)
# What the code shows, by operation and argument.
_META = "manager:records"
# Stands for names that the code does not show.
_EVERY = "*"


def remembered(operations: Iterable[_O], manager_class: type | None, outbox: Outbox) -> tuple[_O, ...]:
    """`with_records` and `with_ids_left`.

    The store keeps what was found, for a start at which the manager's class is not known yet.
    """
    given, stored = tuple(operations), outbox.store.get_meta(_META)
    if manager_class is None:
        known: dict[str, dict[str, list[str]]] = {} if stored is None else json.loads(stored)
        return with_ids_left((_with(one, known.get(one.name, {})) for one in given), None, outbox)
    found = with_records(given, manager_class)
    kept = {
        one.name: {name: sorted(items) for name, items in one.records.items()}  # type: ignore[union-attr]
        for one in found
        if isinstance(one, ManagerOperation) and one.records
    }
    data = json.dumps(kept, sort_keys=True).encode()
    if (kept or stored is not None) and data != stored:
        outbox.store.put_meta(_META, data)
    return with_ids_left(found, manager_class, outbox)


def with_records(operations: Iterable[_O], manager_class: type) -> tuple[_O, ...]:
    """Operations whose `records` name those arguments, too, that the code of the manager shows to be some."""
    code = ClassCode(manager_class)
    return tuple(_with(one, items_of(one.name, code)) if _asks_for_items(one, code) else one for one in operations)


def _asks_for_items(operation: Operation, code: ClassCode) -> bool:
    """Whether a role or a name in the declaration may be about the fields of an argument."""
    if not isinstance(operation, ManagerOperation):
        return False
    if operation.has_role:
        return True
    named = {*operation.args, *map(operation.own_name, operation.needed())}
    with suppress(AttributeError, ValueError, TypeError):  # as in items_of
        return bool(named - signature_of(code.cls, operation.name).parameters.keys())
    return False


def _with(operation: _O, found: Mapping[str, Collection[str]]) -> _O:
    if not isinstance(operation, ManagerOperation) or not found:
        return operation
    return replace(operation, records={**found, **cast(dict[str, Any], operation.records)})


def items_of(name: str, code: ClassCode) -> dict[str, frozenset[str]]:
    """The arguments of a method of which it takes items, and the names of those, none for all."""
    found: dict[str, set[str]] = {}
    takes: Collection[str] = ()
    with suppress(AttributeError, ValueError, TypeError):  # a method that is missing, or written in C
        takes = signature_of(code.cls, name).parameters.keys()
    for function in code.functions(name):
        hints = hints_of(function)
        for argument in (one for one in parameter_names(function)[1:] if one in takes):
            hint = hints.get(argument)
            choices = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, UnionType) else (hint,)
            classes = [typing.get_origin(one) or one for one in choices]
            items = {item for one in classes if is_record_class(one) for item in names_of(one)}
            if not items and _may_hold(getattr(function, "__annotations__", {}).get(argument, "")):
                items = set(_items(argument, function, code, 0))
            if items:
                found.setdefault(argument, set()).update(items)
    return {argument: frozenset() if _EVERY in items else frozenset(items) for argument, items in found.items()}


def _may_hold(hint: Any) -> bool:
    """Whether an annotation, a class or a text, lets an argument hold fields."""
    text = hint if isinstance(hint, str) else getattr(hint, "__name__", "")
    return re.split(r"\W", text, maxsplit=1)[0] not in _SCALARS


def _items(name: str, function: Any, code: ClassCode, depth: int) -> Iterator[str]:
    """The names of the items that a function takes of what a local name stands for."""
    nodes = list(ast.walk(ast.Module(facts_of(function).body, [])))
    called = {id(node.func) for node in nodes if isinstance(node, ast.Call)}
    in_one = {id(node) for one in nodes for value in _kept_whole(one, function, code) for node in ast.walk(value)}
    for node in nodes:
        if id(node) in in_one and _is_copy(node):
            continue
        match node:
            case ast.Subscript(value=ast.Name(id=one), slice=ast.Constant(value=str(key))) if one == name:
                yield key
            case ast.Attribute(value=ast.Name(id=one), attr=item, ctx=ast.Load()) if (
                one == name and id(node) not in called
            ):
                yield item
            case ast.Dict(keys=keys, values=values):
                if any(key is None and _is(name, value) for key, value in zip(keys, values, strict=True)):
                    yield _EVERY
            case ast.Call():
                yield from _items_of_call(name, node, function, code, depth)


def _items_of_call(name: str, node: ast.Call, function: Any, code: ClassCode, depth: int) -> Iterator[str]:
    called = dotted(node.func)
    owner, _, last = called.rpartition(".")
    if owner == name and last in _EVERY_ITEM:
        yield _EVERY
    elif owner == name and last in _ONE_ITEM and node.args:
        key = node.args[0]
        yield key.value if isinstance(key, ast.Constant) and isinstance(key.value, str) else _EVERY
    if any(one.arg is None and _is(name, one.value) for one in node.keywords):
        yield _EVERY
    places = [index for index, one in enumerate(node.args) if _is(name, one)]
    if places and last in _TAKING:
        yield _EVERY
    for inner, parameters in _called(called, function, code) if depth < _DEEPEST else ():
        names = [parameters[place] for place in places if place < len(parameters)]
        names += [str(one.arg) for one in node.keywords if one.arg in parameters and _is(name, one.value)]
        for one in names:
            yield from _items(one, inner, code, depth + 1)


def _kept_whole(node: ast.AST, function: Any, code: ClassCode) -> Iterator[ast.expr]:
    """What goes into one column or attribute: the value of a keyword, of a key, or of an assignment to these."""
    match node:
        case ast.Dict(keys=keys, values=values):
            yield from (value for key, value in zip(keys, values, strict=True) if key is not None)
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript()], value=value):
            yield value
        case ast.Call(func=func, args=args, keywords=keywords):
            called = dotted(func)
            last = called.rpartition(".")[2]
            yield from args if last in _WHOLE else ()
            if last not in _EXECUTING and not any(_called(called, function, code)):
                yield from (one.value for one in keywords if one.arg is not None)


def _is_copy(node: ast.AST) -> bool:
    name = dotted(node.func).rpartition(".")[2] if isinstance(node, ast.Call) else ""
    return isinstance(node, ast.Dict) or name == "dict" or name in _EVERY_ITEM


def _called(name: str, function: Any, code: ClassCode) -> Iterator[tuple[Any, list[str]]]:
    """The functions of the class, a module or a row that run for a dotted name, and the parameters given."""
    owner, _, last = name.rpartition(".")
    if owner in (facts_of(function).myself, "super()"):
        for one in code.functions(last):
            yield one, parameter_names(one)[1:]
    elif isinstance(known := meaning(function, name), FunctionType):
        yield known, parameter_names(known)
    else:
        yield from ((one.function, parameter_names(one.function)[one.skipped :]) for one in row_methods(function, name))


def _is(name: str, node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id == name


# By operation: argument and field.
_META_LEFT = "manager:ids_left"
# Calls that change no more than an id's type.
_CONVERTING = frozenset({"int", "str", "UUID"})


def with_ids_left(operations: Iterable[_O], manager_class: type | None, outbox: Outbox) -> tuple[_O, ...]:
    """Operations whose `sets_id` and `keeps_id` have those that the manager's code shows.

    The store keeps what was found, for a start at which the manager's class is not known yet.
    """
    given, stored = tuple(operations), outbox.store.get_meta(_META_LEFT)
    known: dict[str, dict[str, tuple[str, bool]]] = {} if stored is None else json.loads(stored)
    if manager_class is not None:
        code = ClassCode(manager_class)
        found = {one.name: left_by(one, code) for one in given if isinstance(one, ManagerOperation) and one.creates}
        known = {name: left for name, left in found.items() if left}
        data = json.dumps(known, sort_keys=True).encode()
        if (known or stored is not None) and data != stored:
            outbox.store.put_meta(_META_LEFT, data)
    return tuple(_with_left(one, known.get(one.name)) for one in given)


def _with_left(operation: _O, found: dict[str, tuple[str, bool]] | None) -> _O:
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
