"""Entry: one captured call, immutable.  The first file of the line; imports none of the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID


class EntryStatus(StrEnum):
    """Where an entry is on its way.  SYNCING exists only in the relay's memory, never on disk."""

    PENDING = "PENDING"
    SYNCING = "SYNCING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One acknowledged call, as it was captured.  Safe to share between threads."""

    # The order: 1, 2, 3, ... without reuse, also after the store was empty.
    seq: int
    # Unique id of this capture.
    id: UUID
    # Idempotency key: 32 hexadecimal digits of the hash over namespace, operation and identity.
    key: str
    # Name of the declared operation.
    operation: str
    # The arguments, in the caller's exact types.
    args: Mapping[str, Any]
    # Ordering key: entries that share it are applied in the order of `seq`; None: no order.
    order_by: str | None
    # Sequence number of the first entry of the same transaction, or None; a group is applied completely or not at all.
    group: int | None
    # How often PostgreSQL rejected this entry; outages do not count.
    attempts: int
    # When it was captured: aware, UTC, strictly increasing with `seq` within a store.
    captured_at: datetime
    status: EntryStatus
    # Why it was rejected or discarded, else None.
    error: str | None = None
    # What the operation's handler returned, once COMPLETED.
    result: Any = None
    # When it was settled: aware, UTC; None while pending.
    settled_at: datetime | None = None
