"""Remembered: what was concluded from the code of a class, until the host puts another function in place of one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import lru_cache
from operator import is_
from typing import Any, TypeVar

from .members import is_mock

_Function = TypeVar("_Function", bound=Callable[..., Any])
_forget: list[Callable[[], None]] = []


def remembered(maxsize: int) -> Callable[[_Function], _Function]:
    """As `lru_cache`, for what a function concludes from a class; forgotten where a `CodeWatch` sees a change."""

    def remember(function: _Function) -> _Function:
        known: Any = lru_cache(maxsize=maxsize)(function)
        _forget.append(known.cache_clear)
        return known  # type: ignore[no-any-return]

    return remember


class CodeWatch:
    """Looks whether the functions of a class are still those that it had.  Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._cls: type | None = None
        self._members: list[Any] = []
        # With what else the class held at the last look: to compare all takes a tenth of picking the functions.
        self._held: list[Any] = []

    def has_changed(self, cls: type) -> bool:
        """Whether the class has other functions than at the last look; then all conclusions are forgotten.

        What a test has mocked is no code of the manager's.
        """
        held = _all_of(cls)
        if self._cls is cls and _are_same(self._held, held):
            return False
        # What is no function may change at each call.
        members = [one for one in held if hasattr(type(one), "__get__")]
        if self._cls is cls and _are_same(self._members, members):
            self._held = held
            return False
        with self._lock:
            if (self._cls is cls and _are_same(self._members, members)) or any(map(is_mock, held)):
                return False
            is_first = self._cls is not cls
            self._cls, self._members, self._held = cls, members, held
        if is_first:
            return False
        for forget in _forget:
            forget()
        return True


def _are_same(before: list[Any], now: list[Any]) -> bool:
    return len(before) == len(now) and all(map(is_, before, now))


def _all_of(cls: type) -> list[Any]:
    # Another thread may set one meanwhile.
    found: list[Any] = []
    for base in cls.__mro__[:-1]:
        found += vars(base).copy().values()
    return found
