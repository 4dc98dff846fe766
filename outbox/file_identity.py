"""Which file a path names, asked in a way that costs the file's next flush nothing.

Since Linux 6.13 a file whose times were asked for gets an exact stamp at its next write, and that stamp goes through
the file system's journal ("multigrain timestamps", Documentation/filesystems/multigrain-ts.rst of the kernel).
`os.stat` asks for them: called after each commit of LMDB it was measured to make each next commit a fifth slower.
statx(2) can be asked for the inode number alone.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from typing import Any

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

    Raises OSError as `os.stat` does.
    """
    if _statx is not None:
        answer = ctypes.create_string_buffer(_STATX_BYTES)
        if _statx(_AT_FDCWD, path, 0, _STATX_INO, answer) == 0:
            inode, major, minor = _ANSWER.unpack_from(answer)
            return inode, major, minor
    # No such function, or it failed: a sandbox may refuse it, and everything else fails here too, with its own error.
    info = os.stat(path)
    return info.st_ino, os.major(info.st_dev), os.minor(info.st_dev)
