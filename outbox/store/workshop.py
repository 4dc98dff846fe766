"""Workshop: a temporary directory or file, and the removal of those that killed processes left behind.

Its maker holds a flock on it, which ends with the process, also in another container.  What nobody holds is a
leftover: it may be as large as the store, and as confidential.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..log import Log

_log = Log("outbox.store")

# Of a name that is part of a prefix: with the rest it must not be too long for the file system.
_NAME_CHARS = 50


def prefix_of(name: str, purpose: str) -> str:
    """How what is made beside `name` is called."""
    return f".{name[:_NAME_CHARS]}.{purpose}-"


@contextmanager
def workshop(prefix: str, parent: Path) -> Iterator[Path]:
    """A new directory of mode 0700, removed at the end of the block unless it was moved away.

    Raises OSError where it cannot be made.
    """
    path, held = _made(prefix, parent, directory=True)
    try:
        yield path
    finally:
        try:
            shutil.rmtree(path, ignore_errors=True)
        finally:
            os.close(held)


@contextmanager
def workpiece(prefix: str, parent: Path) -> Iterator[tuple[Path, int]]:
    """A new file of mode 0600 and its descriptor, removed at the end of the block unless it was moved away.

    Raises OSError where it cannot be made.
    """
    path, held = _made(prefix, parent, directory=False)
    try:
        yield path, held
    finally:
        try:
            with suppress(FileNotFoundError):
                os.unlink(path)
        finally:
            os.close(held)


def clear(prefix: str, parent: Path) -> None:
    """Remove what was made with this prefix by processes of this user that have ended."""
    try:
        found = [entry.path for entry in os.scandir(parent) if entry.name.startswith(prefix)]
    except OSError:  # a directory need not be readable for what is made in it
        return
    for path in found:
        with suppress(OSError):
            _remove_unless_held(Path(path))


def _made(prefix: str, parent: Path, *, directory: bool) -> tuple[Path, int]:
    clear(prefix, parent)
    while True:
        if directory:
            path = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
            try:
                held = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
        else:
            held, name = tempfile.mkstemp(prefix=prefix, dir=parent)
            path = Path(name)
        try:
            _hold(held)
            # Until it was held another process may have taken it for a leftover.
            if _is_at(held, path):
                return path, held
        except BaseException:
            os.close(held)
            raise
        os.close(held)


def _hold(descriptor: int) -> None:
    # Where the file system has no locks, no other process can lock it either, and it is left alone.
    with suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False


def _remove_unless_held(path: Path) -> None:
    """Raises OSError where it is held, or is not this user's."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        found = os.fstat(descriptor)
        if found.st_uid != os.geteuid():
            return
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not _is_at(descriptor, path):
            return
        if stat.S_ISDIR(found.st_mode):
            shutil.rmtree(path)
        elif stat.S_ISREG(found.st_mode):
            os.unlink(path)
        _log.info("removed %(path)s, which a process that was killed has left", path=path)
    finally:
        os.close(descriptor)
