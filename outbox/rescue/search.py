"""Search: finds records anywhere in the file by their first bytes, where a tree is damaged."""

from __future__ import annotations

from collections.abc import Iterator

from ..entry import EntryStatus
from ..store import small
from ..store.envelope import BEGINNING, OVERHEAD, Record, claims
from .pages import DataFile

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
