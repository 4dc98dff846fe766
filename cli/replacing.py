"""Writes a command's file completely and in one rename, or not at all, and never over a device."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from outbox.store.identity import is_of_a_store

from ..store.creation import prefix_of, workpiece
from .common import Refused

_ELSEWHERE = "name another file"
_WAYS_OUT = {
    errno.ENOENT: "make the directory first, or name another file",
    errno.ENOTDIR: _ELSEWHERE,
    errno.EACCES: "run it as a user who may, or name another file",
    errno.EPERM: "run it as a user who may, or name another file",
    errno.EROFS: _ELSEWHERE,
    errno.ENOSPC: "free space there, or name another file",
    errno.EDQUOT: "free space there, or name another file",
    errno.ENAMETOOLONG: "name it shorter",
}


@contextmanager
def replacing(file: Path, mode: int) -> Iterator[Callable[[bytes], object]]:
    """What writes the new content of `file`, which appears at the end of the block with this mode, on the disk.

    Where `file` is a link, what it leads to is replaced.  Raises `Refused` for what cannot be written, and then nothing
    has changed.
    """
    with ExitStack() as stack:
        with _naming(file):
            target = file.resolve()
            _check(file, target)
            place = workpiece(prefix_of(target.name, "writing"), target.parent)
            path, descriptor = stack.enter_context(place)

        def write(data: bytes) -> None:
            with _naming(file):
                view = memoryview(data)
                while view:
                    view = view[os.write(descriptor, view) :]

        yield write
        with _naming(file):
            os.fchmod(descriptor, mode)
            os.fsync(descriptor)
            os.replace(path, target)


def _check(file: Path, target: Path) -> None:
    """Refuse what a rename must not replace: as root it would replace even /dev/null."""
    if is_of_a_store(target):
        raise Refused(f"{file} cannot be written: it is a store's own file ({_ELSEWHERE})")
    try:
        found = target.stat().st_mode
    except FileNotFoundError:
        return
    if stat.S_ISDIR(found):
        raise Refused(f"{file} cannot be written: it is a directory (name a file in it)")
    if not stat.S_ISREG(found):
        raise Refused(f"{file} cannot be written: it is no regular file (name a file that may be replaced)")


@contextmanager
def _naming(file: Path) -> Iterator[None]:
    """An OSError within the block names `file`, not a temporary file beside it, and a way out."""
    try:
        yield
    except OSError as exc:
        way_out = _WAYS_OUT.get(exc.errno or 0, _ELSEWHERE)
        raise Refused(f"{file} cannot be written: {exc.strerror or exc} ({way_out})") from exc
