"""Outbox: the public face of the store: opens and closes it, shows what is in it, carries out an operator's answers.

`enqueueing.py` has the calls that write entries.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any
from uuid import UUID

from .calls import Calls
from .clock import Clock, SystemClock
from .config import OutboxConfig
from .enqueueing import Enqueueing
from .entry import Entry
from .errors import ConfigError, EntryNotFound, InvalidEntry, OutboxError
from .hooks import HookCalls, Hooks
from .log import Log
from .monitoring.findings import UNLEDGERED, assess
from .monitoring.held_back import HeldBackCount
from .monitoring.notices import Alarms, Notices
from .monitoring.pause import Pauses
from .monitoring.progress import Progress
from .monitoring.status import OutboxStatus, snapshot
from .opening import OpenStore, open_store, rewrite_compactly
from .operation import Operation, operations_by_name
from .store import namespace
from .store.envelope import Record, is_seq, to_us
from .store.environment import as_unavailable
from .store.kept_files import not_in_delivery
from .store.ledger import ACKNOWLEDGE, DISCARD, REQUEUE, answer
from .store.own_files import StateFile
from .store.reads import FORGOTTEN
from .store.store import Store
from .store.withdrawal import members
from .store.writer import Rank, refuse_at_the_end

_log = Log("outbox")

# The alarm of what the background check of the ledger has found.
LEDGER_DAMAGED = "ledger-damaged"


def require_number(seq: object) -> None:
    """Raise `InvalidEntry` for what is no sequence number."""
    if not isinstance(seq, int) or isinstance(seq, bool):
        raise InvalidEntry(f"seq is {seq!r}", hint="allowed: a sequence number")


def require_reason(reason: object) -> None:
    """Raise `InvalidEntry` for an empty reason."""
    if not isinstance(reason, str) or not reason.strip():
        raise InvalidEntry(f"reason is {reason!r}", hint="say why this entry may be given up")


class OperatorAnswers:
    """Carries out an operator's answers to the entries of one store.  Safe from any thread."""

    def __init__(self, store: Store, new_id: Callable[[], UUID]) -> None:
        self._store, self._new_id = store, new_id

    def requeue(self, seq: int) -> list[Entry]:
        """See `Outbox.requeue`."""
        audit = self._audit(REQUEUE, seq)
        return self._released("requeued", seq, self._store.requeue(seq, audit))

    def discard(self, seq: int, reason: str, *, free_key: bool) -> list[Entry]:
        """See `Outbox.discard`."""
        require_reason(reason)
        extra: dict[str, Any] = {"free_key": True} if free_key else {}
        audit = self._audit(DISCARD, seq, reason=reason, **extra)
        pending = self._store.record("pending", seq) if is_seq(seq) else None
        if pending is None:
            released = self._store.discard(seq, reason, audit, free_key=free_key)
        else:
            with not_in_delivery(self._store.directory, *members(pending)):
                released = self._store.withdraw(seq, reason, audit, free_key=free_key)
        return self._released("discarded", seq, released)

    def forget_unledgered(self, name: str) -> bool:
        """Acknowledge, as alarm `name`, the entries that were completed without a ledger copy; whether any were."""
        count = self._store.figures().counters.unledgered
        if count:
            audit = answer(ACKNOWLEDGE, {"name": name, "entries": count}, self._new_id().bytes)
            self._store.forget_unledgered(count, audit)
        return bool(count)

    def _audit(self, operation: str, seq: int, **said: Any) -> Record:
        require_number(seq)
        return answer(operation, {"seq": seq, **said}, self._new_id().bytes)

    def _released(self, done: str, seq: int, released: list[Record]) -> list[Entry]:
        """Let a relay know that the answered entries, or those behind them, may be delivered."""
        _log.info(
            "entry %(seq)s was %(done)s; entries in its transaction: %(entries)s",
            done=done,
            seq=seq,
            entries=len(released),
        )
        for listener in tuple(self._store.listeners):
            listener()
        return [record.entry(strict=False) for record in released]


class Outbox(Enqueueing):
    """A durable local outbox.  Thread-safe; one engine process at a time; not usable after a fork.

    Open with `Outbox.open` (the engine: may enqueue) or `Outbox.attach` (an observer or a relay: may not), close
    with `close` or a `with` block.
    """

    def __init__(
        self,
        opened: OpenStore,
        config: OutboxConfig,
        operations: Iterable[Operation],
        clock: Clock,
        hooks: Hooks | None = None,
    ) -> None:
        """Use `open` or `attach` instead."""
        calls = Calls(
            operations,
            namespace=namespace.in_use(opened.store, config),
            config=config,
            clock=clock,
        )
        super().__init__(opened, calls)
        self.config = config
        self.clock = clock
        self._held_back = HeldBackCount()
        self._answers = OperatorAnswers(self.store, clock.new_id)
        self.alarms = Alarms(self.store)
        self.pauses = Pauses(self.store, self.clock)
        self.notices = Notices(self.store)
        self.progress = Progress(clock)
        self._hook_calls = HookCalls(hooks or Hooks(), self.status, clock, self.progress.is_claimed)
        self.store.on_halt = self._halted
        if self._hook_calls.wants_settled:
            self.store.on_settled = self._hook_calls.settled

    # -- opening and closing

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str] | None = None,
        config: OutboxConfig | None = None,
        operations: Iterable[Operation] = (),
        *,
        clock: Clock | None = None,
        hooks: Hooks | None = None,
    ) -> Outbox:
        """Open the outbox at `path` (default: `config.dir`) as its engine, creating it atomically if it is absent.

        Without `config` every setting has its default: the environment counts with `OutboxConfig.from_env()` only.
        With `operations`, names that are not declared and arguments that do not fit are refused at enqueue.  After
        an unclean shutdown the store is verified first.  `hooks` are called from now on, `on_state` perhaps before this
        returns.  Raises `StoreLocked` (another engine, with its pid), `StoreCorrupt`, `StoreFormatError`, `ConfigError`
        or OSError.
        """
        return cls._open(path, config, operations, clock, hooks, engine=True)

    @classmethod
    def attach(
        cls,
        path: str | os.PathLike[str] | None = None,
        config: OutboxConfig | None = None,
        operations: Iterable[Operation] = (),
        *,
        clock: Clock | None = None,
        readonly: bool = False,
        hooks: Hooks | None = None,
    ) -> Outbox:
        """Open an existing outbox beside its engine: to look, to relay, to answer dead letters.

        Cannot enqueue.  With `readonly` it only looks, also while a process that was suspended inside a commit blocks
        all writers.  Raises `StoreMissing` where there is none, else as `open`.
        """
        return cls._open(path, config, operations, clock, hooks, engine=False, readonly=readonly)

    @classmethod
    def _open(
        cls,
        path: str | os.PathLike[str] | None,
        config: OutboxConfig | None,
        operations: Iterable[Operation],
        clock: Clock | None,
        hooks: Hooks | None,
        *,
        engine: bool,
        readonly: bool = False,
    ) -> Outbox:
        refuse_at_the_end()
        config = config or OutboxConfig()
        clock = clock or SystemClock()
        declared = tuple(operations)
        operations_by_name(declared)
        # Of a link on the way: where it leads now. A deployment that switches it must not take the files away.
        given = config.dir if path is None else path
        if not isinstance(given, str | os.PathLike):
            raise ConfigError(f"path is {given!r:.100}", hint="allowed: a path; settings are given as config=...")
        directory = Path(os.path.realpath(given))
        opened = open_store(directory, config, clock, engine=engine, readonly=readonly)
        try:
            if engine:
                namespace.claim(opened.store, config)
            box = cls(opened, config, declared, clock, hooks)
        except BaseException:
            opened.close()
            raise
        if engine:
            _log.info("outbox opened at %(path)s, given as %(given)s", path=directory, given=os.fspath(given))
            box._publish_halt(None)
            if opened.history is not None:
                opened.history.start(box._report_history)
        return box

    def _halted(self, reason: str) -> None:
        """The halt latch was set; called once, in any thread."""
        if self._opened.is_engine:
            self._publish_halt(reason)
        self._hook_calls.halted(reason)

    def _publish_halt(self, reason: str | None) -> None:
        """Make the halt latch visible to other processes; best effort, since the disk may be the reason.

        With the limits that this engine enforces, which another process's settings need not have.
        """
        limits = {"max_bytes": self.store.max_bytes, "reserve_bytes": self.store.reserve_bytes}
        try:
            StateFile(self.path / "engine.state").write({"pid": os.getpid(), "halted": reason, **limits})
        except OSError as exc:
            _log.warning("halt state could not be published: %(error)s", error=exc)

    def _report_history(self, what: str) -> None:
        self.alarms.sound(LEDGER_DAMAGED, f"{what}; delivery goes on: see `atb outbox verify` at the next stop")

    def close(self) -> None:
        """Close the store and release the roles; may be called twice.  Stop the relay first.

        Hooks that run, and those of events that have happened, get 5 seconds.
        """
        with self._hook_calls.ending():
            self._opened.close()

    def __enter__(self) -> Outbox:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    # -- looking

    def entry(self, seq: int) -> Entry:
        """Entry `seq`, pending or in the ledger.  Raises `EntryNotFound` or `InvalidEntry`."""
        require_number(seq)
        for name in ("pending", "ledger", "pending"):  # it may move in between
            record = self.store.record(name, seq) if is_seq(seq) else None
            if record is not None:
                return record.entry(strict=False)
        if self.store.is_quarantined(seq):
            raise EntryNotFound(
                f"the record of entry {seq} is damaged and quarantined",
                hint=f"`atb outbox show {seq}` shows its raw bytes; enter it by hand, then `atb outbox discard {seq}`",
            )
        raise EntryNotFound(f"entry {seq} is not in the store", hint="it was never there, or its retention has ended")

    def pending(self) -> Iterator[Entry]:
        """Pending entries, oldest first, in bounded memory."""
        return (record.entry(strict=False) for record in self.store.records("pending"))

    def ledger(self) -> Iterator[Entry]:
        """Settled entries and audit records, oldest first, in bounded memory; dead letters are FAILED."""
        return (record.entry(strict=False) for record in self.store.records("ledger"))

    def dead_letters(self) -> Iterator[Entry]:
        """Entries that PostgreSQL rejected and that wait for an operator, oldest first."""
        for seq, _ in self.store.dead():
            record = self.store.record("ledger", seq)
            if record is not None:
                yield record.entry(strict=False)

    def status(self) -> OutboxStatus:
        """A snapshot for operators, in bounded time.  Raises `StoreClosed` or `StoreUnavailable`."""
        with as_unavailable(self.path):
            found = snapshot(
                self.store, self.config, self.clock, is_engine=self._opened.is_engine, held=self._held_back
            )
        return assess(found, self.config)

    # -- the operator's answers

    def requeue(self, seq: int) -> list[Entry]:
        """Try dead letter `seq` again, at its old place in the order, together with the group it belongs to.

        Recorded in the ledger.  Raises `EntryNotFound`.
        """
        return self._answers.requeue(seq)

    def discard(self, seq: int, reason: str, *, free_key: bool = False) -> list[Entry]:
        """Give up dead letter `seq`, together with the group it belongs to; later entries of its key go on.

        It stays in the ledger with `reason`, which must not be empty.  With `free_key` its idempotency key may be used
        again: for a caller that got the rejection as an error and may repeat the call.

        Gives up a quarantined entry too, whose raw bytes then stay in the ledger for the retention time, and a pending
        one that no relay is delivering right now.  If a relay that has died had applied that one all the same, it
        becomes completed as soon as another relay has asked PostgreSQL.

        Raises `EntryNotFound`, `EntryInDelivery`, `InvalidEntry` or `StoreUnavailable`.
        """
        with as_unavailable(self.path):
            return self._answers.discard(seq, reason, free_key=free_key)

    def acknowledge(self, name: str) -> bool:
        """Take alarm `name` out of the status; whether there was one.

        `unledgered` stands for the entries that were completed without a ledger copy.  Raises `DurabilityError`.
        """
        return self._answers.forget_unledgered(name) if name == UNLEDGERED else self.alarms.acknowledge(name)

    # -- retention

    def compact(self, retention: timedelta | None = None, vacuum: bool = False) -> int:
        """Prune settled entries older than `retention` (default: the configured hours); returns how many.

        With `vacuum` the file is also rewritten compactly and swapped.  That needs this process to be the only one
        with the store open, no relay running, and no read that takes long; else it raises `StoreLocked`.  Raises
        `StoreUnavailable`, and `OutboxError` while entries that PostgreSQL lost wait to be put back.
        """
        refuse_at_the_end()
        if self.alarms.sounds(FORGOTTEN):
            raise OutboxError(
                f"cannot prune while the alarm {FORGOTTEN!r} stands",
                hint="`atb outbox status` shows it; `atb outbox reconcile` ends it",
            )
        keep = timedelta(hours=self.config.retention_hours) if retention is None else retention
        if not isinstance(keep, timedelta) or keep < timedelta(0):
            raise ConfigError(f"retention is {retention!r}", hint="allowed: a timedelta of zero or more")
        self.store.check_open()
        before_us = to_us(self.clock.now()) - keep // timedelta(microseconds=1)
        if not vacuum:
            return self.store.prune(before_us)

        def prune_and_rewrite() -> int:
            with self._opened.alone():
                pruned = self.store.prune(before_us)
                self.store.swap(lambda: rewrite_compactly(self.path))
                return pruned

        # All of it in the writer's thread: an interrupted caller must not release the roles before the swap is done.
        with as_unavailable(self.path):
            return self._writer.run(Rank.MAINTAIN, prune_and_rewrite)
