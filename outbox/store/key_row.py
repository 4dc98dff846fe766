"""Key row: the row of an idempotency key.

A row with one bit changed would lead to an entry that never was, and a repeated call would take effect twice.  In its
frame: sequence number Q, payload hash 16s, big-endian.  Of older stores some rows have their checksum behind them, and
some have none.
"""

from __future__ import annotations

from ..errors import StoreCorrupt
from ..words import counted
from .envelope import HEAD, KEY_ROW, is_sealed, seal, unseal

KEY_BYTES = 16
_PLAIN_BYTES = 24
_SIZE = HEAD.size + _PLAIN_BYTES
# With a frame, with a checksum behind it, and without.
SIZES = frozenset({_SIZE, _PLAIN_BYTES + 4, _PLAIN_BYTES})
MOST_BYTES = max(SIZES)


def pack_row(key: bytes, seq: bytes, payload_hash: bytes) -> bytes:
    """The row of idempotency key `key`; `seq` is the entry's key in `pending` and `ledger`."""
    return seal(KEY_ROW, key, seq + payload_hash)


def unpack_row(key: bytes, value: bytes) -> tuple[bytes, bytes]:
    """The entry's key in `pending` and `ledger`, and its payload hash.  Raises `StoreCorrupt`."""
    if len(key) != KEY_BYTES or len(value) not in SIZES:
        raise StoreCorrupt(
            f"the idempotency record of key {key.hex()} has {len(key)} + {counted(len(value), 'byte')}, "
            f"expected {KEY_BYTES} + {_SIZE}"
        )
    if len(value) == _PLAIN_BYTES:
        return value[:8], value[8:]
    body = unseal(KEY_ROW, key, value, f"the idempotency record of key {key.hex()}", plain=_PLAIN_BYTES)
    return body[:8], body[8:]


def place_of(value: bytes) -> bytes:
    """The entry's key in `pending` and `ledger`, whether the row is damaged or not."""
    at = _content_at(value)
    return value[at : at + 8]


def payload_of(value: bytes) -> bytes:
    """The payload hash, likewise; `value` may have more behind it."""
    at = _content_at(value)
    return value[at + 8 : at + _PLAIN_BYTES]


def _content_at(value: bytes) -> int:
    return HEAD.size if is_sealed(KEY_ROW, value) else 0
