"""Roles: which process may do what with a store.  Advisory flocks on files of our own, one per role.

LMDB's own files are never touched here: closing any descriptor of `lock.mdb` in a process that has the
environment open drops LMDB's protection.
"""

from __future__ import annotations

import errno
import fcntl
import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import Enum
from pathlib import Path
from threading import Event, Thread

from ..errors import StoreLocked, StoreUnavailable
from ..log import Log
from .kept_files import Identity, descriptor_identity, is_open_as
from .own_files import open_own

_log = Log("outbox.locks")

# An observer probes a lock by taking it shared for an instant; who opens or vacuums a store is at it for longer.
_PROBE_RETRIES = 5
# On a busy machine that instant lasts. So many tries where the file names no process that runs here: then it is an
# observer, or a holder in another container.
_UNNAMED_RETRIES = 100
_OPEN_RETRIES = 3000
_RETRY_S = 0.01
# After so many it is logged.
_SAID_AFTER = 200
_BEAT_S = 1.0
_PID_BYTES = 32


class Role(Enum):
    """One lock file each.  ENGINE enqueues, RELAY drains; every opener shares ACCESS, a vacuum has it exclusively.

    OPENING is held until it is known that the store is sound, so that of several openers one verifies.
    """

    ENGINE = "engine"
    RELAY = "relay"
    ACCESS = "access"
    OPENING = "opening"


class RoleLock:
    """A flock on `<directory>/<role>.lock`, which names its holder's pid.

    Released by `release` or by the end of the process, however it ends.  Two objects exclude each other in one
    process too.
    """

    def __init__(self, directory: Path, role: Role, *, shared: bool = False) -> None:
        """Take the lock, or give up where another process holds it.

        For ENGINE and RELAY that is known at once where the holder runs here, else after a second; the others wait for
        30 s, or longer while their holder is `at_work`.

        Raises `StoreLocked` with the holder's pid, or OSError.
        """
        self.role = role
        self._retries = _OPEN_RETRIES if shared or role is Role.OPENING else _PROBE_RETRIES
        self._path = directory / f"{role.value}.lock"
        # Whether the file system is read-only here, so that this process can only look.
        self.read_only = False
        self._fd = self._open()
        self._identity = descriptor_identity(self._fd) if self._fd >= 0 else (0, 0, 0)
        try:
            self._flock(fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        except BaseException:
            self.release()
            raise
        # Whether the last process that held it did not release it cleanly.
        self.found_dead = not shared and self._fd >= 0 and os.fstat(self._fd).st_size > 0
        if not shared and not self.read_only:
            # The size marks it as held.  On a full disk the process id cannot be written, and draining must go on.
            os.ftruncate(self._fd, 0)
            os.ftruncate(self._fd, _PID_BYTES)
            with suppress(OSError):
                os.pwrite(self._fd, b"%d\n" % os.getpid(), 0)
        _held.add(self)

    def _open(self) -> int:
        """The lock file; -1 where there is none, and none can be made in a read-only store."""
        try:
            return open_own(self._path, os.O_RDWR | os.O_CREAT)
        except OSError as exc:
            if exc.errno != errno.EROFS:
                raise
            if self.role in (Role.ENGINE, Role.RELAY):
                raise StoreUnavailable(
                    f"{self._path.parent} is on a read-only file system",
                    hint="mount it for writing; `atb outbox status`, `list` and `show` work as it is",
                    errno=errno.EROFS,
                ) from exc
        self.read_only = True
        with suppress(FileNotFoundError):
            return open_own(self._path, os.O_RDONLY)
        return -1

    def make_exclusive(self, *, tries: int = 1) -> None:
        """Turn a shared lock into an exclusive one; raises `StoreLocked` and stays shared when others hold it.

        It is tried so often, 10 ms apart.  The kernel drops the old lock before it takes the new one, so another opener
        may come in between; then the shared lock is taken back.
        """
        while True:
            try:
                return self._flock(fcntl.LOCK_EX, retries=0)
            except StoreLocked:
                self.make_shared()
                tries -= 1
                if tries <= 0:
                    raise
            Event().wait(_RETRY_S)

    def make_shared(self) -> None:
        """Turn an exclusive lock back into a shared one."""
        if self._fd >= 0:
            fcntl.flock(self._fd, fcntl.LOCK_SH)

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Let those who want this role wait for as long as the block takes and this process runs."""
        done = Event()

        def beat() -> None:
            while not done.wait(_BEAT_S):
                with suppress(OSError):  # then others wait no longer than they would for a process that hangs
                    os.utime(self._fd)

        thread = Thread(target=beat, name="outbox-at-work", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    @property
    def path(self) -> Path:
        """The lock file."""
        return self._path

    def identity(self) -> Identity:
        """The identity of the locked file: inode, and device in two numbers."""
        return self._identity

    def release(self, *, clean: bool = False) -> None:
        """Let go; may be called twice.  `clean` erases the holder's pid, so that a later look knows of no crash."""
        # A program that closes all descriptors lets another file of its own have the number.
        if is_open_as(self._fd, self._identity):
            with suppress(OSError):  # then the next opener verifies, and that is all
                if clean:
                    os.ftruncate(self._fd, 0)
            os.close(self._fd)
        self._fd = -1

    def _flock(self, mode: int, retries: int | None = None) -> None:
        if self._fd < 0:
            return None
        patience = left = self._retries if retries is None else retries
        tries, beat = 0, self._beat()
        while True:
            try:
                return fcntl.flock(self._fd, mode | fcntl.LOCK_NB)
            except OSError as exc:
                if exc.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                    raise
            if beat != (beat := self._beat()):
                left = patience
            if left == 0 and (retries is not None or tries >= _UNNAMED_RETRIES or _runs_here(_read_pid(self._fd))):
                break
            left, tries = max(left - 1, 0), tries + 1
            if tries == _SAID_AFTER:
                _log.warning(
                    "waiting for process %(holder_pid)s, which opens or verifies %(path)s (role: %(role)s)",
                    role=self.role.value,
                    path=self._path.parent,
                    holder_pid=_read_pid(self._fd),
                )
            Event().wait(_RETRY_S)
        pid = _read_pid(self._fd)
        who = f"process {pid}" if pid else "another process"
        hint = "stop that process, or use another directory"
        if pid == os.getpid():
            # Or by a process of another container, which may have the same id.
            who += ", the caller itself"
            hint = "share its Outbox and its Relay; containers share one process namespace"
        raise StoreLocked(
            f"the {self.role.value} role of {self._path.parent} is held by {who}",
            hint=hint,
            holder_pid=pid,
        )

    def _beat(self) -> int:
        """Changes while the holder is `at_work`."""
        return os.fstat(self._fd).st_mtime_ns


def holder(directory: Path, role: Role) -> int | None:
    """Pid of the process that holds `role` now, 0 where it is held by an unknown one, or None when it is free.

    Raises PermissionError where the lock file belongs to another user.
    """
    try:
        fd = open_own(directory / f"{role.value}.lock", os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        # A shared probe, so that two observers do not see each other as the holder.
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return _read_pid(fd) or 0
    finally:
        os.close(fd)
    return None


@contextmanager
def nobody_writes(directory: Path) -> Iterator[bool]:
    """Whether no process can write to the store while the block runs.

    Either no process has it open, and none can open it, or the caller has it for itself.
    """
    try:
        fd = open_own(directory / f"{Role.ACCESS.value}.lock", os.O_RDONLY)
    except FileNotFoundError:
        yield True
        return
    try:
        yield _try(fd, fcntl.LOCK_EX) or not _try(fd, fcntl.LOCK_SH)
    finally:
        os.close(fd)


def _try(fd: int, mode: int) -> bool:
    try:
        fcntl.flock(fd, mode | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def died_holding(directory: Path, role: Role) -> bool:
    """Whether the last holder of `role` did not release it cleanly.  Only meaningful while no process holds it."""
    try:
        return os.lstat(directory / f"{role.value}.lock").st_size > 0
    except FileNotFoundError:
        return False


def forget_holders(directory: Path, *roles: Role) -> None:
    """Forget dead holders of `roles`, after a verification: they have left no damage."""
    for role in roles:
        with suppress(FileNotFoundError):
            fd = open_own(directory / f"{role.value}.lock", os.O_RDWR)
            try:
                os.ftruncate(fd, 0)
            finally:
                os.close(fd)


def _read_pid(fd: int) -> int | None:
    text = os.pread(fd, _PID_BYTES, 0).strip(b"\0\n")
    return int(text) if text.isdigit() else None


def _runs_here(pid: int | None) -> bool:
    """Whether process `pid` can be seen from here and runs."""
    if not pid:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True


# A forked child shares its parent's descriptors, and a flock lives until the last of them is closed: without this,
# a child that outlives a killed engine would keep its successor out.
_held: weakref.WeakSet[RoleLock] = weakref.WeakSet()


def _forget_after_fork() -> None:
    for lock in list(_held):
        lock.release()


os.register_at_fork(after_in_child=_forget_after_fork)
