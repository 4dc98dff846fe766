"""The LMDB environment: its flags, its handles, its errors.  The only importer of lmdb.

It promises the store above it that an environment which opens is a complete one of ours, and that the flags are those
under which a returned commit survives power loss.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lmdb
from lmdb.verify import VerifyError
from lmdb.verify import verify as _verify_structure

from ..errors import ConfigError, OutboxError, StoreCorrupt, StoreLocked, StoreUnavailable
from .identity import DATA_FILE, IDENTITY_FILE, IDENTITY_KEY, LOCK_FILE, Identity, read_identity
from .kept_files import Identity as FileIdentity
from .kept_files import KeptFile
from .own_files import as_owner, check_own, give_to_owner, open_own

SUB_DATABASES = (b"pending", b"idempotency", b"ledger")
# The map is address space, not disk: sparse, and never resized while open.
_MAP_SIZES = tuple(gib << 30 for gib in (64, 16, 4, 1))
MAP_BYTES = _MAP_SIZES[0]
_MAX_READERS = 512
_MADV_DONTNEED = 4
# A damaged file makes LMDB raise these; its other errors are the system's, or name a limit that was reached.
_DAMAGE = (
    lmdb.BadDbiError,
    lmdb.BadTxnError,  # after an error of the same transaction that a cursor took for its end
    lmdb.CorruptedError,
    lmdb.CursorFullError,
    lmdb.IncompatibleError,
    lmdb.InvalidError,
    lmdb.NotFoundError,
    lmdb.PageFullError,
    lmdb.PageNotFoundError,
    lmdb.PanicError,
    lmdb.VersionMismatchError,
)
_HINTS = {
    errno.EROFS: "mount the file system for writing, or only look",
    errno.ENOSPC: "make room on the disk",
    errno.EDQUOT: "raise the disk quota",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "raise the system's limit of open files (fs.file-max)",
    errno.ENOMEM: "free memory, or raise the limit of this process or container",
    errno.ENOLCK: "put OUTBOX_DIR on a local disk, or free locks",
    errno.EIO: "look at the disk (dmesg, smartctl)",
    errno.EINTR: "open it again",
}

# Real paths of the environments that this process has open, each with the process that opened it.
_open_here: dict[str, int] = {}
# Environments whose descriptors belong to other files now: closing one would close those.
_never_closed: list[Any] = []

WriteError: tuple[type[Exception], ...] = (lmdb.Error, OSError)
LmdbError: type[Exception] = lmdb.Error
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


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
        self._opened: list[KeptFile] = []
        self.env = open_lmdb(directory, readonly=readonly)
        _open_here[self._real] = os.getpid()
        try:
            self._clear_own_slots()
            self._page_size = int(self.env.stat()["psize"])
            # Files of the store that must stay in their place, each with its identity.
            self._data_file = KeptFile.at(directory / DATA_FILE)
            self._lock_file = None if self.readonly else KeptFile.at(directory / LOCK_FILE)
            self._opened = [self._data_file, *([] if self._lock_file is None else [self._lock_file])]
            self.roles: list[KeptFile] = []
            handles = self._open_handles(readonly)
            self.pending, self.idempotency, self.ledger = handles
            self._check_identity()
        except lmdb.Error as exc:
            self.close()
            raise translated(exc, directory, hint="restore a backup") from exc
        except BaseException:
            self.close()
            raise

    def _clear_own_slots(self) -> None:
        """Clear the slots that a dead process of the same id has left, as that of a container's last life.

        LMDB takes them for this process's own, so that they would pin freed pages for ever.  Raises lmdb.Error where
        the other process is alive.
        """
        own = str(os.getpid())
        if not any(line.split()[:1] == [own] for line in self.env.readers().splitlines()):
            return
        # A read proves that no living process has this id; closing then clears every slot of it.
        with self.env.begin():
            pass
        self.env.close()
        self.env = open_lmdb(self.directory, readonly=self.readonly)

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

    def keep_role(self, path: Path, identity: FileIdentity) -> None:
        """Watch the lock file of a role that this process holds, too: without it a second process gets the role."""
        self.roles.append(KeptFile(os.fsencode(path), identity))

    def check_in_place(self) -> None:
        """Raise FileNotFoundError where an open file is no longer the one that another process will find.

        Commits into an unlinked data file succeed, and are gone with this process; with another `lock.mdb` a second
        process writes at the same time.  Raises OSError where that is unknown.
        """
        self._data_file.check()
        self.check_lock_in_place()

    def data_is_in_place(self) -> bool:
        """Whether the open data file is the one that another process will find."""
        try:
            self._data_file.check()
        except OSError:
            return False
        return True

    def check_lock_in_place(self) -> None:
        """The same for `lock.mdb` alone, without which nothing may be written into a file that others can find."""
        if self._lock_file is None:
            return
        try:
            self._lock_file.check()
        except FileNotFoundError:
            if self.data_is_in_place():
                raise

    def check_open(self) -> None:
        """Raise OSError where the program has closed the descriptors: LMDB would write into what has their numbers."""
        for kept in self._opened:
            kept.check_open()

    def check_roles_in_place(self) -> None:
        """The same for the lock files of this process's roles."""
        for kept in self.roles:
            kept.check()

    def file_bytes(self) -> int:
        """Size of the data file; by stat, since opening it would drop LMDB's locks."""
        return os.stat(self.directory / DATA_FILE).st_size

    def high_water_bytes(self) -> int:
        """Bytes of all pages that were ever in use, freed ones included."""
        return int(self.env.info()["last_pgno"] + 1) * self._page_size

    def can_grow(self, size: int) -> bool:
        """Whether the data file can have `size` bytes more than its pages take; it keeps them.

        In the writer's thread.  False where the system does not report it.
        """
        reserve = getattr(os, "posix_fallocate", None)
        if reserve is None or not self.data_is_in_place():
            return False
        # LMDB holds no lock on the data file, only on its lock file: closing drops none.
        try:
            file = os.open(self.directory / DATA_FILE, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            # Where the system fills the file with zeros instead, no thread may write pages there meanwhile.
            with self.env.begin(write=True):
                reserve(file, self.high_water_bytes(), size)
        except WriteError:  # the settling that follows meets it as well, and reports it
            return False
        finally:
            os.close(file)
        return True

    def pinned_commits(self) -> int:
        """How many commits the oldest reader is behind: what was freed since then is not used again."""
        last = int(self.env.info()["last_txnid"])
        # Process id, thread, transaction; "-" between two reads.
        slots = (line.split() for line in self.env.readers().splitlines())
        return max((last - int(slot[2]) for slot in slots if len(slot) == 3 and slot[2].isdigit()), default=0)

    def forget_pages(self) -> None:
        """Unmap what was read, so that a process which reads the whole file does not seem to need its size in memory.

        Page by page it is mapped again when it is read again.  Does nothing where the system offers no way.
        """
        name = os.path.realpath(self.directory / DATA_FILE)
        try:
            lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
        except OSError:
            return
        for line in lines:
            if line.endswith(name):
                begin, end = (int(at, 16) for at in line.split(" ", 1)[0].split("-"))
                ctypes.CDLL(None).madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), _MADV_DONTNEED)

    def close(self) -> None:
        """Close it, unless the program has closed its descriptors: then it stays open here until the process ends."""
        if not all(kept.is_open for kept in self._opened):
            _never_closed.append(self.env)
            return
        self.env.close()
        _open_here.pop(self._real, None)


def forget_open_here() -> None:
    """In a forked child: the environments that its parent has open are not its own, and neither are their locks."""
    _open_here.clear()


def _not_open_here(directory: Path) -> str:
    """The real path of `directory`, unless this process has the environment open: then `StoreLocked`.

    LMDB's locks belong to the process: closing one of two environments would drop those of the other.
    """
    real = os.path.realpath(directory)
    if _open_here.get(real, os.getpid()) != os.getpid():
        # The binding, too, takes the parent's for one of this process.
        raise StoreLocked(
            f"{directory} was open in process {_open_here[real]} when it forked this one",
            hint="fork before you open it, or start the process anew (spawn)",
            holder_pid=_open_here[real],
        )
    if real in _open_here:
        raise StoreLocked(
            f"{directory} is already open in this process", hint="share that Outbox", holder_pid=os.getpid()
        )
    return real


def open_lmdb(directory: Path, *, readonly: bool) -> Any:
    """Open the LMDB environment in `directory`, with the largest map that the address space allows.

    Raises `ConfigError`, what `translated` makes of an error of LMDB, or OSError.
    """
    for name in (DATA_FILE, LOCK_FILE):
        check_own(directory / name)
    with as_owner(directory):
        return _open_by_lmdb(directory, readonly=readonly)


def _open_by_lmdb(directory: Path, *, readonly: bool) -> Any:
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
                raise translated(exc, directory, hint="run a verification") from exc
            last = exc
    raise ConfigError(f"no address space for a map of {_MAP_SIZES[-1] >> 30} GiB: {last}", hint="raise ulimit -v")


def _errno(exc: Exception) -> int:
    return int(getattr(exc, "code", 0))


def no_room(exc: BaseException | None) -> bool:
    """Whether a write failed because the disk, the disk quota, the file or the map is full, and nothing worse."""
    if isinstance(exc, lmdb.Error):
        return isinstance(exc, (lmdb.MapFullError, lmdb.DiskError)) or _errno(exc) in _NO_ROOM
    return isinstance(exc, OSError) and exc.errno in _NO_ROOM


def no_slot(exc: Exception) -> bool:
    """Whether a read failed because LMDB's table of readers has no slot for it."""
    return isinstance(exc, lmdb.ReadersFullError) or _errno(exc) == errno.EAGAIN


def translated(exc: Exception, directory: Path, *, hint: str) -> Exception:
    """What to raise for an error of LMDB outside the store's transactions: damage, or a system that cannot."""
    code = _errno(exc)
    if code == errno.EACCES:
        return PermissionError(errno.EACCES, "no access to the store's files", str(directory))
    if code == errno.EAGAIN:
        # LMDB's reader lock is the byte of lock.mdb at the offset of the process id.
        return StoreLocked(
            f"{directory} is in use by another container, in which a process has the same id {os.getpid()}",
            hint="let both share one process namespace (Kubernetes: shareProcessNamespace: true; Docker: "
            "--pid=container:NAME), or run both in one container",
            holder_pid=None,
        )
    if isinstance(exc, lmdb.ReadersFullError):
        hint = "end processes that hang in a read: `mdb_stat -r` lists their ids"
        return StoreUnavailable(f"{directory} has all its {_MAX_READERS} reader slots in use", hint=hint)
    if code > 0 or not isinstance(exc, _DAMAGE):
        return system_error(code, directory, str(exc))
    return StoreCorrupt(f"{directory} cannot be opened as an outbox: {exc}", hint=hint)


def system_error(code: int, path: Path, said: str = "") -> StoreUnavailable:
    """What to raise where the system refuses a file of the store."""
    reason = os.strerror(code) if code > 0 else said
    hint = _HINTS.get(code, "nothing was changed; correct that and open it again")
    return StoreUnavailable(f"{path} cannot be used now: {reason}", hint=hint, errno=code if code > 0 else None)


@contextmanager
def as_unavailable(directory: Path) -> Iterator[None]:
    """Within the block `StoreUnavailable` is raised where the system refuses a file of the store in `directory`.

    A PermissionError stays as it is: who asks needs its file.
    """
    try:
        yield
    except (OutboxError, PermissionError):
        raise
    except OSError as exc:
        raise system_error(exc.errno or 0, directory, str(exc)) from exc


def structural_problems(directory: Path) -> list[str]:
    """What LMDB's offline verifier finds wrong with the data file.  Must not run beside an open environment.

    Raises `StoreUnavailable` where it cannot be read.
    """
    try:
        with as_owner(directory):
            return [str(found) for found in _verify_structure(os.fspath(directory))]  # type: ignore[no-untyped-call]
    except VerifyError as exc:
        return [f"the data file cannot be verified: {exc}"]
    except OSError as exc:
        raise system_error(exc.errno or 0, directory, str(exc)) from exc


def copy_compact(source: Path, target: Path) -> None:
    """Write a compact copy of the environment `source` into the empty directory `target`, flushed, 0600.

    Raises `StoreLocked` where this process has it open.
    """
    _not_open_here(source)
    env = open_lmdb(source, readonly=True)
    try:
        # As the owner of where it goes: an export's folder is the exporting user's.
        with as_owner(target):
            env.copy(os.fspath(target), compact=True)
    except lmdb.Error as exc:
        raise translated(exc, source, hint="check the disk") from exc
    finally:
        env.close()
    fd = open_own(target / DATA_FILE, os.O_RDONLY)
    try:
        give_to_owner(fd, source if target.parent == source else target)
        os.fchmod(fd, 0o600)
        os.fsync(fd)
    finally:
        os.close(fd)
