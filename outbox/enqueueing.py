"""Enqueueing: makes calls durable.  `calls.py` turns a call into a record, the store's writer commits it.

An entry that passes `calls.py` is on disk when `enqueue` returns, and one transaction is one commit.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .calls import Calls, Prepared, Transaction
from .entry import Entry
from .errors import ConfigError, DurabilityError, InvalidEntry, OutboxError, StoreLocked
from .opening import OpenStore
from .operation import Operation
from .store.appending import Append
from .store.envelope import Record
from .store.writer import Writer, refuse_at_the_end

if TYPE_CHECKING:
    import asyncio

_here = threading.local()


class Awaited:
    """One entry that a coroutine waits for.  All that end together wake their event loop once."""

    def __init__(self) -> None:
        """In a coroutine.  Raises `ConfigError` in one of another library's loop."""
        import asyncio  # here only: it costs a program without coroutines, such as `atb outbox status`, 0.05 s

        try:
            self._loop = asyncio.get_running_loop()
        except RuntimeError as exc:
            raise ConfigError(
                "enqueue_async needs a running event loop of asyncio; nothing was enqueued",
                hint="elsewhere call enqueue in a thread, as by trio.to_thread.run_sync",
            ) from exc
        self._ended = _ended_of(self._loop)
        self.future: asyncio.Future[Iterator[Entry]] = self._loop.create_future()
        self._entries: Iterator[Entry] | None = None
        self._error: BaseException | None = None

    def end(self, entries: Iterator[Entry] | None, error: BaseException | None) -> None:
        """Let the coroutine go on; from the writer's thread."""
        self._entries, self._error = entries, error
        if self._ended.add(self):
            with suppress(RuntimeError):  # the loop was closed, so no coroutine waits any more
                self._loop.call_soon_threadsafe(self._ended.wake)

    def go_on(self) -> None:
        """In the event loop: give the outcome to the coroutine."""
        if self.future.done():  # cancelled meanwhile
            return
        if self._error is not None:
            self.future.set_exception(self._error)
        else:
            self.future.set_result(self._entries or iter(()))


class _Ended:
    """What has ended for one event loop.  The writer waits for no lock here: a signal handler may wait for it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = weakref.ref(loop)
        self._waiting: deque[Awaited] = deque()
        # Taken while the loop is about to wake.
        self._scheduled = threading.Lock()

    def add(self, awaited: Awaited) -> bool:
        """Whether the loop must be woken for it; else it is about to wake already."""
        self._waiting.append(awaited)
        return self._scheduled.acquire(blocking=False)

    def wake(self) -> None:
        """In the event loop."""
        # First: what is added from now on wakes it again.
        self._scheduled.release()
        while self._waiting:
            self._waiting.popleft().go_on()


def _ended_of(loop: asyncio.AbstractEventLoop) -> _Ended:
    """That of the loop which runs in this thread."""
    ended: _Ended | None = getattr(_here, "ended", None)
    if ended is None or ended.loop() is not loop:
        ended = _here.ended = _Ended(loop)
    return ended


def in_doubt(exc: BaseException, keys: Sequence[str | None]) -> None:
    """Tell with an exception that interrupted an enqueue which keys to retry with."""
    named = tuple(key for key in keys if key is not None)
    with suppress(Exception):  # it may have slots
        exc.outbox_keys = named  # type: ignore[attr-defined]
    told = f" under the key {', '.join(named)}" if named else ""
    exc.add_note(f"an enqueue was interrupted; its entry may be stored or not: repeat it{told} to be sure")


# Encoded arguments of one group, which one PostgreSQL transaction applies within the stall timeout; 64 MiB is also the
# largest OUTBOX_MAX_ENTRY_KB, so that an entry that fits is not refused for its group.
_MAX_GROUP_MIB = 64


class Enqueueing:
    """The half of `Outbox` that enqueues.  Thread-safe; not usable after a fork."""

    def __init__(self, opened: OpenStore, calls: Calls) -> None:
        """`calls` makes the records of the store that is `opened`."""
        self._opened = opened
        self.store = opened.store
        self.calls = calls

    @property
    def path(self) -> Path:
        """The store's directory, absolute."""
        return self.store.directory

    @property
    def operations(self) -> Mapping[str, Operation]:
        """The declared operations by name."""
        return self.calls.operations

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
        the order in which they were made.  Raises as `enqueue`; a cancelled call is in doubt: its CancelledError has
        the key to retry it with as `outbox_keys`, also as the cause of a TimeoutError.  Any running event loop, in any
        thread.
        """
        refuse_at_the_end()
        prepared = self._prepare(operation, args, key, order_by)
        awaited = Awaited()
        self._hand_over([prepared], awaited.end)
        try:
            (entry,) = await awaited.future
        except OutboxError:
            raise
        except BaseException as exc:
            # It is stored all the same, most likely, under a key that nobody knows where the caller gave none.
            in_doubt(exc, _keys([prepared]))
            raise
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

    def prepare(
        self, operation: str, args: Mapping[str, Any], *, at: datetime | None = None, hashed: bytes | None = None
    ) -> Prepared:
        """Validate and encode one call as it is now, to be stored by `submit`; later changes of `args` do not count.

        `at`: when the call was made, an aware time; by default now.  `hashed`: what `hash_of` has told of this call.
        Raises `InvalidEntry`, or what the operation's `validate` raises.
        """
        return self._prepare(operation, args, None, None, at, hashed)

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
        hashed: bytes | None = None,
    ) -> Prepared:
        """Validate and encode one call.  Raises `InvalidEntry`, or what the operation's `validate` raises."""
        self.store.check_open()
        if not self._opened.is_engine:
            raise StoreLocked(
                f"the outbox at {self.path} was attached, not opened, and cannot enqueue",
                hint="use Outbox.open in the engine's process",
            )
        self.store.check_not_halted()
        return self.calls.prepare(name, args, key, order_by, at, hashed)

    def declare(self, operations: Iterable[Operation]) -> None:
        """Add declarations, for a part of the program that brings its own; one of a known name replaces it.

        An outbox that was opened without operations goes on taking any other name.
        """
        self.calls.declare(operations)

    def lookup(self, operation: str, args: Mapping[str, Any], *, key: str | None = None) -> Entry | None:
        """The entry that this call would repeat, whatever its other arguments; None where it would be a new one.

        Raises `InvalidEntry` for an operation that is not declared or a bad key.
        """
        hashed = self.hash_of(operation, args, key=key)
        return None if hashed is None else self.find(hashed)

    def hash_of(self, operation: str, args: Mapping[str, Any], *, key: str | None = None) -> bytes | None:
        """The idempotency hash of a call; None where nothing identifies it.  Raises as `lookup`."""
        return self.calls.hash_of(operation, args, key)

    def find(self, hashed: bytes) -> Entry | None:
        """The entry with this idempotency hash, or None."""
        record = self.store.find(hashed)
        return None if record is None else record.entry()

    def _submit(self, prepared: list[Prepared]) -> Iterator[Entry]:
        """Make them durable in one commit; what is returned is decoded when asked for."""
        submission = Append([record for record, *_ in prepared])
        size = sum(len(record.args) + len(record.types) for record in submission.records)
        if size > _MAX_GROUP_MIB << 20:
            raise InvalidEntry(
                f"the {len(prepared)} entries of a transaction take {size >> 10} KiB, at most {_MAX_GROUP_MIB << 10}",
                hint="use several transactions",
            )
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
            raise StoreLocked(f"{self.path} was attached read-only", hint="attach without readonly")
        return self.store.writer

    def on_enqueue(self, listener: Callable[[], None]) -> None:
        """Call `listener` after every commit of entries, from the writer's thread; it must be quick and not raise."""
        self.store.listeners.append(listener)

    def off_enqueue(self, listener: Callable[[], None]) -> None:
        """Undo `on_enqueue`; may be called twice."""
        with suppress(ValueError):
            self.store.listeners.remove(listener)


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
