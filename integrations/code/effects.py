"""Effects: what code that is not followed may change, by the names in it.

An item of a local name, `trade["pnl"]` or `trade.pnl`, is the name `trade[pnl]`; `trade[]` stands for its other uses.
The steps in a `with` block are certain if that lets every error through.
"""

from __future__ import annotations

import ast
import functools
import linecache
import threading
from collections.abc import Sequence
from contextlib import nullcontext
from types import FunctionType, ModuleType
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from .members import class_member
from .method_code import dotted, facts_of, layers, names_in, parse

# Functions that take the manager and set no attribute of it.
_HARMLESS = frozenset({"isinstance", "hasattr", "super", "type", "id"})
# Methods that change a container.
_CHANGING = frozenset({"append", "appendleft", "extend", "insert", "remove", "sort", "reverse", "add", "discard"})
_CHANGING |= {"pop", "popitem", "update", "setdefault", "clear"}
_OF_ONE_ITEM = frozenset({"pop", "setdefault"})


def gives_away(node: ast.AST, function: FunctionType) -> bool:
    """Whether the manager itself goes to other code, which may set any attribute, or gets another name."""
    myself, known = facts_of(function).myself, set[int]()
    harmless = {*_HARMLESS, *function.__code__.co_freevars}  # a decorator's wrapper calls the method by a closure
    for one in ast.walk(node):
        if isinstance(one, ast.Attribute) and one.attr != "__dict__":
            known.add(id(one.value))
        elif isinstance(one, ast.Call) and (dotted(one.func) in harmless or attribute_got(one, myself) is not None):
            known |= {id(given) for given in one.args}
    return any(isinstance(one, ast.Name) and one.id == myself and id(one) not in known for one in ast.walk(node))


def attribute_got(node: ast.AST, myself: str | None) -> str | None:
    """The attribute of the manager that an expression gets, also with `getattr` and of `super()`."""
    match node:
        case ast.Attribute(value=owner, attr=name) if myself is not None and dotted(owner) in (myself, "super()"):
            return name
        case ast.Call(func=ast.Name(id="getattr"), args=[ast.Name(id=owner), ast.Constant(value=str(name)), *_]) if (
            owner == myself
        ):
            return name
    return None


def names_changed_by(node: ast.AST) -> set[str]:
    """The local names, and the items of those, that one node changes."""
    match node:
        case ast.Name(id=name, ctx=ast.Store() | ast.Del()):
            return {name}
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            return {name}
        case ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)) | ast.MatchMapping(rest=str(name)):
            return {name}
        case ast.ExceptHandler(name=str(name)):
            return {name}
        case ast.alias(name=name, asname=asname):
            return {asname or name.partition(".")[0]}
        case ast.Subscript(value=owner, slice=key, ctx=ast.Store() | ast.Del()):
            return _item(owner, key.value if isinstance(key, ast.Constant) else None)
        case ast.Attribute(value=owner, attr=name, ctx=ast.Store() | ast.Del()):
            return _item(owner, name)
        case ast.Call(func=ast.Attribute(value=owner, attr=name), args=given) if name in _CHANGING:
            is_one = name in _OF_ONE_ITEM and given and isinstance(given[0], ast.Constant)
            return _item(owner, given[0].value if is_one else None)  # type: ignore[attr-defined]
    return set()


def _item(owner: ast.expr, key: object) -> set[str]:
    if isinstance(owner, ast.Name):
        return {f"{owner.id}[]", f"{owner.id}[{key}]"} if isinstance(key, str) else {owner.id}
    while isinstance(owner, ast.Attribute | ast.Subscript):
        owner = owner.value
    return {owner.id} if isinstance(owner, ast.Name) else set()


def items_of(value: ast.expr) -> set[str]:
    """The items of names that an expression takes, and the names that it uses in another way."""
    found, known = set[str](), set[int]()
    for node in ast.walk(value):
        match node:
            case (
                ast.Subscript(value=ast.Name(id=name) as owner, slice=ast.Constant(value=str(key)))
                | ast.Attribute(value=ast.Name(id=name) as owner, attr=key)
            ):
                found.add(f"{name}[{key}]")
                known.add(id(owner))
    return found | {f"{node.id}[]" for node in ast.walk(value) if isinstance(node, ast.Name) and id(node) not in known}


def hands_on(function: FunctionType) -> bool:
    """Whether a decorator's wrapper calls what it wraps once, with the arguments that it was given."""
    code, facts = function.__code__, facts_of(function)
    nodes = list(ast.walk(ast.Module(facts.body, [])))
    given = {*code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]} - {facts.myself}
    calls = [one for one in nodes if isinstance(one, ast.Call) and dotted(one.func) in code.co_freevars]
    calls = [one for one in calls if any(map(_is_handed, (*one.args, *one.keywords)))]
    for call in calls:
        for one in (*call.args, *(keyword.value for keyword in call.keywords)):
            inner = one.value if isinstance(one, ast.Starred) else one
            if not isinstance(inner, ast.Name) and any(getattr(node, "id", None) in given for node in ast.walk(inner)):
                return False
    if any(isinstance(one, ast.Name) and one.id in given and not isinstance(one.ctx, ast.Load) for one in nodes):
        return False
    returned = {id(one.value) for one in nodes if isinstance(one, ast.Return)}
    return len(calls) <= 1 or all(id(one) in returned for one in calls)


def _is_handed(node: ast.AST) -> bool:
    return isinstance(node, ast.Name | ast.Starred) or (isinstance(node, ast.keyword) and node.arg is None)


def changes_nothing(function: FunctionType) -> bool:
    """Whether a function names nothing of its module that functions there change."""
    return names_in(function).isdisjoint(_changed_globals(function.__code__.co_filename))


def reads_changing(value: ast.expr, function: FunctionType) -> bool:
    """Whether an expression reads a name of a module that functions of that module change: a queued call runs none."""
    named = {node.id for node in ast.walk(value) if isinstance(node, ast.Name)}
    if not named.isdisjoint(_changed_globals(function.__code__.co_filename)):
        return True
    for node in ast.walk(value):
        match node:
            case ast.Attribute(value=ast.Name(id=name), attr=attribute):
                module = function.__globals__.get(name)
                if isinstance(module, ModuleType) and attribute in _changed_globals(getattr(module, "__file__", "")):
                    return True
    return False


@functools.lru_cache(256)
def _changed_globals(file: str | None) -> frozenset[str]:
    """The names outside of functions that functions of a file change, themselves or in part."""
    try:
        tree = parse("".join(linecache.getlines(file or "")))
    except (SyntaxError, ValueError):
        return frozenset()
    found = set[str]()
    for function in (one for one in ast.walk(tree) if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)):
        own, changed = set[str](), set[str]()
        for node in ast.walk(function):
            if isinstance(node, ast.Global):
                found |= set(node.names)
            elif isinstance(node, ast.Name | ast.arg):
                own |= {node.arg} if isinstance(node, ast.arg) else names_changed_by(node)
            else:
                changed |= {name.partition("[")[0] for name in names_changed_by(node)}
        found |= changed - own
    return frozenset(found)


_LOCKS = (type(threading.Lock()), type(threading.RLock()), threading.Condition, threading.Semaphore)
# Their blocks roll back, give back or unlock, and raise what was raised.
_KNOWN = (*_LOCKS, nullcontext, Engine, Session, sessionmaker, scoped_session)


def lets_through(value: Any, path: Sequence[str]) -> bool:
    """Whether `with value.a()` swallows no error, as far as its code shows; `path`: the names behind the value."""
    if isinstance(value, _KNOWN):
        return True
    if not path:
        functions = layers(class_member(type(value), "__exit__"))
        return len(functions) == 1 and _answers_nothing(functions[0])
    functions = layers(class_member(type(value), path[0])) if len(path) == 1 else []
    # What `contextmanager` has made, and the generator in it.
    is_generator = len(functions) == 2 and functions[0].__globals__["__name__"] == "contextlib"
    return is_generator and _raises_again(functions[1], value)


def path_of(entered: ast.expr) -> list[str]:
    """The names in `a.b.c` or `a.b.c()`."""
    return dotted(entered).replace("()", "").split(".")


def _answers_nothing(function: FunctionType) -> bool:
    """Whether a function is sure to return nothing, or False."""
    facts = facts_of(function)
    return facts.read and all(isinstance(one, ast.Constant) and not one.value for one in facts.returns)


def _raises_again(function: FunctionType, owner: Any) -> bool:
    """Whether a generator, a method of `owner`, raises what is raised where it yields."""
    facts = facts_of(function)
    nodes = list(ast.walk(ast.Module(facts.body, [])))
    caught = [one for one in nodes if isinstance(one, ast.ExceptHandler)]
    entered = [path_of(item.context_expr) for one in nodes if isinstance(one, ast.With) for item in one.items]
    return (
        facts.read
        and all(isinstance(one.body[-1], ast.Raise) for one in caught)
        and not any(isinstance(one, ast.Return) for one in nodes)
        and all(
            one[0] == facts.myself
            and len(one) > 1
            and lets_through(getattr(owner, "__dict__", {}).get(one[1]), one[2:])
            for one in entered
        )
    )
