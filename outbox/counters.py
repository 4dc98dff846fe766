"""Counters: the numbers that are kept in the same LMDB transaction as the entries they count.

They make `status` independent of the backlog's size, keep sequence numbers from being reused after `pending` has
emptied, and let a verification recognise entries that vanished.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, fields
from operator import attrgetter

from .errors import StoreCorrupt

_LAYOUT = struct.Struct(">9Q")
_CRC = struct.Struct(">I")


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
        body = _LAYOUT.pack(*_values(self))
        return body + _CRC.pack(zlib.crc32(body))

    @classmethod
    def unpack(cls, data: bytes | None) -> Counters:
        """Raises `StoreCorrupt`."""
        if data is None or len(data) != _LAYOUT.size + _CRC.size:
            raise StoreCorrupt("the counters record is missing or has the wrong size")
        body = data[: _LAYOUT.size]
        if _CRC.unpack(data[_LAYOUT.size :])[0] != zlib.crc32(body):
            raise StoreCorrupt("the counters record is damaged: its checksum does not match")
        return cls(*_LAYOUT.unpack(body))


# `dataclasses.astuple` copies deeply, and this is written with every enqueue.
_values = attrgetter(*(item.name for item in fields(Counters)))
