"""Held: connections, sessions and their factories that a manager keeps besides `session_factory` and `engine`.

A replay gives a copy of the manager another session factory, and nothing else: what goes through these goes past it.
"""

from __future__ import annotations

import ast
import functools
from collections import deque
from collections.abc import Iterator, Mapping
from types import FunctionType, MethodType, ModuleType
from typing import Any

from sqlalchemy import Connection, Engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from ...records import attributes
from ..code.class_code import ClassCode
from ..code.method_code import Call, dotted, facts_of

ENGINE = "an engine"
ASYNC = "an asynchronous connection"
_KINDS: tuple[tuple[Any, str], ...] = (
    (scoped_session, "a scoped_session"),
    (sessionmaker, "a session factory"),
    (Session, "an open Session"),
    (Connection, "an open Connection"),
    (Engine, ENGINE),
)
DRIVERS = frozenset({"psycopg2", "psycopg", "psycopg_pool", "asyncpg", "pg8000"})
# By the name of what makes them.
_MADE = {
    "sessionmaker": "a session factory",
    "scoped_session": "a scoped_session",
    "Session": "an open Session",
    "create_engine": ENGINE,
    "create_async_engine": ASYNC,
    "async_sessionmaker": ASYNC,
    "AsyncSession": ASYNC,
}
# The two attributes that a replay and a reserve know of.
KNOWN = frozenset({"session_factory", "engine"})
ASYNC_WAY = (
    "declare operations with handlers and call enqueue_async, or call a synchronous manager by asyncio.to_thread"
)
_DEPTH = 3
_LOOKED_AT = 2000
_CONTAINERS = (list, tuple, set, frozenset, deque)


def kind_of(value: Any) -> str | None:
    """Which connection, or which maker of connections, a value is; None for anything else."""
    for types, kind in _KINDS:
        if isinstance(value, types):
            return kind
    module = type(value).__module__
    if module.startswith("sqlalchemy.ext.asyncio"):
        return ASYNC
    if module == scoped_session.__module__:
        # What `query_property()` has made.
        return "a scoped_session"
    driver = module.partition(".")[0]
    is_connection = any(word in type(value).__name__.lower() for word in ("connection", "pool"))
    return f"a {driver} connection" if driver in DRIVERS and is_connection else None


def held_by(manager: Any) -> dict[str, str]:
    """What a manager's attributes hold, by their name, at most three objects deep."""
    found = {}
    ours = _place(getattr(manager, "engine", None))
    for name, value in attributes(manager).items():
        if name in KNOWN:
            continue
        own = kind_of(value)
        if own is not None:
            found[name] = own if _same(ours, value) else f"{own} of another database"
            continue
        for inner, path in _inside(value, manager):
            kind = kind_of(inner)
            if kind is not None:
                where = "" if _same(ours, inner) else " of another database"
                found[name] = f"{_named(value)} with {kind}{where} of its own{path and f' in {path}'}"
                break
    return found


def held_by_code(code: ClassCode) -> dict[str, str]:
    """The same, as far as the class's source shows it."""
    found: dict[str, str] = {}
    for _, function in code.everything():
        facts = facts_of(function)
        for name, calls in facts.assigned.items():
            for call in calls:
                kind = _made_by(call, facts.locals)
                if kind is not None and name not in KNOWN:
                    found.setdefault(name, kind)
    return found


def _made_by(call: Call, local: Mapping[str, ast.expr]) -> str | None:
    if call.name in {"psycopg2.connect", "psycopg.connect", "asyncpg.connect"}:
        return f"a {call.name.partition('.')[0]} connection"
    if call.last.endswith("ConnectionPool") or call.last == "create_pool":
        return "a pool of driver connections"
    if call.last in _MADE:
        return _MADE[call.last]
    if call.name in {"self.session_factory", "self.SessionLocal"}:
        return "an open Session"
    if call.name.startswith("self.") and call.last in {"connect", "raw_connection"}:
        return "an open Connection"
    arguments = [*call.node.args, *(keyword.value for keyword in call.node.keywords)]
    # By convention a class: a function that is given an engine may only look at it.
    is_class = call.last[:1].isupper()
    for argument in arguments if is_class else ():
        known = local.get(argument.id) if isinstance(argument, ast.Name) else None
        made = dotted(known.func).rpartition(".")[2] if isinstance(known, ast.Call) else None
        if dotted(argument) in {"self.session_factory", "self.engine"} or made in {"sessionmaker", "create_engine"}:
            return f"{call.last} with a session factory or an engine of its own"
    return None


def _place(value: Any) -> tuple[Any, ...] | None:
    """The database that an engine, or what is bound to one, goes to; None where that is not known."""
    if isinstance(value, scoped_session):
        value = value.session_factory
    if isinstance(value, sessionmaker):
        value = value.kw.get("bind")
    bind = getattr(value, "bind", None) if isinstance(value, Session) else getattr(value, "engine", value)
    url = getattr(getattr(bind, "engine", bind), "url", None)
    return None if url is None else (url.host, url.port, url.database)


def _same(ours: tuple[Any, ...] | None, value: Any) -> bool:
    theirs = _place(value)
    return ours is None or theirs is None or ours == theirs


def _named(value: Any) -> str:
    named = f"a {type(value).__name__}"
    return f"{named} of objects" if isinstance(value, (*_CONTAINERS, dict)) else named


def _inside(value: Any, manager: Any) -> Iterator[tuple[Any, str]]:
    """What an object holds, and where; the manager itself is left out."""
    seen = {id(manager)}
    todo: deque[tuple[Any, str, int]] = deque([(value, "", 0)])
    while todo and len(seen) < _LOOKED_AT:
        one, path, depth = todo.popleft()
        if id(one) in seen or depth > _DEPTH:
            continue
        seen.add(id(one))
        if depth:
            yield one, path
        if kind_of(one) is None:
            todo.extend((inner, f"{path}.{name}".lstrip("."), depth + 1) for name, inner in parts(one))


def parts(value: Any) -> Iterator[tuple[str, Any]]:
    """What an object is made of, by name, without running code of the host."""
    if isinstance(value, (type, ModuleType)) or type(value).__module__.partition(".")[0] == "sqlalchemy":
        return
    if isinstance(value, _CONTAINERS):
        yield from (("[]", inner) for inner in list(value)[:100])
    elif isinstance(value, dict):
        yield from ((f"[{key!r}]", value[key]) for key in list(value)[:100])
    elif isinstance(value, functools.partial):
        yield from (("()", inner) for inner in (value.func, *value.args, *value.keywords.values()))
    elif isinstance(value, MethodType):
        yield "__self__", value.__self__
    elif isinstance(value, FunctionType):
        for cell in value.__closure__ or ():
            try:
                yield "closure", cell.cell_contents
            except ValueError:
                continue
    else:
        yield from attributes(value).items()


def without_factory(kinds: Mapping[str, str]) -> str:
    """What is wrong with a manager without `session_factory` whose attributes hold these."""
    factories = [name for name, kind in kinds.items() if kind in ("a session factory", "a scoped_session")]
    if factories:
        return (
            f"it has no attribute session_factory; self.{factories[0]} is one: "
            "rename it, or add a property session_factory with a setter"
        )
    if ASYNC in kinds.values():
        return f"it has no attribute session_factory, and what it holds is asynchronous: {ASYNC_WAY}"
    others = [f"self.{name} ({kind})" for name, kind in kinds.items() if kind != ENGINE]
    shown = f", but {', '.join(others)}" if others else ""
    return (
        f"it has no attribute session_factory{shown}: write through a sessionmaker in self.session_factory, "
        "or enqueue its writes as operations with handlers, which take its SQL as it is (docs/how-to/plain-sql.md)"
    )
