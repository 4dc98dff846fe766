"""Frame: the bytes around every record that we write, with a checksum over its kind, its key and its content.

LMDB has no page checksums.  A record that is found under another key, as another kind, or with one bit changed must
be recognised, whatever it counts or leads to.  Big-endian: magic 2s (the kind), format B, tag B, crc32 I; then the
content.  The tag is a kind's own, and the key counts where the content does not repeat it.
"""

from __future__ import annotations

import struct
from zlib import crc32

from ..errors import StoreCorrupt
from ..words import counted

FORMAT = 1
HEAD = struct.Struct(">2sBBI")
_CRC = struct.Struct(">I")
# The kinds: entries and small records have had this frame from the beginning.
ENTRY, SMALL = b"OX", b"OM"
COUNTERS, KEY_ROW, MARK, DEAD, SESSIONS, LATE, QUARANTINED = b"OC", b"OK", b"OP", b"OD", b"OS", b"OL", b"OQ"


def seal(kind: bytes, key: bytes, body: bytes | bytearray, tag: int = 0) -> bytes:
    """The record of `body` under `key`."""
    return HEAD.pack(kind, FORMAT, tag, crc32(body, crc32(key, tag))) + body


def unseal(kind: bytes, key: bytes, data: bytes, what: str = "a record", *, plain: int = 0) -> bytes:
    """The content of a record; raises `StoreCorrupt` with the reason, about `what`.

    `plain` is the size of the content in stores that were made before records of this kind had a frame: a checksum of
    key and content was behind it then.
    """
    if plain and len(data) == plain + _CRC.size:
        body = data[:plain]
        if _CRC.unpack_from(data, plain)[0] != crc32(body, crc32(key)):
            raise StoreCorrupt(f"{what} is damaged: its checksum does not match")
        return body
    if len(data) < HEAD.size:
        raise StoreCorrupt(f"{what} is damaged: {counted(len(data), 'byte')}, a header has {HEAD.size}")
    magic, version, tag, crc = HEAD.unpack_from(data)
    if magic != kind or version != FORMAT:
        raise StoreCorrupt(f"{what} is damaged: magic {magic!r}, format {version}, expected {kind!r}, {FORMAT}")
    body = data[HEAD.size :]
    if crc32(body, crc32(key, tag)) != crc:
        raise StoreCorrupt(f"{what} is damaged: its checksum does not match")
    return body


def tag_of(data: bytes) -> int:
    """The tag of a record."""
    return data[3]


def is_sealed(kind: bytes, data: bytes) -> bool:
    """Whether bytes begin as a record of `kind`; older stores have some without a frame."""
    return data[:2] == kind and data[2:3] == bytes((FORMAT,))
