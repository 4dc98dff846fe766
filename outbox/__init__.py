"""lmdb-outbox: writes to PostgreSQL that are never lost, never doubled, and never stop the program.

A write is durable in a local LMDB environment when `Outbox.enqueue` returns; a `Relay` moves it into PostgreSQL with
a receipt in the same transaction: delivered at least once, one effect per key, in order.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .box import Outbox
    from .calls import Transaction
    from .clock import Clock, SystemClock
    from .config import OutboxConfig
    from .entry import Entry, EntryStatus
    from .errors import (
        AlreadyRejected,
        ConfigError,
        DurabilityError,
        EntryInDelivery,
        EntryNotFound,
        EntryRejected,
        IdempotencyConflict,
        InvalidEntry,
        OutboxError,
        Reject,
        RetryLater,
        StoreBusy,
        StoreClosed,
        StoreCorrupt,
        StoreFormatError,
        StoreFull,
        StoreLocked,
        StoreMissing,
        StoreUnavailable,
        StoreUnverified,
        TargetMisconfigured,
        TargetUnavailable,
    )
    from .hooks import Hooks
    from .monitoring.status import Health, OutboxStatus, RelayStatus
    from .operation import Operation
    from .postgres.target import PostgresTarget
    from .registered import register_enum, register_record
    from .relay.relay import Relay

__all__ = [
    "AlreadyRejected",
    "Clock",
    "ConfigError",
    "DurabilityError",
    "Entry",
    "EntryInDelivery",
    "EntryNotFound",
    "EntryRejected",
    "EntryStatus",
    "Health",
    "Hooks",
    "IdempotencyConflict",
    "InvalidEntry",
    "Operation",
    "Outbox",
    "OutboxConfig",
    "OutboxError",
    "OutboxStatus",
    "PostgresTarget",
    "Reject",
    "Relay",
    "RelayStatus",
    "RetryLater",
    "StoreBusy",
    "StoreClosed",
    "StoreCorrupt",
    "StoreFormatError",
    "StoreFull",
    "StoreLocked",
    "StoreMissing",
    "StoreUnavailable",
    "StoreUnverified",
    "SystemClock",
    "TargetMisconfigured",
    "TargetUnavailable",
    "Transaction",
    "register_enum",
    "register_record",
]

# Where the public names are defined, errors apart.  A module is imported at the first use of a name in it: a program
# that only reads a store does not pay for SQLAlchemy (0.3 s), and a pytest that only loads the plugin for no library.
_HOMES = {
    "calls": ("Transaction",),
    "box": ("Outbox",),
    "clock": ("Clock", "SystemClock"),
    "config": ("OutboxConfig",),
    "entry": ("Entry", "EntryStatus"),
    "hooks": ("Hooks",),
    "operation": ("Operation",),
    "postgres.target": ("PostgresTarget",),
    "registered": ("register_enum", "register_record"),
    "relay.relay": ("Relay",),
    "monitoring.status": ("Health", "OutboxStatus", "RelayStatus"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """A public name, imported at its first use."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOME_OF.get(name, 'errors')}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
