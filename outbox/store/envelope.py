"""The record format of entries in the databases `pending` and `ledger`.

One fixed header, then the variable parts.  LMDB has no page checksums, so a CRC covers the whole record including
its sequence number and idempotency key: a record that is found under another key, or with one bit changed, is
recognised.  Format 1, big-endian:

    magic 2s, format B, status B, crc32 I, seq Q, captured_us Q, settled_us Q, group Q, members I,
    key 16s, id 16s, payload_hash 16s, shape 8s, attempts I, then the lengths of operation, order_by (0xFFFF: none),
    error H each, types, args, result I each; then those parts in that order.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from .. import codec
from ..entry import Entry, EntryStatus
from ..errors import StoreCorrupt
from ..results import decode_result
from ..words import counted
from .frame import ENTRY, HEAD, seal, tag_of, unseal
from .frame import FORMAT as FORMAT

_BODY = struct.Struct(">QQQQI16s16s16s8sIHHHIII")
_NO_ORDER = 0xFFFF
_MAX_ERROR_BYTES = 2000
_STATUS = {EntryStatus.PENDING: 1, EntryStatus.COMPLETED: 2, EntryStatus.FAILED: 3}
_STATUS_OF = {number: status for status, number in _STATUS.items()}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_KEY = struct.Struct(">Q")
_SIZE = struct.Struct(">I")
# Offsets in the body: behind seq and captured_us, and the last of the lengths.
_SETTLED_AT = 16
_RESULT_SIZE_AT = _BODY.size - _SIZE.size

# How the error of an entry begins that an operator gave up.  A status of its own would say it better, but no earlier
# version could read such a record.
_DISCARDED = "discarded: "

OVERHEAD = HEAD.size + _BODY.size
# How every record begins.
BEGINNING = ENTRY + bytes((FORMAT,))


@dataclass(slots=True)  # not frozen: that triples the cost of making one, and every enqueue makes two
class Record:
    """An entry as stored: arguments still encoded.  Never changed once made.  Times are microseconds since 1970 UTC.

    `group` is the first sequence number of its transaction, 0 for none; `members` how many entries that has, so that a
    missing one is noticed.
    """

    seq: int
    key: bytes
    id: bytes
    operation: str
    order_by: str | None
    payload_hash: bytes
    shape: bytes
    args: bytes
    types: bytes
    captured_us: int = 0
    group: int = 0
    members: int = 0
    attempts: int = 0
    status: EntryStatus = EntryStatus.PENDING
    error: str | None = None
    settled_us: int = 0
    result: bytes = b""
    # The bytes that it was unpacked from, if it was.
    raw: bytes = field(default=b"", repr=False, compare=False)

    @property
    def is_discarded(self) -> bool:
        """Whether an operator gave it up; not of a best-effort entry that was given up when it was refused."""
        return was_discarded(self.error)

    def numbered(self, seq: int, captured_us: int, group: int, members: int) -> Record:
        """A new pending record with its place in the order."""
        # Spelt out: `replace` takes twice as long, and every enqueue pays for it.
        return Record(
            seq,
            self.key,
            self.id,
            self.operation,
            self.order_by,
            self.payload_hash,
            self.shape,
            self.args,
            self.types,
            captured_us,
            group,
            members,
        )

    def settled(
        self, status: EntryStatus, at_us: int, *, result: bytes = b"", error: str | None = None, attempts: int = 0
    ) -> Record:
        """The ledger's copy of this record."""
        return replace(
            self,
            status=status,
            settled_us=at_us,
            result=result,
            error=error,
            attempts=attempts or self.attempts,
            raw=b"",
        )

    def entry(
        self,
        *,
        strict: bool = True,
        uuid: UUID | None = None,
        args: dict[str, Any] | None = None,
        status: EntryStatus | None = None,
    ) -> Entry:
        """Decode, unless the decoded id and `args` are given; `strict` as in `codec.decode`, `status` for its own."""
        return Entry(
            seq=self.seq,
            id=uuid or UUID(bytes=self.id),
            key=self.key.hex(),
            operation=self.operation,
            args=codec.decode(self.args, self.types, strict=strict) if args is None else args,
            order_by=self.order_by,
            group=self.group or None,
            attempts=self.attempts,
            captured_at=from_us(self.captured_us),
            status=status or self.status,
            error=self.error,
            result=decode_result(self.result) if self.result else None,
            settled_at=from_us(self.settled_us) if self.settled_us else None,
        )


def was_discarded(error: str | None) -> bool:
    """Whether an operator gave up the entry with this error."""
    return error is not None and error.startswith(_DISCARDED)


def discarded(reason: str, was: str) -> str:
    """The error of an entry that an operator gives up: see `Record.is_discarded`."""
    return f"{_DISCARDED}{reason}; was: {was}"


def is_seq(number: int) -> bool:
    """Whether a number, as an operator may give any, can be a key: only then may it be looked up."""
    return 0 < number < 1 << 8 * _KEY.size


def seq_key(seq: int) -> bytes:
    """The 8-byte big-endian key of a sequence number, so that LMDB's order is the order of entries."""
    return _KEY.pack(seq)


def key_seq(key: bytes) -> int:
    """The inverse of `seq_key`; raises `StoreCorrupt` for a key of another length."""
    if len(key) != 8:
        raise StoreCorrupt(
            f"found a key of {counted(len(key), 'byte')} where a sequence number belongs: {key[:16].hex()}"
        )
    return int(_KEY.unpack(key)[0])


def pack(record: Record) -> bytes:
    """The bytes of a record."""
    operation = record.operation.encode()
    order = b"" if record.order_by is None else record.order_by.encode()
    error = b"" if record.error is None else record.error.encode("utf-8", "replace")[:_MAX_ERROR_BYTES]
    body = b"".join(
        (
            _BODY.pack(
                record.seq,
                record.captured_us,
                record.settled_us,
                record.group,
                record.members,
                record.key,
                record.id,
                record.payload_hash,
                record.shape,
                record.attempts,
                len(operation),
                _NO_ORDER if record.order_by is None else len(order),
                len(error),
                len(record.types),
                len(record.args),
                len(record.result),
            ),
            operation,
            order,
            error,
            record.types,
            record.args,
            record.result,
        )
    )
    status = _STATUS[record.status]
    return seal(ENTRY, b"", body, status)


def pack_completed(record: Record, at_us: int, result: bytes) -> bytes:
    """The bytes of a pending record once it is completed.

    Made of the bytes that it was unpacked from: settling a backlog would else spend most of its time on packing.
    """
    if not record.raw or record.error is not None or record.result:
        return pack(record.settled(EntryStatus.COMPLETED, at_us, result=result))
    body = bytearray(memoryview(record.raw)[HEAD.size :])
    _KEY.pack_into(body, _SETTLED_AT, at_us)
    _SIZE.pack_into(body, _RESULT_SIZE_AT, len(result))
    body += result
    status = _STATUS[EntryStatus.COMPLETED]
    return seal(ENTRY, b"", body, status)


def unpack(seq: int, data: bytes) -> Record:
    """The record stored under `seq`; raises `StoreCorrupt` saying what is wrong with it."""
    if len(data) < OVERHEAD:
        raise StoreCorrupt(f"entry {seq} is damaged: {counted(len(data), 'byte')}, a header has {OVERHEAD}")
    body = unseal(ENTRY, b"", data, f"entry {seq}")
    status = _STATUS_OF.get(tag_of(data))
    if status is None:
        raise StoreCorrupt(f"entry {seq} is damaged: its checksum does not match")
    (
        own, captured, settled, group, members, key, id_, payload, shape, attempts,
        operation_size, order_size, error_size, types_size, args_size, result_size,
    ) = _BODY.unpack_from(body)  # fmt: skip
    if own != seq:
        raise StoreCorrupt(f"entry {seq} is damaged: its record says {own}")
    order_at = OVERHEAD + operation_size
    error_at = order_at + (0 if order_size == _NO_ORDER else order_size)
    types_at = error_at + error_size
    args_at = types_at + types_size
    result_at = args_at + args_size
    end = result_at + result_size
    if end != len(data):
        raise StoreCorrupt(f"entry {seq} is damaged: {counted(len(data), 'byte')}, its parts add up to {end}")
    # By position: a relay makes one for each entry, and names cost a third more.
    return Record(
        seq,
        key,
        id_,
        data[OVERHEAD:order_at].decode(),
        None if order_size == _NO_ORDER else data[order_at:error_at].decode(),
        payload,
        shape,
        data[args_at:result_at],
        data[types_at:args_at],
        captured,
        group,
        members,
        attempts,
        status,
        data[error_at:types_at].decode("utf-8", "replace") or None if error_size else None,
        settled,
        data[result_at:],
        data,
    )


def claims(head: bytes) -> tuple[int, int] | None:
    """What bytes that may begin a record say of themselves: sequence number and size.  None where they are none."""
    if len(head) < OVERHEAD or not head.startswith(BEGINNING):
        return None
    own, *_, operation, order, error, types, args, result = _BODY.unpack_from(head, HEAD.size)
    return own, OVERHEAD + operation + (0 if order == _NO_ORDER else order) + error + types + args + result


def to_us(moment: datetime) -> int:
    """Microseconds since 1970 of an aware datetime, exact."""
    return (moment - _EPOCH) // _MICROSECOND


def from_us(microseconds: int) -> datetime:
    """The aware UTC datetime of `microseconds` since 1970."""
    return _EPOCH + timedelta(microseconds=microseconds)
