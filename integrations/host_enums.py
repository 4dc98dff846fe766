"""Host enums: the enum classes of a host whose members its calls carry, known again after a restart."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from enum import Enum
from typing import Any

from .. import Outbox
from ..codec import enum_name, register_enum
from ..errors import ConfigError

_META = "manager:enums"


class HostEnums:
    """Those of one manager.  Used under the locks of the calls that carry them."""

    def __init__(self) -> None:
        self._names: set[str] = set()

    def recall(self, outbox: Outbox) -> None:
        """Allow the classes that an earlier process has met, as far as this one has loaded them."""
        self._names = set(self.kept(outbox))
        for cls in _loaded() if self._names else ():
            if enum_name(cls) in self._names:
                _register(cls)

    @staticmethod
    def kept(outbox: Outbox) -> list[str]:
        """The names of the classes that a store keeps."""
        seen = outbox.store.get_meta(_META)
        return [] if seen is None else list(json.loads(seen))

    @staticmethod
    def keep(outbox: Outbox, names: set[str]) -> None:
        """Allow further classes by name, from the next `recall` on."""
        if not names <= (known := set(HostEnums.kept(outbox))):
            outbox.store.put_meta(_META, json.dumps(sorted(names | known)).encode())

    def learn(self, outbox: Outbox, values: Any) -> bool:
        """Allow the enum classes of members among `values`, now and after a restart; whether there are any.

        Hosts pass enums of their own and of their ORM.  The store keeps the names only: nothing is imported by name.
        """
        found = {enum_name(cls): cls for cls in _classes_in(values)}
        new = found.keys() - self._names
        if new:
            self._names |= new
            self.keep(outbox, self._names)
        for cls in found.values():
            _register(cls)
        return bool(found)


def register_loaded_enums() -> None:
    """Allow members of every enum class that the program has loaded, for a process that only relays."""
    for cls in _loaded():
        _register(cls)


def _loaded() -> Iterator[type[Enum]]:
    todo: list[type[Enum]] = [Enum]
    while todo:
        for cls in todo.pop().__subclasses__():
            todo.append(cls)
            if cls.__members__:
                yield cls


def _register(cls: type[Enum]) -> None:
    # Where another class of that name came first, its own members are refused when they are passed.
    with suppress(ConfigError):
        register_enum(cls)


def _classes_in(value: Any) -> Iterator[type[Enum]]:
    if isinstance(value, Enum):
        yield type(value)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _classes_in(key)
            yield from _classes_in(item)
    elif isinstance(value, list | tuple | set | frozenset):
        for item in value:
            yield from _classes_in(item)
