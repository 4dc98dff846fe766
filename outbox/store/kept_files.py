"""Kept files: the files of a store that must stay in their place, and open, while a process uses it.

A commit into a file that was removed or replaced is lost.  A program that closes all descriptors, as libraries for
daemons do, lets its next files have their numbers: LMDB would write the store's pages into those, and a lock would be
of another file.  So each is known by its identity.  `InDelivery` is such a lock, on the numbers of entries: see
`withdrawal.py`.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import EntryInDelivery
from .own_files import open_own

_AT_FDCWD = -100
_AT_EMPTY_PATH = 0x1000
_STATX_INO = 0x100
# struct statx: its size, and in it the inode number and the two numbers of the device.
_Buffer = ctypes.c_char * 256
_ANSWER = struct.Struct("=32xQ96xII")


def _find_statx() -> Any:
    """The C library's function, or None where there is none."""
    function = getattr(ctypes.CDLL(None), "statx", None) if sys.platform == "linux" else None
    if function is not None:
        function.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_uint, ctypes.c_char_p)
        function.restype = ctypes.c_int
    return function


_statx = _find_statx()

# A file's identity: inode, and device in two numbers.
Identity = tuple[int, int, int]


def file_identity(path: bytes) -> Identity:
    """The identity of the file that `path` leads to: inode, and device in two numbers.

    Costs the file's next flush nothing, unlike `os.stat`: since Linux 6.13 a file whose times were asked for gets an
    exact stamp at its next write, which goes through the file system's journal ("multigrain timestamps",
    Documentation/filesystems/multigrain-ts.rst of the kernel).  Called after each commit of LMDB that was measured to
    make the next commit a fifth slower.  statx(2) can be asked for the inode alone.  Raises OSError as `os.stat` does.
    """
    found = _asked(_AT_FDCWD, path, 0)
    # No such function, or it failed: a sandbox may refuse it, and everything else fails here too, with its own error.
    return _identity_in(os.stat(path)) if found is None else found


def descriptor_identity(descriptor: int) -> Identity:
    """`file_identity` of the file that is open as `descriptor`.  Raises OSError as `os.fstat` does."""
    found = _asked(descriptor, b"", _AT_EMPTY_PATH)
    return _identity_in(os.fstat(descriptor)) if found is None else found


def _asked(folder: int, path: bytes, flags: int) -> Identity | None:
    """What statx(2) answers; None where it cannot be had."""
    answer = _Buffer()
    if _statx is None or _statx(folder, path, flags, _STATX_INO, answer) != 0:
        return None
    inode, major, minor = _ANSWER.unpack_from(answer)
    return inode, major, minor


def _identity_in(info: os.stat_result) -> Identity:
    return info.st_ino, os.major(info.st_dev), os.minor(info.st_dev)


def is_open_as(descriptor: int, identity: Identity) -> bool:
    """Whether `descriptor` still is that file; where the program has closed it, another file may have its number."""
    try:
        return descriptor_identity(descriptor) == identity
    except OSError:
        return False


@dataclass(frozen=True, slots=True)
class KeptFile:
    """A file that must stay in its place.  `descriptors`: the numbers under which LMDB has it open."""

    path: bytes
    identity: Identity
    descriptors: tuple[int, ...] = ()

    @classmethod
    def at(cls, path: Path) -> KeptFile:
        """The file at `path`, which LMDB has opened.  Raises OSError."""
        identity = file_identity(os.fsencode(path))
        try:
            numbers = [int(name) for name in os.listdir("/dev/fd")]
        except (OSError, ValueError):  # the system does not list them
            numbers = []
        return cls(os.fsencode(path), identity, tuple(one for one in numbers if is_open_as(one, identity)))

    @property
    def is_open(self) -> bool:
        """Whether its descriptors are still its own."""
        return all(is_open_as(number, self.identity) for number in self.descriptors)

    def check(self) -> None:
        """Raise FileNotFoundError where another file or none is there."""
        try:
            if file_identity(self.path) == self.identity:
                return
        except (FileNotFoundError, NotADirectoryError):
            pass
        raise FileNotFoundError(errno.ENOENT, "removed or replaced while it was open", os.fsdecode(self.path))

    def check_open(self) -> None:
        """Raise OSError (EBADF) where the program has closed its descriptors."""
        if not self.is_open:
            raise OSError(errno.EBADF, "its descriptors were closed by the program", os.fsdecode(self.path))


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
