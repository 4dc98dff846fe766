"""Store: every write to the LMDB environment, in ACID transactions.

It promises the outbox above it that `append` has reached the disk when it returns, that after the first failed
durable write no `append` succeeds until the store is reopened (the halt latch), and that what the relay settles
moves from `pending` to `ledger` in one commit.  No callback, no I/O and no PostgreSQL work happens inside a
write transaction.

Public methods may be called from any thread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial, update_wrapper
from typing import Any, Concatenate, ParamSpec, TypeVar
from uuid import UUID

from ..errors import (
    DurabilityError,
    EntryNotFound,
    InvalidEntry,
    StoreCorrupt,
)
from ..log import Log
from ..words import entries
from . import ledger, quarantine, small, withdrawal
from .appending import Append, admitted, append_fresh, append_one, sizes
from .continuity import Mark, keep_sessions
from .envelope import Counters, Record
from .environment import Environment, no_room
from .gate import COUNTERS_KEY
from .ledger import Moved, Settlement
from .quota import Quota
from .reads import CHUNK, Reader
from .writer import Rank, Writer

_log = Log("outbox.store")


# Stamps strictly increase, so that they order what reads by time; so much ahead of the clock is logged.
AHEAD_US = 60_000_000


def _nothing() -> None:
    """No thread waits to be woken."""


def _ignore(moved: Moved) -> None:
    """No listener."""


P = ParamSpec("P")
T = TypeVar("T")
# Bytes that a commit with ledger copies may take; one that takes more is tried, and repeated without them.
_ROOM_FOR_COPIES = 1 << 18


def _by_writer(
    rank: Rank,
) -> Callable[[Callable[Concatenate[Store, P], T]], Callable[Concatenate[Store, P], T]]:
    """Run a method in the writer's thread, in the order of its rank."""

    def decorate(method: Callable[Concatenate[Store, P], T]) -> Callable[Concatenate[Store, P], T]:
        def handed_over(self: Store, /, *args: P.args, **kwargs: P.kwargs) -> T:
            self.check_open()
            work = partial(method, self, *args, **kwargs)
            return work() if self.writer is None else self.writer.run(rank, work)

        update_wrapper(handed_over, method)
        return handed_over

    return decorate


class Store(Reader):
    """The durable half of the outbox.  Thread-safe; not usable in a forked child."""

    def __init__(
        self,
        environment: Environment,
        *,
        max_bytes: int,
        reserve_bytes: int,
        retention_us: int,
        now_us: Callable[[], int],
        trusted_us: Callable[[], int] | None = None,
        named: Callable[[str], str] = str,
        writer: Callable[..., Writer[Append]] = Writer,
    ) -> None:
        """`max_bytes` is the quota, `reserve_bytes` the free disk kept for draining, `now_us` the wall clock.

        Settled entries stay for `retention_us`, unless new ones need their room; `trusted_us` is the clock to judge
        that by, where the wall clock may have jumped.  `named`: as in `Quota`.
        """
        super().__init__(environment)
        # What does not fit into the map cannot be stored, however large the quota is.
        self.max_bytes = min(max_bytes, environment.map_bytes)
        self.reserve_bytes = reserve_bytes
        self._now_us, self._trusted_us = now_us, trusted_us or now_us
        # Whether stamps run ahead of the clock, and it was said.
        self._ahead = False
        # Whether a write had no room since the store was opened.
        self._doubts_room = False
        self._quota = Quota(
            self.directory,
            max_bytes=self.max_bytes,
            reserve_bytes=reserve_bytes,
            retention_us=retention_us,
            now_us=self._trusted_us,
            named=named,
        )
        figures = self.figures()
        known = figures.counters
        found = figures.pending + known.completed + known.dead + known.discarded + known.quarantined
        if known.acknowledged != found:
            raise StoreCorrupt(
                f"{self.directory} acknowledged {entries(known.acknowledged)} and accounts for {found}",
                hint="restore a backup",
            )
        # Called by the writer after each commit of new entries; they must be quick and not raise.
        self.listeners: list[Callable[[], None]] = []
        # Called by the writer after each commit of a settlement; it must be quick and not raise.
        self.on_settled: Callable[[Moved], None] = _ignore
        self.writer: Writer[Append] | None = None
        if not environment.readonly:
            self.writer = writer("outbox-writer", self.append, self._tell, self._writer_died)

    def _writer_died(self, exc: BaseException) -> None:
        self._latch("go on writing", exc if isinstance(exc, Exception) else RuntimeError(repr(exc)))

    def _tell(self) -> None:
        for listener in tuple(self.listeners):
            listener()

    def close(self) -> None:
        """Commit what was handed over, then close; may be called twice."""
        self._ends = True
        if self.writer is not None and not self.forked:
            self.writer.stop()
        super().close()

    # -- enqueueing

    def append(self, submissions: list[Append], waits: Callable[[], None] = _nothing) -> None:
        """Store all submissions in one commit, in the writer's thread.

        Outcomes are left in them; only a failed write raises.  Calls `waits` just before the disk is waited for.  What
        is wrong with one of them, as `StoreFull` where it does not fit, does not affect the others.  Raises
        `DurabilityError`: all are in doubt.
        """
        self.check_not_halted()
        fitting, bytes_of = submissions, sizes(submissions)
        if self.reserve_bytes and (refusals := self._quota.admit_to_disk(self.free_disk_bytes(), bytes_of)):
            fitting = admitted(fitting, refusals)
            bytes_of = sizes(fitting)
        if not fitting:
            return
        with self._write("enqueue", promises=True) as (environment, txn):
            if refusals := self._quota.admit(environment, txn, bytes_of):
                fitting = admitted(fitting, refusals)
            counters = Counters.unpack(txn.get(COUNTERS_KEY))
            stored = append_fresh(environment, txn, counters, fitting)
            if not stored:
                for submission in fitting:
                    stored |= append_one(environment, txn, counters, submission)
            if stored:
                txn.put(COUNTERS_KEY, counters.pack())
            waits()
        self._quota.say()
        if fitting:
            self._say_ahead(counters.last_us - fitting[-1].records[-1].captured_us)

    def _say_ahead(self, ahead_us: int) -> None:
        """Log once when stamps begin to run ahead of the clock."""
        if ahead_us > AHEAD_US and not self._ahead:
            _log.warning(
                "the clock was set back: entries are stamped ahead of it to keep their order: %(ahead_s)s s",
                ahead_s=round(ahead_us / 1e6, 1),
            )
        self._ahead = ahead_us > AHEAD_US

    # -- settling

    def settle(self, settlement: Settlement) -> None:
        """Record what PostgreSQL did with a batch.  Entries that are no longer pending are left alone.

        A large one takes several commits, groups whole, so that who enqueues does not wait for all of it.

        Where there is no room for that, completed entries are deleted without their ledger copy, so that a full store
        still drains; what else is in the settlement stays pending.  Raises `DurabilityError` unless all was settled;
        settling again later is harmless, since the receipts in PostgreSQL keep the effect from being repeated.
        """
        parts = [settlement] if len(settlement.completed) <= CHUNK else settlement.parts(CHUNK)
        for part in parts:
            self._settle_part(part)

    @_by_writer(Rank.SETTLE)
    def _settle_part(self, settlement: Settlement) -> None:
        failure = self._settle_with_copies(settlement)
        if failure is None:
            return
        # Out of room, or what lasts: LMDB calls a write that was cut short at the end of the disk an I/O error.
        done = Settlement(completed=settlement.completed, marks=settlement.marks)
        if not done:
            raise failure
        _log.warning(
            "settling without ledger copies, entries: %(entries)s, since there is no room: %(why)s",
            entries=len(done.completed),
            why=failure,
        )
        self._settle_in_little_room(done)
        if settlement != done:
            raise failure

    def _settle_with_copies(self, settlement: Settlement) -> DurabilityError | None:
        """Settle; why that was not possible, or not tried.

        In a full store, copies would take the few free pages that are needed to delete anything.
        """
        if settlement.completed and (self._doubts_room or self._disk_is_full()) and not self._can_grow():
            return DurabilityError("the data file cannot grow")
        for _ in range(2):
            try:
                self._settle(settlement, keep_ledger=True)
            except DurabilityError as exc:
                failure = exc
                if no_room(exc.__cause__):
                    break
            else:
                return None
        return failure

    def _latch(self, purpose: str, exc: Exception) -> None:
        super()._latch(purpose, exc)
        self._doubts_room = self._doubts_room or no_room(exc)

    def _can_grow(self) -> bool:
        with self._entered() as environment:
            return environment.can_grow(_ROOM_FOR_COPIES)

    def _disk_is_full(self) -> bool:
        # A directory that is gone is the concern of those who promise something.
        with suppress(OSError):
            return self._free_disk_bytes() < _ROOM_FOR_COPIES
        return False

    def _settle_in_little_room(self, settlement: Settlement) -> None:
        """Without ledger copies, and in smaller parts if need be.

        A commit writes new pages before the old ones are free: fewer for fewer entries, whose keys lie anywhere.
        """
        try:
            self._settle(settlement, keep_ledger=False)
        except DurabilityError as exc:
            parts = settlement.parts(max(1, len(settlement.completed) // 2))
            if len(parts) == 1 or not no_room(exc.__cause__):
                raise
            for part in parts:
                self._settle_in_little_room(part)

    def _settle(self, settlement: Settlement, *, keep_ledger: bool) -> None:
        with self._counted("settle") as (environment, txn, counters):
            moved = ledger.settle(environment, txn, counters, settlement, self._now_us(), keep_ledger=keep_ledger)
        self.on_settled(moved)

    @_by_writer(Rank.SETTLE)
    def quarantine(self, damaged: Sequence[tuple[int, bytes, str]]) -> None:
        """Set damaged pending records aside with their raw bytes.  Raises `DurabilityError`."""
        with self._counted("quarantine damaged entries") as (environment, txn, counters):
            quarantine.put(environment, txn, counters, damaged)
        _log.critical(
            "damaged entries quarantined: %(entries)s, the first is %(first_seq)s: %(why)s (see `atb outbox list`)",
            entries=len(damaged),
            first_seq=damaged[0][0],
            why=damaged[0][2],
        )

    @_by_writer(Rank.MAINTAIN)
    def requeue(self, seq: int, audit: Record) -> list[Record]:
        """Put dead letter `seq`, and the group it belongs to, back at its old place in `pending`.

        `audit` becomes a ledger record of its own.  Raises `EntryNotFound` or `DurabilityError`.
        """
        with self._counted("requeue") as (environment, txn, counters):
            if quarantine.holds(txn, seq):
                raise EntryNotFound(
                    f"entry {seq} is damaged and quarantined, it cannot be tried again",
                    hint="enter the right data by another call, then discard it",
                )
            return ledger.requeue(environment, txn, counters, seq, audit, self._now_us())

    @_by_writer(Rank.MAINTAIN)
    def discard(self, seq: int, reason: str, audit: Record, *, free_key: bool = False) -> list[Record]:
        """Give up dead letter `seq`, and the group it belongs to; it stays in the ledger with `reason`.

        The same for a quarantined one, of which the ledger keeps the raw bytes.  With `free_key` its idempotency key
        may be used by another entry.  Raises `EntryNotFound` or `DurabilityError`.
        """
        with self._read() as (environment, txn):
            known_as = quarantine.owner(environment, txn, seq) if quarantine.holds(txn, seq) else None
        with self._counted("discard") as (environment, txn, counters):
            now_us = self._now_us()
            if quarantine.holds(txn, seq):
                answer = (counters, seq, reason, audit, now_us)
                return [quarantine.discard(environment, txn, *answer, known_as=known_as, free_key=free_key)]
            return ledger.discard(environment, txn, counters, seq, reason, audit, now_us, free_key=free_key)

    @_by_writer(Rank.MAINTAIN)
    def withdraw(self, seq: int, reason: str, audit: Record, *, free_key: bool = False) -> list[Record]:
        """Give up pending entry `seq`, and the group it belongs to, as `discard` does with a dead letter.

        The caller keeps relays from delivering it.  Raises `EntryNotFound` or `DurabilityError`.
        """
        with self._counted("discard") as given:
            return withdrawal.discard(*given, seq, reason, audit, self._now_us(), free_key=free_key)

    @_by_writer(Rank.SETTLE)
    def confirm_withdrawn(self, asked: Sequence[int], applied: set[int]) -> None:
        """Forget what was `asked` for; those `applied` count as completed.  Raises `DurabilityError`."""
        with self._counted("note what was applied before it was discarded") as given:
            withdrawal.confirm(*given, asked, applied)

    @_by_writer(Rank.MAINTAIN)
    def forget_unledgered(self, count: int, audit: Record) -> None:
        """Count `count` entries less as completed without a ledger copy; `audit` becomes a ledger record of its own."""
        with self._counted("acknowledge") as (environment, txn, counters):
            counters.unledgered = max(0, counters.unledgered - count)
            ledger.note(environment, txn, counters, audit, self._now_us())

    def prune(self, before_us: int, *, most: int | None = None) -> int:
        """Delete ledger records settled before `before_us` with their idempotency keys; returns how many.

        Dead letters stay.  Where the wall clock has jumped ahead, `before_us` counts as so much earlier.  Small
        transactions, so that enqueueing goes on; stops after about `most` rows.  Raises `DurabilityError`.
        """
        before_us -= max(0, self._now_us() - self._trusted_us())
        total, first = 0, 0
        while True:
            pruned, go_on = self._prune(first, before_us)
            total += pruned
            if go_on is None or (most is not None and total >= most):
                return total
            first = go_on

    @_by_writer(Rank.MAINTAIN)
    def _prune(self, first: int, before_us: int) -> tuple[int, int | None]:
        with self._write("prune the ledger") as (environment, txn):
            return ledger.prune(environment, txn, first, CHUNK, before_us, self._now_us())

    @_by_writer(Rank.MAINTAIN)
    def swap(self, action: Callable[[], None]) -> None:
        """See `Guarded.swap`."""
        super().swap(action)

    @_by_writer(Rank.MAINTAIN)
    def put_back(self, records: Sequence[Record]) -> int:
        """Put completed entries back at their old places in `pending`, in one commit; returns how many.

        Groups must be whole.  Those that have left the ledger meanwhile are left out.  Raises `DurabilityError`.
        """
        with self._counted("put back what PostgreSQL has forgotten") as (environment, txn, counters):
            return ledger.put_back(environment, txn, counters, records)

    @_by_writer(Rank.SETTLE)
    def begin_session(self, *begun: UUID) -> None:
        """Keep that these connections to PostgreSQL are this store's own.  Raises `DurabilityError`."""
        with self._write("note a connection") as (_, txn):
            keep_sessions(txn, *begun)

    @_by_writer(Rank.MAINTAIN)
    def rebase(self, mark: Mark, audit: Record) -> None:
        """From now on compare PostgreSQL with `mark`.  `audit` becomes a ledger record.  Raises `DurabilityError`."""
        with self._counted("note a reconciliation") as (environment, txn, counters):
            ledger.rebase(environment, txn, counters, mark, audit, self._now_us())

    @_by_writer(Rank.MAINTAIN)
    def maintain(self, purpose: str, body: Callable[[Environment, Any, Counters], None]) -> None:
        """Run `body` in one durable transaction, for a caller that holds every role.  Raises `DurabilityError`."""
        with self._counted(purpose) as given:
            body(*given)

    # -- small records for those above

    @_by_writer(Rank.MAINTAIN)
    def put_meta(self, name: str, value: bytes, *, despite_halt: bool = False) -> None:
        """Store a small record durably.  Raises `DurabilityError` or, for a name or value too large, `InvalidEntry`.

        `despite_halt` is for what draining needs, which goes on while enqueueing is halted.
        """
        if not 0 < len(name.encode()) <= 400 or len(value) > 1 << 20:
            raise InvalidEntry(
                f"small record {name!r:.100} has {len(value)} bytes",
                hint="allowed: a name of 1 to 400 bytes, and 1 MiB",
            )
        with self._write(f"store {name!r}", promises=not despite_halt) as (_, txn):
            self._put_small(txn, name.encode(), value)

    def _put_small(self, txn: Any, name: bytes, value: bytes) -> None:
        key, stamp = small.PREFIX + name, self._now_us()
        before = txn.get(key)
        if before is not None:
            stamp = max(stamp, small.unpack(bytes(before), name).stamp + 1)
        txn.put(key, small.SmallRecord(name, value, stamp).pack())

    @_by_writer(Rank.MAINTAIN)
    def delete_meta(self, name: str, *, only: bytes | None = None, despite_halt: bool = False) -> bool:
        """Delete a small record durably; whether there was one.  Raises `DurabilityError`.  See `put_meta`.

        `only`: leave the record alone where its value is another by now, as of another process.
        """
        key = small.PREFIX + name.encode()
        with self._write(f"delete {name!r}", promises=not despite_halt) as (_, txn):
            stored = None if only is None else txn.get(key)
            if stored is not None and small.unpack(bytes(stored), name.encode()).value != only:
                return False
            return bool(txn.delete(key))
