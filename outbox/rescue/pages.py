"""Pages: reads the rows of an LMDB 0.9 data file without LMDB, by plain reads.

LMDB maps the file and trusts it: a damaged one kills the process.  Nothing here can be made to do more than miss
rows, and what is wrong is said.  The layout is that of `mdb.c` of LMDB 0.9 on 64-bit machines in native byte order.
Only for a file that nobody writes to.

Where a tree is damaged, records are found anywhere in the file by their first bytes.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ..entry import EntryStatus
from ..errors import StoreCorrupt
from ..store import small
from ..store.continuity import LATE_KEY, SESSIONS_KEY, Mark, RelaySessions, unpack_late
from ..store.envelope import BEGINNING, OVERHEAD, Record, claims
from ..store.ledger import MARK_PREFIX
from ..store.own_files import open_own
from ..words import counted
from .metas import (
    BIG,
    BRANCH,
    HEADER,
    LEAF,
    MAX_DEPTH,
    META_BYTES,
    NO_ROOT,
    NODE,
    NUMBER,
    PAGE,
    TREE,
    Meta,
    Tree,
    differences,
    parse_meta,
    tree_of,
)

# Of a page of a large value: number, unused, flags, page count.
_OVERFLOW = struct.Struct("=QHHI")
# Where a node lies in its page.
_PLACE = struct.Struct("=H")
_BIG_VALUE, _SUB_DATABASE = 1, 2
# The largest value is the list of a transaction that freed every page of the map: a damaged size must not cost memory.
_MOST_BYTES = 160 << 20
# What walks are called, beside the named databases of a store.
FREE_LIST, MAIN = "free list", "main"
DATABASES = (b"pending", b"ledger", b"idempotency")


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a tree: its key, and where in the file its complete value lies."""

    key: bytes
    offset: int
    size: int
    # Where the key lies.
    key_offset: int
    # Whether the value describes a named database.
    is_tree: bool


@dataclass
class Walk:
    """A tree's rows in order, as far as they can be read; `problems` and `pages` are complete at the end."""

    name: str
    problems: list[str] = field(default_factory=list)
    # The pages that belong to the tree.
    pages: set[int] = field(default_factory=set)
    rows: int = 0
    # The keys of rows that are marked as if they described a named database: LMDB reads such a row, and refuses to
    # replace or delete it.
    marked: list[bytes] = field(default_factory=list)

    @property
    def intact(self) -> bool:
        return not self.problems

    def report(self, page: int, what: str) -> None:
        self.problems.append(f"{self.name}: page {page} {what}")


class DataFile:
    """A data file opened for reading; close it, or use it in a `with` block.  Raises OSError."""

    def __init__(self, path: Path) -> None:
        self._fd = open_own(path, os.O_RDONLY)
        # The page that was read last, and where it begins: most rows lie within one page.
        self._page, self._page_at = b"", 0
        self.size = os.fstat(self._fd).st_size
        # Of the meta pages, from which everything hangs; and of the free list, from which no row does.
        self.problems: list[str] = []
        self.free_list_problems: list[str] = []
        found = [self._meta(0, 0)]
        # The second page lies at the page size that the first one names, or at that of this system.
        sizes = [found[0].page_size] if found[0] is not None else [os.sysconf("SC_PAGESIZE")]
        found.append(self._meta(1, sizes[0]))
        self.metas = [meta for meta in found if meta is not None]
        if len(self.metas) < 2:
            which = "one of the two meta pages is" if self.metas else "both meta pages are"
            self.problems.append(f"{which} damaged")
        self.meta = max(self.metas, key=lambda meta: meta.transaction, default=None)
        self.page_size = self.meta.page_size if self.meta is not None else sizes[0]
        if len(self.metas) == 2:
            self._compare(*self.metas)

    def close(self) -> None:
        """Close the file; may be called twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> DataFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self, offset: int, size: int) -> bytes:
        """Bytes of the file; fewer at its end."""
        begin = offset - self._page_at
        if 0 <= begin <= len(self._page) - size:
            return self._page[begin : begin + size]
        parts = []
        while size > 0:
            part = os.pread(self._fd, min(size, 1 << 30), offset)
            if not part:
                break
            parts.append(part)
            offset, size = offset + len(part), size - len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _meta(self, number: int, offset: int) -> Meta | None:
        return parse_meta(number, self.read(offset, META_BYTES))

    def _compare(self, even: Meta, odd: Meta) -> None:
        """Report damaged meta pages, and pick the newest one by its free list."""
        self.problems += differences(even, odd)
        said: list[int | None] = []
        for meta in (even, odd):
            walk = Walk(FREE_LIST)
            newest = 0
            for row in self.rows(meta.free, walk):
                newest = max(newest, NUMBER.unpack(row.key)[0] if len(row.key) == 8 else 0)
            # Each transaction frees at least the old root, and lists it under its own number.
            late = newest != meta.transaction and meta.transaction > 1
            if self.meta is not None and meta is not self.meta and newest == self.meta.transaction + 1:
                # A commit that was cut short before its meta page has written over what only the older meta needs.
                late = False
            if late and walk.intact:
                self.problems.append(f"a meta page says transaction {meta.transaction}, its free list says {newest}")
            if meta is self.meta:
                self.free_list_problems = walk.problems
            said.append(newest if walk.intact else None)
        if self.problems and None not in said:
            self.meta = max(zip(said, (even, odd), strict=True), key=lambda one: one[0] or 0)[1]

    def essential_walks(self) -> list[Walk]:
        """The free list, the main tree, `pending` and what the next settlement copies, with what seems wrong there."""
        return self._walks([b"pending"])

    def all_walks(self) -> list[Walk]:
        """The same of every row of the file."""
        return self._walks(DATABASES)

    def _walks(self, whole: Collection[bytes]) -> list[Walk]:
        """`whole`: the named databases that are read row by row."""
        if self.meta is None:
            return [Walk("file", problems=list(self.problems))]
        walks = [main := Walk(MAIN), free_list := Walk(FREE_LIST)]
        trees = {row.key: self.tree(row) for row in self.rows(self.meta.main, main)}
        missing: list[str] = []
        for row in self.rows(self.meta.free, free_list):
            self._check_free_row(row, free_list, self.meta.last_page)
        for name in DATABASES:
            tree = trees.get(name)
            if tree is None:
                missing.append(f"{main.name}: there is no database {name.decode()}")
                continue
            walks.append(walk := Walk(name.decode()))
            if name in whole:
                for _ in self.rows(tree, walk):
                    pass
            else:
                self._follow_last_path(tree, walk)
        # Missing pages of the main tree are reported already.
        main.problems += missing if main.intact else []
        free = self.free_pages()
        for walk in walks:
            if walk.pages & free:
                walk.report(min(walk.pages & free), "is in use and free")
        return walks

    def _check_free_row(self, row: Row, walk: Walk, last_page: int) -> None:
        """A row of the free list is a transaction, and how many pages it freed before their numbers, largest first."""
        data = self.read(row.offset, row.size)
        numbers = struct.unpack(f"={len(data) // 8}Q", data[: len(data) // 8 * 8])
        sound = len(row.key) == NUMBER.size and row.size == len(data) == 8 * len(numbers) and numbers
        if not sound or numbers[0] != len(numbers) - 1 or any(not 2 <= page <= last_page for page in numbers[1:]):
            walk.report(row.offset // self.page_size, "has a list of freed pages that is none")

    def _follow_last_path(self, tree: Tree, walk: Walk) -> None:
        """The pages from the root to the last leaf, which the next settlement copies."""
        number = tree.root
        for depth in range(0 if number == NO_ROOT else min(tree.depth, MAX_DEPTH), 0, -1):
            walk.pages.add(number)
            if (number + 1) * self.page_size > self.size:
                walk.report(number, "is behind the end of the file")
                return
            data = self.read(number * self.page_size, self.page_size)
            own, _, flags, lower, upper = PAGE.unpack_from(data)
            expected = LEAF if depth == 1 else BRANCH
            if own != number or flags != expected or not HEADER < lower <= upper <= self.page_size:
                walk.report(number, f"is damaged: number {own}, flags {flags}, expected {expected}")
                return
            at = _PLACE.unpack_from(data, lower - _PLACE.size)[0]
            if not upper <= at <= self.page_size - NODE.size:
                walk.report(number, "has a row outside of itself")
                return
            low, high, node_flags, _ = NODE.unpack_from(data, at)
            number = low | high << 16 | node_flags << 32

    def free_pages(self) -> set[int]:
        """The pages that hold nothing but leftovers, as the newest meta has it."""
        free: set[int] = set()
        if self.meta is not None:
            for row in self.rows(self.meta.free, Walk(FREE_LIST)):
                data = self.read(row.offset, row.size)
                count = len(data) // 8
                free.update(struct.unpack(f"={count}Q", data[: count * 8])[1:])
        return free

    def rows(self, tree: Tree, walk: Walk) -> Iterator[Row]:
        """The rows of a tree in order.  What cannot be read is left out and noted in `walk`."""
        if tree.root == NO_ROOT:
            if tree.entries:
                walk.problems.append(f"{walk.name}: it has no pages and claims {counted(tree.entries, 'row', 'rows')}")
            return
        last: bytes | int = b""
        for row in self._below(tree.root, walk, tree.depth):
            place = tree.place(row.key)
            if walk.rows and place <= last:  # type: ignore[operator]
                walk.report(row.offset // self.page_size, "has keys out of order")
            last = place
            walk.rows += 1
            if row.is_tree and not (walk.name == MAIN and row.key in DATABASES):
                walk.marked.append(row.key)
                walk.report(row.offset // self.page_size, "has a row that is marked as a database")
            yield row
        if walk.rows != tree.entries:
            walk.problems.append(f"{walk.name}: {walk.rows} of {counted(tree.entries, 'row', 'rows')} can be read")

    def tree(self, row: Row) -> Tree | None:
        """The named database that a row of the main one describes, or None."""
        data = self.read(row.offset, row.size)
        return tree_of(TREE.unpack(data)) if row.is_tree and len(data) == TREE.size else None

    def _below(self, number: int, walk: Walk, depth: int) -> Iterator[Row]:
        if number in walk.pages:
            walk.report(number, "is reached twice")
            return
        walk.pages.add(number)
        if (number + 1) * self.page_size > self.size:
            walk.report(number, "is behind the end of the file")
            return
        data = self.read(number * self.page_size, self.page_size)
        self._page, self._page_at = data, number * self.page_size
        own, _, flags, lower, upper = PAGE.unpack_from(data)
        expected = LEAF if depth <= 1 else BRANCH
        if own != number or flags != expected or not HEADER <= lower <= upper <= self.page_size or lower % 2:
            walk.report(number, f"is damaged: number {own}, flags {flags}, expected {expected}")
            return
        nodes = struct.unpack_from(f"={(lower - HEADER) // 2}H", data, HEADER)
        for at in nodes:
            if not upper <= at <= self.page_size - NODE.size:
                walk.report(number, "has a row outside of itself")
                continue
            low, high, node_flags, key_size = NODE.unpack_from(data, at)
            if flags == BRANCH:
                if depth <= MAX_DEPTH:
                    yield from self._below(low | high << 16 | node_flags << 32, walk, depth - 1)
                continue
            begin = at + NODE.size
            row = self._row(data, number, begin, key_size, low | high << 16, node_flags, walk)
            if row is not None:
                yield row

    def _row(
        self, data: bytes, number: int, begin: int, key_size: int, size: int, flags: int, walk: Walk
    ) -> Row | None:
        end = begin + key_size
        stored = NUMBER.size if flags & _BIG_VALUE else size
        if end + stored > self.page_size or flags & ~(_BIG_VALUE | _SUB_DATABASE):
            walk.report(number, "has a row that does not fit into it")
            return None
        key, key_offset = data[begin:end], number * self.page_size + begin
        if not flags & _BIG_VALUE:
            return Row(key, key_offset + key_size, size, key_offset, bool(flags & _SUB_DATABASE))
        big = NUMBER.unpack_from(data, end)[0]
        if size > _MOST_BYTES:
            walk.report(number, f"has a value of {size} bytes, more than any that an outbox writes")
            return None
        pages = (HEADER - 1 + size) // self.page_size + 1
        if (big + pages) * self.page_size > self.size:
            walk.report(number, f"has a value of {size} bytes at page {big}, behind the end of the file")
            return None
        own, _, big_flags, count = _OVERFLOW.unpack(self.read(big * self.page_size, _OVERFLOW.size))
        walk.pages.update(range(big, big + pages))
        if (own, big_flags, count) != (big, BIG, pages):
            walk.report(big, "is damaged: it is not the value that it should be")
        return Row(key, big * self.page_size + HEADER, size, key_offset, bool(flags & _SUB_DATABASE))


# Read at a time.
_PIECE = 1 << 20


def beginnings(file: DataFile, mark: bytes) -> Iterator[tuple[int, int, int]]:
    """Offset, sequence number (of entries) and claimed size of everything in the file that may be a record.

    `mark`: how it begins, `BEGINNING` of entries or that of small records.
    """
    of_entries = mark == BEGINNING
    for start in range(0, file.size, _PIECE):
        piece = file.read(start, _PIECE + OVERHEAD)
        at = piece.find(mark)
        while 0 <= at < _PIECE:
            head = piece[at : at + OVERHEAD]
            claimed = claims(head) if of_entries else (0, small.size_of(head) or 0)
            if claimed is not None and start + at + claimed[1] <= file.size:
                yield start + at, *claimed
            at = piece.find(mark, at + 1)


def rank(record: Record) -> int:
    """How safe a version of an entry is to import; of several the highest is taken."""
    if record.status is EntryStatus.COMPLETED:
        return 3
    if record.status is EntryStatus.PENDING:
        return 1
    return 2 if record.is_discarded else 0


def check_other(key: bytes, value: bytes) -> None:
    """Raise `StoreCorrupt` where one of these records is damaged.  A record with another key passes."""
    if key.startswith(MARK_PREFIX) and Mark.unpack(value) is None:
        raise StoreCorrupt("what PostgreSQL last acknowledged is damaged: its checksum does not match")
    if key == SESSIONS_KEY:
        RelaySessions.unpack(value)
    if key == LATE_KEY:
        unpack_late(value)
