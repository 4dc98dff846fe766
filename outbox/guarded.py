"""Guarded: the open LMDB environment behind its gate, the transactions on it, and the halt latch.

It promises the store above it that `close` and `swap` never pull the environment from under another thread, that a
forked copy never touches it, and that the first failed durable write sets a latch that nothing but reopening clears.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .counters import Counters
from .environment import Environment, LmdbError, WriteError
from .errors import DurabilityError, StoreBusy, StoreClosed, StoreLocked

_log = logging.getLogger("outbox.store")

COUNTERS_KEY = b"outbox:counters"
_REOPEN_HINT = "halt trading, free or replace the disk, then restart: reopening verifies the store"
_GONE_HINT = (
    "halt trading; what is pending here is lost with this process, so drain it first, then restore a backup and restart"
)


class Guarded:
    """An environment and its transactions.  Thread-safe; not usable in a forked child."""

    def __init__(self, environment: Environment) -> None:
        self._environment: Environment | None = environment
        self.directory: Path = environment.directory
        self._directory_name = os.fspath(environment.directory)
        self.identity = environment.identity
        self._pid = os.getpid()
        # Reentrant: a signal handler may come at any point of a call, and must not wait for what it has interrupted.
        self._mutex = threading.RLock()
        self._gate = threading.Condition(self._mutex)
        # How many wait for the last one to leave.
        self._awaited = 0
        # The threads that use the environment now, by identifier, and those that write or wait for their turn.
        self._inside: list[int] = []
        self._writing: set[int] = set()
        # One write at a time, from its beginning until its failure is known to every other thread.
        self._turn = threading.Lock()
        self.halt_reason: str | None = None
        self._way_out = _REOPEN_HINT
        # Told once when the halt latch is set; nobody else writes meanwhile, so it must not write to the store.
        self.on_halt: Callable[[str], None] = _ignore

    # -- transactions

    def _enter(self) -> Environment:
        """Pass the gate: the environment stays open until `_leave`."""
        self._check_not_forked()
        with self._mutex:
            # First of all, so that a signal handler which closes the store finds this thread inside.
            self._inside.append(threading.get_ident())
            try:
                return self._usable()
            except BaseException:
                self._leave()
                raise

    def _leave(self) -> None:
        with self._mutex:
            self._inside.remove(threading.get_ident())
            if self._awaited and not self._inside:
                self._gate.notify_all()

    def _usable(self) -> Environment:
        """The open environment.  Assumes the mutex."""
        if self._environment is None:
            raise StoreClosed(f"the outbox at {self.directory} is closed", hint="open it again")
        return self._environment

    def _check_not_forked(self) -> None:
        # Before the mutex, which a thread of the parent may have held at the fork.
        if os.getpid() != self._pid:
            raise StoreClosed(
                f"{self.directory} was opened by process {self._pid} and cannot be used after a fork",
                hint="open the outbox in the process that uses it",
            )

    @contextmanager
    def _read(self) -> Iterator[tuple[Environment, Any]]:
        """A snapshot.  Raises `DurabilityError` where even reading fails, as after a panic of LMDB."""
        environment = self._enter()
        try:
            with environment.env.begin() as txn:
                yield environment, txn
        except LmdbError as exc:
            raise DurabilityError(f"the store could not be read: {exc}", hint=_REOPEN_HINT) from exc
        finally:
            self._leave()

    @contextmanager
    def _write(self, purpose: str, *, promises: bool = False) -> Iterator[tuple[Environment, Any]]:
        """A durable write transaction.  Its first failure sets the halt latch and is raised as `DurabilityError`.

        One that `promises` something to a caller is refused once the latch is set, and where the data file is no longer
        in its place; others serve draining, which goes on.  Raises `StoreBusy` inside another one of this thread.
        """
        me = threading.get_ident()
        if me in self._writing:
            raise busy(self.directory)
        environment = self._enter()
        try:
            if environment.readonly:
                raise StoreLocked(f"{self.directory} was opened for looking only", hint="attach without readonly")
            self._writing.add(me)
            # LMDB lets the next writer in as soon as a commit has failed, and may acknowledge that one: so the latch
            # must be set before anybody else begins.
            with self._turn:
                try:
                    if promises:
                        self.check_not_halted()
                    with environment.env.begin(write=True) as txn:
                        yield environment, txn
                    if promises:
                        environment.check_in_place()
                except WriteError as exc:
                    raise self._failed(purpose, exc) from exc
        finally:
            self._writing.discard(me)
            self._leave()

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
        _log.critical("durable write failed, enqueueing is halted", extra={"purpose": purpose, "error": str(exc)})
        self.on_halt(self.halt_reason)

    def is_in_place(self) -> bool:
        """Whether the open data file is the one that the next start will find; if not, the halt latch is set."""
        environment = self._enter()
        try:
            environment.check_in_place()
        except OSError as exc:
            self._latch("find its file", exc)
            return False
        finally:
            self._leave()
        return True

    def check_not_halted(self) -> None:
        """Raise `DurabilityError` when the halt latch is set."""
        if self.halt_reason is not None:
            raise DurabilityError(f"enqueueing is halted: the store {self.halt_reason}", hint=self._way_out)

    # -- lifecycle

    def reader_check(self) -> None:
        """Clear the slots of killed readers, which would pin freed pages."""
        environment = self._enter()
        try:
            environment.env.reader_check()
        finally:
            self._leave()

    def swap(self, action: Callable[[], None]) -> None:
        """Close the environment, run `action`, open it again; other threads wait at the gate meanwhile.

        A `DurabilityError` of the action sets the halt latch.  Raises `StoreBusy` as `close`.
        """
        with self._gate:
            self._check_not_inside()
            self._wait_for_those_inside()
            self._usable().close()
            self._environment = None
            try:
                action()
            except DurabilityError as exc:
                self._latch("swap the file", exc)
                raise
            finally:
                self._environment = Environment(self.directory)

    def _wait_for_those_inside(self) -> None:
        """Assumes the mutex."""
        self._awaited += 1
        try:
            self._gate.wait_for(lambda: not self._inside)
        finally:
            self._awaited -= 1

    def _check_not_inside(self) -> None:
        if threading.get_ident() in self._inside:
            raise busy(self.directory)

    def check_open(self) -> None:
        """Raise `StoreClosed` after `close`, or in a forked copy."""
        self._check_not_forked()
        if self._environment is None:
            with self._mutex:  # during a swap this waits for the new file
                self._usable()

    @property
    def forked(self) -> bool:
        """Whether this is a forked copy, which must not touch the environment."""
        return os.getpid() != self._pid

    def close(self) -> None:
        """Close the environment after the threads inside have left; may be called twice.

        Raises `StoreBusy` in the middle of another call of this thread, which could never leave.
        """
        with self._gate:
            self._check_not_inside()
            environment, self._environment = self._environment, None
            self._wait_for_those_inside()
            if environment is not None:
                environment.close()


def busy(directory: Path) -> StoreBusy:
    """What to raise for a call that came in the middle of another one of the same thread."""
    return StoreBusy(
        f"this thread is in the middle of another call of the outbox at {directory}",
        hint="nothing was written; a signal handler should set a flag and leave the rest to the program's own loop",
    )


def _way_out(exc: Exception) -> str:
    return _GONE_HINT if isinstance(exc, FileNotFoundError) else _REOPEN_HINT


def _ignore(reason: str) -> None:
    """No listener."""
