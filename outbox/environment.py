"""The LMDB environment: its directory, its creation, its flags, its handles.  The only importer of lmdb.

It promises the store above it that an environment which opens is a complete one of ours: creation is atomic
(built in a temporary directory, flushed, renamed), a missing or foreign data file is an error and never becomes a
new empty store, and the flags are those under which a returned commit survives power loss.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import lmdb
from lmdb.verify import VerifyError
from lmdb.verify import verify as _verify_structure

from . import codec, filesystem
from .envelope import FORMAT
from .errors import ConfigError, StoreCorrupt, StoreFormatError, StoreLocked, StoreMissing
from .state_file import give_to_owner

SUB_DATABASES = (b"pending", b"idempotency", b"ledger")
IDENTITY_KEY = b"outbox:store"
IDENTITY_FILE = "outbox.json"
_CLEAN_FILE = "clean"
DATA_FILE = "data.mdb"
_LOCK_FILE = "lock.mdb"
_BUILDING = ".creating-"
# The map is address space, not disk: sparse, and never resized while open.
_MAP_SIZES = tuple(gib << 30 for gib in (64, 16, 4, 1))
_MAX_READERS = 512
_OURS = frozenset(
    {"engine.lock", "relay.lock", "access.lock", "opening.lock", "engine.state", "relay.state", _CLEAN_FILE}
)

# What says nothing about the store's content.
_SYSTEM_ERRORS = frozenset(
    {errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EINTR, errno.EMFILE, errno.ENFILE}
)

# Real paths of the environments that this process has open.
_open_here: set[str] = set()

WriteError: tuple[type[Exception], ...] = (lmdb.Error, OSError)
LmdbError: type[Exception] = lmdb.Error
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@dataclass(frozen=True)
class Identity:
    """What the identity file says of a store; the same is kept inside the data file."""

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


class Environment:
    """An open LMDB environment with its three sub-databases.

    One per process and directory; a `readonly` one never waits for LMDB's writer lock.  `pending`, `idempotency` and
    `ledger` are handles; `env` is the py-lmdb object.
    """

    def __init__(self, directory: Path, *, readonly: bool = False) -> None:
        """Open what `create` made.  Raises `StoreCorrupt`, `StoreMissing`, `StoreFormatError` or OSError."""
        self.directory, self.readonly = directory, readonly
        self.identity = read_identity(directory)
        self._real = _not_open_here(directory)
        self.env = _open(directory, readonly=readonly)
        _open_here.add(self._real)
        try:
            self._page_size = int(self.env.stat()["psize"])
            self._data_file = os.fsencode(directory / DATA_FILE)
            self._file = filesystem.file_identity(self._data_file)
            handles = self._open_handles(readonly)
            self.pending, self.idempotency, self.ledger = handles
            self._check_identity()
        except lmdb.Error as exc:
            self.close()
            raise _translated(exc, directory, hint="restore a backup") from exc
        except BaseException:
            self.close()
            raise

    def _open_handles(self, readonly: bool) -> list[Any]:
        if readonly:
            return [self.env.open_db(name, create=False) for name in SUB_DATABASES]
        # All in one committed write transaction before any thread starts: a handle from an aborted or read
        # transaction dies with it and its slot is reused.
        with self.env.begin(write=True) as txn:
            return [self.env.open_db(name, txn=txn, create=False) for name in SUB_DATABASES]

    def _check_identity(self) -> None:
        with self.env.begin() as txn:
            inside = txn.get(IDENTITY_KEY)
        if inside is None or Identity.parse(bytes(inside), self.directory / DATA_FILE) != self.identity:
            raise StoreCorrupt(
                f"{self.directory / DATA_FILE} belongs to another store than {IDENTITY_FILE} beside it",
                hint="restore both from one backup",
            )

    @property
    def map_bytes(self) -> int:
        """Size of the map: what the data file can grow to."""
        return int(self.env.info()["map_size"])

    def check_in_place(self) -> None:
        """Raise FileNotFoundError where the open data file is no longer the one that the next start will find.

        Commits into an unlinked file succeed, and are gone with this process.  Raises OSError where it cannot be told.
        """
        try:
            if filesystem.file_identity(self._data_file) == self._file:
                return
        except (FileNotFoundError, NotADirectoryError):
            pass
        raise FileNotFoundError(errno.ENOENT, "removed or replaced while it was open", os.fsdecode(self._data_file))

    def file_bytes(self) -> int:
        """Size of the data file; by stat, since opening it would drop LMDB's locks."""
        return os.stat(self.directory / DATA_FILE).st_size

    def high_water_bytes(self) -> int:
        """Bytes of all pages that were ever in use, freed ones included."""
        return int(self.env.info()["last_pgno"] + 1) * self._page_size

    def close(self) -> None:
        self.env.close()
        _open_here.discard(self._real)


def _not_open_here(directory: Path) -> str:
    """The real path of `directory`, unless this process has the environment open: then `StoreLocked`.

    LMDB's locks belong to the process: closing one of two environments would drop those of the other.
    """
    real = os.path.realpath(directory)
    if real in _open_here:
        raise StoreLocked(
            f"{directory} is already open in this process", hint="share that Outbox", holder_pid=os.getpid()
        )
    return real


def _open(directory: Path, *, readonly: bool) -> Any:
    last: Exception | None = None
    for size in _MAP_SIZES:
        try:
            return lmdb.open(
                os.fspath(directory),
                map_size=size,
                max_dbs=len(SUB_DATABASES),
                max_readers=_MAX_READERS,
                mode=0o600,
                sync=True,
                metasync=True,
                writemap=False,
                readonly=readonly,
                create=not readonly,
                # py-lmdb 3 also bundles LMDB 1.0, whose files a stock mdb_stat refuses.
                lib_version=0,
            )
        except lmdb.MemoryError as exc:
            last = exc
        except lmdb.Error as exc:
            if _errno(exc) != errno.ENOMEM:
                raise _translated(exc, directory, hint="run a verification") from exc
            last = exc
    raise ConfigError(f"no address space for a map of {_MAP_SIZES[-1] >> 30} GiB: {last}", hint="raise ulimit -v")


def _errno(exc: lmdb.Error) -> int:
    return int(getattr(exc, "code", 0))


def no_room(exc: BaseException | None) -> bool:
    """Whether a write failed because the disk, the disk quota, the file or the map is full, and nothing worse."""
    if isinstance(exc, lmdb.Error):
        return isinstance(exc, (lmdb.MapFullError, lmdb.DiskError)) or _errno(exc) in _NO_ROOM
    return isinstance(exc, OSError) and exc.errno in _NO_ROOM


def _translated(exc: lmdb.Error, directory: Path, *, hint: str) -> Exception:
    """What to raise for an error of LMDB outside the store's transactions: damage, or a system that cannot."""
    code = _errno(exc)
    if code == errno.EACCES:
        return PermissionError(errno.EACCES, "no access to the store's files", str(directory))
    if code in _SYSTEM_ERRORS:
        return OSError(code, os.strerror(code), str(directory))
    return StoreCorrupt(f"{directory} cannot be opened as an outbox: {exc}", hint=hint)


def read_identity(directory: Path) -> Identity:
    """The identity of the store in `directory`, after checking that its files are there.

    Raises `StoreMissing`, `StoreFormatError`, `StoreCorrupt` or PermissionError; changes nothing.
    """
    path = directory / IDENTITY_FILE
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        if not directory.exists():
            raise StoreMissing(f"there is no outbox at {directory}", hint="check OUTBOX_DIR") from None
        if not is_vacant(directory):
            raise StoreFormatError(
                f"{directory} is not an outbox store: it has no {IDENTITY_FILE}", hint="check OUTBOX_DIR"
            ) from None
        raise StoreMissing(f"there is no outbox in {directory}, it is empty", hint="check OUTBOX_DIR") from None
    except NotADirectoryError:
        raise StoreFormatError(f"{directory} is not a directory", hint="check OUTBOX_DIR") from None
    identity = Identity.parse(data, path)
    try:
        size = os.stat(directory / DATA_FILE).st_size
    except FileNotFoundError:
        raise StoreCorrupt(f"{directory / DATA_FILE} is missing", hint="restore a backup of the directory") from None
    if size == 0:
        raise StoreCorrupt(f"{directory / DATA_FILE} is empty", hint="restore a backup of the directory")
    return identity


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
    remains = {name for name in names if name.startswith(_BUILDING)}
    ours = _OURS | ({DATA_FILE, _LOCK_FILE} if remains else set())
    return names - remains <= ours | {"lost+found"}


def create(directory: Path, store_id: UUID, records: dict[bytes, bytes]) -> None:
    """Create a complete store at `directory` in one rename, or leave nothing that hinders the next try.

    A directory that exists, perhaps a mount point, is filled instead, the identity file last.  `records` are put into
    the main database.  When another process wins the race, its store stays.  Raises OSError.
    """
    filesystem.make_durably(directory.parent)
    filesystem.refuse_remote(directory if directory.exists() else directory.parent)
    if directory.exists():
        _fill(directory, Identity(store_id, FORMAT), records)
        return
    # mkdtemp gives 0700
    temporary = Path(tempfile.mkdtemp(prefix=f".{directory.name}.creating-", dir=directory.parent))
    try:
        _build(temporary, Identity(store_id, FORMAT), records)
        _move_into_place(temporary, directory)
        filesystem.flush_directory(directory.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _build(folder: Path, identity: Identity, records: dict[bytes, bytes]) -> None:
    """Write all files of a new store into an empty folder, flushed."""
    env = _open(folder, readonly=False)
    try:
        with env.begin(write=True) as txn:
            for name in SUB_DATABASES:
                env.open_db(name, txn=txn)
            txn.put(IDENTITY_KEY, identity.to_json())
            for key, value in records.items():
                txn.put(key, value)
    except lmdb.Error as exc:
        raise _translated(exc, folder, hint="check the disk") from exc
    finally:
        env.close()
    fd = os.open(folder / IDENTITY_FILE, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(identity.to_json())
        file.flush()
        os.fsync(file.fileno())
    mark_clean(folder)
    filesystem.flush_directory(folder)


def _move_into_place(temporary: Path, directory: Path) -> None:
    try:
        os.rename(temporary, directory)
    except OSError as exc:
        # Another process was first; its store is opened.
        if exc.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise


def _fill(directory: Path, identity: Identity, records: dict[bytes, bytes]) -> None:
    """Create a store in a directory that exists, one process at a time."""
    turn = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(turn, fcntl.LOCK_EX)
        for leftover in directory.glob(f"{_BUILDING}*"):  # of a process that was killed here
            shutil.rmtree(leftover, ignore_errors=True)
        if (directory / IDENTITY_FILE).exists():
            return
        temporary = Path(tempfile.mkdtemp(prefix=_BUILDING, dir=directory))
        try:
            _build(temporary, identity, records)
            _move_files(temporary, directory)
            filesystem.flush_directory(directory)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        with suppress(PermissionError):  # a mount point may belong to another user
            os.chmod(directory, 0o700)
    finally:
        os.close(turn)


def _move_files(temporary: Path, directory: Path) -> None:
    # A store without identity is none, so that goes last; until then the temporary directory tells whose the other
    # files are.
    names = (DATA_FILE, _LOCK_FILE, _CLEAN_FILE, IDENTITY_FILE)
    try:
        for name in names:
            os.rename(temporary / name, directory / name)
    except BaseException:
        # Without either the next try would take them for a stranger's.
        for name in names:
            (directory / name).unlink(missing_ok=True)
        raise


def structural_problems(directory: Path) -> list[str]:
    """What LMDB's offline verifier finds wrong with the data file.  Must not run beside an open environment."""
    try:
        return [str(problem) for problem in _verify_structure(os.fspath(directory))]  # type: ignore[no-untyped-call]
    except (VerifyError, OSError) as exc:
        return [f"the data file cannot be verified: {exc}"]


def copy_compact(source: Path, target: Path) -> None:
    """Write a compact copy of the environment `source` into the empty directory `target`, flushed, 0600.

    Raises `StoreLocked` where this process has it open.
    """
    _not_open_here(source)
    env = _open(source, readonly=True)
    try:
        env.copy(os.fspath(target), compact=True)
    except lmdb.Error as exc:
        raise _translated(exc, source, hint="check the disk") from exc
    finally:
        env.close()
    os.chmod(target / DATA_FILE, 0o600)
    fd = os.open(target / DATA_FILE, os.O_RDONLY | os.O_CLOEXEC)
    try:
        give_to_owner(fd, source)
        os.fsync(fd)
    finally:
        os.close(fd)


def mark_clean(directory: Path) -> None:
    """Note that the store was closed properly by its last user, with the data file as it is now."""
    fd = os.open(directory / _CLEAN_FILE, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        give_to_owner(fd, directory)
        os.write(fd, _fingerprint(directory))
    finally:
        os.close(fd)


def take_clean_mark(directory: Path, *, keep: bool = False) -> bool:
    """Whether the last shutdown was clean and the file unchanged since; removes the mark unless `keep`."""
    path = directory / _CLEAN_FILE
    try:
        clean = path.read_bytes() == _fingerprint(directory)
    except FileNotFoundError:
        return False
    if not keep:
        path.unlink(missing_ok=True)
    return clean


def _fingerprint(directory: Path) -> bytes:
    info = os.stat(directory / DATA_FILE)
    return b"%d %d %d\n" % (info.st_size, info.st_mtime_ns, info.st_ino)
