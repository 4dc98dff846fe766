"""Singletons: a class whose `__new__` hands out an object again gets one durable manager for each such object.

Its `__new__` is asked which object the plain class would give; the durable manager that stands for it is given again.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ...errors import ConfigError
from ..code.members import class_member
from . import classes


@dataclass(slots=True)
class _Known:
    # Kept, so that no other object gets its id.
    plain: Any
    durable: weakref.ref[Any]
    constructed: bool = False


class Singletons:
    """The durable managers of one class, by the plain objects that its `__new__` gave.  Thread-safe."""

    def __init__(self, manager_class: Any, of: Callable[..., Any]) -> None:
        """`of(cls, *args, **kwargs)` makes a durable manager of another class, which `__new__` has chosen."""
        self._class, self._of = manager_class, of
        self._lock = threading.RLock()
        self._known: dict[tuple[int, type], _Known] = {}

    def members(self) -> dict[str, Any]:
        """What the durable class needs beside its constructor: nothing where every object is a new one."""
        if class_member(self._class, "__new__") is class_member(object, "__new__"):
            return {}

        def new(cls: Any, *args: Any, **kwargs: Any) -> Any:
            given = self._class.__new__(self._class, *args, **kwargs)
            # A subclass of the host's own is not chosen again.
            if type(given) is self._class or classes.STANDS_FOR not in vars(cls):
                return self._durable(given, cls)
            if not issubclass(type(given), self._class):
                raise ConfigError(
                    f"{self._class.__name__} gives a {type(given).__name__}, which is no subclass of it",
                    hint=f"DurableDatabaseManager.of({type(given).__name__})",
                )
            return self._of(type(given), *args, **kwargs)

        return {"__new__": new}

    def _durable(self, plain: Any, cls: type) -> Any:
        """The durable manager of class `cls` that stands for `plain`."""
        key = (id(plain), cls)
        with self._lock:
            known = self._known.get(key)
            durable = None if known is None else known.durable()
            if durable is None:
                durable = object.__new__(cls)
                self._known[key] = _Known(plain, weakref.ref(durable, lambda ref: self._forget(key, ref)))
            return durable

    def construct(self, durable: Any, construct: Callable[[], None]) -> None:
        """Construct a durable manager once; where it is given again, it is as it was."""
        with self._lock:
            known = next((one for one in self._known.values() if one.durable() is durable), None)
            if known is None or not known.constructed:
                construct()
            if known is not None:
                known.constructed = True

    def _forget(self, key: tuple[int, type], ref: weakref.ref[Any]) -> None:
        with self._lock:
            known = self._known.get(key)
            if known is not None and known.durable is ref:
                del self._known[key]
