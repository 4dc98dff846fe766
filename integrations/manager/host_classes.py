"""Host classes: the enums and other classes of a host whose objects its calls carry, known again after a restart."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from enum import Enum
from typing import Any

from ... import Outbox
from ...errors import ConfigError
from ...records import fields_of, has_fields
from ...registered import (
    can_be_registered,
    class_name,
    class_named,
    collection_name,
    is_derived_class,
    register_enum,
    register_record,
)
from ..plain_data import PLAIN

_META = "manager:enums"


class HostClasses:
    """Those of one manager.  Used under the locks of the calls that carry them."""

    def __init__(self) -> None:
        self._names: set[str] = set()

    def recall(self, outbox: Outbox) -> None:
        """Allow the classes that an earlier process has met, as far as this one has loaded them."""
        self._names = set(self.kept(outbox))
        for name, cls in _loaded().items() if self._names else ():
            if name in self._names:
                _register(cls)

    @staticmethod
    def kept(outbox: Outbox) -> list[str]:
        """The names of the classes that a store keeps."""
        seen = outbox.store.get_meta(_META)
        return [] if seen is None else list(json.loads(seen))

    @staticmethod
    def keep(outbox: Outbox, names: set[str]) -> None:
        """Allow further classes by name, from the next `recall` on."""
        if not names <= (known := set(HostClasses.kept(outbox))):
            outbox.store.put_meta(_META, json.dumps(sorted(names | known)).encode())

    def learn(self, outbox: Outbox, values: Any) -> bool:
        """Allow the classes of objects among `values`, now and after a restart; whether there are any that may be.

        Hosts pass those of their own and of their ORM.  The store keeps the names only: nothing is imported by name.
        """
        found = {class_name(cls): cls for cls in _classes_in(values)}
        new = found.keys() - self._names
        if new:
            self._names |= new
            self.keep(outbox, self._names)
        for cls in found.values():
            _register(cls)
        return bool(found)


def register_loaded() -> None:
    """Allow objects of every such class that the program has loaded, for a process that only relays."""
    for cls in _loaded().values():
        _register(cls)


def _loaded() -> dict[str, type]:
    """The classes of the program by name whose objects can be stored."""
    found: dict[str, type] = {}
    seen, todo = set[type](), [object]
    while todo:
        for cls in type.__subclasses__(todo.pop()):
            if cls in seen:
                continue
            seen.add(cls)
            todo.append(cls)
            if (issubclass(cls, Enum) and cls.__members__) or can_be_registered(cls):
                # A dataclass with slots was made of another one of its name, which lives on.
                name = class_name(cls)
                found[name] = class_named(name) or cls
    return found


def _register(cls: type) -> None:
    # Where another class of that name came first, its own objects are refused when they are passed.
    with suppress(ConfigError):
        register_enum(cls) if issubclass(cls, Enum) else register_record(cls)


def _classes_in(value: Any) -> Iterator[type]:
    """The classes of the program's own whose objects are in a value."""
    seen, todo = set[int](), [value]
    while todo:
        one = todo.pop()
        if id(one) in seen or type(one) in PLAIN:
            continue
        seen.add(id(one))
        if isinstance(one, Enum):
            yield type(one)
        elif has_fields(type(one)):
            yield type(one)
            todo += fields_of(one).values()
            continue
        elif is_derived_class(type(one)) and collection_name(one) is None:
            yield type(one)
        if isinstance(one, Mapping):
            todo += (*one.keys(), *one.values())
        elif isinstance(one, list | tuple | set | frozenset):
            todo += one
