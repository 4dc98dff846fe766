"""The counters record: all of it comes back, and damage to it is noticed."""

from __future__ import annotations

import pytest

from outbox import StoreCorrupt
from outbox.store.envelope import Counters


def test_counters_come_back_as_they_were() -> None:
    counters = Counters(2, 3, 4, 5, 6, 7, 8, 9, 2**64 - 1)
    assert Counters.unpack(counters.pack()) == counters
    assert Counters.unpack(Counters().pack()).next_seq == 1


def test_every_flipped_bit_of_the_counters_is_noticed() -> None:
    data = Counters(2, 3, 4).pack()
    for bit in range(len(data) * 8):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(StoreCorrupt, match="counters record is damaged"):
            Counters.unpack(bytes(damaged))


@pytest.mark.parametrize("data", [None, b"", Counters().pack()[:-1], Counters().pack() + b"\0"])
def test_missing_or_cut_counters_are_noticed(data: bytes | None) -> None:
    with pytest.raises(StoreCorrupt, match="missing or has the wrong size"):
        Counters.unpack(data)
