"""Roles: which process may do what with a store.  Advisory flocks on files of our own, one per role.

LMDB's own files are never touched here: closing any descriptor of `lock.mdb` in a process that has the
environment open drops LMDB's protection.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import Enum
from pathlib import Path
from threading import Event, Thread

from .errors import StoreLocked
from .state_file import give_to_owner

_log = logging.getLogger("outbox.locks")

# An observer probes a lock by taking it shared for an instant; who opens or vacuums a store is at it for longer.
_PROBE_RETRIES = 5
_OPEN_RETRIES = 3000
_RETRY_S = 0.01
# After so many it is worth a word.
_SAID_AFTER = 200
_BEAT_S = 1.0
_PID_BYTES = 32


class Role(Enum):
    """One lock file each.  ENGINE enqueues, RELAY drains; every opener shares ACCESS, and a vacuum takes it whole.

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
        """Take the lock: ENGINE and RELAY at once, the others within 30 s, or longer while their holder is `at_work`.

        Raises `StoreLocked` with the holder's pid, or OSError.
        """
        self.role = role
        self._retries = _OPEN_RETRIES if shared or role is Role.OPENING else _PROBE_RETRIES
        self._path = directory / f"{role.value}.lock"
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            give_to_owner(self._fd, directory)
            self._flock(fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        except BaseException:
            os.close(self._fd)
            raise
        if not shared:
            # The size alone tells that somebody holds it: a full disk must not keep out the one who would drain.
            os.ftruncate(self._fd, 0)
            os.ftruncate(self._fd, _PID_BYTES)
            with suppress(OSError):
                os.pwrite(self._fd, b"%d\n" % os.getpid(), 0)
        _held.add(self)

    def make_exclusive(self) -> None:
        """Turn a shared lock into an exclusive one; raises `StoreLocked` and stays shared when others hold it.

        The kernel drops the old lock before it takes the new one, so another opener may come in between; then the
        shared lock is taken back.
        """
        try:
            self._flock(fcntl.LOCK_EX, retries=0)
        except StoreLocked:
            fcntl.flock(self._fd, fcntl.LOCK_SH)
            raise

    def make_shared(self) -> None:
        """Turn an exclusive lock back into a shared one."""
        fcntl.flock(self._fd, fcntl.LOCK_SH)

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Let those who want this role wait for as long as the block takes and this process runs."""
        done = Event()

        def beat() -> None:
            while not done.wait(_BEAT_S):
                os.utime(self._fd)

        thread = Thread(target=beat, name="outbox-at-work", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def release(self, *, clean: bool = False) -> None:
        """Let go; may be called twice.  `clean` erases the holder's pid, so that a later look knows of no crash."""
        if self._fd >= 0:
            with suppress(OSError):  # then the next opener verifies, and that is all
                if clean:
                    os.ftruncate(self._fd, 0)
            os.close(self._fd)
            self._fd = -1

    def _flock(self, mode: int, retries: int | None = None) -> None:
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
            if left == 0:
                break
            left, tries = left - 1, tries + 1
            if tries == _SAID_AFTER:
                fields = {"role": self.role.value, "path": str(self._path.parent), "holder_pid": _read_pid(self._fd)}
                _log.warning("waiting for the process that opens or verifies the store", extra=fields)
            Event().wait(_RETRY_S)
        pid = _read_pid(self._fd)
        who = f"process {pid}" if pid else "another process"
        raise StoreLocked(
            f"the {self.role.value} role of {self._path.parent} is held by {who}",
            hint="stop that process, or use another directory",
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
        fd = os.open(directory / f"{role.value}.lock", os.O_RDWR | os.O_CLOEXEC)
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


def died_holding(directory: Path, role: Role) -> bool:
    """Whether the last holder of `role` did not release it cleanly.  Only meaningful while nobody holds it."""
    try:
        return (directory / f"{role.value}.lock").stat().st_size > 0
    except FileNotFoundError:
        return False


def forget_holders(directory: Path, *roles: Role) -> None:
    """After a verification: whoever died holding one of `roles` has left no damage."""
    for role in roles:
        with suppress(FileNotFoundError):
            os.truncate(directory / f"{role.value}.lock", 0)


def _read_pid(fd: int) -> int | None:
    text = os.pread(fd, _PID_BYTES, 0).strip(b"\0\n")
    return int(text) if text.isdigit() else None


# A forked child shares its parent's descriptors, and a flock lives until the last of them is closed: without this,
# a child that outlives a killed engine would keep its successor out.
_held: weakref.WeakSet[RoleLock] = weakref.WeakSet()


def _forget_after_fork() -> None:
    for lock in list(_held):
        lock.release()


os.register_at_fork(after_in_child=_forget_after_fork)
