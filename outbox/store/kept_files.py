"""Kept files: the files of a store that must stay in their place, and open, while a process uses it.

A commit into a file that was removed or replaced is lost.  A program that closes all descriptors, as libraries for
daemons do, lets its next files have their numbers: LMDB would write the store's pages into those.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path

from .filesystem import Identity, file_identity, is_open_as


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
