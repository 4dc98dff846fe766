"""Outbox: the public face of the store.  Validates and encodes calls, then makes them durable in one commit.

Everything that can be refused is refused here, before a write transaction begins; what passes is on disk when
`enqueue` returns.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from threading import get_ident
from types import TracebackType
from typing import Any

from . import codec
from .alarms import Alarms
from .clock import Clock, SystemClock
from .config import OutboxConfig
from .entry import Entry
from .envelope import Record, to_us
from .errors import ConfigError, DurabilityError, EntryNotFound, InvalidEntry, OutboxError, StoreLocked
from .group_commit import GroupCommit
from .guarded import busy
from .ledger import ACKNOWLEDGE, DISCARD, REQUEUE, answer
from .opening import OpenStore, open_store, rewrite_compactly
from .operation import (
    Operation,
    caller_key,
    check_operation_name,
    idempotency_hash,
    operations_by_name,
    ordering_key,
    payload_hash,
    shape_hash,
)
from .progress import Progress
from .reading import FORGOTTEN
from .snapshot import snapshot
from .state_file import StateFile
from .status import UNLEDGERED, OutboxStatus
from .store import Append

_log = logging.getLogger("outbox")

_MAX_GROUP = 10_000
_TEXT = {str}
# Stands for every operation of an outbox that was opened without declarations.
_ANY = Operation("any", table="any")
# A record without its sequence number, the caller's key to retry it with, and its arguments if they need no decoding.
_Prepared = tuple[Record, str | None, dict[str, Any] | None]


class Outbox:
    """A durable local outbox.  Thread-safe; one engine process at a time; not usable after a fork.

    Open with `Outbox.open` (the engine: may enqueue) or `Outbox.attach` (an observer or a relay: may not), close
    with `close` or a `with` block.
    """

    def __init__(self, opened: OpenStore, config: OutboxConfig, operations: Iterable[Operation], clock: Clock) -> None:
        """Use `open` or `attach` instead."""
        self._opened = opened
        self.store = opened.store
        self.config = config
        self.clock = clock
        self.operations = operations_by_name(operations)
        self._takes_any = not self.operations
        self._namespace = config.namespace or str(self.store.identity.store_id)
        self._commit = GroupCommit(self.store.append)
        # The threads that are in `_submit`, by identifier.
        self._submitting: set[int] = set()
        self._listeners: list[Callable[[], None]] = []
        self.alarms = Alarms(self.store)
        self.progress = Progress(clock)

    # -- opening and closing

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str] | None = None,
        config: OutboxConfig | None = None,
        operations: Iterable[Operation] = (),
        *,
        clock: Clock | None = None,
    ) -> Outbox:
        """Open the outbox at `path` (default: `config.dir`) as its engine, creating it atomically if it is absent.

        With `operations`, names that are not declared and arguments that do not fit are refused at enqueue.  After
        an unclean shutdown the store is verified first.  Raises `StoreLocked` (another engine, with its pid),
        `StoreCorrupt`, `StoreFormatError`, `ConfigError` or OSError.
        """
        return cls._open(path, config, operations, clock, engine=True)

    @classmethod
    def attach(
        cls,
        path: str | os.PathLike[str] | None = None,
        config: OutboxConfig | None = None,
        operations: Iterable[Operation] = (),
        *,
        clock: Clock | None = None,
        readonly: bool = False,
    ) -> Outbox:
        """Open an existing outbox beside its engine: to look, to relay, to answer dead letters.

        Cannot enqueue.  With `readonly` it can only look, and does so also while another process that was paused in the
        middle of a commit holds up everybody who writes.  Raises `StoreMissing` where there is none, else as `open`.
        """
        return cls._open(path, config, operations, clock, engine=False, readonly=readonly)

    @classmethod
    def _open(
        cls,
        path: str | os.PathLike[str] | None,
        config: OutboxConfig | None,
        operations: Iterable[Operation],
        clock: Clock | None,
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
        box = cls(opened, config, declared, clock)
        if engine:
            box.store.on_halt = box._publish_halt
            box._publish_halt(None)
        return box

    def _publish_halt(self, reason: str | None) -> None:
        """Make the halt latch visible to other processes; best effort, since the disk may be the reason."""
        try:
            StateFile(self.path / "engine.state").write({"pid": os.getpid(), "halted": reason})
        except OSError as exc:
            _log.warning("halt state could not be published", extra={"error": str(exc)})

    def close(self) -> None:
        """Close the store and let go of the roles; may be called twice.  Stop the relay first."""
        self._opened.close()

    def __enter__(self) -> Outbox:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

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
        `IdempotencyConflict`.  Without it the operation's identity counts, or else every call is its own intent.
        `order_by` overrides the operation's ordering key.  Raises `InvalidEntry` (nothing was written),
        `DurabilityError` (in doubt: retry with the same key, see `DurabilityError.keys`), or `StoreBusy` in a signal
        handler that has interrupted another call.
        """
        (entry,) = self._submit([self._prepare(operation, args, key, order_by)])
        return entry

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """Several entries in one LMDB commit, and later in one PostgreSQL transaction.

        They are committed when the block ends; an exception inside records nothing.  `tx.entries` holds them
        afterwards.  Raises at the end of the block what `enqueue` raises.
        """
        transaction = Transaction(self)
        try:
            yield transaction
        finally:
            transaction._close()
        if transaction._prepared:
            transaction._stored = self._submit(transaction._prepared)

    def _prepare(self, name: str, args: Mapping[str, Any], key: str | None, order_by: str | int | None) -> _Prepared:
        """Validate and encode one call.  Raises `InvalidEntry`, or what the operation's `validate` raises."""
        self.store.check_open()
        if not self._opened.is_engine:
            raise StoreLocked(
                f"the outbox at {self.path} was attached, not opened, and cannot enqueue",
                hint="use Outbox.open in the engine's process",
            )
        self.store.check_not_halted()
        operation = self._declared(name)
        if not isinstance(args, (dict, Mapping)) or not {*map(type, args)} <= _TEXT or "" in args:
            raise InvalidEntry(f"args of {name!r} is {args!r:.200}", hint="allowed: a mapping with text keys")
        plain, types, decoded = codec.encode_args(dict(args))
        if len(plain) + len(types) > self.config.max_entry_kb << 10:
            raise InvalidEntry(
                f"args of {name!r} take {(len(plain) + len(types)) >> 10} KiB",
                hint=f"at most {self.config.max_entry_kb}",
            )
        operation.check(args)
        order = ordering_key(operation.order_of(args) if order_by is None else order_by)
        id_ = self.clock.new_id().bytes
        hashed = self._hash(operation, name, args, key)
        if hashed is None:
            # A call without identity gets a fresh key, which the caller learns of if it must retry.
            key = id_.hex()
            hashed = idempotency_hash(self._namespace, name, "key", key.encode())
        record = Record(
            seq=0,
            key=hashed,
            id=id_,
            operation=name,
            order_by=order,
            payload_hash=payload_hash(name, plain, types),
            shape=shape_hash(args),
            args=plain,
            types=types,
            captured_us=to_us(self.clock.now()),
        )
        return record, key, decoded

    def declare(self, operations: Iterable[Operation]) -> None:
        """Add declarations, for a part of the program that brings its own; one of a known name replaces it.

        An outbox that was opened without operations goes on taking any other name.
        """
        self.operations = {**self.operations, **operations_by_name(operations)}

    def _declared(self, name: str) -> Operation:
        operation = self.operations.get(name) if isinstance(name, str) else None
        if operation is not None:
            return operation
        check_operation_name(name)
        if not self._takes_any:
            raise InvalidEntry(f"operation {name!r} is not declared", hint=f"declared: {', '.join(self.operations)}")
        return _ANY

    def _hash(self, operation: Operation, name: str, args: Mapping[str, Any], key: str | None) -> bytes | None:
        """The idempotency hash of a call, or None where nothing identifies it."""
        if key is not None:
            return idempotency_hash(self._namespace, name, "key", caller_key(key))
        declared = operation.identity_of(args)
        if declared is None:
            return None
        return idempotency_hash(self._namespace, name, "identity", b"".join(codec.encode(declared, what="identity")))

    def lookup(self, operation: str, args: Mapping[str, Any], *, key: str | None = None) -> Entry | None:
        """The entry that this call would repeat, whatever its other arguments; None where it would be a new one.

        Raises `InvalidEntry` for an operation that is not declared or a bad key.
        """
        declared = self._declared(operation)
        hashed = self._hash(declared, operation, args, key)
        record = None if hashed is None else self.store.find(hashed)
        return None if record is None else record.entry()

    def entry(self, seq: int) -> Entry:
        """Entry `seq`, pending or in the ledger.  Raises `EntryNotFound`."""
        for name in ("pending", "ledger", "pending"):  # it may move in between
            record = self.store.record(name, seq)
            if record is not None:
                return record.entry(strict=False)
        raise EntryNotFound(f"entry {seq} is not in the store", hint="it was never there, or its retention has ended")

    def _submit(self, prepared: list[_Prepared]) -> Iterator[Entry]:
        """Make them durable in one commit; what is returned is decoded when asked for."""
        submission = Append([record for record, _, _ in prepared])
        me = get_ident()
        if me in self._submitting:
            raise busy(self.path)
        self._submitting.add(me)
        try:
            self._commit.submit(submission)
            if submission.error is not None:
                raise submission.error
            for listener in self._listeners:
                listener()
        except DurabilityError as exc:
            # Several threads share one failed commit; each gets an error of its own, with its own key.
            raise type(exc)(exc.message, hint=exc.hint, keys=tuple(key for _, key, _ in prepared)) from exc
        finally:
            self._submitting.discard(me)
        # A key that was used before gives the first entry, which has the same arguments.
        return (stored.entry(args=args) for stored, (_, _, args) in zip(submission.stored, prepared, strict=True))

    def on_enqueue(self, listener: Callable[[], None]) -> None:
        """Call `listener` after every durable enqueue, from the enqueueing thread; it must be quick and not raise."""
        self._listeners.append(listener)

    def off_enqueue(self, listener: Callable[[], None]) -> None:
        """Undo `on_enqueue`; may be called twice."""
        with suppress(ValueError):
            self._listeners.remove(listener)

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
        return snapshot(self.store, self.config, self.clock, is_engine=self._opened.is_engine)

    # -- the operator's answers

    def requeue(self, seq: int) -> list[Entry]:
        """Try dead letter `seq` again, at its old place in the order, together with the group it belongs to.

        Recorded in the ledger.  Raises `EntryNotFound`.
        """
        return self._answer("requeue", seq, {})

    def discard(self, seq: int, reason: str, *, free_key: bool = False) -> list[Entry]:
        """Give up dead letter `seq`, together with the group it belongs to; later entries of its key go on.

        Also the answer to a quarantined entry, whose raw bytes then stay in the ledger for the retention time.
        It stays in the ledger with `reason`, which must not be empty.  With `free_key` its idempotency key may be used
        again, as is right where the caller was told of the rejection.  Raises `EntryNotFound` or `InvalidEntry`.
        """
        if not isinstance(reason, str) or not reason.strip():
            raise InvalidEntry(f"reason is {reason!r}", hint="say why this entry may be given up")
        extra = {"reason": reason, "free_key": True} if free_key else {"reason": reason}
        return self._answer("discard", seq, extra)

    def acknowledge(self, name: str) -> bool:
        """Take alarm `name` out of the status; whether there was one.

        `unledgered` stands for the entries that were completed without a ledger copy.  Raises `DurabilityError`.
        """
        if name != UNLEDGERED:
            return self.alarms.acknowledge(name)
        count = self.store.figures().counters.unledgered
        if count:
            self.store.forget_unledgered(
                count, answer(ACKNOWLEDGE, {"name": name, "entries": count}, self.clock.new_id().bytes)
            )
        return bool(count)

    def _answer(self, action: str, seq: int, extra: dict[str, Any]) -> list[Entry]:
        if not isinstance(seq, int) or isinstance(seq, bool):
            raise InvalidEntry(f"seq is {seq!r}", hint="allowed: a sequence number")
        audit = answer(REQUEUE if action == "requeue" else DISCARD, {"seq": seq, **extra}, self.clock.new_id().bytes)
        if action == "requeue":
            released = self.store.requeue(seq, audit)
        else:
            released = self.store.discard(seq, extra["reason"], audit, free_key="free_key" in extra)
        _log.warning("dead letter answered", extra={"action": action, "seq": seq, "entries": len(released)})
        for listener in self._listeners:
            listener()
        return [record.entry(strict=False) for record in released]

    # -- retention

    def compact(self, retention: timedelta | None = None, vacuum: bool = False) -> int:
        """Prune settled entries older than `retention` (default: the configured hours); returns how many.

        With `vacuum` the file is also rewritten compactly and swapped, which needs this process to be the only one
        with the store open and no relay running: raises `StoreLocked` otherwise, having changed nothing.  Raises
        `OutboxError` while something that PostgreSQL has forgotten waits to be put back.
        """
        if self.alarms.sounds(FORGOTTEN):
            raise OutboxError(
                "PostgreSQL lacks what it had acknowledged, so nothing may leave the ledger",
                hint="run `atb outbox reconcile` first",
            )
        keep = timedelta(hours=self.config.retention_hours) if retention is None else retention
        if not isinstance(keep, timedelta) or keep < timedelta(0):
            raise ConfigError(f"retention is {retention!r}", hint="allowed: a timedelta of zero or more")
        self.store.check_open()
        before_us = to_us(self.clock.now()) - keep // timedelta(microseconds=1)
        if not vacuum:
            return self.store.prune(before_us)
        with self._opened.alone():
            pruned = self.store.prune(before_us)
            self.store.swap(lambda: rewrite_compactly(self.path))
            return pruned


class Transaction:
    """Collects entries for one commit; see `Outbox.transaction`.  Use it on one thread."""

    def __init__(self, box: Outbox) -> None:
        self._box = box
        self._prepared: list[_Prepared] = []
        self._open = True
        self._stored: Iterator[Entry] = iter(())
        self._entries: list[Entry] = []

    def enqueue(
        self, operation: str, args: Mapping[str, Any], *, key: str | None = None, order_by: str | int | None = None
    ) -> None:
        """Add one call; validated now, stored when the block ends.  Raises `InvalidEntry`."""
        if not self._open:
            raise InvalidEntry("the transaction has ended", hint="enqueue inside its with block")
        if len(self._prepared) >= _MAX_GROUP:
            raise InvalidEntry(f"a transaction takes at most {_MAX_GROUP} entries", hint="use several")
        self._prepared.append(self._box._prepare(operation, args, key, order_by))

    @property
    def entries(self) -> list[Entry]:
        """The stored entries, in order, once the block has ended; none before."""
        self._entries += self._stored
        return self._entries

    def _close(self) -> None:
        self._open = False
