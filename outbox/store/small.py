"""Small records: what integrations and alarms keep in the main database, under a name, with a checksum.

LMDB has no page checksums, and an id reserve with one bit changed hands out ids that are in use.  Name and stamp are
part of the record, so that the newest one of a name can be told even where the file's structure is lost.  Format 1,
big-endian: magic 2s, format B, unused B, crc32 I, stamp Q, length of the name H, of the value I; name; value.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from ..errors import StoreCorrupt
from ..words import counted
from .envelope import FORMAT, HEAD, SMALL, seal, unseal

PREFIX = b"outbox:meta:"
BEGINNING = SMALL + bytes((FORMAT,))
_BODY = struct.Struct(">QHI")
OVERHEAD = HEAD.size + _BODY.size


@dataclass(frozen=True, slots=True)
class SmallRecord:
    """One version of a small record; of two with the same name the higher stamp is the newer one."""

    name: bytes
    value: bytes
    stamp: int

    def pack(self) -> bytes:
        """The bytes of it."""
        body = _BODY.pack(self.stamp, len(self.name), len(self.value)) + self.name + self.value
        return seal(SMALL, b"", body)


def size_of(head: bytes) -> int | None:
    """The size that bytes which may begin a small record claim, or None where they are none."""
    if len(head) < OVERHEAD or not head.startswith(BEGINNING):
        return None
    _, name, value = _BODY.unpack_from(head, HEAD.size)
    return int(OVERHEAD + name + value)


def unpack(data: bytes, name: bytes | None = None) -> SmallRecord:
    """The record that is stored under `name` (None: under any).  Raises `StoreCorrupt`."""
    what = "a small record" if name is None else f"the small record {name.decode(errors='replace')!r}"
    if size_of(data) != len(data):
        raise StoreCorrupt(f"{what} is damaged: it has {counted(len(data), 'byte')}, its header says {size_of(data)}")
    unseal(SMALL, b"", data, what)
    stamp, length, _ = _BODY.unpack_from(data, HEAD.size)
    found = SmallRecord(data[OVERHEAD : OVERHEAD + length], data[OVERHEAD + length :], stamp)
    if name is not None and found.name != name:
        raise StoreCorrupt(f"{what} is damaged: it says that it is {found.name.decode(errors='replace')!r}")
    return found
