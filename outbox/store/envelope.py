"""The record format: the frame around every record, entries in `pending` and `ledger`, and the counters.

LMDB has no page checksums, so every record that we write has a frame with a CRC over its kind, its key and its
content: a record that is found under another key, as another kind, or with one bit changed, is recognised.  The frame,
big-endian: magic 2s (the kind), format B, tag B, crc32 I; then the content.  The tag is a kind's own, and the key
counts where the content does not repeat it.

An entry has one fixed header, then the variable parts.  Format 1:

    magic 2s, format B, status B, crc32 I, seq Q, captured_us Q, settled_us Q, group Q, members I,
    key 16s, id 16s, payload_hash 16s, shape 8s, attempts I, then the lengths of operation, order_by (0xFFFF: none),
    error H each, types, args, result I each; then those parts in that order.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime, timedelta
from itertools import groupby
from operator import attrgetter
from typing import Any
from uuid import UUID
from zlib import crc32

from .. import codec
from ..entry import Entry, EntryStatus
from ..errors import StoreCorrupt
from ..results import decode_result
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


# What must be applied together: a group, or a record of its own.
Unit = list[Record]


def units(records: Iterable[Record]) -> Iterator[Unit]:
    """Split records into what must be applied together: a group, or a record of its own."""
    for group, members in groupby(records, key=lambda record: record.group or -record.seq):
        del group
        yield list(members)


def ordering_keys(unit: Unit) -> set[str]:
    """The ordering keys that a unit touches."""
    return {record.order_by for record in unit if record.order_by is not None}
