"""Creation: a complete store in one rename, or none.

It is built in a temporary directory, flushed and renamed, so that a crash at any instant leaves nothing that hinders
the next try.

The maker of a temporary directory or file holds a flock on it, which ends with the process, also in another container.
What nobody holds is a leftover of a killed process: it may be as large as the store, and as confidential.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import UUID

from ..log import Log
from . import filesystem
from .envelope import FORMAT
from .environment import SUB_DATABASES, LmdbError, open_lmdb, translated
from .identity import BUILDING, CLEAN_FILE, DATA_FILE, IDENTITY_FILE, IDENTITY_KEY, LOCK_FILE, Identity, mark_clean
from .own_files import as_owner, refuse_shared_folder

_log = Log("outbox.store")

# Of a name that is part of a prefix: with the rest it must not be too long for the file system.
_NAME_CHARS = 50


def prefix_of(name: str, purpose: str) -> str:
    """How what is made beside `name` is called."""
    return f".{name[:_NAME_CHARS]}.{purpose}-"


@contextmanager
def workshop(prefix: str, parent: Path) -> Iterator[Path]:
    """A new directory of mode 0700, removed at the end of the block unless it was moved away.

    Raises OSError where it cannot be made.
    """
    path, held = _made(prefix, parent, directory=True)
    try:
        yield path
    finally:
        try:
            shutil.rmtree(path, ignore_errors=True)
        finally:
            os.close(held)


@contextmanager
def workpiece(prefix: str, parent: Path) -> Iterator[tuple[Path, int]]:
    """A new file of mode 0600 and its descriptor, removed at the end of the block unless it was moved away.

    Raises OSError where it cannot be made.
    """
    path, held = _made(prefix, parent, directory=False)
    try:
        yield path, held
    finally:
        try:
            with suppress(FileNotFoundError):
                os.unlink(path)
        finally:
            os.close(held)


def clear(prefix: str, parent: Path) -> None:
    """Remove what was made with this prefix by processes of this user that have ended."""
    try:
        found = [entry.path for entry in os.scandir(parent) if entry.name.startswith(prefix)]
    except OSError:  # a directory need not be readable for what is made in it
        return
    for path in found:
        with suppress(OSError):
            _remove_unless_held(Path(path))


def _made(prefix: str, parent: Path, *, directory: bool) -> tuple[Path, int]:
    clear(prefix, parent)
    while True:
        if directory:
            path = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
            try:
                held = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
        else:
            held, name = tempfile.mkstemp(prefix=prefix, dir=parent)
            path = Path(name)
        try:
            _hold(held)
            # Until it was held another process may have taken it for a leftover.
            if _is_at(held, path):
                return path, held
        except BaseException:
            os.close(held)
            raise
        os.close(held)


def _hold(descriptor: int) -> None:
    # Where the file system has no locks, no other process can lock it either, and it is left alone.
    with suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False


def _remove_unless_held(path: Path) -> None:
    """Raises OSError where it is held, or is not this user's."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        found = os.fstat(descriptor)
        if found.st_uid != os.geteuid():
            return
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not _is_at(descriptor, path):
            return
        if stat.S_ISDIR(found.st_mode):
            shutil.rmtree(path)
        elif stat.S_ISREG(found.st_mode):
            os.unlink(path)
        _log.info("removed %(path)s, which a process that was killed has left", path=path)
    finally:
        os.close(descriptor)


# For what a directory is made in which an import builds a store.
IMPORTING = "importing"


def create(directory: Path, store_id: UUID, records: dict[bytes, bytes]) -> None:
    """Create a complete store at `directory` in one rename, or leave nothing that hinders the next try.

    A directory that exists, perhaps a mount point, is filled instead, the identity file last.  `records` are put into
    the main database.  When another process wins the race, its store stays.  Raises OSError.
    """
    filesystem.make_durably(directory.parent)
    clear(prefix_of(directory.name, IMPORTING), directory.parent)
    filesystem.refuse_remote(directory if directory.exists() else directory.parent)
    if directory.exists():
        with as_owner(directory):
            _fill(directory, Identity(store_id, FORMAT), records)
        return
    refuse_shared_folder(directory.parent)
    with workshop(prefix_of(directory.name, "creating"), directory.parent) as temporary:
        _build(temporary, Identity(store_id, FORMAT), records)
        _move_into_place(temporary, directory)
        filesystem.flush_directory(directory.parent)


def _build(folder: Path, identity: Identity, records: dict[bytes, bytes]) -> None:
    """Write all files of a new store into an empty folder, flushed."""
    env = open_lmdb(folder, readonly=False)
    try:
        with env.begin(write=True) as txn:
            for name in SUB_DATABASES:
                env.open_db(name, txn=txn)
            txn.put(IDENTITY_KEY, identity.to_json())
            for key, value in records.items():
                txn.put(key, value)
    except LmdbError as exc:
        raise translated(exc, folder, hint="check the disk") from exc
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
        for leftover in directory.glob(f"{BUILDING}*"):  # of a process that was killed here
            shutil.rmtree(leftover, ignore_errors=True)
        if (directory / IDENTITY_FILE).exists():
            return
        with suppress(PermissionError):  # a mount point may belong to another user
            os.chmod(directory, 0o700)
        refuse_shared_folder(directory)
        temporary = Path(tempfile.mkdtemp(prefix=BUILDING, dir=directory))
        try:
            _build(temporary, identity, records)
            _move_files(temporary, directory)
            filesystem.flush_directory(directory)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    finally:
        os.close(turn)


def _move_files(temporary: Path, directory: Path) -> None:
    # A store without identity is none, so that goes last; until then the temporary directory tells whose the other
    # files are.
    names = (DATA_FILE, LOCK_FILE, CLEAN_FILE, IDENTITY_FILE)
    try:
        for name in names:
            os.rename(temporary / name, directory / name)
    except BaseException:
        # Without either the next try would take them for a stranger's.
        for name in names:
            (directory / name).unlink(missing_ok=True)
        raise
