"""lmdb-outbox: writes to PostgreSQL that are never lost, never doubled, and never stop the program.

A write is durable in a local LMDB environment when `Outbox.enqueue` returns; a `Relay` moves it into PostgreSQL with
a receipt in the same transaction: delivered at least once, one effect per key, in order.
"""

import logging

from .box import Outbox, Transaction
from .clock import Clock, SystemClock
from .codec import register_enum
from .config import OutboxConfig
from .entry import Entry, EntryStatus
from .errors import (
    ConfigError,
    DurabilityError,
    EntryNotFound,
    EntryRejected,
    IdempotencyConflict,
    InvalidEntry,
    OutboxError,
    StoreBusy,
    StoreClosed,
    StoreCorrupt,
    StoreFormatError,
    StoreFull,
    StoreLocked,
    StoreMissing,
    TargetMisconfigured,
    TargetUnavailable,
)
from .operation import Operation
from .postgres import PostgresTarget
from .relay import Relay
from .status import Health, OutboxStatus, RelayStatus

__all__ = [
    "Clock",
    "ConfigError",
    "DurabilityError",
    "Entry",
    "EntryNotFound",
    "EntryRejected",
    "EntryStatus",
    "Health",
    "IdempotencyConflict",
    "InvalidEntry",
    "Operation",
    "Outbox",
    "OutboxConfig",
    "OutboxError",
    "OutboxStatus",
    "PostgresTarget",
    "Relay",
    "RelayStatus",
    "StoreBusy",
    "StoreClosed",
    "StoreCorrupt",
    "StoreFormatError",
    "StoreFull",
    "StoreLocked",
    "StoreMissing",
    "SystemClock",
    "TargetMisconfigured",
    "TargetUnavailable",
    "Transaction",
    "register_enum",
]

# A library logs; whether anything is shown is the program's decision.
logging.getLogger("outbox").addHandler(logging.NullHandler())
