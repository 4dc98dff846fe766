"""Helpers for testing programs that use the outbox, the library's own tests and the demo included."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .assertions import assert_delivered_once
    from .memory_target import InMemoryTarget
    from .postgres_server import PostgresServer
    from .replication import Standby

__all__ = ["InMemoryTarget", "PostgresServer", "Standby", "assert_delivered_once"]

# The module of each name, imported at its first use: pytest loads the plugin of this package in every project.
_HOME_OF = {
    "InMemoryTarget": "memory_target",
    "PostgresServer": "postgres_server",
    "Standby": "replication",
    "assert_delivered_once": "assertions",
}


def __getattr__(name: str) -> Any:
    """A public name, imported at its first use."""
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOME_OF[name]}", __name__), name)
    globals()[name] = value
    return value
