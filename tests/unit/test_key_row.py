"""What an idempotency key leads to has a checksum; stores from before it had one stay readable."""

from __future__ import annotations

import shutil
import zlib
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from outbox import IdempotencyConflict, Outbox, OutboxConfig, StoreCorrupt
from outbox.clock import SystemClock
from outbox.rescue import verify
from outbox.rescue.pages import DataFile, Walk
from outbox.store.envelope import HEAD
from outbox.store.key_row import pack_row, payload_of, place_of, unpack_row
from outbox.store.ledger import Settlement
from outbox.transfer import exporting
from outbox.transfer.importing import restore
from tests.unit.fakes.waiting import LONG

KEY, SEQ, HASHED = bytes(range(16)), (5).to_bytes(8, "big"), bytes(range(16, 32))


def test_row_leads_to_what_it_was_packed_for() -> None:
    assert unpack_row(KEY, pack_row(KEY, SEQ, HASHED)) == (SEQ, HASHED)
    for older in (SEQ + HASHED, SEQ + HASHED + zlib.crc32(KEY + SEQ + HASHED).to_bytes(4)):
        assert unpack_row(KEY, older) == (SEQ, HASHED)
        assert (place_of(older), payload_of(older)) == (SEQ, HASHED)
    row = pack_row(KEY, SEQ, HASHED)
    assert (place_of(row), payload_of(row)) == (SEQ, HASHED)


@pytest.mark.parametrize("bit", range(32 * 8))
def test_row_with_one_bit_changed_is_damaged(bit: int) -> None:
    row = bytearray(pack_row(KEY, SEQ, HASHED))
    row[bit // 8] ^= 1 << bit % 8
    with pytest.raises(StoreCorrupt, match=f"idempotency record of key {KEY.hex()} is damaged"):
        unpack_row(KEY, bytes(row))


def test_row_of_another_key_is_damaged() -> None:
    with pytest.raises(StoreCorrupt, match="its checksum does not match"):
        unpack_row(bytes(16), pack_row(KEY, SEQ, HASHED))


@pytest.mark.parametrize("size", [0, 23, 25, 27, 29, 31, 33])
def test_row_of_another_size_is_damaged(size: int) -> None:
    with pytest.raises(StoreCorrupt, match=f"has 16 . {size} bytes, expected 16 . 32"):
        unpack_row(KEY, bytes(size))


def plain_rows(box: Outbox) -> None:
    """Write the rows as they were written before they had a checksum."""

    def body(environment: Any, txn: Any, _: Any) -> None:
        for key, value in list(txn.cursor(db=environment.idempotency)):
            txn.put(key, place_of(value) + payload_of(value), db=environment.idempotency)

    box.store.maintain("write plain rows", body)


@pytest.mark.slow
def test_store_without_checksums_stays_readable(outbox_dir: Path, tmp_path: Path) -> None:
    with Outbox.open(outbox_dir) as box:
        first = [box.enqueue("log", {"number": number}, key=f"k{number}") for number in range(4)]
        box.store.settle(Settlement(completed=[(record, b"") for record in list(box.store.records("pending"))[:2]]))
        plain_rows(box)
    (outbox_dir / "clean").unlink()
    verify.check_all(outbox_dir)
    with Outbox.open(outbox_dir) as box:
        assert box._opened.history is not None
        assert box._opened.history.wait(LONG)
        assert not box.status().alarms
        assert [box.enqueue("log", {"number": number}, key=f"k{number}").seq for number in range(4)] == [1, 2, 3, 4]
        with pytest.raises(IdempotencyConflict):
            box.enqueue("log", {"number": 9}, key="k3")
        assert box.enqueue("log", {}, key="new").seq == 5
    lines: list[bytes] = []
    assert exporting.export(outbox_dir, lines.append).sound
    assert len(first) == 4
    with Outbox.open(outbox_dir) as box:
        assert box.compact(timedelta(0)) == 2


@pytest.mark.slow
@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("bit", [63, 40, 3])
def test_damaged_row_does_not_move_the_next_number(outbox_dir: Path, tmp_path: Path, bit: int, plain: bool) -> None:
    """Export and import as documented, after one bit of a sequence number in a row was changed."""
    with Outbox.open(outbox_dir) as box:
        for number in range(20):
            box.enqueue("log", {"number": number}, key=f"k{number}")
        box.store.settle(Settlement(completed=[(record, b"") for record in box.store.records("pending")]))
        if plain:
            plain_rows(box)
    with DataFile(outbox_dir / "data.mdb") as file:
        assert file.meta is not None
        trees = {row.key: file.tree(row) for row in file.rows(file.meta.main, Walk("main"))}
        keys = trees[b"idempotency"]
        assert keys is not None
        offset = list(file.rows(keys, Walk("idempotency")))[3].offset + (0 if plain else HEAD.size)
    data = bytearray((outbox_dir / "data.mdb").read_bytes())
    data[offset + 7 - bit // 8] ^= 1 << bit % 8
    (outbox_dir / "data.mdb").write_bytes(data)
    with pytest.raises(StoreCorrupt, match="idempotency"):
        verify.check_all(outbox_dir)
    export = tmp_path / "export.jsonl"
    with export.open("wb") as out:
        assert not exporting.export(outbox_dir, out.write).sound
    restore(export, tmp_path / "new", OutboxConfig(), SystemClock())
    with Outbox.open(tmp_path / "new") as box:
        assert box.status().completed == 20
        assert [box.enqueue("log", {"number": number}, key=f"k{number}").seq for number in range(20)] == [*range(1, 21)]
        assert box.enqueue("log", {}, key="new").seq == 21
    shutil.rmtree(tmp_path / "new")
