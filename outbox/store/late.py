"""Late: entries put back to old places in `pending`, by an import or a reconciliation that has not ended.

Once they are delivered PostgreSQL has them behind later ones.  Should it be set back then, they must be looked for at
their places.  A reconciliation notes that in the ledger when it ends; until then, or if it is killed, this record does.
"""

from __future__ import annotations

import struct
from typing import Any

from ..errors import StoreCorrupt
from ..words import counted
from .envelope import LATE, seal, unseal

KEY = b"outbox:late"
_LAYOUT = struct.Struct(">QQ")


def unpack(data: bytes) -> tuple[int, int]:
    """The lowest of them, and the newest sequence number of then.  Raises `StoreCorrupt`."""
    body = unseal(LATE, KEY, data, "the record of late entries")
    if len(body) != _LAYOUT.size:
        raise StoreCorrupt(f"the record of late entries has {counted(len(body), 'byte')}, expected {_LAYOUT.size}")
    first, newest = _LAYOUT.unpack(body)
    return first, newest


def kept(txn: Any) -> tuple[int, int] | None:
    """What `unpack` gives, or None without any.  Raises `StoreCorrupt`."""
    data = txn.get(KEY)
    return None if data is None else unpack(bytes(data))


def keep(txn: Any, first: int, newest: int) -> None:
    """Note that entries from `first` on went back when `newest` was the newest.  Raises `StoreCorrupt`."""
    before = kept(txn)
    lowest = first if before is None else min(first, before[0])
    txn.put(KEY, seal(LATE, KEY, _LAYOUT.pack(lowest, newest)))


def forget(txn: Any) -> None:
    """It is noted in the ledger now."""
    txn.delete(KEY)
