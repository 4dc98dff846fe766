"""A store appears whole or not at all, is recognised as ours before it is used, and is private."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lmdb
import pytest

from outbox import ConfigError, Outbox, StoreCorrupt, StoreFormatError, StoreLocked, StoreMissing, StoreUnavailable
from outbox.store import creation, filesystem
from outbox.store.creation import create
from outbox.store.identity import is_vacant, mark_clean, read_identity

RACE = """
import sys, uuid
from pathlib import Path
from outbox.store.envelope import Counters
from outbox.store.creation import create
from outbox.store.identity import read_identity
from outbox.store.gate import COUNTERS_KEY
print("ready", flush=True)
sys.stdin.readline()
create(Path(sys.argv[1]), uuid.uuid4(), {COUNTERS_KEY: Counters().pack()})
print(read_identity(Path(sys.argv[1])).store_id)
"""
OPEN_WITH_LITTLE_ADDRESS_SPACE = """
import resource, sys
from outbox import Outbox
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[2]) << 20,) * 2)
with Outbox.open(sys.argv[1]) as box:
    print(box.enqueue("log", {}).seq, box.status().map_bytes >> 30)
"""


def make(directory: Path) -> None:
    """A store with one entry, closed."""
    with Outbox.open(directory) as box:
        box.enqueue("log", {"a": 1})


def content(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_a_store_is_created_with_its_parents_and_without_leftovers(tmp_path: Path) -> None:
    make(tmp_path / "a" / "b" / "outbox")
    assert os.listdir(tmp_path / "a" / "b") == ["outbox"]


@pytest.mark.parametrize("prepare", ["absent", "empty", "lock files"])
def test_files_of_a_new_store_are_private(outbox_dir: Path, prepare: str) -> None:
    if prepare != "absent":
        outbox_dir.mkdir(mode=0o755)
    if prepare == "lock files":
        (outbox_dir / "engine.lock").touch(0o600)
    before = os.umask(0)
    try:
        make(outbox_dir)
    finally:
        os.umask(before)
    assert outbox_dir.stat().st_mode & 0o777 == 0o700
    modes = {path.name: oct(path.stat().st_mode & 0o777) for path in outbox_dir.iterdir()}
    assert modes == dict.fromkeys(modes, "0o600")
    locks = {"engine.lock", "access.lock", "opening.lock"}
    assert locks | {"data.mdb", "lock.mdb", "outbox.json", "engine.state", "clean"} == set(modes)


@pytest.mark.parametrize(
    ("module", "step"),
    [
        (creation, "open_lmdb"),
        (creation, "mark_clean"),
        (filesystem, "flush_directory"),
        (creation, "_move_into_place"),
    ],
)
def test_a_creation_that_fails_leaves_no_trace(
    outbox_dir: Path, monkeypatch: pytest.MonkeyPatch, module: Any, step: str
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "no space")

    with monkeypatch.context() as patch:
        patch.setattr(module, step, fail)
        with pytest.raises(OSError, match="no space"):
            Outbox.open(outbox_dir)
    assert list(outbox_dir.parent.iterdir()) == []
    make(outbox_dir)


def test_a_rename_that_fails_for_another_reason_is_an_error(outbox_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(source: Path, target: Path) -> None:
        raise OSError(errno.EIO, "bad disk")

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(OSError, match="bad disk"):
        Outbox.open(outbox_dir)
    assert list(outbox_dir.parent.iterdir()) == []


@pytest.mark.parametrize("purpose", ["creating", "importing"])
def test_the_leftover_of_a_killed_creation_is_removed(outbox_dir: Path, purpose: str) -> None:
    make(outbox_dir)
    leftover = outbox_dir.parent / f".{outbox_dir.name}.{purpose}-x"
    outbox_dir.rename(leftover)
    with Outbox.open(outbox_dir) as box:
        assert box.status().acknowledged == 0
        assert box.enqueue("log", {}).seq == 1
    assert not leftover.exists()


@pytest.mark.slow
def test_processes_that_race_to_create_get_one_store(outbox_dir: Path) -> None:
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACE, str(outbox_dir)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("\n")
        racer.stdin.flush()
    ids = [racer.communicate()[0] for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0, 0]
    assert len(set(ids)) == 1
    with Outbox.open(outbox_dir) as box:
        assert box.status().store_id == ids[0].strip()
    assert os.listdir(outbox_dir.parent) == [outbox_dir.name]


def test_the_loser_of_a_race_uses_the_winners_store(outbox_dir: Path) -> None:
    make(outbox_dir)
    before = read_identity(outbox_dir)
    create(outbox_dir, uuid.uuid4(), {})
    assert read_identity(outbox_dir) == before
    with Outbox.open(outbox_dir) as box:
        assert [entry.args for entry in box.pending()] == [{"a": 1}]


@pytest.mark.parametrize("damage", ["missing", "empty"])
@pytest.mark.parametrize("opener", [Outbox.open, Outbox.attach])
def test_missing_or_empty_data_file_is_corruption_and_no_new_store(outbox_dir: Path, damage: str, opener: Any) -> None:
    make(outbox_dir)
    data = outbox_dir / "data.mdb"
    if damage == "missing":
        data.unlink()
    else:
        os.truncate(data, 0)
    with pytest.raises(StoreCorrupt, match=f"{data} is {damage}.*restore a backup"):
        opener(outbox_dir)
    assert (damage == "empty") == data.exists()


@pytest.mark.slow
@pytest.mark.parametrize("trust", [False, True])
def test_the_data_file_of_another_store_is_recognised(outbox_dir: Path, tmp_path: Path, trust: bool) -> None:
    make(outbox_dir)
    make(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "data.mdb", outbox_dir / "data.mdb")
    if trust:  # as if its fingerprint were the same
        mark_clean(outbox_dir)
    with pytest.raises(StoreCorrupt, match="belongs to another store than outbox.json"):
        Outbox.open(outbox_dir)


@pytest.mark.slow
@pytest.mark.parametrize("trust", [False, True])
def test_a_data_file_that_is_none_is_corruption(outbox_dir: Path, trust: bool) -> None:
    make(outbox_dir)
    (outbox_dir / "data.mdb").write_bytes(b"not a database" * 1000)
    if trust:
        mark_clean(outbox_dir)
    with pytest.raises(StoreCorrupt, match=str(outbox_dir)):
        Outbox.open(outbox_dir)
    assert (outbox_dir / "data.mdb").read_bytes() == b"not a database" * 1000


def test_a_data_file_without_our_databases_is_corruption(outbox_dir: Path) -> None:
    make(outbox_dir)
    (outbox_dir / "data.mdb").unlink()
    with lmdb.open(str(outbox_dir), lib_version=0) as foreign, foreign.begin(write=True) as txn:
        txn.put(b"a", b"b")
    mark_clean(outbox_dir)
    with pytest.raises(StoreCorrupt, match="cannot be opened as an outbox"):
        Outbox.open(outbox_dir)


def test_a_missing_identity_beside_data_is_not_a_store(outbox_dir: Path) -> None:
    make(outbox_dir)
    (outbox_dir / "outbox.json").unlink()
    before = content(outbox_dir)
    for opener in (Outbox.open, Outbox.attach):
        with pytest.raises(StoreFormatError, match=r"has no outbox.json .*OUTBOX_DIR"):
            opener(outbox_dir)
    assert content(outbox_dir) == before


def test_a_directory_of_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    before = content(tmp_path)
    for opener in (Outbox.open, Outbox.attach):
        with pytest.raises(StoreFormatError, match="is not an outbox store.*move this one away"):
            opener(tmp_path)
    assert content(tmp_path) == before


def test_a_file_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    assert not is_vacant(tmp_path / "file")
    for opener in (Outbox.open, Outbox.attach):
        with pytest.raises(StoreFormatError, match="is not a directory"):
            opener(tmp_path / "file")


@pytest.mark.parametrize("exists", [False, True])
def test_an_observer_creates_nothing(outbox_dir: Path, exists: bool) -> None:
    if exists:
        outbox_dir.mkdir()
    with pytest.raises(StoreMissing, match=f"there is no outbox (at|in) {outbox_dir}.*OUTBOX_DIR"):
        Outbox.attach(outbox_dir)
    assert outbox_dir.exists() == exists
    assert not exists or os.listdir(outbox_dir) == []


@pytest.mark.parametrize(
    ("identity", "error", "message"),
    [
        (b'{"format":2,"store_id":"%s"}', StoreFormatError, "has format 2, this version reads 1"),
        (b'{"format":"x","store_id":"%s"}', StoreCorrupt, "not readable as a store's identity"),
        (b'{"format":1,"store_id":"short"}', StoreCorrupt, "not readable as a store's identity"),
        (b'{"format":1,"store_id":7}', StoreCorrupt, "not readable as a store's identity"),
        (b'{"format":1}', StoreCorrupt, "not readable as a store's identity"),
        (b"[]", StoreCorrupt, "not readable as a store's identity"),
        (b"", StoreCorrupt, "not readable as a store's identity"),
    ],
)
def test_an_identity_that_is_unreadable_or_newer_is_refused(
    outbox_dir: Path, identity: bytes, error: type[Exception], message: str
) -> None:
    make(outbox_dir)
    identity = identity % str(uuid.uuid4()).encode() if b"%s" in identity else identity
    (outbox_dir / "outbox.json").write_bytes(identity)
    before = content(outbox_dir)
    with pytest.raises(error, match=message):
        Outbox.open(outbox_dir)
    assert content(outbox_dir) == before


# -- the machine beneath


@pytest.mark.slow
@pytest.mark.parametrize(("limit_mb", "map_gb"), [(6000, 4), (2000, 1)])
def test_the_map_is_as_large_as_the_address_space_allows(outbox_dir: Path, limit_mb: int, map_gb: int) -> None:
    run = [sys.executable, "-c", OPEN_WITH_LITTLE_ADDRESS_SPACE, str(outbox_dir), str(limit_mb)]
    assert subprocess.run(run, capture_output=True, text=True, check=True).stdout.split() == ["1", str(map_gb)]


@pytest.mark.slow
def test_too_little_address_space_is_said(outbox_dir: Path) -> None:
    run = [sys.executable, "-c", OPEN_WITH_LITTLE_ADDRESS_SPACE, str(outbox_dir), "900"]
    said = subprocess.run(run, capture_output=True, text=True, check=False).stderr
    assert "ConfigError: no address space for a map of 1 GiB" in said
    assert "ulimit -v" in said
    assert list(outbox_dir.parent.iterdir()) == []


class Refused(lmdb.Error):
    """What py-lmdb raises, with its error number."""

    code = 0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("code", "error", "message"),
    [
        (errno.EACCES, PermissionError, "no access to the store's files"),
        (errno.ENOMEM, ConfigError, "no address space"),
        (errno.EINVAL, StoreUnavailable, "cannot be used now: Invalid argument"),
        (errno.EMFILE, StoreUnavailable, "cannot be used now: Too many open files.*ulimit -n"),
        (errno.EROFS, StoreUnavailable, "cannot be used now: Read-only file system"),
        (errno.ENOLCK, StoreUnavailable, "cannot be used now: No locks available"),
        (errno.EIO, OSError, "cannot be used now: Input/output error"),
        (errno.EAGAIN, StoreLocked, "another container.*process namespace"),
        (-30790, StoreUnavailable, "all its 512 reader slots in use"),
        (-30796, StoreCorrupt, "cannot be opened as an outbox: refused"),
    ],
)
def test_error_of_lmdb_at_opening_is_translated_by_its_cause(
    outbox_dir: Path, monkeypatch: pytest.MonkeyPatch, code: int, error: type[Exception], message: str
) -> None:
    named = {-30796: lmdb.CorruptedError, -30790: lmdb.ReadersFullError}

    def refuse(*_: Any, **__: Any) -> None:
        if code in named:
            raise named[code]("refused")
        exc = Refused("refused")
        exc.code = code  # type: ignore[misc]
        raise exc

    make(outbox_dir)
    monkeypatch.setattr(lmdb, "open", refuse)
    with pytest.raises(error, match=message):
        Outbox.open(outbox_dir)


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "fuse.sshfs"])
def test_a_network_file_system_is_refused(outbox_dir: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    make(outbox_dir)
    monkeypatch.setattr(filesystem, "filesystem_of", lambda path: kind)
    for directory in (outbox_dir, outbox_dir.parent / "new"):
        with pytest.raises(ConfigError, match=rf"network file system or a shared folder \({kind}\).*local disk"):
            Outbox.open(directory)
    assert not (outbox_dir.parent / "new").exists()


def test_a_file_system_in_memory_is_warned_about(
    outbox_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(filesystem, "filesystem_of", lambda path: "tmpfs")
    with caplog.at_level(logging.WARNING, "outbox"):
        make(outbox_dir)
    assert "will not survive a power cut" in caplog.text


def test_the_three_databases_and_nothing_else_are_listed(outbox_dir: Path) -> None:
    make(outbox_dir)
    with lmdb.open(str(outbox_dir), max_dbs=3, readonly=True, lib_version=0) as opened, opened.begin() as txn:
        names = [bytes(key) for key, _ in txn.cursor() if not key.startswith(b"outbox:")]
    assert names == [b"idempotency", b"ledger", b"pending"]


def test_an_empty_directory_that_cannot_be_replaced_is_filled(
    outbox_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox_dir.mkdir()
    (outbox_dir / "lost+found").mkdir()  # as the root of a file system has it
    inode = outbox_dir.stat().st_ino
    make(outbox_dir)
    assert outbox_dir.stat().st_ino == inode
    assert (outbox_dir / "outbox.json").is_file()


def test_a_link_to_an_empty_directory_is_filled(outbox_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    outbox_dir.symlink_to(tmp_path / "real")
    make(outbox_dir)
    assert (tmp_path / "real" / "outbox.json").is_file()


def fail_after(moved: int, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Let so many files be renamed, and no more."""
    real, left = os.rename, [moved]

    def rename(source: Path, target: Path) -> None:
        if not left[0]:
            raise error
        left[0] -= 1
        real(source, target)

    monkeypatch.setattr(os, "rename", rename)


@pytest.mark.parametrize("moved", [0, 1, 2, 3])
def test_a_filling_that_was_killed_is_done_again(outbox_dir: Path, monkeypatch: pytest.MonkeyPatch, moved: int) -> None:
    outbox_dir.mkdir()
    with monkeypatch.context() as patch:
        fail_after(moved, patch, KeyboardInterrupt())
        # As after a kill, nobody cleans up.
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)
        patch.setattr(Path, "unlink", lambda *_, **__: None)
        with pytest.raises(KeyboardInterrupt):
            Outbox.open(outbox_dir)
    assert len(list(outbox_dir.iterdir())) == moved + 1
    with Outbox.open(outbox_dir) as box:
        assert box.enqueue("log", {}).seq == 1
        assert not list(outbox_dir.glob(".creating-*"))


@pytest.mark.parametrize("moved", [0, 1, 2, 3])
def test_a_filling_that_failed_leaves_nothing(outbox_dir: Path, monkeypatch: pytest.MonkeyPatch, moved: int) -> None:
    outbox_dir.mkdir()
    with monkeypatch.context() as patch:
        fail_after(moved, patch, OSError(5, "Input/output error"))
        with pytest.raises(OSError, match="Input/output error"):
            Outbox.open(outbox_dir)
    assert list(outbox_dir.iterdir()) == []
    Outbox.open(outbox_dir).close()


def test_each_new_folder_above_a_store_is_flushed_into_its_parent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[Path] = []
    monkeypatch.setattr(filesystem, "flush_directory", flushed.append)
    make(tmp_path / "data" / "deep" / "outbox")
    assert flushed[:2] == [tmp_path, tmp_path / "data"]
    assert flushed[-1] == tmp_path / "data" / "deep"


def test_an_engine_flushes_the_renames_of_whoever_was_killed_before(
    outbox_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Outbox.open(outbox_dir).close()
    flushed: list[Path] = []
    monkeypatch.setattr(filesystem, "flush_directory", flushed.append)
    Outbox.open(outbox_dir).close()
    assert flushed == [outbox_dir, outbox_dir.parent]


def test_commits_are_flushed_with_their_meta_page_and_not_mapped(outbox_dir: Path) -> None:
    with Outbox.open(outbox_dir) as box:
        opened = box.store._environment
        assert opened is not None
        flags = opened.env.flags()
    assert flags["sync"]
    assert flags["metasync"]
    assert not flags["writemap"]
    assert not flags["map_async"]


@pytest.mark.parametrize("readonly", [True, False])
def test_readonly_observer_has_the_file_open_for_reading(outbox_dir: Path, readonly: bool) -> None:
    make(outbox_dir)
    with Outbox.attach(outbox_dir, readonly=readonly) as box:
        opened = box.store._environment
        assert opened is not None
        assert opened.env.flags()["readonly"] is readonly


def test_the_pages_that_were_ever_in_use_are_those_of_the_file(outbox_dir: Path) -> None:
    with Outbox.open(outbox_dir) as box:
        box.enqueue("log", {"text": "x" * 20_000})
        opened = box.store._environment
        assert opened is not None
        assert opened.high_water_bytes() == opened.file_bytes()


@pytest.mark.parametrize("open_", [Outbox.open, Outbox.attach])
def test_path_that_is_no_utf8_is_refused_in_a_sentence(tmp_path: Path, open_: Callable[[str], Outbox]) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/st\xffre")
    with pytest.raises(ConfigError, match=r"st\\xffre' is not valid UTF-8.*choose another directory"):
        open_(path)
    assert os.listdir(tmp_path) == []
