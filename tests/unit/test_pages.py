"""A data file read without LMDB gives what LMDB gives, and says what is wrong with its two meta pages."""

from __future__ import annotations

import os
import random
import shutil
import sys
import tracemalloc
from pathlib import Path

import pytest

from outbox import Outbox, StoreCorrupt
from outbox.rescue.pages import DataFile, Walk
from outbox.store.environment import Environment
from outbox.store.ledger import Settlement

META_TRANSACTION = 16 + 24 + 2 * 48 + 8


def fill(directory: Path, seed: int = 1) -> None:
    """A store with a history: rows of every size, some settled, in as many commits."""
    draw = random.Random(seed)
    with Outbox.open(directory) as box:
        for number in range(draw.randrange(1, 300)):
            box.enqueue("log", {"number": number, "text": "x" * draw.choice((0, 100, 1900, 2100, 5000, 40_000))})
            if draw.random() < 0.2:
                records = box.store.peek(0, draw.randrange(1, 9)).records
                box.store.settle(Settlement(completed=[(record, b"") for record in records]))


def suspicions(file: DataFile) -> list[str]:
    return [problem for walk in file.essential_walks() for problem in walk.problems]


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A filled store, for tests that work on a copy of it."""
    directory = tmp_path_factory.mktemp("filled") / "outbox"
    fill(directory)
    return directory


@pytest.mark.parametrize("seed", range(8))
def test_data_file_reads_the_same_as_lmdb(outbox_dir: Path, seed: int) -> None:
    fill(outbox_dir, seed)
    environment = Environment(outbox_dir, readonly=True)
    with environment.env.begin() as txn:
        expected = {
            name: [(bytes(key), bytes(value)) for key, value in txn.cursor(db=handle)]
            for name, handle in (
                ("pending", environment.pending),
                ("idempotency", environment.idempotency),
                ("ledger", environment.ledger),
            )
        }
    environment.close()
    with DataFile(outbox_dir / "data.mdb") as file:
        assert file.meta is not None
        main = Walk("main")
        found = {}
        for row in file.rows(file.meta.main, main):
            tree = file.tree(row)
            if tree is not None:
                walk = Walk(row.key.decode())
                found[walk.name] = [(one.key, file.read(one.offset, one.size)) for one in file.rows(tree, walk)]
                assert walk.intact
                assert not walk.pages & file.free_pages()
        assert main.intact
        assert file.problems == file.free_list_problems == []
    assert found == expected


@pytest.mark.slow
def test_free_list_across_a_multiple_of_256_is_in_order(outbox_dir: Path) -> None:
    """A reader pins freed pages, so that the free list names some hundred transactions; its keys are integers."""
    with Outbox.open(outbox_dir) as box:
        environment = box.store._environment
        assert environment is not None
        with environment.env.begin():
            for number in range(600):
                box.enqueue("log", {"number": number})
    with DataFile(outbox_dir / "data.mdb") as file:
        assert file.meta is not None
        walk = Walk("free list")
        listed = [int.from_bytes(row.key, sys.byteorder) for row in file.rows(file.meta.free, walk)]
        assert len(listed) > 500
        assert listed == sorted(listed)
        assert walk.problems == file.problems == file.free_list_problems == []
    (outbox_dir / "clean").unlink()
    with Outbox.open(outbox_dir) as box:
        assert box.status().pending == 600


@pytest.mark.slow
@pytest.mark.parametrize("entries", range(252, 260))
def test_store_of_about_256_commits_opens_after_an_unclean_end(outbox_dir: Path, entries: int) -> None:
    """At 255 commits a sound store was refused: the free list names transactions 255 and 256, FF 00 and 00 01."""
    with Outbox.open(outbox_dir) as box:
        for number in range(entries):
            box.enqueue("log", {"number": number})
    (outbox_dir / "clean").unlink()
    with Outbox.open(outbox_dir) as box:
        assert box.status().pending == entries


def test_a_row_that_lies_in_a_page_costs_no_read_of_its_own(outbox_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Outbox.open(outbox_dir) as box, box.transaction() as tx:
        for number in range(500):
            tx.enqueue("log", {"number": number})
    reads: list[int] = []
    pread = os.pread

    def counted(fd: int, size: int, offset: int) -> bytes:
        reads.append(offset)
        return pread(fd, size, offset)

    with DataFile(outbox_dir / "data.mdb") as file:
        assert file.meta is not None
        trees = {row.key: file.tree(row) for row in file.rows(file.meta.main, Walk("main"))}
        pending, walk = trees[b"pending"], Walk("pending")
        assert pending is not None
        monkeypatch.setattr(os, "pread", counted)
        assert all(len(file.read(row.offset, row.size)) == row.size for row in file.rows(pending, walk))
    assert walk.rows == 500
    assert len(reads) == len(walk.pages) < 100


@pytest.mark.slow
@pytest.mark.parametrize("bit", range(16))
@pytest.mark.parametrize("page", [0, 1])
def test_meta_page_mistaken_for_the_newest_is_noticed(filled: Path, outbox_dir: Path, page: int, bit: int) -> None:
    # With one bit of its number changed, LMDB takes the other one and silently forgets the last commit.
    shutil.copytree(filled, outbox_dir)
    data = bytearray((outbox_dir / "data.mdb").read_bytes())
    with DataFile(outbox_dir / "data.mdb") as file:
        assert file.meta is not None
        newest = file.meta
    data[page * 4096 + META_TRANSACTION + bit // 8] ^= 1 << bit % 8
    (outbox_dir / "data.mdb").write_bytes(data)
    with DataFile(outbox_dir / "data.mdb") as file:
        assert file.problems
        assert file.meta is not None
        assert file.meta.main == newest.main
    with pytest.raises(StoreCorrupt):
        Outbox.open(outbox_dir)


def test_a_new_store_and_a_vacuumed_one_are_sound(outbox_dir: Path) -> None:
    Outbox.open(outbox_dir).close()
    for _ in range(3):
        with DataFile(outbox_dir / "data.mdb") as file:
            assert file.problems == []
        with Outbox.open(outbox_dir) as box:
            box.compact(vacuum=True)
        with DataFile(outbox_dir / "data.mdb") as file:
            assert file.problems == []
        with Outbox.open(outbox_dir) as box:
            box.enqueue("log", {})


@pytest.mark.parametrize("size", [0, 1, 100, 4095, 4096, 4200, 8191])
def test_file_too_short_for_two_meta_pages_is_reported_as_damaged(tmp_path: Path, size: int) -> None:
    (tmp_path / "data.mdb").write_bytes(random.Random(1).randbytes(size))
    with DataFile(tmp_path / "data.mdb") as file:
        assert file.problems == ["both meta pages are damaged"]
        assert file.meta is None
        assert file.free_pages() == set()


def test_damaged_size_costs_no_memory(outbox_dir: Path) -> None:
    """One bit of a value's size, in a file that is large enough to hold so much."""
    with Outbox.open(outbox_dir) as box:
        for _ in range(3):
            box.enqueue("log", {"text": "z" * 100_000})
    path = outbox_dir / "data.mdb"
    with DataFile(path) as file:
        assert file.meta is not None
        trees = {row.key: file.tree(row) for row in file.rows(file.meta.main, Walk("main"))}
        pending = trees[b"pending"]
        assert pending is not None
        row = list(file.rows(pending, Walk("pending")))[1]
    os.truncate(path, 3 << 30)  # sparse
    with path.open("r+b") as opened:
        opened.seek(row.key_offset - 8 + 3)
        byte = opened.read(1)[0]
        opened.seek(-1, os.SEEK_CUR)
        opened.write(bytes((byte | 0x80,)))
    walk = Walk("pending")
    tracemalloc.start()
    try:
        with DataFile(path) as file:
            assert len(list(file.rows(pending, walk))) == 2
            assert suspicions(file)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()
    assert any("more than any that an outbox writes" in problem for problem in walk.problems)


def test_a_file_that_ends_within_a_page_has_problems_wherever_it_ends(filled: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copy(filled / "data.mdb", tmp_path / "data.mdb"))
    with DataFile(copy) as file:
        assert suspicions(file) == []
        assert file.meta is not None
        end = (file.meta.last_page + 1) * file.page_size
    for size in range(end - 200, 2 * 4096, -1619):
        os.truncate(copy, size)
        with DataFile(copy) as file:
            assert all("behind the end of the file" in problem or "read" in problem for problem in suspicions(file))
