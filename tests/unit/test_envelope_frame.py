"""One frame around every record that is written; stores from before it stay readable."""

from __future__ import annotations

import json
import random
import zipfile
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from outbox import AlreadyRejected, IdempotencyConflict, InvalidEntry, Outbox, OutboxConfig, OutboxError, StoreCorrupt
from outbox.clock import SystemClock
from outbox.rescue import verify
from outbox.store import envelope
from outbox.store.continuity import Mark
from outbox.store.envelope import ENTRY, HEAD, SMALL, is_sealed, seal, unseal
from outbox.store.environment import Environment
from outbox.store.identity import IDENTITY_KEY
from outbox.store.ledger import Settlement
from outbox.transfer import exporting
from outbox.transfer.importing import restore
from tests.unit.fakes.waiting import LONG

# Made by the commit before records had a frame: 8 entries and a group of 2; 1 to 3 completed, 4 and 5 dead letters,
# 6 quarantined, marks of two lanes; every second idempotency row is without any checksum, as they once were.
UNFRAMED = Path(__file__).parent / "fakes" / "unframed_store.zip"
KINDS = {
    value for name, value in vars(envelope).items() if name.isupper() and isinstance(value, bytes) and len(value) == 2
}


@pytest.fixture
def unframed(outbox_dir: Path) -> Path:
    with zipfile.ZipFile(UNFRAMED) as archive:
        archive.extractall(outbox_dir)
    outbox_dir.chmod(0o700)
    for file in outbox_dir.iterdir():
        file.chmod(0o600)
    return outbox_dir


def records(box: Outbox) -> dict[str, dict[bytes, bytes]]:
    """Everything that lies in the environment, by sub-database."""
    with box.store._read() as (environment, txn):
        names = ("pending", "ledger", "idempotency")
        found = {name: {bytes(k): bytes(v) for k, v in txn.cursor(db=getattr(environment, name))} for name in names}
        main = {bytes(key): bytes(value) for key, value in txn.cursor() if bytes(key).startswith(b"outbox:")}
        # JSON, so that every version can read the format; it is compared with the file beside it.
        main.pop(IDENTITY_KEY)
        return {**found, "main": main}


@pytest.mark.parametrize("bit", range(8 * (HEAD.size + 3)))
def test_every_changed_bit_of_a_record_is_noticed(bit: int) -> None:
    data = bytearray(seal(SMALL, b"key", b"abc", 7))
    assert unseal(SMALL, b"key", bytes(data)) == b"abc"
    data[bit // 8] ^= 1 << bit % 8
    with pytest.raises(StoreCorrupt):
        unseal(SMALL, b"key", bytes(data))


def test_a_record_of_another_key_or_kind_is_noticed() -> None:
    for data in (seal(SMALL, b"other", b"abc"), seal(ENTRY, b"key", b"abc"), b"", b"OM\1"):
        with pytest.raises(StoreCorrupt):
            unseal(SMALL, b"key", data)


def fill(box: Outbox) -> None:
    for number in range(4):
        box.enqueue("log", {"number": number}, key=f"k{number}", order_by="a")
    kept = list(box.store.records("pending"))
    mark = Mark(UUID(int=1), UUID(int=2), 3)
    box.store.settle(Settlement(completed=[(kept[0], b"")], dead=[(kept[1], "bad")], marks=[mark]))
    box.store.quarantine([(kept[2].seq, b"raw", "damaged")])
    box.store.put_meta("ids", b"reserve")
    box.store.put_back([kept[0]])


def test_every_record_has_a_frame_of_its_kind(outbox_dir: Path) -> None:
    """Every kind but the one of sessions, which a store has from its first day."""
    with Outbox.open(outbox_dir) as box:
        fill(box)
        seen = {value[:2] for rows in records(box).values() for value in rows.values()}
        assert all(is_sealed(value[:2], value) for rows in records(box).values() for value in rows.values())
    assert seen == KINDS


@pytest.mark.slow
def test_one_changed_bit_in_any_record_is_noticed(outbox_dir: Path) -> None:
    """Whatever it counts or leads to: verifying the store, or opening it, says so."""
    rng = random.Random(7)
    with Outbox.open(outbox_dir) as box:
        fill(box)
        rows = [(name, key, value) for name, found in records(box).items() for key, value in found.items()]
    for name, key, value in rows:
        damaged = bytearray(value)
        damaged[rng.randrange(len(value))] ^= 1 << rng.randrange(8)
        write(outbox_dir, name, key, bytes(damaged))
        assert not exporting.examine(outbox_dir).sound or exporting.examine(outbox_dir).set_aside, (name, key)
        write(outbox_dir, name, key, value)
    assert exporting.examine(outbox_dir).sound


def write(directory: Path, name: str, key: bytes, value: bytes) -> None:
    environment = Environment(directory)
    with environment.env.begin(write=True) as txn:
        if name == "main":
            txn.put(key, value)
        else:
            txn.put(key, value, db=getattr(environment, name))
    environment.close()


@pytest.mark.slow
def test_a_store_without_frames_stays_readable(unframed: Path, tmp_path: Path) -> None:
    verify.check_all(unframed)
    lines: list[bytes] = []
    assert exporting.export(unframed, lines.append).sound
    with Outbox.open(unframed) as box:
        assert box._opened.history is None or box._opened.history.wait(LONG)
        status = box.status()
        assert (status.pending, status.completed, status.dead_letters, status.quarantined) == (4, 3, 2, 1)
        assert status.alarms == {"disk": "it smells"}
        for n in (4, 5, 6):
            with pytest.raises(AlreadyRejected, match=f"entry {n} "):
                box.enqueue("log", {"number": n}, key=f"k{n}")
        known = [1, 2, 3, 7, 8, 9, 10]
        assert [box.enqueue("log", {"number": n}, key=f"k{n}").seq for n in known] == known
        with pytest.raises(IdempotencyConflict):
            box.enqueue("log", {"number": 0}, key="k8")
        assert box.store.dead() == [(4, None), (5, "a")]
        assert box.store.quarantined() == [(6, b"raw")]
        assert box.store.get_meta("ids") == b"reserve"
        assert [(mark.position, mark.lane) for mark in box.store.marks()] == [(7, 0), (8, 1)]
        assert box.store.sessions() is None
        assert box.enqueue("log", {}, key="new").seq == 11
        box.requeue(4)
        box.discard(5, "given up")
        assert box.discard(6, "given up")[0].args == {"raw": b"raw"}
        assert box.compact(timedelta(0)) == 8
    verify.check_all(unframed)
    export = tmp_path / "export.jsonl"
    export.write_bytes(b"".join(lines))
    restore(export, tmp_path / "new", OutboxConfig(), SystemClock())
    with Outbox.open(tmp_path / "new") as box:
        status = box.status()
        assert (status.pending, status.completed, status.dead_letters, status.quarantined) == (4, 3, 2, 1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(40))
def test_a_malformed_file_ends_with_one_sentence(unframed: Path, tmp_path: Path, seed: int) -> None:
    """Any value of any line is replaced by another one; then nothing is imported, or the store is sound."""
    rng = random.Random(seed)
    lines: list[bytes] = []
    exporting.export(unframed, lines.append)
    for number in range(10):
        file, directory = tmp_path / f"{number}.jsonl", tmp_path / f"store{number}"
        objects: list[Any] = [json.loads(line) for line in lines]
        at = rng.randrange(len(objects))
        strange: list[Any] = [
            None,
            -1,
            0,
            2**62 + 1,
            2**63,
            2**64,
            1e300,
            "",
            "x",
            [],
            {},
            True,
            "\0",
            "9" * 70_000,
            ["outbox"],
        ]
        objects[at] = {**objects[at], rng.choice(list(objects[at])): rng.choice(strange)}
        file.write_text("".join(json.dumps(one) + "\n" for one in objects))
        with suppress(OutboxError):
            restore(file, directory, OutboxConfig(), SystemClock())
        if directory.exists():
            with Outbox.open(directory) as box:
                assert box.enqueue("log", {"n": 1}).seq < 1 << 63
                assert box.status().pending >= 1


def test_two_entries_with_one_number_are_refused(unframed: Path, tmp_path: Path) -> None:
    lines: list[bytes] = []
    exporting.export(unframed, lines.append)
    objects = [json.loads(line) for line in lines]
    pending = [one for one in objects if one.get("state") == "pending"]
    pending[1]["seq"] = pending[0]["seq"]
    file = tmp_path / "file.jsonl"
    file.write_text("".join(json.dumps(one) + "\n" for one in objects))
    with pytest.raises(InvalidEntry, match="sequence number 7 stands for two entries"):
        restore(file, tmp_path / "new", OutboxConfig(), SystemClock())
    assert not (tmp_path / "new").exists()
