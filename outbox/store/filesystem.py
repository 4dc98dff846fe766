"""The store's file system: flushes directories, detects network disks and moved files."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import struct
import sys
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..log import Log

_log = Log("outbox.filesystem")

# Local semantics of flock and mmap are needed; these do not give them (man 2 flock; LMDB's "Caveats"): file systems of
# a network, of a cluster, and those that a hypervisor shares with its guest.
_REMOTE_FILESYSTEMS = frozenset(
    {
        *("nfs", "nfs3", "nfs4", "cifs", "smb2", "smb3", "smbfs", "ncpfs", "afs", "afpfs", "coda", "davfs", "9p"),
        *("ceph", "glusterfs", "lustre", "gpfs", "beegfs", "orangefs", "pvfs2", "ocfs2", "gfs", "gfs2", "moosefs"),
        *("virtiofs", "vboxsf", "prl_fs", "drvfs", "vmhgfs", "hgfs", "mfs", "juicefs", "acfs", "panfs", "wekafs"),
    }
)
# FUSE names what stands behind it, and most of that is remote; these are on a disk of this machine.
_LOCAL_FUSE = frozenset({"fuseblk", "fuse.ntfs-3g", "fuse.ntfs", "fuse.exfat", "fuse.lklfuse"})
# What a container writes outside of its volumes is in a layer of its own, which is removed with it.
_CONTAINER_LAYERS = frozenset({"overlay", "aufs", "fuse.fuse-overlayfs"})
_REMOTE_FUSE = frozenset(
    {
        *("fuse.sshfs", "fuse.ceph-fuse", "fuse.s3fs", "fuse.rclone", "fuse.gcsfuse", "fuse.goofys", "fuse.curlftpfs"),
        *("fuse.grpcfuse", "fuse.osxfs", "fuse.vmhgfs-fuse", "fuse.bindfs", "fuse.seaweedfs", "fuse.blobfuse2"),
    }
)
# A directory that cannot be flushed: immutable, or of a file system that has no such call.
_NO_FLUSH = frozenset({errno.EINVAL, errno.EROFS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EACCES})
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


def flush_parent(directory: Path) -> None:
    """fsync the parent of a directory, where the system can: of a mount point no rename in it need be flushed."""
    try:
        flush_directory(directory.parent)
    except OSError as exc:
        if exc.errno not in _NO_FLUSH:
            raise


def refuse_remote(path: Path) -> None:
    """Raise `ConfigError` on a file system of a network or a hypervisor.

    Warns on tmpfs, which no power cut survives, on the layer of a container, and on file systems behind FUSE of which
    nothing is known.
    """
    kind = filesystem_of(path)
    if kind.removeprefix("fuse.") in _REMOTE_FILESYSTEMS or kind in _REMOTE_FUSE:
        raise ConfigError(
            f"{path} is on a network file system or a shared folder ({kind})", hint="put OUTBOX_DIR on a local disk"
        )
    if kind in ("tmpfs", "ramfs"):
        _log.warning("outbox directory %(path)s is in memory and will not survive a power cut", path=path)
    elif kind in _CONTAINER_LAYERS:
        _log.warning("outbox directory %(path)s is on an overlay: a container's own layer is lost with it", path=path)
    elif kind.startswith("fuse") and kind not in _LOCAL_FUSE:
        _log.warning("outbox directory %(path)s is on %(kind)s: it must be a local disk", path=path, kind=kind)


def filesystem_of(path: Path) -> str:
    """The type of the file system that holds `path`; empty where the platform does not report it."""
    try:
        # The names of mounts are bytes, and those of strangers need be no text.
        text = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return ""
    resolved, best, kind = os.fsencode(os.path.realpath(path)), b"", ""
    for line in filter(None, text.split("\n")):
        left, _, right = line.partition(" - ")
        mount = _unescaped(left.split(" ")[4])
        inside = mount == b"/" or resolved == mount or resolved.startswith(mount + b"/")
        if inside and len(mount) >= len(best):
            best, kind = mount, right.split(" ")[0]
    return kind


def _unescaped(name: str) -> bytes:
    r"""The bytes of a mount's name, in which the kernel writes blanks, tabs, newlines and backslashes as \ooo."""
    raw = name.encode("utf-8", "surrogateescape")
    return re.sub(rb"\\([0-7]{3})", lambda match: bytes((int(match[1], 8),)), raw)
