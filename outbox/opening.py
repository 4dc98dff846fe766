"""Opening, closing and rewriting a store: roles, atomic creation, verification after an unclean shutdown."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .clock import Clock
from .config import OutboxConfig
from .errors import ConfigError, DurabilityError, StoreClosed, StoreCorrupt, StoreLocked, StoreMissing, StoreUnavailable
from .log import Log
from .rescue import verify
from .rescue.history import HistoryCheck, require_check
from .store import environment, filesystem, namespace
from .store.continuity import SESSIONS_KEY, RelaySessions
from .store.creation import create
from .store.envelope import Counters, to_us
from .store.gate import COUNTERS_KEY
from .store.identity import mark_clean, read_identity, take_clean_mark
from .store.locks import Role, RoleLock, died_holding, forget_holders, holder
from .store.own_files import StateFile, as_owner, occupy_standard_descriptors
from .store.steady import Steady
from .store.store import Store

_log = Log("outbox.opening")

_VACUUM_PREFIX = ".vacuum-"
# What needs the store for itself waits for a look at it, half a second at most: a status has it open for some 10 ms.
_LOOK_TRIES = 50


class OpenStore:
    """A store and the roles that this process holds in it.  Closed once; not thread-safe itself."""

    def __init__(self, store: Store, access: RoleLock, engine: RoleLock | None, history: HistoryCheck | None) -> None:
        self.store = store
        # Of an engine; stopped before anything that needs the store for this process alone.
        self.history = history
        self._access: RoleLock | None = access
        self._engine = engine
        # Whether this process may enqueue.
        self.is_engine = engine is not None

    def close(self) -> None:
        """Close the store, note a clean shutdown, let go of the roles; may be called twice."""
        if self._access is None or self.store.forked:
            return
        if self.history is not None:
            self.history.stop()
        with suppress(StoreClosed, DurabilityError):
            self.store.is_in_place()  # else this would vouch for a file that it never wrote to
        self.store.close()
        # If other processes have it open, the last one leaves the mark.
        if self._engine is not None:
            self._engine.release(clean=self.store.halt_reason is None)
        directory = self.store.directory
        with suppress(StoreLocked, OSError):
            self._access.make_exclusive()
            died = any(died_holding(directory, role) for role in (Role.ENGINE, Role.RELAY))
            # An engine whose lock file was removed shows in its state file only.
            halted = (StateFile(directory / "engine.state").read() or {}).get("halted")
            if not died and not halted and self.store.halt_reason is None:
                mark_clean(directory)
        self._access.release()
        self._access = self._engine = None
        self.is_engine = False

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold every role: no other process has the store open, or opens it meanwhile.

        Waits for who only looks at the status.  Raises `StoreLocked`.
        """
        assert self._access is not None
        if self.history is not None:
            self.history.stop()
        roles: list[RoleLock] = []
        try:
            roles.append(RoleLock(self.store.directory, Role.RELAY))
            if self._engine is None:
                roles.append(RoleLock(self.store.directory, Role.ENGINE))
            self._access.make_exclusive(tries=_LOOK_TRIES)
            try:
                yield
            finally:
                self._access.make_shared()
        finally:
            for role in roles:
                role.release(clean=True)
            if self.history is not None:
                self.history.resume()


def open_store(
    directory: Path, config: OutboxConfig, clock: Clock, *, engine: bool, readonly: bool = False
) -> OpenStore:
    """Open the store in `directory`; the engine's role also creates it.  A `readonly` one never waits for a writer.

    Raises `StoreMissing`, `StoreLocked`, `StoreCorrupt`, `StoreFormatError`, `ConfigError` or OSError.
    """
    occupy_standard_descriptors()
    _require_utf8(directory)
    if engine:
        _create_if_vacant(directory, config, clock)
    read_identity(directory)
    filesystem.refuse_remote(directory)
    locks: list[RoleLock] = []
    opened: environment.Environment | None = None
    history: HistoryCheck | None = None
    try:
        role = RoleLock(directory, Role.ENGINE) if engine else None
        locks += [role] if role is not None else []
        access = _take_access(directory, role, verify.checker(config.python))
        locks.append(access)
        if engine:
            _flush_renames(directory)
            history = HistoryCheck(directory, config.python)
        opened = environment.Environment(directory, readonly=readonly)
        if not access.read_only:
            for lock in locks:
                opened.keep_role(lock.path, lock.identity())
        store = Store(
            opened,
            max_bytes=config.max_size_mb << 20,
            reserve_bytes=(config.min_free_mb << 20) // 16,
            retention_us=int(config.retention_hours * 3_600_000_000),
            now_us=lambda: to_us(clock.now()),
            trusted_us=Steady(directory, clock, to_us).now_us,
            named=config.named,
        )
        store.reader_check()
    except BaseException:
        if history is not None:
            history.stop()
        if opened is not None:
            opened.close()
        for lock in locks:
            lock.release()
        raise
    return OpenStore(store, access, role, history)


def rewrite_compactly(directory: Path) -> None:
    """Rewrite the data file of a closed store and swap it in one rename.

    Raises `StoreCorrupt` or OSError, having changed nothing, or `DurabilityError`.
    """
    for leftover in directory.glob(f"{_VACUUM_PREFIX}*"):  # of a process that was killed here
        shutil.rmtree(leftover, ignore_errors=True)
    with as_owner(directory), tempfile.TemporaryDirectory(prefix=_VACUUM_PREFIX, dir=directory) as name:
        temporary = Path(name)
        environment.copy_compact(directory, temporary)
        found = environment.structural_problems(temporary)
        if found:
            raise StoreCorrupt(f"the compact copy is damaged: {found[0]}", hint="the store was left as it was")
        os.rename(temporary / "data.mdb", directory / "data.mdb")
        try:
            filesystem.flush_directory(directory)
        except OSError as exc:
            # A power cut may bring the old file back, without what would be written from now on.
            raise DurabilityError(
                f"the compact copy is in place, and that could not be flushed: {exc}", hint="restart"
            ) from exc


def _require_utf8(directory: Path) -> None:
    """Raise `ConfigError` for a path that py-lmdb could not hand to LMDB."""
    try:
        os.fspath(directory).encode()
    except UnicodeEncodeError:
        raise ConfigError(
            f"the path {os.fsencode(directory)!r} is not valid UTF-8, and LMDB's binding takes no other",
            hint="choose another directory, or rename its folders",
        ) from None


def _create_if_vacant(directory: Path, config: OutboxConfig, clock: Clock) -> None:
    try:
        read_identity(directory)
    except StoreMissing:
        store_id = clock.new_id()
        first = {COUNTERS_KEY: Counters().pack(), SESSIONS_KEY: RelaySessions().pack()}
        first |= namespace.first_record(config, store_id, to_us(clock.now()))
        create(directory, store_id, first)
        _log.info("outbox created at %(path)s", path=directory)


def _flush_renames(directory: Path) -> None:
    """A creation or a vacuum that was killed may have left its rename unflushed: a power cut would undo it."""
    filesystem.flush_directory(directory)
    filesystem.flush_parent(directory)


def _take_access(directory: Path, engine: RoleLock | None, check: Callable[[Path], None]) -> RoleLock:
    """Shared access to a store that is sound, as far as can be known without LMDB."""
    # One after the other: else each of two who come at once would take the other for one who has verified.
    opening = RoleLock(directory, Role.OPENING)
    try:
        access = RoleLock(directory, Role.ACCESS, shared=True)
        try:
            _verify_if_unclean(directory, opening, access, engine, check)
        except BaseException:
            access.release()
            raise
        return access
    finally:
        opening.release(clean=True)


def _verify_if_unclean(
    directory: Path, opening: RoleLock, access: RoleLock, engine: RoleLock | None, check: Callable[[Path], None]
) -> None:
    """Verify in a child process unless the last user closed properly, or a process that has verified it has it open."""
    state = StateFile(directory / "engine.state")
    try:
        access.make_exclusive()
    except StoreLocked:
        written_to = any(holder(directory, role) is not None for role in (Role.ENGINE, Role.RELAY))
        if access.read_only and written_to:
            # LMDB keeps no reader's slot then: pages could be overwritten while they are read.
            raise StoreUnavailable(
                f"{directory} is on a file system that is read-only here and written to elsewhere",
                hint="mount it for writing, or look where the engine runs",
                errno=errno.EROFS,
            ) from None
        if engine is not None and (state.read() or {}).get("halted"):
            # The process that has it open did so when the write failed, and has not verified it since.
            raise StoreLocked(
                f"{directory} must be verified after a write failed, and another process has it open",
                hint="stop the relay and whatever else has it open, then start the engine",
                holder_pid=holder(directory, Role.RELAY) or None,
            ) from None
        if engine is not None and engine.found_dead:
            # It may have halted, on a disk that refused to note it.  The child reads beside the others.
            with opening.at_work():
                check(directory)
            with suppress(OSError):
                require_check(directory)
        return
    try:
        if not take_clean_mark(directory):
            with opening.at_work():
                check(directory)
            # An engine that is opening names itself in its lock file already.
            with suppress(OSError):  # then an engine that comes while this one uses it must wait
                forget_holders(directory, *((Role.RELAY,) if engine is not None else (Role.ENGINE, Role.RELAY)))
                require_check(directory)
                state.write({"pid": os.getpid(), "halted": None})
    finally:
        access.make_shared()
