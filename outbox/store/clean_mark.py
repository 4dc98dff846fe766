"""Clean mark: whether the last user of a store closed it properly, and it has not been written to since."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from .identity import CLEAN_FILE, DATA_FILE
from .own_files import as_owner, open_own, read_own


def mark_clean(directory: Path) -> None:
    """Note that the store was closed properly by its last user, with the data file as it is now."""
    fd = open_own(directory / CLEAN_FILE, os.O_WRONLY | os.O_CREAT)
    try:
        os.ftruncate(fd, 0)
        os.write(fd, _fingerprint(directory))
    finally:
        os.close(fd)


def take_clean_mark(directory: Path, *, keep: bool = False) -> bool:
    """Whether the last shutdown was clean and the file unchanged since; removes the mark unless `keep`."""
    path = directory / CLEAN_FILE
    try:
        clean = read_own(path) == _fingerprint(directory)
    except FileNotFoundError:
        return False
    if not keep:
        try:
            with as_owner(directory):
                path.unlink(missing_ok=True)
        except OSError as exc:
            if exc.errno != errno.EROFS:  # on a read-only file system it stays true
                raise
    return clean


def _fingerprint(directory: Path) -> bytes:
    info = os.stat(directory / DATA_FILE)
    return b"%d %d %d\n" % (info.st_size, info.st_mtime_ns, info.st_ino)
