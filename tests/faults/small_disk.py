"""A file system of a few megabytes that only the calling process sees and that goes with it: nothing to unmount."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress
from pathlib import Path

_NEW_NS, _NEW_USER = 0x00020000, 0x10000000
_PRIVATE, _RECURSIVE = 1 << 18, 1 << 14


def mount(folder: Path, size: int) -> None:
    """Mount a tmpfs of `size` bytes there, in a mount namespace of this process's own.

    Works as root, and for others where user namespaces are allowed.  Raises OSError where they are not.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.geteuid(), os.getegid()
    flags = _NEW_NS if user == 0 else _NEW_NS | _NEW_USER
    _check(libc.unshare(flags), "no mount namespace of our own")
    if user != 0:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    _check(libc.mount(b"none", b"/", None, _PRIVATE | _RECURSIVE, None), "the mounts cannot be made private")
    options = f"size={size},mode=0700".encode()
    _check(libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, options), "no tmpfs can be mounted")


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def available(folder: Path) -> str:
    """Why `mount` does not work here; empty where it does.  Tried in a forked child."""
    child = os.fork()
    if child == 0:
        code = 1
        with suppress(OSError):
            mount(folder, 1 << 20)
            code = 0
        os._exit(code)
    works = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    return "" if works else "neither root nor user namespaces: no small disk can be mounted"


def fill(ballast: Path, free: int) -> None:
    """Let `ballast` take all but `free` bytes of its file system."""
    ballast.unlink(missing_ok=True)
    info = os.statvfs(ballast.parent)
    size = info.f_bavail * info.f_frsize - free
    if size > 0:
        with open(ballast, "wb") as file:
            os.posix_fallocate(file.fileno(), 0, size)
