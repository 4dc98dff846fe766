"""Shared scope: the manager's scoped_session where others hold it too, such as mapped classes: `Trade.session`.

A replay gives its copy of the manager a scoped_session of its own.  While it runs, the manager's stands for that one in
the same thread, so that `Trade.session.add(trade)` belongs to the replay, and not to a connection of the thread's own.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy.orm import scoped_session


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
