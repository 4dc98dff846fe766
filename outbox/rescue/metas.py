"""Metas: the two meta pages, the roots of an LMDB 0.9 data file, read without LMDB.

The layout is that of `mdb.c` of LMDB 0.9 on 64-bit machines in native byte order.  Only for a file that nobody writes
to.
"""

from __future__ import annotations

import os
import struct
import sys
from dataclasses import dataclass
from pathlib import Path

from ..store.own_files import open_own

# Of a page: number, unused, flags, then `lower` and `upper` of a tree's page.
PAGE = struct.Struct("=QHHHH")
HEADER = PAGE.size
BRANCH, LEAF, BIG, _META = 1, 2, 4, 8
# Of a node: the low and high half of the value's size (of a leaf) or of the child's number, flags, size of the key.
NODE = struct.Struct("=HHHH")
NUMBER = struct.Struct("=Q")
# Of a tree: page size (only in metas), flags, depth, branch, leaf and overflow pages, entries, root.
TREE = struct.Struct("=IHHQQQQQ")
_MAGIC_VERSION = struct.Struct("=II")
_MAGIC = 0xBEEFC0DE
# Magic, version, address and size of the map come before the two trees of a meta; last page and transaction behind.
_META_TREES = HEADER + 24
_META_TAIL = struct.Struct("=QQ")
META_BYTES = _META_TREES + 2 * TREE.size + _META_TAIL.size
NO_ROOT = (1 << 64) - 1
MAX_DEPTH = 32


@dataclass(frozen=True, slots=True)
class Tree:
    """A B+tree's root page and its counts."""

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


def meta_problems(path: Path, *, most_bytes: int) -> list[str]:
    """What is wrong with the two meta pages of a data file; `most_bytes` is the largest map.  Raises OSError.

    LMDB takes the newer of the metas that it can read: one that has lost bits makes it forget the last commits.
    """
    fd = open_own(path, os.O_RDONLY)
    try:
        first = parse_meta(0, os.pread(fd, META_BYTES, 0))
        second_at = first.page_size if first is not None else os.sysconf("SC_PAGESIZE")
        second = parse_meta(1, os.pread(fd, META_BYTES, second_at))
        if first is None or second is None:
            return [f"{'one of the two meta pages is' if first or second else 'both meta pages are'} damaged"]
        newest = max(first, second, key=lambda meta: meta.transaction)
        freed_by = _last_free_key(fd, newest)
    finally:
        os.close(fd)
    problems = differences(first, second)
    if freed_by not in (None, newest.transaction) and newest.transaction > 1:
        problems.append(f"a meta page says transaction {newest.transaction}, its free list says {freed_by}")
    if (newest.last_page + 1) * newest.page_size > most_bytes:
        problems.append(f"a meta page has {newest.last_page} as its last page, more than the map can hold")
    return problems


def _last_free_key(fd: int, meta: Meta) -> int | None:
    """The newest transaction in a free list, 0 for an empty one; None where that cannot be read.

    Each commit frees at least the root that it replaces, and lists it under its own number.
    """
    if meta.free.root == NO_ROOT:
        return 0
    number, size = meta.free.root, meta.page_size
    for depth in range(min(meta.free.depth, MAX_DEPTH), 0, -1):
        if (number + 1) * size > os.fstat(fd).st_size:
            return None
        data = os.pread(fd, size, number * size)
        own, _, flags, lower, upper = PAGE.unpack_from(data)
        if own != number or flags != (LEAF if depth == 1 else BRANCH) or not HEADER < lower <= upper <= size:
            return None
        at = struct.unpack_from("=H", data, lower - 2)[0]
        if at + NODE.size + NUMBER.size > size:
            return None
        low, high, node_flags, key_size = NODE.unpack_from(data, at)
        if depth == 1:
            return int(NUMBER.unpack_from(data, at + NODE.size)[0]) if key_size == NUMBER.size else None
        number = low | high << 16 | node_flags << 32
    return None


def parse_meta(number: int, data: bytes) -> Meta | None:
    if len(data) < META_BYTES:
        return None
    page, _, flags, _, _ = PAGE.unpack_from(data)
    magic, version = _MAGIC_VERSION.unpack_from(data, HEADER)
    free, main = (TREE.unpack_from(data, _META_TREES + at * TREE.size) for at in range(2))
    last_page, transaction = _META_TAIL.unpack_from(data, _META_TREES + 2 * TREE.size)
    size = free[0]
    sound = (page, flags, magic, version) == (number, _META, _MAGIC, 1)
    if not sound or not 512 <= size <= 0x8000 or size & (size - 1):
        return None
    return Meta(size, transaction, last_page, tree_of(free, integer_keys=True), tree_of(main))


def differences(even: Meta, odd: Meta) -> list[str]:
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


def tree_of(fields: tuple[int, ...], *, integer_keys: bool = False) -> Tree:
    return Tree(root=fields[7], depth=fields[2], entries=fields[6], integer_keys=integer_keys)
