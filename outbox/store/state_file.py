"""State file: the report of the engine or the relay to other processes, outside the store.

The relay's heartbeat and the engine's halt latch must be visible from another process, also when LMDB can no
longer commit, and a heartbeat must not cost a flush.  So each role has a small file of fixed size that is
overwritten in place: it needs no new disk space.
"""

from __future__ import annotations

import os
import threading
import zlib
from pathlib import Path
from typing import Any

from .. import codec
from .own_files import open_own, read_own

_SIZE = 4096
_CRC_BYTES = 8
_ROOM = _SIZE - _CRC_BYTES
# Texts of this length are never cut: times, states and names must stay whole.
_WHOLE_CHARS = 64
# A record that is read while it is written is torn for microseconds, or while its writer has no processor; one that a
# crash has torn stays so.
_READS = 5
_READ_AGAIN_S = 0.002


class StateFile:
    """A fixed-size record at `path` (mode 0600).  Not durable, and what a crash has torn reads as absent.

    `write` is for the one process that holds the role; `read` is for anybody.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, state: dict[str, Any]) -> None:
        """Overwrite the record; where it is too long, its longest texts are cut.  Raises OSError."""
        body = _fitting(state).ljust(_ROOM)
        fd = open_own(self._path, os.O_WRONLY | os.O_CREAT)
        try:
            os.pwrite(fd, b"%08x" % zlib.crc32(body) + body, 0)
        finally:
            os.close(fd)

    def read(self) -> dict[str, Any] | None:
        """The last record, or None where there is none or it is torn.  Raises PermissionError."""
        for reads in range(_READS):
            if reads > 1:
                threading.Event().wait(_READ_AGAIN_S)
            try:
                data = read_own(self._path)
            except FileNotFoundError:
                return None
            body = data[_CRC_BYTES:]
            if len(data) == _SIZE and data[:_CRC_BYTES] == b"%08x" % zlib.crc32(body):
                state = codec.from_json(body)
                return state if isinstance(state, dict) else None
        return None


def _fitting(state: dict[str, Any]) -> bytes:
    """`state` as JSON that fits: with texts as long as possible, else without its mappings, else only the pid."""
    try:
        whole = codec.to_json(state)
    except TypeError:
        # An error's text may hold a file's name that is no valid Unicode.
        state = _in_unicode(state)
        whole = codec.to_json(state)
    if len(whole) <= _ROOM:
        return whole
    flat = {name: value for name, value in state.items() if not isinstance(value, dict | list)}
    for said in (state, flat):
        fits, too_long = _WHOLE_CHARS, len(whole)
        best = codec.to_json(_shortened(said, fits))
        if len(best) > _ROOM:
            continue
        while too_long - fits > 1:
            limit = (fits + too_long) // 2
            body = codec.to_json(_shortened(said, limit))
            if len(body) <= _ROOM:
                fits, best = limit, body
            else:
                too_long = limit
        return best
    return codec.to_json({"pid": state.get("pid")})


def _in_unicode(value: Any) -> Any:
    """The same with the codes of lone surrogates."""
    if isinstance(value, dict):
        return {_in_unicode(name): _in_unicode(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_in_unicode(one) for one in value]
    return value.encode(errors="backslashreplace").decode() if isinstance(value, str) else value


def _shortened(value: Any, limit: int) -> Any:
    if isinstance(value, dict):
        return {name: _shortened(one, limit) for name, one in value.items()}
    if isinstance(value, list):
        return [_shortened(one, limit) for one in value]
    if isinstance(value, str) and len(value) > limit:
        return value[: limit - 1] + "…"
    return value
