"""Given ids: an id that a method returns and that its caller has made, such as a UUID: `return fill.position_id`.

The row gets that one, and no other may be given to it.
"""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Mapping
from typing import Any
from uuid import UUID

from .class_code import ClassCode
from .method_code import Facts, facts_of
from .plain_answers import answering
from .remembered import remembered


@remembered(256)
def given_id_of(cls: type, method: str) -> tuple[str, ...] | None:
    """The argument that a method returns in all cases, alone or with the field of it; None where it does not."""
    functions = ClassCode(cls).functions(method)
    if not functions:
        return None
    function = answering(functions)
    facts, code = facts_of(function), function.__code__
    arguments = code.co_varnames[1 : code.co_argcount + code.co_kwonlyargcount]
    found = {_path(one, facts) for one in facts.returns}
    path = found.pop() if facts.read and len(found) == 1 else None
    if path is None or path[0] not in arguments or _is_changed(path, facts):
        return None
    return path


def given_id(path: tuple[str, ...], call: Mapping[str, Any]) -> Any:
    """The id that a call gives; None where it gives none, or where the method may put another one in its place."""
    value = call.get(path[0])
    if len(path) > 1:
        if not _is_frozen(value):
            return None
        value = getattr(value, path[1], None)
    return value if isinstance(value, int | UUID) and not isinstance(value, bool) else None


def _path(node: ast.expr, facts: Facts) -> tuple[str, ...] | None:
    match node:
        case ast.Name(id=name):
            known = facts.locals.get(name)
            return (name,) if known is None else _path(known, facts) if not isinstance(known, ast.Name) else None
        case ast.Attribute(value=ast.Name(id=name), attr=field):
            return name, field
    return None


def _is_changed(path: tuple[str, ...], facts: Facts) -> bool:
    """Whether the method puts something else under the argument's name."""
    nodes = (node for statement in facts.body for node in ast.walk(statement))
    return any(isinstance(one, ast.Name) and one.id == path[0] and not isinstance(one.ctx, ast.Load) for one in nodes)


def _is_frozen(value: Any) -> bool:
    """Whether nothing can change the fields of an object: what it has now, the row gets."""
    is_data = dataclasses.is_dataclass(value) and not isinstance(value, type)
    return isinstance(value, tuple) or (is_data and bool(value.__dataclass_params__.frozen))
