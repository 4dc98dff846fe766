"""Variables: context variables by names that outlive the process, `module:NAME`.

Any code that a call runs may read one: a column's default, a listener, a constructor.  So all that are set count.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextvars import ContextVar, copy_context
from decimal import Context
from types import ModuleType
from typing import Any

_OWN = __name__.partition(".")[0]
# A library may make variables without end.
_MOST = 1000


class Names:
    """The names of variables, each looked up once.  Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        # The variables themselves, since another one could get the same id.
        self._known: dict[ContextVar[Any], str | None] = {}

    def of(self, variable: ContextVar[Any]) -> str | None:
        """The name of a variable; None where no module has it."""
        with self._lock:
            if variable not in self._known:
                if len(self._known) >= _MOST:
                    self._known.clear()
                self._known[variable] = min(_names_of(variable), key=lambda name: (len(name), name), default=None)
            return self._known[variable]


_names = Names()


def variables_set() -> Iterator[tuple[ContextVar[Any], str | None, Any]]:
    """The variables that are set here, with their names and values, but those of this package."""
    for variable, value in copy_context().items():
        if isinstance(value, Context):
            # That of the arithmetic, see `state/arithmetic.py`.
            continue
        name = _names.of(variable)
        if name is None or name.partition(":")[0].partition(".")[0] != _OWN:
            yield variable, name, value


def variable_named(name: str) -> ContextVar[Any] | None:
    """The variable of a name; None where its module is not loaded, or has it no more."""
    module, _, attribute = name.partition(":")
    found = vars(sys.modules[module]).get(attribute) if module in sys.modules else None
    return found if isinstance(found, ContextVar) else None


def _names_of(variable: ContextVar[Any]) -> Iterator[str]:
    # Another thread may import meanwhile.
    for module_name, module in list(sys.modules.items()):
        if isinstance(module, ModuleType):
            for name, value in list(vars(module).items()):
                if value is variable:
                    yield f"{module_name}:{name}"
