"""Outbox: the public face of the store.  Makes calls durable in one commit, and carries out an operator's answers.

What passes `calls.py` is on disk when `enqueue` returns.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

from .answers import Answers, require_number
from .calls import Calls, Prepared
from .clock import Clock, SystemClock
from .config import OutboxConfig
from .entry import Entry
from .errors import ConfigError, DurabilityError, EntryNotFound, OutboxError, StoreLocked
from .handing_over import Awaited, in_doubt
from .hooks import HookCalls, Hooks
from .log import Log
from .monitoring.alarms import Alarms
from .monitoring.findings import UNLEDGERED, assess
from .monitoring.notices import Notices
from .monitoring.pause import Pauses
from .monitoring.progress import Progress
from .monitoring.status import OutboxStatus, snapshot
from .opening import OpenStore, open_store, rewrite_compactly
from .operation import Operation, operations_by_name
from .store import namespace
from .store.appending import Append
from .store.envelope import Record, to_us
from .store.reads import FORGOTTEN
from .store.state_file import StateFile
from .store.writer import Rank, Writer
from .transaction import Transaction

_log = Log("outbox")

# The alarm of what the background check of the ledger has found.
LEDGER_DAMAGED = "ledger-damaged"


class Outbox:
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
        self._opened = opened
        self.store = opened.store
        self.config = config
        self.clock = clock
        self.calls = Calls(
            operations,
            namespace=namespace.in_use(self.store, config),
            max_entry_kb=config.max_entry_kb,
            clock=clock,
        )
        self._answers = Answers(self.store, clock.new_id)
        self.alarms = Alarms(self.store)
        self.pauses = Pauses(self.store, self.clock)
        self.notices = Notices(self.store)
        self.progress = Progress(clock)
        self._hook_calls = HookCalls(hooks or Hooks(), self.status, clock)
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

        With `operations`, names that are not declared and arguments that do not fit are refused at enqueue.  After
        an unclean shutdown the store is verified first.  `hooks` are called from now on, `on_state` perhaps before this
        returns.  Raises `StoreLocked` (another engine, with its pid),
        `StoreCorrupt`, `StoreFormatError`, `ConfigError` or OSError.
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

        Cannot enqueue.  With `readonly` it can only look, and does so also while another process that was paused in the
        middle of a commit holds up everybody who writes.  Raises `StoreMissing` where there is none, else as `open`.
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
        config = config or OutboxConfig()
        clock = clock or SystemClock()
        declared = tuple(operations)
        operations_by_name(declared)
        directory = Path(os.path.abspath(os.fspath(path if path is not None else config.dir)))
        opened = open_store(directory, config, clock, engine=engine, readonly=readonly)
        try:
            if engine:
                namespace.claim(opened.store, config)
            box = cls(opened, config, declared, clock, hooks)
        except BaseException:
            opened.close()
            raise
        if engine:
            given = os.fspath(path if path is not None else config.dir)
            _log.info("outbox opened at %(path)s, given as %(given)s", path=directory, given=given)
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
        """Make the halt latch visible to other processes; best effort, since the disk may be the reason."""
        try:
            StateFile(self.path / "engine.state").write({"pid": os.getpid(), "halted": reason})
        except OSError as exc:
            _log.warning("halt state could not be published: %(error)s", error=exc)

    def _report_history(self, what: str) -> None:
        self.alarms.sound(LEDGER_DAMAGED, f"{what}; delivery goes on: see `atb outbox verify` at the next stop")

    def close(self) -> None:
        """Close the store and let go of the roles; may be called twice.  Stop the relay first.

        Hooks at work, and those of what has happened, get 5 seconds.
        """
        with self._hook_calls.ending():
            self._opened.close()

    def __enter__(self) -> Outbox:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    @property
    def operations(self) -> Mapping[str, Operation]:
        """The declared operations by name."""
        return self.calls.operations

    @property
    def path(self) -> Path:
        """The store's directory, absolute."""
        return self.store.directory

    # -- enqueueing

    def enqueue(
        self, operation: str, args: Mapping[str, Any], *, key: str | None = None, order_by: str | int | None = None
    ) -> Entry:
        """Record one call; it is on disk when this returns.

        `key` names the intent: the same key with the same arguments returns the first entry, with others it raises
        `IdempotencyConflict`, and `AlreadyRejected` where that entry is a dead letter or was discarded.  Without it the
        operation's identity counts, or else every call is its own intent.  `order_by` overrides the operation's
        ordering key.  Raises `InvalidEntry` (nothing was written) or `DurabilityError` (in doubt: retry with the same
        key, see `DurabilityError.keys`).

        May be called in a signal handler.  An exception that a signal handler raises meanwhile leaves the entry in
        doubt, too; the exception gets the keys as `outbox_keys`, and a note with them.
        """
        prepared = self._prepare(operation, args, key, order_by)
        submission = Append([prepared[0]])
        self._commit(submission, [prepared])
        return _entry(submission.stored[0], prepared)

    async def enqueue_async(
        self, operation: str, args: Mapping[str, Any], *, key: str | None = None, order_by: str | int | None = None
    ) -> Entry:
        """Record one call as `enqueue` does, while the event loop goes on.

        The call is encoded before this first waits.  Calls that are awaited together share commits and are stored in
        the order in which they were made.  Raises as `enqueue`; a cancelled call is in doubt: retry it with the same
        key.  Any running event loop, in any thread.
        """
        prepared = self._prepare(operation, args, key, order_by)
        awaited = Awaited()
        self._hand_over([prepared], awaited.end)
        (entry,) = await awaited.future
        return entry

    def enqueue_nowait(
        self, operation: str, args: Mapping[str, Any], *, key: str | None = None, order_by: str | int | None = None
    ) -> Future[Entry]:
        """Record one call without waiting for the disk; it is durable when the future has its entry.

        The call is validated and encoded now; entries are stored in the order of the calls of one thread.  The future
        raises what `enqueue` raises later; a program that ends before it is done loses the entry, and one that drops
        the future never learns of a failure.  Callbacks of the future run in the writer's thread: they must be quick.
        Raises `InvalidEntry`, or `DurabilityError` once enqueueing is halted.
        """
        future: Future[Entry] = Future()
        future.set_running_or_notify_cancel()

        def end(entries: Iterator[Entry] | None, error: BaseException | None) -> None:
            if error is not None or entries is None:
                future.set_exception(error or AssertionError("neither entries nor an error"))
                return
            try:
                future.set_result(next(entries))
            except Exception as exc:  # noqa: BLE001 - of decoding, raised by `result`
                future.set_exception(exc)

        self._hand_over([self._prepare(operation, args, key, order_by)], end)
        return future

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """Several entries in one LMDB commit, and later in one PostgreSQL transaction.

        They are committed when the block ends; an exception inside records nothing.  `tx.entries` holds them
        afterwards.  Raises at the end of the block what `enqueue` raises.
        """
        transaction = Transaction(self._prepare)
        try:
            yield transaction
        finally:
            transaction.end()
        if transaction.prepared:
            transaction.keep(self._submit(transaction.prepared))

    def prepare(self, operation: str, args: Mapping[str, Any], *, at: datetime | None = None) -> Prepared:
        """Validate and encode one call as it is now, to be stored by `submit`; later changes of `args` do not count.

        `at`: when the call was made, an aware time; by default now.
        Raises `InvalidEntry`, or what the operation's `validate` raises.
        """
        return self._prepare(operation, args, None, None, at)

    def submit(self, prepared: list[Prepared]) -> list[Entry]:
        """Store prepared calls in one LMDB commit, and later in one PostgreSQL transaction.  Raises as `enqueue`."""
        return list(self._submit(prepared))

    def _prepare(
        self,
        name: str,
        args: Mapping[str, Any],
        key: str | None,
        order_by: str | int | None,
        at: datetime | None = None,
    ) -> Prepared:
        """Validate and encode one call.  Raises `InvalidEntry`, or what the operation's `validate` raises."""
        self.store.check_open()
        if not self._opened.is_engine:
            raise StoreLocked(
                f"the outbox at {self.path} was attached, not opened, and cannot enqueue",
                hint="use Outbox.open in the engine's process",
            )
        self.store.check_not_halted()
        return self.calls.prepare(name, args, key, order_by, at)

    def declare(self, operations: Iterable[Operation]) -> None:
        """Add declarations, for a part of the program that brings its own; one of a known name replaces it.

        An outbox that was opened without operations goes on taking any other name.
        """
        self.calls.declare(operations)

    def lookup(self, operation: str, args: Mapping[str, Any], *, key: str | None = None) -> Entry | None:
        """The entry that this call would repeat, whatever its other arguments; None where it would be a new one.

        Raises `InvalidEntry` for an operation that is not declared or a bad key.
        """
        declared = self.calls.declared(operation)
        hashed = self.calls.key_of(declared, operation, declared.complete(args), key)
        record = None if hashed is None else self.store.find(hashed)
        return None if record is None else record.entry()

    def entry(self, seq: int) -> Entry:
        """Entry `seq`, pending or in the ledger.  Raises `EntryNotFound` or `InvalidEntry`."""
        require_number(seq)
        for name in ("pending", "ledger", "pending"):  # it may move in between
            record = self.store.record(name, seq) if 0 < seq < 2**64 else None
            if record is not None:
                return record.entry(strict=False)
        raise EntryNotFound(f"entry {seq} is not in the store", hint="it was never there, or its retention has ended")

    def _submit(self, prepared: list[Prepared]) -> Iterator[Entry]:
        """Make them durable in one commit; what is returned is decoded when asked for."""
        submission = Append([record for record, *_ in prepared])
        self._commit(submission, prepared)
        return _entries(submission, prepared)

    def _commit(self, submission: Append, prepared: list[Prepared]) -> None:
        """Make the submission of what was prepared durable.  Raises as `enqueue`."""
        try:
            self._writer.submit(submission)
            if submission.error is not None:
                raise submission.error
        except DurabilityError as exc:
            # Several threads share one failed commit; each gets an error of its own, with its own key.
            raise type(exc)(exc.message, hint=exc.hint, keys=_keys(prepared)) from exc
        except OutboxError:
            raise
        except BaseException as exc:
            in_doubt(exc, _keys(prepared))
            raise

    def _hand_over(
        self, prepared: list[Prepared], end: Callable[[Iterator[Entry] | None, BaseException | None], None]
    ) -> None:
        """Let them be made durable in one commit; `end` gets the entries or the error, in the writer's thread."""
        submission = Append([record for record, *_ in prepared])

        def then(error: BaseException | None) -> None:
            error = error or submission.error
            if isinstance(error, DurabilityError):
                error = type(error)(error.message, hint=error.hint, keys=_keys(prepared))
            end(None if error is not None else _entries(submission, prepared), error)

        self._writer.hand_over(submission, then)

    @property
    def _writer(self) -> Writer[Append]:
        if self.store.writer is None:
            raise StoreLocked(f"{self.path} was opened for looking only", hint="attach without readonly")
        return self.store.writer

    def on_enqueue(self, listener: Callable[[], None]) -> None:
        """Call `listener` after every commit of entries, from the writer's thread; it must be quick and not raise."""
        self.store.listeners.append(listener)

    def off_enqueue(self, listener: Callable[[], None]) -> None:
        """Undo `on_enqueue`; may be called twice."""
        with suppress(ValueError):
            self.store.listeners.remove(listener)

    # -- looking

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
        """A snapshot for operators, in time independent of the backlog.  Raises `StoreClosed`."""
        found = snapshot(self.store, self.config, self.clock, is_engine=self._opened.is_engine)
        return assess(found, self.config)

    # -- the operator's answers

    def requeue(self, seq: int) -> list[Entry]:
        """Try dead letter `seq` again, at its old place in the order, together with the group it belongs to.

        Recorded in the ledger.  Raises `EntryNotFound`.
        """
        return self._answers.requeue(seq)

    def discard(self, seq: int, reason: str, *, free_key: bool = False) -> list[Entry]:
        """Give up dead letter `seq`, together with the group it belongs to; later entries of its key go on.

        Also the answer to a quarantined entry, whose raw bytes then stay in the ledger for the retention time, and to a
        pending one that no relay is delivering right now: one that was applied all the same, by a relay that has died,
        becomes completed as soon as another relay has asked PostgreSQL.  It stays in the ledger with `reason`, which
        must not be empty.  With `free_key` its idempotency key may be used again, as is right where the caller was told
        of the rejection.  Raises `EntryNotFound`, `EntryInDelivery` or `InvalidEntry`.
        """
        return self._answers.discard(seq, reason, free_key=free_key)

    def acknowledge(self, name: str) -> bool:
        """Take alarm `name` out of the status; whether there was one.

        `unledgered` stands for the entries that were completed without a ledger copy.  Raises `DurabilityError`.
        """
        return self._answers.forget_unledgered(name) if name == UNLEDGERED else self.alarms.acknowledge(name)

    # -- retention

    def compact(self, retention: timedelta | None = None, vacuum: bool = False) -> int:
        """Prune settled entries older than `retention` (default: the configured hours); returns how many.

        With `vacuum` the file is also rewritten compactly and swapped, which needs this process to be the only one
        with the store open and no relay running: raises `StoreLocked` otherwise, having changed nothing.  Raises
        `OutboxError` while something that PostgreSQL has forgotten waits to be put back.
        """
        if self.alarms.sounds(FORGOTTEN):
            raise OutboxError(
                "cannot prune: PostgreSQL lost entries that it acknowledged",
                hint="run `atb outbox reconcile` first",
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

        # All of it by the writer: an interrupted caller must not let go of the roles before the file is in its place.
        return self._writer.run(Rank.MAINTAIN, prune_and_rewrite)


def _keys(prepared: list[Prepared]) -> tuple[str | None, ...]:
    """To retry with."""
    return tuple(key for _, key, *_ in prepared)


def _entries(submission: Append, prepared: list[Prepared]) -> Iterator[Entry]:
    """What was stored, decoded when asked for."""
    return (_entry(stored, one) for stored, one in zip(submission.stored, prepared, strict=True))


def _entry(stored: Record, prepared: Prepared) -> Entry:
    """What was stored, decoded.  A key that was used before gives the first entry, with the same arguments."""
    record, _, uuid, args = prepared
    return stored.entry(uuid=uuid if stored.id == record.id else None, args=args)
