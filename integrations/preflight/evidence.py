"""Evidence: what is known of one manager before it is wired."""

from __future__ import annotations

import inspect
import queue
import threading
from collections.abc import Collection, MutableMapping, MutableSequence, MutableSet
from typing import Any

from ...records import attributes
from ..code.class_code import ClassCode
from ..code.method_code import facts_of
from ..manager import held

_CONTAINERS = (MutableSequence, MutableMapping, MutableSet, queue.Queue, queue.SimpleQueue)


class Evidence:
    """What is known of one manager: its class's code and what it holds beside its session factory."""

    def __init__(self, manager_class: type, manager: Any = None) -> None:
        self.cls, self.manager, self.code = manager_class, manager, ClassCode(manager_class)
        self.known = held.KNOWN | self._set_with_the_factory()
        self.held = held.held_by_code(self.code)
        if manager is not None:
            own = attributes(manager)
            # An attribute that is filled later, or in each thread, is known by the code alone.
            later = {
                name: kind
                for name, kind in self.held.items()
                if own.get(name) is None or isinstance(own[name], threading.local)
            }
            self.held = later | held.held_by(manager)
        self.held = {name: kind for name, kind in self.held.items() if name not in self.known}
        self.containers = {name for _, one in self.code.everything() for name in facts_of(one).containers}
        if manager is not None:
            self.containers |= {name for name, value in attributes(manager).items() if isinstance(value, _CONTAINERS)}
        self.engines = {"engine", *(name for name, kind in self.held.items() if kind == held.ENGINE)}

    def member(self, name: str) -> Any:
        """What the class has under a name, as it was defined."""
        return inspect.getattr_static(self.cls, name, None)

    def turns_to_the_database(self, name: str, *, but: Collection[str] = ()) -> bool:
        """Whether a method uses the session factory, an engine or another connection, at any depth.

        Methods named in `but` are not followed.
        """
        uses = self.code.uses_of(name, but=but)
        return not self.known.isdisjoint(uses) or not self.held.keys().isdisjoint(uses)

    def _set_with_the_factory(self) -> set[str]:
        """Attributes that the setter of a property `session_factory` assigns, as a replay does on its copy."""
        factory = self.member("session_factory")
        setter = factory.fset if isinstance(factory, property) else None
        return {name for name in facts_of(setter).sets if name is not None}
