"""Withdrawal: an operator discards an entry that is still pending.

The rule: an entry is either in a relay's batch or being discarded, never both.  A relay locks the sequence numbers of
its batch in `relay.lock` before it hands the batch to PostgreSQL, and looks then whether anything was discarded since
it read the batch; an operator's process locks those that it discards.  The kernel drops the locks of a process that
ends.  What such a process had sent may have been applied, so the next relay asks PostgreSQL for the receipts of what
was discarded, and an entry that has one counts as completed.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..entry import EntryStatus
from ..errors import EntryInDelivery, EntryNotFound
from . import ledger
from .envelope import Counters, Record, discarded, pack, seq_key, unpack
from .environment import Environment
from .filesystem import descriptor_identity, is_open_as
from .own_files import open_own

# Entries that were discarded while pending, and whose receipts have not been looked up yet.
PREFIX = b"outbox:withdrawn:"
_LOCK_FILE = "relay.lock"
# `struct flock`: type, whence, start, length, pid.
_FLOCK = struct.Struct("hhqqi0q")
_HELD_ELSEWHERE = (errno.EAGAIN, errno.EACCES)
Range = tuple[int, int]


class InDelivery:
    """The sequence numbers that one process keeps others from discarding, or from delivering."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / _LOCK_FILE
        # With a description of its own: locks of this kind belong to it, not to the process.
        self._fd = self._opened()
        self._held: set[Range] = set()
        _open.add(self)

    def claim(self, first: int, last: int) -> bool:
        """Lock these sequence numbers; False where another holder has one of them.  Raises OSError."""
        if not is_open_as(self._fd, self._identity) or not os.fstat(self._fd).st_nlink:
            self._renew()
        try:
            self._lock(fcntl.F_WRLCK, first, last)
        except OSError as exc:
            if exc.errno not in _HELD_ELSEWHERE:
                raise
            return False
        self._held.add((first, last))
        return True

    def _renew(self) -> None:
        """Go over to the next file, as others do, where this one was removed.

        Where its directory is gone there are no others, and what is pending is to be delivered from the open store.
        """
        former = self._fd if is_open_as(self._fd, self._identity) else None
        try:
            opened = self._opened()
        except FileNotFoundError:
            if former is None:
                raise
            return
        if former is not None:
            os.close(former)
        self._held.clear()
        self._fd = opened

    def keep(self, *wanted: Range) -> None:
        """Unlock everything but `wanted`."""
        if not is_open_as(self._fd, self._identity):
            self.close()
        for held in self._held.difference(wanted):
            self._lock(fcntl.F_UNLCK, *held)
            self._held.discard(held)

    def close(self) -> None:
        """Unlock everything; may be called twice."""
        # A program that closes all descriptors lets another file of its own have the number.
        if is_open_as(self._fd, self._identity):
            os.close(self._fd)
        self._fd = -1
        self._held.clear()

    def _opened(self) -> int:
        descriptor = open_own(self._path, os.O_RDWR | os.O_CREAT)
        self._identity = descriptor_identity(descriptor)
        return descriptor

    def _lock(self, kind: int, first: int, last: int) -> None:
        fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, first, last - first + 1, 0))


# A forked child shares its parent's descriptors, and would keep the locks of a parent that was killed.
_open: weakref.WeakSet[InDelivery] = weakref.WeakSet()


def _forget_after_fork() -> None:
    for one in list(_open):
        one.close()


os.register_at_fork(after_in_child=_forget_after_fork)


@contextmanager
def not_in_delivery(directory: Path, first: int, last: int) -> Iterator[None]:
    """Keep relays from delivering these sequence numbers within the block.  Raises `EntryInDelivery`."""
    lock = InDelivery(directory)
    try:
        if not lock.claim(first, last):
            raise EntryInDelivery(
                f"entry {first} is being delivered right now"
                if first == last
                else f"entries {first} to {last}, one transaction, are being delivered right now",
                hint="nothing was changed; try again in a moment",
            )
        yield
    finally:
        lock.close()


def members(record: Record) -> Range:
    """The sequence numbers of the transaction that `record` belongs to."""
    return (record.group, record.group + record.members - 1) if record.group else (record.seq, record.seq)


# -- bodies of transactions of `Store`, as in `ledger`


def discard(
    environment: Environment,
    txn: Any,
    counters: Counters,
    seq: int,
    reason: str,
    audit: Record,
    now_us: int,
    *,
    free_key: bool,
) -> list[Record]:
    """Move pending entry `seq`, and what is pending of its group, into the ledger.  Raises `EntryNotFound`."""
    data = txn.get(seq_key(seq), db=environment.pending)
    if data is None:
        raise EntryNotFound(f"entry {seq} is not pending any more", hint="look at it with `atb outbox show`")
    first, last = members(unpack(seq, data))
    released = []
    for number in range(first, last + 1):
        data = txn.get(seq_key(number), db=environment.pending)
        if data is None:
            continue
        record = unpack(number, data)
        error = discarded(reason, record.error or "pending")
        settled = record.settled(EntryStatus.FAILED, now_us, error=error)
        txn.delete(seq_key(number), db=environment.pending)
        txn.put(seq_key(number), pack(settled), db=environment.ledger)
        txn.put(PREFIX + seq_key(number), b"")
        if free_key:
            txn.delete(record.key, db=environment.idempotency)
        released.append(settled)
    counters.discarded += len(released)
    counters.releases += 1
    ledger.note(environment, txn, counters, audit, now_us)
    return released


def confirm(environment: Environment, txn: Any, counters: Counters, asked: Sequence[int], applied: set[int]) -> None:
    """Forget what was `asked` for; those `applied` count as completed."""
    for seq in asked:
        txn.delete(PREFIX + seq_key(seq))
        data = txn.get(seq_key(seq), db=environment.ledger) if seq in applied else None
        if data is None:
            continue
        record = unpack(seq, data)
        if record.status is EntryStatus.FAILED and record.is_discarded:
            done = replace(record, status=EntryStatus.COMPLETED, error=None, raw=b"")
            txn.put(seq_key(seq), pack(done), db=environment.ledger)
            counters.discarded -= 1
            counters.completed += 1
