"""Read state: attributes that a call only reads, such as the name of a run or a mode that the engine sets.

A replay must find them as they were at its call: the engine may set them anew meanwhile, and after a restart they are
what the constructor makes of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from ... import InvalidEntry
from ...codec import encode
from ..code.class_code import ClassCode
from ..manager.host import Host
from ..plain_data import SCALARS, is_small
from .kept_state import NOT_STATE

# Each entry holds them.
_MOST = 50
_CONTAINERS = (list, tuple, dict, set, frozenset)
# What a connection needs is the replaying manager's own business, and no file must hold a password.
_SECRET = re.compile(r"passw|secret|token|credential|private|dsn|ur[li]$|api_?key|auth", re.IGNORECASE)


class ReadState:
    """The attributes that the methods of one manager read, and no declared method changes.  Thread-safe."""

    def __init__(self, host: Host, methods: Collection[str], learn: Callable[[Any], bool]) -> None:
        """`learn(value)` allows the enum classes of a value to be stored; whether there are any."""
        self._host, self._methods, self._learn = host, methods, learn
        # The class that was looked at, and the names by method.
        self._known: tuple[type | None, dict[str, frozenset[str]]] = (None, {})

    def names(self, method: str) -> frozenset[str]:
        """The attributes that a call of `method` reads, by its code."""
        cls = self._host.manager_class
        if cls is None:
            return frozenset()
        if self._known[0] is not cls:
            code = ClassCode(cls)
            # A replay finds what calls before it have made of these.
            changed = set[str]().union(*map(code.changed_by, self._methods), NOT_STATE)
            found = {name: code.uses_of(name).keys() - changed for name in self._methods}
            self._known = (
                cls,
                {name: frozenset(one for one in used if not _SECRET.search(one)) for name, used in found.items()},
            )
        return self._known[1].get(method, frozenset())

    def of(self, method: str, own: Mapping[str, Any], but: Collection[str]) -> dict[str, Any]:
        """The present values of those that can be stored, without the attributes `but`."""
        names = self.names(method) & own.keys() - set(but)
        return {name: own[name] for name in names if can_be_stored(own[name], self._learn)}


def can_be_stored(value: Any, learn: Callable[[Any], bool]) -> bool:
    """Whether a value is plain, small, and such that it cannot make its call be refused."""
    if value is None or type(value) is bool:
        return True
    if not is_small(value, _MOST) or not all(map(_is_plain, _inside(value))):
        return False
    return _is_encoded(value) or (learn(value) and _is_encoded(value))


def _is_encoded(value: Any) -> bool:
    try:
        encode(value)
    except InvalidEntry:
        return False
    return True


def _inside(value: Any) -> Iterator[Any]:
    """A value, and what is in it, the keys of dicts included."""
    yield value
    if isinstance(value, _CONTAINERS):
        for one in (*value, *value.values()) if isinstance(value, dict) else value:
            yield from _inside(one)


def _is_plain(value: Any) -> bool:
    if isinstance(value, str):
        return "://" not in value
    if type(value) is dict:
        return not any(isinstance(key, str) and _SECRET.search(key) for key in value)
    return isinstance(value, SCALARS) or type(value) in _CONTAINERS
