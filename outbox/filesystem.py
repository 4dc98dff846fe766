"""What the store asks of the file system: flushed directories, a local disk, a file that is still in its place."""

from __future__ import annotations

import ctypes
import logging
import os
import struct
import sys
from pathlib import Path
from typing import Any

from .errors import ConfigError

_log = logging.getLogger("outbox.filesystem")

# Local semantics of flock and mmap are needed; these do not give them (man 2 flock; LMDB's "Caveats").
_REMOTE_FILESYSTEMS = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "fuse.sshfs", "ceph", "glusterfs", "afs"}
)
_AT_FDCWD = -100
_STATX_INO = 0x100
# struct statx: its size, and in it the inode number and the two numbers of the device.
_STATX_BYTES = 256
_ANSWER = struct.Struct("=32xQ96xII")


def _find_statx() -> Any:
    """The C library's function, or None where there is none."""
    function = getattr(ctypes.CDLL(None), "statx", None) if sys.platform == "linux" else None
    if function is not None:
        function.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_uint, ctypes.c_char_p)
        function.restype = ctypes.c_int
    return function


_statx = _find_statx()


def file_identity(path: bytes) -> tuple[int, int, int]:
    """What tells the file that `path` leads to from every other: inode, and device in two numbers.

    Costs the file's next flush nothing, unlike `os.stat`: since Linux 6.13 a file whose times were asked for gets an
    exact stamp at its next write, which goes through the file system's journal ("multigrain timestamps",
    Documentation/filesystems/multigrain-ts.rst of the kernel).  Called after each commit of LMDB that was measured to
    make the next commit a fifth slower.  statx(2) can be asked for the inode alone.  Raises OSError as `os.stat` does.
    """
    if _statx is not None:
        answer = ctypes.create_string_buffer(_STATX_BYTES)
        if _statx(_AT_FDCWD, path, 0, _STATX_INO, answer) == 0:
            inode, major, minor = _ANSWER.unpack_from(answer)
            return inode, major, minor
    # No such function, or it failed: a sandbox may refuse it, and everything else fails here too, with its own error.
    info = os.stat(path)
    return info.st_ino, os.major(info.st_dev), os.minor(info.st_dev)


def make_durably(folder: Path) -> None:
    """Make a directory and its parents so that a power cut does not take them away with all that is in them."""
    if not folder.exists():
        make_durably(folder.parent)
        folder.mkdir(exist_ok=True)
        flush_directory(folder.parent)


def flush_directory(directory: Path) -> None:
    """fsync a directory, so that renames in it survive power loss."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def refuse_remote(path: Path) -> None:
    """Raise `ConfigError` on a network file system; warn on tmpfs, which no power cut survives."""
    kind = filesystem_of(path)
    if kind in _REMOTE_FILESYSTEMS:
        raise ConfigError(f"{path} is on a network file system ({kind})", hint="put OUTBOX_DIR on a local disk")
    if kind in ("tmpfs", "ramfs"):
        _log.warning("outbox directory is in memory and will not survive a power cut", extra={"path": str(path)})


def filesystem_of(path: Path) -> str:
    """The type of the file system that holds `path`; empty where the platform does not tell."""
    try:
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return ""
    resolved, best, kind = os.path.realpath(path), "", ""
    for line in lines:
        left, _, right = line.partition(" - ")
        mount = left.split()[4].encode().decode("unicode_escape")
        inside = mount == "/" or resolved == mount or resolved.startswith(mount + "/")
        if inside and len(mount) >= len(best):
            best, kind = mount, right.split()[0]
    return kind
