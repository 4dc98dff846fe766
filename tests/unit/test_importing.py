"""What was exported makes the same store again; a second time it changes nothing; and it can be added to another."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from outbox import (
    AlreadyRejected,
    EntryStatus,
    IdempotencyConflict,
    InvalidEntry,
    Operation,
    Outbox,
    OutboxConfig,
    StoreCorrupt,
    StoreFormatError,
    StoreLocked,
    StoreMissing,
    register_enum,
)
from outbox.clock import SystemClock
from outbox.relay.reconcile_orders import ReconcileOrder, ordered, place_order
from outbox.store import reads
from outbox.store.continuity import Mark
from outbox.store.entry_json import State
from outbox.store.envelope import seq_key
from outbox.store.ledger import Settlement
from outbox.transfer import exporting
from outbox.transfer.importing import Restored, restore

OPERATIONS = (
    Operation("trade", table="trades", identity=("number",), order_by="account"),
    Operation("fee", table="fees"),
)


@register_enum
class Side(Enum):
    BUY = "b"


EXACT = {
    "number": 1,
    "account": "a",
    "price": Decimal("1.10"),
    "big": 1 << 80,
    "at": datetime(2024, 5, 1, 9, 30, 0, 123456, tzinfo=UTC),
    "naive": datetime(2024, 5, 1),  # noqa: DTZ001 - kept apart from aware ones
    "day": date(2024, 5, 1),
    "span": timedelta(days=-1, microseconds=5),
    "side": Side.BUY,
    "id": UUID(int=5),
    "raw": b"\0\xff",
    "nested": {"a": (1, {2, 3}), "b": [1.5, -0.0, None, True], "c": {1: "x"}},
    "text": "ü\u2028\t\\\"",
}  # fmt: skip


def fill(directory: Path) -> None:
    """A store with an entry in every state.

    1 completed, 2 and 3 a group, 4 dead, 5 discarded, 6 discarded and its key freed, 7 quarantined, 8 completed without
    a ledger copy, 9 retried, 10 dropped, 11 pending.
    """
    with Outbox.open(directory, operations=OPERATIONS) as box:
        box.enqueue("trade", EXACT)
        with box.transaction() as tx:
            tx.enqueue("trade", {"number": 2, "account": "a"})
            tx.enqueue("fee", {"fee": Decimal("0.1")})
        for number in range(4, 12):
            box.enqueue("trade", {"number": number, "account": "b", "text": "x" * 3000 * (number % 2)})
        records = list(box.store.records("pending"))
        box.store.settle(Settlement(completed=[(records[0], b'{"id":7}')]))
        box.store.settle(Settlement(dead=[(record, "refused") for record in records[3:6]]))
        box.discard(5, "by hand")
        box.discard(6, "never sent", free_key=True)
        with box.store._write("damage") as (environment, txn):
            txn.put(seq_key(7), b"OX damaged", db=environment.pending)
        box.store.quarantine(box.store.peek(0, 20).damaged)
        box.store._settle(Settlement(completed=[(records[7], b"")]), keep_ledger=False)
        box.store.settle(Settlement(retried=[(records[8], "may pass")]))
        box.store.settle(Settlement(dropped=[(records[9], "best effort")]))
        box.store.put_meta("ids:trades", b'{"next": 41}')
        box.alarms.sound("disk", "it smells")


def export(directory: Path, file: Path) -> exporting.Findings:
    with file.open("wb") as out:
        return exporting.export(directory, out.write)


def contents(box: Outbox) -> dict[str, Any]:
    """Everything that an outbox tells."""
    status = box.status()
    with box.store._read() as (_, txn):
        small_records = reads._metas(txn, "")
    numbers = ("acknowledged", "pending", "completed", "dead_letters", "discarded", "quarantined", "last_seq", "alarms")
    return {
        "pending": list(box.store.records("pending")),
        "ledger": list(box.store.records("ledger")),
        "dead": box.store.dead(),
        "quarantined": box.store.quarantined(),
        "small": small_records,
        "store": status.store_id,
        **{name: getattr(status, name) for name in numbers},
    }


def bring(file: Path, directory: Path, **more: Any) -> Restored:
    return restore(file, directory, OutboxConfig(), SystemClock(), **more)


def edited(file: Path, change: Callable[[list[dict[str, Any]]], object]) -> Path:
    """The file with its lines changed."""
    lines = [json.loads(line) for line in file.read_bytes().splitlines()]
    change(lines)
    file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return file


@pytest.fixture
def file(outbox_dir: Path, tmp_path: Path) -> Path:
    """The export of a store with everything."""
    fill(outbox_dir)
    assert export(outbox_dir, tmp_path / "export.jsonl").sound
    return tmp_path / "export.jsonl"


@pytest.mark.slow
def test_a_store_made_from_an_export_is_the_same_store(outbox_dir: Path, file: Path, tmp_path: Path) -> None:
    done = bring(file, tmp_path / "new")
    assert (done.created, done.known, done.conflicts, done.remains, done.renumbered) == (True, 0, 0, 1, False)
    with Outbox.open(outbox_dir) as box, Outbox.open(tmp_path / "new", operations=OPERATIONS) as new:
        assert contents(new) == contents(box)
        assert new.entry(1).args == EXACT
        # The calls of before are recognised, also the one of which only the key is left.
        assert new.enqueue("trade", EXACT).seq == 1
        assert new.enqueue("trade", {"number": 8, "account": "b", "text": ""}).status is EntryStatus.COMPLETED
        with pytest.raises(AlreadyRejected, match="entry 5 "):
            new.enqueue("trade", {"number": 5, "account": "b", "text": "x" * 3000})
        with pytest.raises(IdempotencyConflict):
            new.enqueue("trade", {"number": 2, "account": "z"})
        # And the key that was freed is free.
        fresh = new.enqueue("trade", {"number": 6, "account": "b", "text": ""})
        assert fresh.seq == box.status().last_seq + 1
        assert fresh.captured_at > max(entry.captured_at for entry in box.ledger())
    assert export(tmp_path / "new", tmp_path / "again.jsonl").sound


@pytest.mark.slow
def test_export_of_an_imported_store_is_the_same_byte_by_byte(file: Path, tmp_path: Path) -> None:
    bring(file, tmp_path / "new")
    export(tmp_path / "new", tmp_path / "again.jsonl")
    assert (tmp_path / "again.jsonl").read_bytes() == file.read_bytes()


@pytest.mark.slow
def test_importing_again_changes_nothing(outbox_dir: Path, file: Path, tmp_path: Path) -> None:
    for target in (outbox_dir, tmp_path / "new"):
        bring(file, target)
        with Outbox.open(target) as box:
            box.requeue(4)
            before = contents(box)
        done = bring(file, target)
        assert (done.entries, done.remains, done.small_records, done.conflicts) == ({}, 0, 0, 0)
        with Outbox.open(target) as box:
            assert contents(box) == before


@pytest.mark.slow
def test_entries_that_an_older_backup_lacks_are_added_at_their_place(outbox_dir: Path, tmp_path: Path) -> None:
    with Outbox.open(outbox_dir) as box:
        for number in range(3):
            box.enqueue("log", {"number": number})
    shutil.copytree(outbox_dir, tmp_path / "backup")
    with Outbox.open(outbox_dir) as box:
        box.store.put_meta("ids", b"newer")
        for number in range(3, 6):
            box.enqueue("log", {"number": number})
        whole = contents(box)
    export(outbox_dir, tmp_path / "export.jsonl")
    done = bring(tmp_path / "export.jsonl", tmp_path / "backup")
    assert (done.entries, done.known, done.renumbered) == ({State.PENDING: 3}, 3, False)
    with Outbox.open(tmp_path / "backup") as box:
        assert contents(box) == whole


def test_a_newer_small_record_of_the_store_stays(outbox_dir: Path, file: Path) -> None:
    with Outbox.open(outbox_dir) as box:
        box.store.put_meta("ids:trades", b'{"next": 99}')
    bring(file, outbox_dir)
    with Outbox.open(outbox_dir) as box:
        assert box.store.get_meta("ids:trades") == b'{"next": 99}'


@pytest.mark.slow
def test_another_store_takes_it_only_when_told_and_behind_what_it_has(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    with Outbox.open(other) as box:
        for number in range(3):
            box.enqueue("own", {"number": number})
    with pytest.raises(InvalidEntry, match="is of store .* count as new"):
        bring(file, other)
    done = bring(file, other, merge=True)
    assert (done.renumbered, done.known, done.remains) == (True, 0, 1)
    again = bring(file, other, merge=True)
    assert (again.entries, again.remains) == ({}, 0)
    with Outbox.open(other) as box:
        status = box.status()
        settled = status.completed + status.dead_letters + status.discarded + status.quarantined
        assert status.acknowledged == status.pending + settled == 3 + 11
        assert [entry.seq for entry in box.pending()] == [1, 2, 3, 5, 6, 10, 12]
        first, second = (box.entry(seq) for seq in (5, 6))
        assert first.group == second.group == 5
        assert box.entry(4).args == EXACT
        assert [entry.seq for entry in box.dead_letters()] == [7]
        assert [entry.args["number"] for entry in box.pending() if entry.operation == "trade"] == [2, 9, 11]
    assert exporting.examine(other).problems == []


def test_own_small_record_stays_when_another_store_is_added(tmp_path: Path) -> None:
    own, other, file = (tmp_path / name for name in ("own", "other", "file"))
    for directory, names in ((own, ("view",)), (other, ("view", "reserve"))):
        with Outbox.open(directory) as box:
            box.enqueue("own", {"of": directory.name})
            for name in names:
                box.store.put_meta(name, directory.name.encode())
    assert export(other, file).sound
    bring(file, own, merge=True)
    with Outbox.open(own) as box:
        assert [box.store.get_meta(name) for name in ("view", "reserve")] == [b"own", b"other"]


def test_notice_is_imported_with_all_that_it_says(tmp_path: Path) -> None:
    old, new, file = (tmp_path / name for name in ("old", "new", "file"))
    with Outbox.open(old) as box:
        box.notices.put("manager", "was learned")
        box.notices.put("ids", "few are left", degraded=True, refuses=True, lasts_s=1.5)
        shown = box.status().notices
    assert export(old, file).sound
    bring(file, new)
    with Outbox.open(new) as box:
        assert box.status().notices == shown

    def change(lines: list[dict[str, Any]], value: bytes) -> None:
        changed = next(line for line in lines if line.get("name") == "notice:ids")
        changed["value"] = base64.b64encode(value).decode()

    for value in (b'{"message": 1}', b'{"degraded": true}', b"[]", b"x"):
        with pytest.raises(InvalidEntry, match="nothing was imported"):
            bring(edited(file, partial(change, value=value)), tmp_path / "none")
    # Of a newer version.
    bring(edited(file, partial(change, value=b'{"message": "x", "later": 1}')), tmp_path / "newer")
    with Outbox.attach(tmp_path / "newer") as box:
        assert box.status().notices["ids"].message == "x"


def test_store_exported_in_a_pause_is_imported_and_stays_paused(tmp_path: Path) -> None:
    old, new, file = (tmp_path / name for name in ("old", "new", "file"))
    with Outbox.open(old) as box:
        box.enqueue("own", {"number": 1})
        pause = box.pauses.begin("the disk is replaced", for_s=3600)
    assert export(old, file).sound
    bring(file, new)
    with Outbox.attach(new) as box:
        assert box.status().paused == pause

    def change(lines: list[dict[str, Any]], value: bytes) -> None:
        changed = next(line for line in lines if line.get("name") == reads.PAUSE)
        changed["value"] = base64.b64encode(value).decode()

    for value in (b'{"reason": "no times"}', b"[]", b"x", b'{"reason":"","wall_s":"x","boot":"","for_s":null}'):
        with pytest.raises(InvalidEntry, match="nothing was imported"):
            bring(edited(file, partial(change, value=value)), tmp_path / "none")


def test_merged_store_brings_nothing_of_its_own_relays(tmp_path: Path) -> None:
    """What PostgreSQL acknowledged to the other store would count as lost, as this one has no row for it there."""
    own, other, file = (tmp_path / name for name in ("own", "other", "file"))
    with Outbox.open(own):
        pass
    with Outbox.open(other) as box:
        box.enqueue("own", {"number": 1})
        mark = Mark(UUID(int=1), UUID(int=2), 3, 0)
        (record,) = box.store.peek(0, 1).records
        box.store.settle(Settlement(completed=[(record, b"")], marks=[mark]))
        box.enqueue("own", {"number": 2})
        box.pauses.begin("maintenance")
        place_order(box, ReconcileOrder(everything=True))
        box.alarms.sound(reads.FORGOTTEN, "PostgreSQL lost entries")
    assert export(other, file).sound
    bring(file, own, merge=True)
    with Outbox.attach(own) as box:
        status = box.status()
        assert (status.completed, status.pending) == (1, 1)
        assert (status.paused, status.alarms, box.store.marks(), ordered(box)) == (None, {}, [], False)
    bring(file, tmp_path / "same")
    with Outbox.attach(tmp_path / "same") as box:
        assert box.store.marks() == [mark]
        assert box.status().paused is not None


def test_entry_discarded_while_pending_is_asked_for_after_the_import(tmp_path: Path) -> None:
    """PostgreSQL may have it all the same, and the relay that would have asked is gone."""
    old, new, other, file = (tmp_path / name for name in ("old", "new", "other", "file"))
    for directory in (old, other):
        with Outbox.open(directory) as box:
            for number in range(3):
                box.enqueue("own", {"number": number, "of": directory.name})
    with Outbox.open(old) as box:
        box.discard(2, "not wanted")
        assert box.store.withdrawn() == [2]
    assert export(old, file).sound
    bring(file, new)
    assert bring(file, other, merge=True).renumbered
    for directory, asked in ((new, 2), (other, 5)):
        with Outbox.open(directory) as box:
            assert box.store.withdrawn() == [asked]
            assert box.entry(asked).args == {"number": 1, "of": "old"}
    assert export(new, tmp_path / "again").sound
    assert (tmp_path / "again").read_bytes() == file.read_bytes()
    bad = edited(file, lambda lines: lines[2].update(value="eA=="))
    with pytest.raises(InvalidEntry, match="line 3: ValueError: what was discarded"):
        bring(bad, tmp_path / "none")


@pytest.mark.slow
def test_imported_key_in_use_by_another_entry_is_left_to_an_operator(file: Path, tmp_path: Path) -> None:
    bring(file, tmp_path / "new")

    def another(lines: list[dict[str, Any]]) -> None:
        changed = next(line for line in lines if line.get("seq") == 11)
        original = next(line for line in lines if line.get("seq") == 2 and line["kind"] == "entry")
        changed |= {"key": original["key"], "id": str(UUID(int=99)), "seq": 50}

    done = bring(edited(file, another), tmp_path / "new")
    assert (done.conflicts, done.entries) == (1, {State.DEAD: 1})
    with Outbox.open(tmp_path / "new") as box:
        dead = [entry for entry in box.dead_letters() if entry.seq == 50]
        assert [entry.error for entry in dead] == [
            "imported: its idempotency key is in use by another entry with other arguments"
        ]
        assert next(entry.seq for entry in box.pending()) == 2
    assert bring(file, tmp_path / "new").entries == {}


BAD: dict[str, tuple[Callable[[list[dict[str, Any]]], object], str]] = {
    "an argument was changed": (lambda lines: lines[4]["args"].update(number=2), "do not fit their payload hash"),
    "a key was cut": (lambda lines: lines[4].update(key="ab"), "has 1 byte, expected 16"),
    "a field is missing": (lambda lines: lines[4].pop("captured_at"), "KeyError"),
    "a state is unknown": (lambda lines: lines[4].update(state="done"), "'done' is not a valid State"),
    "a kind is unknown": (lambda lines: lines[4].update(kind="x"), "'x' is no kind of line"),
    "a number is none": (lambda lines: lines[4].update(seq=0), "0 is no number from 1 on"),
    "the end is missing": (lambda lines: lines.pop(), "ends early, after line"),
    "a line is missing": (lambda lines: lines.pop(4), "ends early"),
    "something follows the end": (lambda lines: lines.append({"kind": "end"}), "there is more behind the end"),
    "it begins otherwise": (lambda lines: lines.pop(0), "is no export of an outbox"),
    "raw bytes are none": (lambda lines: lines[1].update(value="?"), "Error"),
    "the next number is text": (lambda lines: lines[0].update(next_seq="x"), "line 1: .*'x' is no number from 1"),
    "the next number is none": (lambda lines: lines[0].pop("next_seq"), "line 1: KeyError"),
    "the next number is too large": (lambda lines: lines[0].update(next_seq=1 << 63), "line 1: .* is no number"),
    "the last stamp is negative": (lambda lines: lines[0].update(last_us=-1), "line 1: .*-1 is no number from 0"),
    "the store's id is none": (lambda lines: lines[0].update(store_id="x"), "line 1: ValueError"),
    "the store's id is a number": (lambda lines: lines[0].update(store_id=7), "line 1: AttributeError"),
    "a number is too large": (lambda lines: lines[4].update(seq=1 << 63), "is no number from 0 to 2.63 - 1"),
    "a number of tries is too large": (lambda lines: lines[4].update(attempts=1 << 40), "line 5: "),
    "a name is none": (lambda lines: lines[1].update(name=7), "line 2: "),
    "a line is a list": (lambda lines: lines.insert(2, []), "line 3 is no object"),  # type: ignore[arg-type]
    "a foreign record": (lambda lines: lines.insert(1, {"kind": "other", "name": "eA==", "value": ""}), "no name of"),
}  # fmt: skip


@pytest.mark.parametrize("change", BAD)
def test_a_file_that_is_not_as_it_was_written_is_refused_whole(file: Path, tmp_path: Path, change: str) -> None:
    alter, sentence = BAD[change]
    edited(file, alter)
    with pytest.raises(InvalidEntry, match=sentence):
        bring(file, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["export.jsonl", "outbox"]


def test_a_file_of_another_format_is_refused(file: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreFormatError, match="has format 7, this version reads 1"):
        bring(edited(file, lambda lines: lines[0].update(format=7)), tmp_path / "new")


@pytest.mark.parametrize("text", [b"", b"\n", b"[]\n", b"{", b"\xff\n"])
def test_file_that_is_no_export_is_refused(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "file").write_bytes(text)
    with pytest.raises(InvalidEntry):
        bring(tmp_path / "file", tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_import_and_export_of_a_store_in_use_are_refused(outbox_dir: Path, file: Path) -> None:
    with Outbox.open(outbox_dir), pytest.raises(StoreLocked):
        bring(file, outbox_dir)
    with Outbox.attach(outbox_dir), pytest.raises(StoreLocked):
        bring(file, outbox_dir)
    with Outbox.open(outbox_dir), pytest.raises(StoreLocked):
        exporting.examine(outbox_dir)


def test_export_of_a_missing_or_empty_store_is_refused(tmp_path: Path) -> None:
    for call in (exporting.examine, lambda path: exporting.export(path, bytes)):
        with pytest.raises(StoreMissing):
            call(tmp_path / "absent")
        with pytest.raises(StoreMissing, match="it is empty"):
            call(tmp_path)
    Outbox.open(tmp_path / "store").close()
    (tmp_path / "store" / "data.mdb").unlink()
    for call in (exporting.examine, lambda path: exporting.export(path, bytes)):
        with pytest.raises(StoreCorrupt, match="data.mdb is missing"):
            call(tmp_path / "store")


@pytest.mark.slow
def test_an_existing_directory_is_filled_and_a_full_one_refused(file: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert bring(file, tmp_path / "empty").created
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(StoreFormatError, match="is not an outbox store"):
        bring(file, tmp_path / "full")


_KILLED = """
import os, signal, sys
from pathlib import Path
from outbox import OutboxConfig
from outbox.transfer import importing
from outbox.clock import SystemClock
left = int(sys.argv[3])
def counted(*given, real=importing._Import._take):
    global left
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*given)
importing._Import._take = counted
importing.restore(Path(sys.argv[1]), Path(sys.argv[2]), OutboxConfig(), SystemClock())
"""


@pytest.mark.slow
@pytest.mark.parametrize("line", [1, 7, 13])
def test_an_import_that_is_killed_has_not_happened(file: Path, tmp_path: Path, line: int) -> None:
    target = tmp_path / "new"
    command = [sys.executable, "-c", _KILLED, str(file), str(target), str(line)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    assert subprocess.run(command, env=env, check=False).returncode == -signal.SIGKILL
    assert not target.exists()
    bring(file, target)
    # Also into one that is there.
    with Outbox.open(target) as box:
        before = contents(box)
    assert subprocess.run(command, env=env, check=False).returncode == -signal.SIGKILL
    with Outbox.open(target) as box:
        assert contents(box) == before
