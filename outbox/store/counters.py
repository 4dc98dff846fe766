"""Counters: the numbers that are kept in the same LMDB transaction as the entries they count.

They make `status` independent of the backlog's size, keep sequence numbers from being reused after `pending` has
emptied, and let a verification recognise entries that vanished.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, fields
from operator import attrgetter

from ..errors import StoreCorrupt
from .frame import COUNTERS, HEAD, seal, unseal

_LAYOUT = struct.Struct(">9Q")
# With a frame, and as older stores have it.
_SIZES = frozenset({HEAD.size + _LAYOUT.size, _LAYOUT.size + 4})


@dataclass(slots=True)
class Counters:
    """Totals since the store was created.

    Always: acknowledged = pending + completed + dead + discarded + quarantined.
    """

    # Sequence number that the next entry gets.
    next_seq: int = 1
    # Stamp of the newest entry, microseconds since 1970 UTC: stamps strictly increase.
    last_us: int = 0
    acknowledged: int = 0
    completed: int = 0
    # Dead letters now (requeueing and discarding lower it).
    dead: int = 0
    discarded: int = 0
    # Damaged records set aside with their raw bytes.
    quarantined: int = 0
    # Completed entries of which no ledger copy could be kept because the disk was full.
    unledgered: int = 0
    # How often an operator released something: the relay looks again at what it held back.
    releases: int = 0

    def pack(self) -> bytes:
        return seal(COUNTERS, b"", _LAYOUT.pack(*_values(self)))

    @classmethod
    def unpack(cls, data: bytes | None) -> Counters:
        """Raises `StoreCorrupt`."""
        if data is None or len(data) not in _SIZES:
            raise StoreCorrupt("the counters record is missing or has the wrong size")
        return cls(*_LAYOUT.unpack(unseal(COUNTERS, b"", data, "the counters record", plain=_LAYOUT.size)))


# `dataclasses.astuple` copies deeply, and this is written with every enqueue.
_values = attrgetter(*(item.name for item in fields(Counters)))
