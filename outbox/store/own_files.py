"""The store's own files: opened so that no link and no other user's file is taken for one of them.

The owner of a store may put a symbolic link in the place of a file.  A process of root that looks at that store must
not write through it, nor leave files behind that the owner's engine cannot open: it acts as the store's owner.

A `StateFile` is the report of the engine or the relay to other processes, outside the store.  The relay's heartbeat and
the engine's halt latch must be visible from another process, also when LMDB can no longer commit, and a heartbeat must
not cost a flush.  So each role has a small file of fixed size that is overwritten in place: it needs no new disk space.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import sys
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .. import codec
from ..errors import ConfigError, StoreUnavailable

_DATA_FILE = "data.mdb"
_READ_BYTES = 1 << 16


def _find_c_library() -> Any:
    """The C library with setfsuid(2), which concerns one thread only, or None."""
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    return library if hasattr(library, "setfsuid") and hasattr(library, "setfsgid") else None


_libc = _find_c_library()


def occupy_standard_descriptors() -> None:
    """Let no file of a store become descriptor 0, 1 or 2 where a daemon has closed them.

    Whatever this process or a child of it prints would overwrite that file.
    """
    with suppress(OSError):  # there may be no /dev
        while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
            os.set_inheritable(fd, True)
        os.close(fd)


def open_own(path: Path, flags: int) -> int:
    """A descriptor of the regular file at `path`; with O_CREAT it is made with mode 0600 where it is absent.

    Raises `StoreUnavailable` for a link or anything else that is no regular file of ours, or OSError.
    """
    with as_owner(path.parent):
        try:
            fd = _open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as exc:
            if exc.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
                raise _foreign(path, exc.errno) from exc
            raise
    info = os.fstat(fd)
    if stat.S_ISREG(info.st_mode) and info.st_nlink <= 1:
        return fd
    os.close(fd)
    raise _foreign(path, errno.EINVAL if not stat.S_ISREG(info.st_mode) else errno.EMLINK)


def _open(path: Path, flags: int) -> int:
    try:
        return os.open(path, flags & ~os.O_CREAT)
    except FileNotFoundError:
        if not flags & os.O_CREAT:
            raise
    try:
        fd = os.open(path, flags | os.O_EXCL, 0o600)
    except FileExistsError:  # another process was faster
        return os.open(path, flags & ~os.O_CREAT)
    give_to_owner(fd, path.parent)
    return fd


def give_to_owner(fd: int, directory: Path) -> None:
    """Give a file that was made here to the owner of the store, who could not open one of root's."""
    owner = _owner_of(directory) if os.geteuid() == 0 else None
    if owner is not None and os.fstat(fd).st_uid != owner[0]:
        os.fchown(fd, *owner)


def check_own(path: Path) -> None:
    """Raise `StoreUnavailable` where `path` is there and is no regular file of ours; for files that LMDB opens."""
    try:
        info = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISREG(info.st_mode):
        raise _foreign(path, errno.ELOOP if stat.S_ISLNK(info.st_mode) else errno.EINVAL)
    if info.st_nlink > 1:
        raise _foreign(path, errno.EMLINK)


def read_own(path: Path) -> bytes:
    """All of a small file.  Raises as `open_own`."""
    fd = open_own(path, os.O_RDONLY)
    try:
        # A file object would import something, which an interpreter that ends does not do any more.
        parts = [os.read(fd, _READ_BYTES)]
        while parts[-1]:
            parts.append(os.read(fd, _READ_BYTES))
    finally:
        os.close(fd)
    return b"".join(parts)


def _foreign(path: Path, code: int) -> StoreUnavailable:
    what = {errno.ELOOP: "a symbolic link", errno.EMLINK: "a file with several links"}.get(code, "no regular file")
    return StoreUnavailable(
        f"{path} is {what}",
        hint="a store's files are regular files with one link: put the file itself there, by copying",
        errno=code,
    )


@contextmanager
def as_owner(directory: Path) -> Iterator[None]:
    """Let this thread use files as the owner of the store in `directory`, if this process is root's.

    Raises `StoreUnavailable` where the system offers no way to do so.
    """
    owner = _owner_of(directory) if os.geteuid() == 0 else None
    if owner is None:
        yield
        return
    if _libc is None:
        raise StoreUnavailable(
            f"{directory} belongs to user {owner[0]}", hint="run this as that user", errno=errno.EPERM
        )
    group, user = _libc.setfsgid(owner[1]), _libc.setfsuid(owner[0])
    try:
        if not _reachable(directory):
            # As a backup in a folder of root's: nor can its owner exchange a file there meanwhile.
            _libc.setfsuid(user)
            _libc.setfsgid(group)
        yield
    finally:
        _libc.setfsuid(user)
        _libc.setfsgid(group)


def _reachable(directory: Path) -> bool:
    try:
        os.stat(directory / ".")
    except PermissionError:
        return False
    return True


def _owner_of(directory: Path) -> tuple[int, int] | None:
    """User and group of a store that does not belong to root; of a directory, where there is no store yet."""
    for path in (directory / _DATA_FILE, directory):
        try:
            info = os.lstat(path) if path != directory else os.stat(path)
        except OSError:
            continue
        if not stat.S_ISLNK(info.st_mode):
            return (info.st_uid, info.st_gid) if info.st_uid else None
    return None


def refuse_shared_folder(folder: Path) -> None:
    """Raise `ConfigError` where every user may replace what is in `folder`, as in one of mode 0777.

    In a sticky one, as /tmp, only the owner of a file may.
    """
    mode = os.stat(folder).st_mode
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        raise ConfigError(
            f"{folder} can be written to by every user (mode {stat.S_IMODE(mode):04o})",
            hint=f"`chmod o-w {folder}`, or set OUTBOX_DIR to a folder of your own below it: {folder}/private/outbox",
        )


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
