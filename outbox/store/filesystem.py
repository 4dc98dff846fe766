"""The store's file system: flushes directories, detects network disks."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

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
