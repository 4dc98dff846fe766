"""Small records: everything comes back, and what is damaged or under another name goes unnoticed by nobody."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbox import StoreCorrupt
from outbox.store.small import OVERHEAD, SmallRecord, size_of, unpack

RECORD = SmallRecord(b"ids:orders", b'{"next":7}', 1_700_000_000_000_001)
DATA = RECORD.pack()


@given(st.binary(max_size=30), st.binary(max_size=30), st.integers(0, 2**64 - 1), st.binary(max_size=9))
def test_a_small_record_comes_back_and_its_beginning_tells_its_size(
    name: bytes, value: bytes, stamp: int, behind: bytes
) -> None:
    record = SmallRecord(name, value, stamp)
    data = record.pack()
    assert unpack(data) == unpack(data, name) == record
    assert size_of(data + behind) == size_of(data[:OVERHEAD]) == len(data)


def test_bytes_that_begin_no_small_record_have_no_size() -> None:
    assert size_of(b"") is None
    assert size_of(DATA[: OVERHEAD - 1]) is None
    assert size_of(b"MO" + DATA[2:]) is None
    assert size_of(DATA[:2] + b"\2" + DATA[3:]) is None


def test_the_bytes_are_those_of_format_1() -> None:
    data = RECORD.pack()
    assert data[:4] == b"OM\1\0"
    assert data[8:22] == (1_700_000_000_000_001).to_bytes(8, "big") + b"\0\x0a" + b"\0\0\0\x0a"
    assert data[22:] == b'ids:orders{"next":7}'


def test_every_flipped_bit_of_what_it_says_is_noticed() -> None:
    unused = range(24, 32)
    for bit in range(len(DATA) * 8):
        damaged = bytearray(DATA)
        damaged[bit // 8] ^= 1 << bit % 8
        if bit in unused:
            continue
        with pytest.raises(StoreCorrupt, match="small record 'ids:orders' is damaged"):
            unpack(bytes(damaged), b"ids:orders")


@pytest.mark.parametrize("data", [b"", DATA[:-1], DATA + b"\0", DATA[:OVERHEAD]])
def test_a_small_record_of_another_length_is_noticed(data: bytes) -> None:
    with pytest.raises(StoreCorrupt, match=f"a small record is damaged: it has {len(data)} bytes"):
        unpack(data)


def test_a_small_record_under_another_name_is_noticed() -> None:
    with pytest.raises(StoreCorrupt, match=r"small record 'ids:rows' is damaged: it says that it is 'ids:orders'"):
        unpack(DATA, b"ids:rows")


def test_a_name_that_is_no_text_can_be_told() -> None:
    with pytest.raises(StoreCorrupt, match="small record '\ufffdx' is damaged"):
        unpack(b"", b"\xffx")
    with pytest.raises(StoreCorrupt, match="it says that it is '\ufffdx'"):
        unpack(SmallRecord(b"\xffx", b"", 1).pack(), b"ids:rows")
