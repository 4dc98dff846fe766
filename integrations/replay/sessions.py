"""Sessions for copies of a manager: like its own, but bound to a connection of the outbox.

A replay gives its copy of the manager a scoped_session of its own.  While it runs, the manager's stands for that one in
the same thread, so that `Trade.session.add(trade)` belongs to the replay, and not to a connection of the thread's own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from sqlalchemy.orm import Session, scoped_session, sessionmaker


class SharedScope:
    """Stands for the registry of a manager's scoped_session.  Thread-safe: each thread has a stand-in of its own."""

    def __init__(self, own: Any) -> None:
        self._own, self._here = own, threading.local()

    def _registry(self) -> Any:
        return getattr(self._here, "instead", None) or self._own

    def __call__(self) -> Any:
        """The session of the thread."""
        return self._registry()()

    def has(self) -> bool:
        """Whether the thread has one."""
        found: bool = self._registry().has()
        return found

    def set(self, obj: Any) -> None:
        """Let the thread have this one."""
        self._registry().set(obj)

    def clear(self) -> None:
        """Let the thread have none."""
        self._registry().clear()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)

    @contextmanager
    def replaced(self, registry: Any) -> Iterator[None]:
        """Within the block this thread has the sessions of another registry."""
        before, self._here.instead = getattr(self._here, "instead", None), registry
        try:
            yield
        finally:
            self._here.instead = before


def scope_like(original: scoped_session[Any], maker: Any) -> scoped_session[Any]:
    """A scoped_session around `maker`, to be used in place of `original`, which may be one of these itself."""
    made = scoped_session(maker)
    shared = vars(original).get("outbox_shared")
    if shared is None:
        if not isinstance(original.registry, SharedScope):
            original.registry = SharedScope(original.registry)  # type: ignore[assignment]
        shared = original.registry
    vars(made)["outbox_shared"] = shared
    return made


@contextmanager
def everywhere(factory: Any) -> Iterator[None]:
    """Within the block the manager's scoped_session, wherever it is held, has the sessions of the copy's `factory`."""
    shared = vars(factory).get("outbox_shared") if isinstance(factory, scoped_session) else None
    if shared is None:
        yield
        return
    with shared.replaced(factory.registry):
        yield


# Events whose listeners of ours must run last.
_ORDERED = ("before_flush", "after_flush", "after_commit")


def factory_like(
    original: Any, behaviour: type[Session], listen: Callable[[type[Session]], None] | None = None, **options: Any
) -> Any:
    """A factory like `original` (a sessionmaker, a scoped_session around one, or None) with `behaviour` mixed in.

    `listen(class)` adds listeners to the class of its sessions, behind those of the original's.  The class is made once
    for all factories, so they must find what belongs to one call in the session's `info`.  `options` replace the
    original's.
    """
    maker = maker_of(original)
    given = dict(getattr(maker, "kw", {}))
    base: Any = getattr(maker, "class_", Session)
    mixed: Any = behaviour
    info = {**(given.pop("info", None) or {}), **options.pop("info", {})}
    known = _maker(mixed, base, listen, _listeners_of(base))
    # `copy.copy` takes longer than the rest.
    made: Any = object.__new__(type(known))
    vars(made).update(vars(known), kw={**known.kw, **given, **options, "info": info})
    return scope_like(original, made) if isinstance(original, scoped_session) else made


@lru_cache(maxsize=64)
def _maker(
    behaviour: type[Session], base: type[Session], listen: Callable[[type[Session]], None] | None, _: int
) -> sessionmaker[Any]:
    """Making a class, and the tables of its events, costs more than the rest of a short call."""
    bases = (behaviour,) if base is Session else (behaviour, base)
    made: sessionmaker[Any] = sessionmaker(class_=type(behaviour.__name__, bases, {}))
    if listen is not None:
        listen(made.class_)
    return made


def _listeners_of(base: type[Session]) -> int:
    """How many listeners a class has: a new one comes before ours only in a class that is made after it."""
    events: Any = base.dispatch
    return sum(len(getattr(events, name)._clslevel.get(base, ())) for name in _ORDERED)


def maker_of(factory: Any) -> Any:
    """The sessionmaker that `factory` is, or is around."""
    return factory.session_factory if isinstance(factory, scoped_session) else factory


def apart(factory: Any, info: dict[str, Any]) -> Any:
    """A factory of sessions as those of `factory`, but not the same ones, with another `info`."""
    maker = maker_of(factory)
    made = sessionmaker(class_=maker.class_, **{**maker.kw, "info": info})
    return scope_like(factory, made) if isinstance(factory, scoped_session) else made


def left_open(factory: Any) -> Session | None:
    """The session that `factory`, if it is a scoped_session, keeps for the code that runs here; None before its use."""
    if not isinstance(factory, scoped_session) or not factory.registry.has():
        return None
    session: Session = factory.registry()
    return session


def commit_left(factory: Any) -> None:
    """Commit what a method has left in a scoped_session, as the thread's next commit would; its objects stay loaded."""
    session = left_open(factory)
    if session is not None and session.in_transaction():
        session.expire_on_commit = False
        session.commit()


def end_scope(factory: Any) -> None:
    """Close the session that a scoped_session keeps here."""
    if left_open(factory) is not None:
        factory.remove()


def session_class(factory: Any) -> type[Session]:
    """The class whose events are those of all sessions that `factory` makes."""
    made: type[Session] = maker_of(factory).class_
    return made
