"""What a role of one process tells others about itself, outside the store.

The relay's heartbeat and the engine's halt latch must be visible from another process, also when LMDB can no
longer commit, and a heartbeat must not cost a flush.  So each role has a small file of fixed size that is
overwritten in place: it needs no new disk space.
"""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from typing import Any

from .. import codec
from .own_files import open_own, read_own

_SIZE = 4096
_CRC_BYTES = 8


class StateFile:
    """A fixed-size record at `path` (mode 0600).  Not durable, and torn writes read as absent.

    `write` is for the one process that holds the role; `read` is for anybody.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, state: dict[str, Any]) -> None:
        """Overwrite the record.  Raises OSError."""
        body = codec.to_json(state)
        body = body if len(body) <= _SIZE - _CRC_BYTES else codec.to_json({"pid": state.get("pid")})
        body = body.ljust(_SIZE - _CRC_BYTES)
        fd = open_own(self._path, os.O_WRONLY | os.O_CREAT)
        try:
            os.pwrite(fd, b"%08x" % zlib.crc32(body) + body, 0)
        finally:
            os.close(fd)

    def read(self) -> dict[str, Any] | None:
        """The last record, or None where there is none or it is torn.  Raises PermissionError."""
        try:
            data = read_own(self._path)
        except FileNotFoundError:
            return None
        body = data[_CRC_BYTES:]
        if len(data) != _SIZE or data[:_CRC_BYTES] != b"%08x" % zlib.crc32(body):
            return None
        state = codec.from_json(body)
        return state if isinstance(state, dict) else None
