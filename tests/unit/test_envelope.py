"""The record format: everything comes back, and no changed bit and no misplaced record goes unnoticed."""

from __future__ import annotations

import struct
import zlib
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outbox import ConfigError, EntryStatus, StoreCorrupt, codec
from outbox.store.envelope import (
    OVERHEAD,
    Record,
    claims,
    from_us,
    key_seq,
    pack,
    pack_completed,
    seq_key,
    to_us,
    unpack,
)

ARGS, TYPES = codec.encode({"price": 5, "side": ("buy",)})
RECORD = Record(
    seq=7,
    key=bytes(range(16)),
    id=UUID(int=3).bytes,
    operation="log",
    order_by="BTC",
    payload_hash=b"p" * 16,
    shape=b"s" * 8,
    args=ARGS,
    types=TYPES,
    captured_us=1_700_000_000_000_001,
    group=6,
    members=2,
    attempts=3,
    status=EntryStatus.FAILED,
    error="no such symbol: ü",
    settled_us=1_700_000_000_000_002,
    result=b'{"id":1}',
)

uint64 = st.integers(0, 2**64 - 1)
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
records = st.builds(
    Record,
    seq=uint64,
    key=st.binary(min_size=16, max_size=16),
    id=st.binary(min_size=16, max_size=16),
    operation=text,
    order_by=st.none() | text,
    payload_hash=st.binary(min_size=16, max_size=16),
    shape=st.binary(min_size=8, max_size=8),
    args=st.binary(max_size=50),
    types=st.binary(max_size=50),
    captured_us=uint64,
    group=uint64,
    members=st.integers(0, 2**32 - 1),
    attempts=st.integers(0, 2**32 - 1),
    status=st.sampled_from([EntryStatus.PENDING, EntryStatus.COMPLETED, EntryStatus.FAILED]),
    error=st.none() | text.filter(bool),
    settled_us=uint64,
    result=st.binary(max_size=50),
)


@settings(deadline=None, database=None)
@given(records)
def test_a_record_comes_back_as_it_was(record: Record) -> None:
    assert unpack(record.seq, pack(record)) == record


def test_every_flipped_bit_is_noticed() -> None:
    data = pack(RECORD)
    for bit in range(len(data) * 8):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(StoreCorrupt, match="entry 7 is damaged"):
            unpack(7, bytes(damaged))


@pytest.mark.parametrize("size", [0, 1, OVERHEAD - 1, OVERHEAD, -1])
def test_a_cut_record_is_noticed(size: int) -> None:
    with pytest.raises(StoreCorrupt, match="entry 7 is damaged"):
        unpack(7, pack(RECORD)[:size])


def test_a_longer_record_is_noticed() -> None:
    with pytest.raises(StoreCorrupt, match="entry 7 is damaged"):
        unpack(7, pack(RECORD) + b"\0")


def test_a_record_under_another_sequence_number_is_noticed() -> None:
    with pytest.raises(StoreCorrupt, match="entry 8 is damaged: its record says 7"):
        unpack(8, pack(RECORD))


def test_wrong_part_lengths_are_noticed_under_a_right_checksum() -> None:
    data = pack(RECORD)
    body = data[8:] + b"\0"
    forged = data[:4] + struct.pack(">I", zlib.crc32(body, data[3])) + body
    with pytest.raises(StoreCorrupt, match="its parts add up to"):
        unpack(7, forged)


def test_an_unknown_status_is_noticed_even_under_a_right_checksum() -> None:
    data = pack(RECORD)
    forged = data[:3] + b"\x09" + struct.pack(">I", zlib.crc32(data[8:], 9)) + data[8:]
    with pytest.raises(StoreCorrupt, match="entry 7 is damaged"):
        unpack(7, forged)


def test_a_long_error_is_cut_at_a_readable_place() -> None:
    stored = unpack(7, pack(RECORD.settled(EntryStatus.FAILED, 1, error="ü" * 3000)))
    assert stored.error is not None
    assert stored.error.startswith("ü" * 1000)
    assert len(stored.error) <= 1001


def test_an_error_that_is_cut_within_a_character_can_be_read() -> None:
    stored = unpack(7, pack(RECORD.settled(EntryStatus.FAILED, 1, error="a" + "ü" * 3000)))
    assert stored.error == "a" + "ü" * 999 + "\ufffd"


def test_an_error_that_is_no_valid_text_is_stored_all_the_same() -> None:
    stored = unpack(7, pack(RECORD.settled(EntryStatus.FAILED, 1, error="bad \ud800 name")))
    assert stored.error == "bad ? name"


def test_an_entry_shows_a_record_decoded() -> None:
    entry = RECORD.entry()
    assert entry.seq == 7
    assert entry.id == UUID(int=3)
    assert entry.key == bytes(range(16)).hex()
    assert entry.args == {"price": 5, "side": ("buy",)}
    assert (entry.group, entry.attempts, entry.order_by) == (6, 3, "BTC")
    assert entry.captured_at == datetime(2023, 11, 14, 22, 13, 20, 1, tzinfo=UTC)
    assert entry.settled_at == entry.captured_at + timedelta(microseconds=1)
    assert entry.result == {"id": 1}
    assert entry.error == "no such symbol: ü"


def test_an_entry_takes_the_arguments_that_are_at_hand() -> None:
    args = {"decoded": "before"}
    assert RECORD.entry(args=args).args is args


def test_entry_of_a_missing_type_is_refused_unless_only_shown() -> None:
    record = replace(RECORD, args=b'{"side":"buy"}', types=b'{"dict":{"side":["enum","gone.Side","BUY"]}}')
    with pytest.raises(ConfigError, match="gone.Side"):
        record.entry()
    with pytest.raises(ConfigError, match="gone.Side"):
        record.entry(strict=True)
    assert record.entry(strict=False).args == {"side": "buy"}


def test_an_entry_that_is_alone_pending_and_without_order_says_none() -> None:
    plain = Record(
        seq=1, key=b"k" * 16, id=b"i" * 16, operation="log", order_by=None, payload_hash=b"p" * 16, shape=b"s" * 8,
        args=b"{}", types=b"",
    )  # fmt: skip
    entry = plain.entry()
    assert (entry.group, entry.order_by, entry.error, entry.result, entry.settled_at) == (None,) * 5
    assert entry.status is EntryStatus.PENDING


def test_settling_keeps_attempts_unless_told() -> None:
    assert RECORD.settled(EntryStatus.COMPLETED, 9).attempts == 3
    assert RECORD.settled(EntryStatus.FAILED, 9, attempts=4).attempts == 4


def test_a_settled_copy_is_not_packed_from_the_bytes_of_before() -> None:
    settled = unpack(7, pack(RECORD)).settled(EntryStatus.COMPLETED, 9)
    assert settled.raw == b""


@given(records, uint64, uint64, uint64, st.integers(0, 2**32 - 1))
def test_a_numbered_record_has_its_place_and_is_else_new(
    record: Record, seq: int, at_us: int, group: int, members: int
) -> None:
    numbered = record.numbered(seq, at_us, group, members)
    new = replace(record, attempts=0, status=EntryStatus.PENDING, error=None, settled_us=0, result=b"")
    assert numbered == replace(new, seq=seq, captured_us=at_us, group=group, members=members)


@given(records, st.binary(max_size=20))
def test_the_beginning_of_a_record_tells_its_number_and_its_size(record: Record, behind: bytes) -> None:
    data = pack(record)
    assert claims(data + behind) == (record.seq, len(data))
    assert claims(data[:OVERHEAD]) == (record.seq, len(data))


def test_bytes_that_begin_no_record_claim_nothing() -> None:
    data = pack(RECORD)
    assert claims(data[: OVERHEAD - 1]) is None
    assert claims(b"XO" + data[2:]) is None
    assert claims(data[:2] + b"\2" + data[3:]) is None
    assert claims(b"") is None


@given(uint64, uint64)
def test_sequence_keys_sort_like_their_numbers(one: int, other: int) -> None:
    assert (seq_key(one) < seq_key(other)) == (one < other)
    assert key_seq(seq_key(one)) == one


def test_a_key_of_another_length_is_no_sequence_number() -> None:
    with pytest.raises(StoreCorrupt, match="a key of 3 bytes.*616263"):
        key_seq(b"abc")


@settings(database=None)
@given(st.datetimes(datetime(1970, 1, 1), timezones=st.just(UTC)))  # noqa: DTZ001 - bounds are naive
def test_microseconds_are_exact(moment: datetime) -> None:
    assert from_us(to_us(moment)) == moment


@given(records, uint64, st.binary(max_size=40))
def test_completing_the_stored_bytes_is_the_same_as_packing_anew(record: Record, at_us: int, result: bytes) -> None:
    anew = pack(record.settled(EntryStatus.COMPLETED, at_us, result=result))
    assert pack_completed(record, at_us, result) == anew
    pending = replace(record, status=EntryStatus.PENDING, error=None, settled_us=0, result=b"")
    stored = unpack(record.seq, pack(pending))
    assert stored.raw
    assert pack_completed(stored, at_us, result) == pack(pending.settled(EntryStatus.COMPLETED, at_us, result=result))
    assert pack_completed(unpack(record.seq, pack(record)), at_us, result) == anew
