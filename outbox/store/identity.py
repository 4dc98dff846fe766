"""Identity: which store a directory holds, if any, by its files alone, and whether its last user closed it.

A missing or foreign data file is an error and never becomes a new empty store.  A store that was closed properly, and
not written to since, has a mark.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from .. import codec
from ..errors import StoreCorrupt, StoreFormatError, StoreMissing
from .envelope import FORMAT
from .own_files import as_owner, open_own, read_own

IDENTITY_KEY = b"outbox:store"
IDENTITY_FILE = "outbox.json"
CLEAN_FILE = "clean"
DATA_FILE = "data.mdb"
LOCK_FILE = "lock.mdb"
BUILDING = ".creating-"
_ELSEWHERE = "name another directory, by OUTBOX_DIR or --dir, or move this one away"
_WAY_OUT = "check OUTBOX_DIR or --dir; the engine makes it when it starts"
_OURS = frozenset(
    {
        *("engine.lock", "relay.lock", "access.lock", "opening.lock", "engine.state", "relay.state"),
        *("ledger.unchecked", "clock.state", CLEAN_FILE),
    }
)


@dataclass(frozen=True)
class Identity:
    """The content of the identity file; the same is kept inside the data file."""

    store_id: UUID
    format: int

    def to_json(self) -> bytes:
        return codec.to_json({"format": self.format, "store_id": str(self.store_id)})

    @classmethod
    def parse(cls, data: bytes, where: Path) -> Identity:
        """Raises `StoreCorrupt` or, for another format version, `StoreFormatError`."""
        try:
            state = codec.from_json(data)
            identity = cls(UUID(state["store_id"]), int(state["format"]))
        except (ValueError, KeyError, TypeError, AttributeError) as exc:
            raise StoreCorrupt(
                f"{where} is not readable as a store's identity: {exc}", hint="restore it from a backup"
            ) from exc
        if identity.format != FORMAT:
            raise StoreFormatError(
                f"{where.parent} has format {identity.format}, this version reads {FORMAT}",
                hint="use the version of lmdb-outbox that wrote it",
            )
        return identity


def read_identity(directory: Path) -> Identity:
    """The identity of the store in `directory`, after checking that its files are there.

    Raises `StoreMissing`, `StoreFormatError`, `StoreCorrupt` or PermissionError; changes nothing.
    """
    path = directory / IDENTITY_FILE
    try:
        data = read_own(path)
    except FileNotFoundError:
        if not directory.exists():
            raise StoreMissing(f"there is no outbox at {directory}", hint=_WAY_OUT) from None
        if not is_vacant(directory):
            raise StoreFormatError(
                f"{directory} is not an outbox store: it has no {IDENTITY_FILE}", hint=_ELSEWHERE
            ) from None
        raise StoreMissing(f"there is no outbox in {directory}, it is empty", hint=_WAY_OUT) from None
    except NotADirectoryError:
        raise StoreFormatError(f"{directory} is not a directory", hint=_ELSEWHERE) from None
    identity = Identity.parse(data, path)
    try:
        size = os.stat(directory / DATA_FILE).st_size
    except FileNotFoundError:
        raise StoreCorrupt(f"{directory / DATA_FILE} is missing", hint="restore a backup of the directory") from None
    if size == 0:
        raise StoreCorrupt(f"{directory / DATA_FILE} is empty", hint="restore a backup of the directory")
    return identity


def is_of_a_store(path: Path) -> bool:
    """Whether `path` names a file of the store that is in its directory; it need not be there yet."""
    files = _OURS | {DATA_FILE, LOCK_FILE, IDENTITY_FILE}
    return path.name in files and any((path.parent / name).exists() for name in (DATA_FILE, IDENTITY_FILE))


def is_vacant(directory: Path) -> bool:
    """Whether a store may be created at `directory`: absent, or holding nothing but lock and state files.

    The `lost+found` of a file system's root and the remains of a creation that was killed do not count.
    """
    try:
        names = set(os.listdir(directory))
    except FileNotFoundError:
        return True
    except NotADirectoryError:
        return False
    remains = {name for name in names if name.startswith(BUILDING)}
    ours = _OURS | ({DATA_FILE, LOCK_FILE} if remains else set())
    return names - remains <= ours | {"lost+found"}


def mark_clean(directory: Path) -> None:
    """Note that the store was closed properly by its last user, with the data file as it is now."""
    fd = open_own(directory / CLEAN_FILE, os.O_WRONLY | os.O_CREAT)
    try:
        os.ftruncate(fd, 0)
        os.write(fd, _fingerprint(directory))
    finally:
        os.close(fd)


def take_clean_mark(directory: Path, *, keep: bool = False) -> bool:
    """Whether the last shutdown was clean and the file unchanged since; removes the mark unless `keep`."""
    path = directory / CLEAN_FILE
    try:
        clean = read_own(path) == _fingerprint(directory)
    except FileNotFoundError:
        return False
    if not keep:
        try:
            with as_owner(directory):
                path.unlink(missing_ok=True)
        except OSError as exc:
            if exc.errno != errno.EROFS:  # on a read-only file system it stays true
                raise
    return clean


def _fingerprint(directory: Path) -> bytes:
    info = os.stat(directory / DATA_FILE)
    return b"%d %d %d\n" % (info.st_size, info.st_mtime_ns, info.st_ino)
