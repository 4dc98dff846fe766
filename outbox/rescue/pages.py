"""Pages: reads the rows of an LMDB 0.9 data file without LMDB, by plain reads.

LMDB maps the file and trusts it: a damaged one kills the process.  Nothing here can be made to do more than miss
rows, and what is wrong is said.  The layout is that of `mdb.c` of LMDB 0.9 on 64-bit machines in native byte order.
Only for a file that nobody writes to.
"""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ..store.own_files import open_own
from ..words import counted

# Of a page: number, unused, flags, then `lower` and `upper` of a tree's page or the page count of an overflow.
_PAGE = struct.Struct("=QHHHH")
_OVERFLOW = struct.Struct("=QHHI")
_HEADER = _PAGE.size
_BRANCH, _LEAF, _BIG, _META = 1, 2, 4, 8
# Of a node: the low and high half of the value's size (of a leaf) or of the child's number, flags, size of the key.
_NODE = struct.Struct("=HHHH")
# Where a node lies in its page.
_PLACE = struct.Struct("=H")
_BIG_VALUE, _SUB_DATABASE = 1, 2
_NUMBER = struct.Struct("=Q")
# Of a tree: page size (only in metas), flags, depth, branch, leaf and overflow pages, entries, root.
_TREE = struct.Struct("=IHHQQQQQ")
_MAGIC_VERSION = struct.Struct("=II")
_MAGIC = 0xBEEFC0DE
# Magic, version, address and size of the map come before the two trees of a meta; last page and transaction behind.
_META_TREES = _HEADER + 24
_META_TAIL = struct.Struct("=QQ")
_META_BYTES = _META_TREES + 2 * _TREE.size + _META_TAIL.size
# The largest value is the list of a transaction that freed every page of the map: a damaged size must not cost memory.
_MOST_BYTES = 160 << 20
_NO_ROOT = (1 << 64) - 1
_MAX_DEPTH = 32


@dataclass(frozen=True, slots=True)
class Tree:
    """Where a B+tree begins, and what it says of itself."""

    root: int
    depth: int
    entries: int
    # The free list's keys are transaction ids, native integers that LMDB orders by value (MDB_INTEGERKEY).
    integer_keys: bool = False

    def place(self, key: bytes) -> bytes | int:
        """What a key is ordered by in this tree."""
        return int.from_bytes(key, sys.byteorder) if self.integer_keys else key


@dataclass(frozen=True, slots=True)
class Meta:
    """One of the two pages from which everything hangs; the one with the higher transaction counts."""

    page_size: int
    transaction: int
    last_page: int
    free: Tree
    main: Tree


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a tree: its key, and where in the file its value lies, whole."""

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

    @property
    def intact(self) -> bool:
        return not self.problems

    def report(self, page: int, what: str) -> None:
        self.problems.append(f"{self.name}: page {page} {what}")


class DataFile:
    """A data file opened for reading; close it, or use it in a `with` block.  Raises OSError."""

    def __init__(self, path: Path) -> None:
        self._fd = open_own(path, os.O_RDONLY)
        # The page that was read last, and where it begins: most rows lie in it whole.
        self._page, self._page_at = b"", 0
        self.size = os.fstat(self._fd).st_size
        # Of the meta pages, from which everything hangs; and of the free list, from which no row does.
        self.problems: list[str] = []
        self.free_list_problems: list[str] = []
        found = [self._meta(0, 0)]
        # The second page lies where the first one says, or where a page most often ends.
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
        return _parse_meta(number, self.read(offset, _META_BYTES))

    def _compare(self, even: Meta, odd: Meta) -> None:
        """Note what tells that a meta is not what was written, and pick the one that is newest by its free list."""
        self.problems += _differences(even, odd)
        said: list[int | None] = []
        for meta in (even, odd):
            walk = Walk("free list")
            newest = 0
            for row in self.rows(meta.free, walk):
                newest = max(newest, _NUMBER.unpack(row.key)[0] if len(row.key) == 8 else 0)
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

    def essential_problems(self) -> list[str]:
        """What seems wrong with the free list, the main tree and `pending`, and which of their pages are free."""
        if self.meta is None:
            return list(self.problems)
        walks = [Walk("main"), Walk("pending"), Walk("free list")]
        trees = {row.key: self.tree(row) for row in self.rows(self.meta.main, walks[0])}
        pending = trees.get(b"pending")
        for _ in self.rows(pending, walks[1]) if pending is not None else ():
            pass
        for row in self.rows(self.meta.free, walks[2]):
            self._check_free_row(row, walks[2], self.meta.last_page)
        for name in (b"ledger", b"idempotency"):
            tree = trees.get(name)
            if tree is not None:
                walks.append(Walk(name.decode()))
                self._follow_last_path(tree, walks[-1])
        free = self.free_pages()
        for walk in walks:
            if walk.pages & free:
                walk.report(min(walk.pages & free), "is in use and free")
        return [problem for walk in walks for problem in walk.problems]

    def _check_free_row(self, row: Row, walk: Walk, last_page: int) -> None:
        """A row of the free list is a transaction, and how many pages it freed before their numbers, largest first."""
        data = self.read(row.offset, row.size)
        numbers = struct.unpack(f"={len(data) // 8}Q", data[: len(data) // 8 * 8])
        sound = len(row.key) == _NUMBER.size and row.size == len(data) == 8 * len(numbers) and numbers
        if not sound or numbers[0] != len(numbers) - 1 or any(not 2 <= page <= last_page for page in numbers[1:]):
            walk.report(row.offset // self.page_size, "has a list of freed pages that is none")

    def _follow_last_path(self, tree: Tree, walk: Walk) -> None:
        """The pages from the root to the last leaf, which the next settlement copies."""
        number = tree.root
        for depth in range(0 if number == _NO_ROOT else min(tree.depth, _MAX_DEPTH), 0, -1):
            walk.pages.add(number)
            if (number + 1) * self.page_size > self.size:
                walk.report(number, "is behind the end of the file")
                return
            data = self.read(number * self.page_size, self.page_size)
            own, _, flags, lower, upper = _PAGE.unpack_from(data)
            expected = _LEAF if depth == 1 else _BRANCH
            if own != number or flags != expected or not _HEADER < lower <= upper <= self.page_size:
                walk.report(number, f"is damaged: number {own}, flags {flags}, expected {expected}")
                return
            at = _PLACE.unpack_from(data, lower - _PLACE.size)[0]
            if not upper <= at <= self.page_size - _NODE.size:
                walk.report(number, "has a row outside of itself")
                return
            low, high, node_flags, _ = _NODE.unpack_from(data, at)
            number = low | high << 16 | node_flags << 32

    def free_pages(self) -> set[int]:
        """The pages that hold nothing but leftovers, as the newest meta has it."""
        free: set[int] = set()
        if self.meta is not None:
            for row in self.rows(self.meta.free, Walk("free list")):
                data = self.read(row.offset, row.size)
                count = len(data) // 8
                free.update(struct.unpack(f"={count}Q", data[: count * 8])[1:])
        return free

    def rows(self, tree: Tree, walk: Walk) -> Iterator[Row]:
        """The rows of a tree in order.  What cannot be read is left out and noted in `walk`."""
        if tree.root == _NO_ROOT:
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
            yield row
        if walk.rows != tree.entries:
            walk.problems.append(f"{walk.name}: {walk.rows} of {counted(tree.entries, 'row', 'rows')} can be read")

    def tree(self, row: Row) -> Tree | None:
        """The named database that a row of the main one describes, or None."""
        data = self.read(row.offset, row.size)
        return _tree(_TREE.unpack(data)) if row.is_tree and len(data) == _TREE.size else None

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
        own, _, flags, lower, upper = _PAGE.unpack_from(data)
        expected = _LEAF if depth <= 1 else _BRANCH
        if own != number or flags != expected or not _HEADER <= lower <= upper <= self.page_size or lower % 2:
            walk.report(number, f"is damaged: number {own}, flags {flags}, expected {expected}")
            return
        nodes = struct.unpack_from(f"={(lower - _HEADER) // 2}H", data, _HEADER)
        for at in nodes:
            if not upper <= at <= self.page_size - _NODE.size:
                walk.report(number, "has a row outside of itself")
                continue
            low, high, node_flags, key_size = _NODE.unpack_from(data, at)
            if flags == _BRANCH:
                if depth <= _MAX_DEPTH:
                    yield from self._below(low | high << 16 | node_flags << 32, walk, depth - 1)
                continue
            begin = at + _NODE.size
            row = self._row(data, number, begin, key_size, low | high << 16, node_flags, walk)
            if row is not None:
                yield row

    def _row(
        self, data: bytes, number: int, begin: int, key_size: int, size: int, flags: int, walk: Walk
    ) -> Row | None:
        end = begin + key_size
        stored = _NUMBER.size if flags & _BIG_VALUE else size
        if end + stored > self.page_size or flags & ~(_BIG_VALUE | _SUB_DATABASE):
            walk.report(number, "has a row that does not fit into it")
            return None
        key, key_offset = data[begin:end], number * self.page_size + begin
        if not flags & _BIG_VALUE:
            return Row(key, key_offset + key_size, size, key_offset, bool(flags & _SUB_DATABASE))
        big = _NUMBER.unpack_from(data, end)[0]
        if size > _MOST_BYTES:
            walk.report(number, f"has a value of {size} bytes, more than any that an outbox writes")
            return None
        pages = (_HEADER - 1 + size) // self.page_size + 1
        if (big + pages) * self.page_size > self.size:
            walk.report(number, f"has a value of {size} bytes at page {big}, behind the end of the file")
            return None
        own, _, big_flags, count = _OVERFLOW.unpack(self.read(big * self.page_size, _OVERFLOW.size))
        walk.pages.update(range(big, big + pages))
        if (own, big_flags, count) != (big, _BIG, pages):
            walk.report(big, "is damaged: it is not the value that it should be")
        return Row(key, big * self.page_size + _HEADER, size, key_offset, False)


def meta_problems(path: Path, *, most_bytes: int) -> list[str]:
    """What is wrong with the two meta pages of a data file; `most_bytes` is the largest map.  Raises OSError.

    LMDB takes the newer of the metas that it can read: one that has lost bits makes it forget the last commits.
    """
    fd = open_own(path, os.O_RDONLY)
    try:
        first = _parse_meta(0, os.pread(fd, _META_BYTES, 0))
        second_at = first.page_size if first is not None else os.sysconf("SC_PAGESIZE")
        second = _parse_meta(1, os.pread(fd, _META_BYTES, second_at))
        if first is None or second is None:
            return [f"{'one of the two meta pages is' if first or second else 'both meta pages are'} damaged"]
        newest = max(first, second, key=lambda meta: meta.transaction)
        freed_by = _last_free_key(fd, newest)
    finally:
        os.close(fd)
    problems = _differences(first, second)
    if freed_by not in (None, newest.transaction) and newest.transaction > 1:
        problems.append(f"a meta page says transaction {newest.transaction}, its free list says {freed_by}")
    if (newest.last_page + 1) * newest.page_size > most_bytes:
        problems.append(f"a meta page has {newest.last_page} as its last page, more than the map can hold")
    return problems


def _last_free_key(fd: int, meta: Meta) -> int | None:
    """The newest transaction in a free list, 0 for an empty one; None where that cannot be read.

    Each commit frees at least the root that it replaces, and lists it under its own number.
    """
    if meta.free.root == _NO_ROOT:
        return 0
    number, size = meta.free.root, meta.page_size
    for depth in range(min(meta.free.depth, _MAX_DEPTH), 0, -1):
        if (number + 1) * size > os.fstat(fd).st_size:
            return None
        data = os.pread(fd, size, number * size)
        own, _, flags, lower, upper = _PAGE.unpack_from(data)
        if own != number or flags != (_LEAF if depth == 1 else _BRANCH) or not _HEADER < lower <= upper <= size:
            return None
        at = struct.unpack_from("=H", data, lower - 2)[0]
        if at + _NODE.size + _NUMBER.size > size:
            return None
        low, high, node_flags, key_size = _NODE.unpack_from(data, at)
        if depth == 1:
            return int(_NUMBER.unpack_from(data, at + _NODE.size)[0]) if key_size == _NUMBER.size else None
        number = low | high << 16 | node_flags << 32
    return None


def _parse_meta(number: int, data: bytes) -> Meta | None:
    if len(data) < _META_BYTES:
        return None
    page, _, flags, _, _ = _PAGE.unpack_from(data)
    magic, version = _MAGIC_VERSION.unpack_from(data, _HEADER)
    free, main = (_TREE.unpack_from(data, _META_TREES + at * _TREE.size) for at in range(2))
    last_page, transaction = _META_TAIL.unpack_from(data, _META_TREES + 2 * _TREE.size)
    size = free[0]
    sound = (page, flags, magic, version) == (number, _META, _MAGIC, 1)
    if not sound or not 512 <= size <= 0x8000 or size & (size - 1):
        return None
    return Meta(size, transaction, last_page, _tree(free, integer_keys=True), _tree(main))


def _differences(even: Meta, odd: Meta) -> list[str]:
    """Where the two metas contradict each other.

    LMDB writes them in turn, so each transaction stands in its own and the other is one behind.  Otherwise a meta is
    taken for the newest that is not, and the last commits vanish without another trace.
    """
    found: list[str] = []
    if even.page_size != odd.page_size:
        found.append("the two meta pages differ in their page size")
    if even.transaction % 2 or (odd.transaction % 2 != 1 and odd.transaction):
        found.append("a meta page has the other one's turn")
    if abs(even.transaction - odd.transaction) != 1 and (even.transaction or odd.transaction):
        found.append(f"the meta pages are of transactions {even.transaction} and {odd.transaction}")
    return found


def _tree(fields: tuple[int, ...], *, integer_keys: bool = False) -> Tree:
    return Tree(root=fields[7], depth=fields[2], entries=fields[6], integer_keys=integer_keys)
