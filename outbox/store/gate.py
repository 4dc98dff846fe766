"""Gate: the open LMDB environment behind its gate, the transactions on it, and the halt latch.

It promises the store above it that `close` and `swap` never pull the environment from under another thread, that a
forked copy never touches it, and that the first failed durable write sets a latch that nothing but reopening clears.
"""

from __future__ import annotations

import errno
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import DurabilityError, OutboxError, StoreClosed, StoreLocked
from ..log import Log
from .envelope import Counters
from .environment import Environment, LmdbError, WriteError, no_slot, translated

_log = Log("outbox.store")

COUNTERS_KEY = b"outbox:counters"
_REOPEN_HINT = "halt trading, free or replace the disk, then restart: reopening verifies the store"
# Seconds that a swap waits for those inside.  One of them may wait for the writer, which waits here: a signal handler
# that enqueues has interrupted its read.
_SWAP_WAIT_S = 10.0
_NOT_OPENED: tuple[type[Exception], ...] = (OutboxError, *WriteError)
_GONE_HINT = (
    "halt trading; what is pending here is lost with this process, so drain it first, then restore a backup and restart"
)
_DAEMON_HINT = "halt trading, restart; let the program close all descriptors (daemonize) before it opens the store"
_LOCK_HINT = "halt trading, stop every process that has the store open, then restart: reopening verifies the store"


class Guarded:
    """An environment and its transactions.  Thread-safe; not usable in a forked child."""

    def __init__(self, environment: Environment) -> None:
        self._environment: Environment | None = environment
        # Whether `close` has begun, which ends the writer before the environment.
        self._ends = False
        # Whether it could not be opened again after it was closed for a vacuum.
        self._lost = False
        self.directory: Path = environment.directory
        self._directory_name = os.fspath(environment.directory)
        self.identity = environment.identity
        self._pid = os.getpid()
        # Reentrant: a signal handler may come at any point of a call, and must not wait for what it has interrupted.
        self._mutex = threading.RLock()
        self._gate = threading.Condition(self._mutex)
        # What the last one to leave closes.
        self._closing: Environment | None = None
        # How many wait for the last one to leave.
        self._awaited = 0
        # Whether the environment is about to be closed, and opened again.
        self._swapping = False
        # The threads that use the environment now, by identifier; what changes the list or counts in it is a single
        # step of C.
        self._inside: list[int] = []
        self.halt_reason: str | None = None
        self._way_out = _REOPEN_HINT
        # Called once when the halt latch is set, while no other thread writes: it must not write to the store.
        self.on_halt: Callable[[str], None] = _ignore

    # -- transactions

    @contextmanager
    def _entered(self) -> Iterator[Environment]:
        """Pass the gate: the environment stays open until the block ends."""
        self._check_not_forked()
        me = threading.get_ident()
        # An exception of a signal handler may come between any two steps: what this thread adds is counted from here.
        before = self._inside.count(me)
        try:
            yield self._enter(me)
        finally:
            self._leave(me, before)

    def _enter(self, thread: int) -> Environment:
        # Without the mutex: the writer comes here too, and a signal handler that has interrupted another thread here
        # may wait for the writer.  A swap and a close look who is inside after they have set what is asked here.
        self._inside.append(thread)
        environment = self._environment
        if environment is not None and not self._swapping:
            return environment
        self._inside.remove(thread)
        with self._mutex:  # during a swap this waits for the new file
            self._inside.append(thread)
            return self._usable()

    def _leave(self, thread: int, before: int) -> None:
        while self._inside.count(thread) > before:
            self._inside.remove(thread)
        if self._inside or not (self._awaited or self._closing is not None):
            return
        with self._mutex:
            if self._inside:
                return
            if self._closing is not None:
                environment, self._closing = self._closing, None
                environment.close()
            if self._awaited:
                self._gate.notify_all()

    def _usable(self) -> Environment:
        """The open environment.  Assumes the mutex."""
        if self._environment is None and self._lost:
            self.check_not_halted()
        if self._environment is None:
            raise self._closed()
        return self._environment

    def _closed(self) -> StoreClosed:
        return StoreClosed(f"the outbox at {self.directory} is closed", hint="open it again")

    def _check_not_forked(self) -> None:
        # Before the mutex, which a thread of the parent may have held at the fork.
        if os.getpid() != self._pid:
            raise StoreClosed(
                f"{self.directory} was opened by process {self._pid} and cannot be used after a fork",
                hint="fork before you open it, or start the process anew (spawn)",
            )

    @contextmanager
    def _read(self) -> Iterator[tuple[Environment, Any]]:
        """A snapshot.  Raises `DurabilityError` where even reading fails, as after a panic of LMDB."""
        with self._entered() as environment:
            try:
                with environment.env.begin() as txn:
                    yield environment, txn
            except LmdbError as exc:
                if no_slot(exc):
                    raise translated(exc, self.directory, hint="") from exc
                raise DurabilityError(f"the store could not be read: {exc}", hint=_REOPEN_HINT) from exc

    @contextmanager
    def _write(self, purpose: str, *, promises: bool = False) -> Iterator[tuple[Environment, Any]]:
        """A durable write transaction, in the writer's thread.

        Its first failure sets the halt latch and is raised as `DurabilityError`.  One that `promises` something to a
        caller is refused once the latch is set, and where a file of the store is no longer in its place; others serve
        draining, which goes on while LMDB's lock file is there.
        """
        with self._entered() as environment:
            if environment.readonly:
                raise StoreLocked(f"{self.directory} was attached read-only", hint="attach without readonly")
            try:
                environment.check_open()
                if promises:
                    self.check_not_halted()
                    environment.check_in_place()
                    environment.check_roles_in_place()
                else:
                    environment.check_lock_in_place()
                with environment.env.begin(write=True) as txn:
                    yield environment, txn
                if promises:
                    environment.check_in_place()
            except WriteError as exc:
                raise self._failed(purpose, exc) from exc

    @contextmanager
    def _counted(self, purpose: str) -> Iterator[tuple[Environment, Any, Counters]]:
        """A durable write transaction that changes the counters."""
        with self._write(purpose) as (environment, txn):
            counters = Counters.unpack(txn.get(COUNTERS_KEY))
            yield environment, txn, counters
            txn.put(COUNTERS_KEY, counters.pack())

    def _failed(self, purpose: str, exc: Exception) -> DurabilityError:
        """Set the halt latch; what to raise."""
        self._latch(purpose, exc)
        return DurabilityError(f"the store could not {purpose}: {exc}", hint=_way_out(exc))

    def _latch(self, purpose: str, exc: Exception) -> None:
        if self.halt_reason is not None:
            return
        self.halt_reason, self._way_out = f"could not {purpose}: {exc}", _way_out(exc)
        _log.critical(
            "durable write failed, enqueueing is halted: could not %(purpose)s: %(error)s (%(way_out)s)",
            purpose=purpose,
            error=exc,
            way_out=self._way_out,
        )
        self.on_halt(self.halt_reason)

    def is_in_place(self) -> bool:
        """Whether the open data file is the one that the next start will find.

        Where that file or one of those that guard it is gone, the halt latch is set.
        """
        with self._entered() as environment:
            try:
                environment.check_open()
                environment.check_in_place()
                environment.check_roles_in_place()
            except OSError as exc:
                self._latch("find its file", exc)
                return environment.data_is_in_place()
        return True

    def check_not_halted(self) -> None:
        """Raise `DurabilityError` when the halt latch is set."""
        if self.halt_reason is not None:
            raise DurabilityError(f"enqueueing is halted: the store {self.halt_reason}", hint=self._way_out)

    # -- lifecycle

    def reader_check(self) -> None:
        """Clear the slots of killed readers, which would pin freed pages."""
        with self._entered() as environment:
            environment.env.reader_check()

    def swap(self, action: Callable[[], None]) -> None:
        """Close the environment, run `action`, open it again; other threads wait at the gate meanwhile.

        Runs in the writer's thread.  A `DurabilityError` of the action sets the halt latch.  Raises `StoreLocked`, with
        nothing done, where a read takes too long.
        """
        with self._mutex:
            self._swapping = True
            try:
                if not self._wait_for_those_inside(_SWAP_WAIT_S):
                    raise StoreLocked(
                        f"{self.directory} is being read for more than {_SWAP_WAIT_S:g} s, and was not rewritten",
                        hint="try again when no long read runs",
                    )
                before = self._usable()
                before.close()
                self._environment = None
                try:
                    action()
                except DurabilityError as exc:
                    self._latch("swap the file", exc)
                    raise
                finally:
                    self._reopen(before)
            finally:
                self._swapping = False

    def _reopen(self, before: Environment) -> None:
        """Open the environment again; where that fails, enqueueing is halted.  Assumes the mutex."""
        try:
            self._environment = Environment(self.directory)
            self._environment.roles = before.roles
        except _NOT_OPENED as exc:
            self._lost = True
            raise self._failed("open its file again", exc) from exc

    def _wait_for_those_inside(self, timeout: float | None = None) -> bool:
        """Whether all have left in time.  Assumes the mutex."""
        self._awaited += 1
        try:
            return self._gate.wait_for(lambda: not self._inside, timeout)
        finally:
            self._awaited -= 1

    def check_open(self) -> None:
        """Raise `StoreClosed` once `close` has begun, or in a forked copy."""
        self._check_not_forked()
        if self._ends:
            raise self._closed()
        if self._environment is None:
            with self._mutex:  # during a swap this waits for the new file
                self._usable()

    @property
    def forked(self) -> bool:
        """Whether this is a forked copy, which must not touch the environment."""
        return os.getpid() != self._pid

    def close(self) -> None:
        """Close the environment when the last thread inside has left; may be called twice.

        Waits for other threads.  In a signal handler that has interrupted a read, that read closes the environment.
        """
        with self._mutex:
            environment, self._environment = self._environment, None
            self._lost = False
            if threading.get_ident() in self._inside:
                self._closing = environment or self._closing
                return
            if self._inside and sys.is_finalizing():
                return  # they were stopped for good, perhaps in the middle of a commit
            self._wait_for_those_inside()
            if environment is not None:
                environment.close()


def _way_out(exc: Exception) -> str:
    if isinstance(exc, OSError) and exc.errno == errno.EBADF:
        return _DAEMON_HINT
    if not isinstance(exc, FileNotFoundError):
        return _REOPEN_HINT
    return _LOCK_HINT if str(exc.filename).endswith((".lock", "lock.mdb")) else _GONE_HINT


def _ignore(reason: str) -> None:
    """No listener."""
