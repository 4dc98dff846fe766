"""Store: everything that is ever written to or read from the LMDB environment, in ACID transactions.

It promises the outbox above it that `append` has reached the disk when it returns, that after the first failed
durable write no `append` succeeds until the store is reopened (the halt latch), and that what the relay settles
moves from `pending` to `ledger` in one commit.  No callback, no I/O and no PostgreSQL work happens inside a
write transaction.

Locking: public methods may be called from any thread; those that touch LMDB pass the gate, so that `close` and
`vacuum` never pull the environment from under another thread.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice, takewhile
from pathlib import Path
from typing import Any

from . import codec, ledger
from .continuity import UNKNOWN, Mark
from .counters import Counters
from .entry import EntryStatus
from .envelope import OVERHEAD, Record, key_seq, pack, seq_key, unpack
from .environment import Environment, LmdbError, WriteError, no_room
from .errors import (
    DurabilityError,
    IdempotencyConflict,
    InvalidEntry,
    OutboxError,
    StoreClosed,
    StoreCorrupt,
    StoreFull,
)
from .ledger import Settlement

_log = logging.getLogger("outbox.store")

COUNTERS_KEY = b"outbox:counters"
_META_PREFIX = b"outbox:meta:"
# Of the names of those small records that are alarms.
ALARM_PREFIX = "alarm:"
# Rows of one maintenance transaction: each row call releases the GIL, and a writer waits for the whole of it.
_CHUNK = 250
# So many damaged entries in a row, and no sound one, are no single fault.
MANY_DAMAGED = 16
# Enqueueing stops at this share of the quota; the rest is for draining.
QUOTA_SHARE = 0.85
# An entry costs its record, its idempotency key and its share of half-empty pages.
_ENTRY_COST = 4
_REOPEN_HINT = "halt trading, free or replace the disk, then restart: reopening verifies the store"


@dataclass(slots=True)
class Append:
    """One submission to `Store.append`: its records become one group (more than one) and are stored or refused whole.

    After the commit either `error` is set, or `stored` holds the records in the order given: new ones, or for a key
    that was used before the first one.
    """

    records: list[Record]
    stored: list[Record] = field(default_factory=list)
    error: OutboxError | None = None


@dataclass(frozen=True, slots=True)
class Peeked:
    """Oldest pending records after some sequence number, and the damaged ones met on the way, raw."""

    records: list[Record]
    damaged: list[tuple[int, bytes, str]]
    # Highest sequence number looked at, or the one asked for when there was none.
    last_seq: int
    # Of the same snapshot: the newest sequence number of the store, and `Counters.releases`.
    newest_seq: int
    releases: int


@dataclass(frozen=True, slots=True)
class Figures:
    """A snapshot of the store's size and state, taken in one read transaction in time independent of the backlog."""

    counters: Counters
    pending: int
    idempotency: int
    ledger: int
    first_pending: int | None
    oldest_us: int | None
    live_bytes: int
    file_bytes: int
    map_bytes: int
    free_disk_bytes: int
    alarms: dict[str, str]


class Store:
    """The durable half of the outbox.  Thread-safe; not usable in a forked child."""

    def __init__(
        self, environment: Environment, *, max_bytes: int, reserve_bytes: int, now_us: Callable[[], int]
    ) -> None:
        """`max_bytes` is the quota, `reserve_bytes` the free disk kept for draining, `now_us` the wall clock."""
        self._environment: Environment | None = environment
        self.directory: Path = environment.directory
        self._directory_name = os.fspath(environment.directory)
        self.identity = environment.identity
        # What does not fit into the map cannot be stored, whatever the quota says.
        self.max_bytes = min(max_bytes, environment.map_bytes)
        self.reserve_bytes = reserve_bytes
        self._now_us = now_us
        self._pid = os.getpid()
        self._mutex = threading.Lock()
        self._gate = threading.Condition(self._mutex)
        self._inside = 0
        self.halt_reason: str | None = None
        # Told once when the halt latch is set.
        self.on_halt: Callable[[str], None] = _ignore
        figures = self.figures()
        known = figures.counters
        found = figures.pending + known.completed + known.dead + known.discarded + known.quarantined
        if known.acknowledged != found:
            raise StoreCorrupt(
                f"{self.directory} acknowledged {known.acknowledged} entries and accounts for {found}",
                hint="restore a backup",
            )

    # -- transactions

    def _enter(self) -> Environment:
        """Pass the gate: the environment stays open until `_leave`."""
        self._check_not_forked()
        with self._mutex:
            environment = self._usable()
            self._inside += 1
            return environment

    def _leave(self) -> None:
        with self._mutex:
            self._inside -= 1
            if not self._inside:
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
    def _write(self, purpose: str) -> Iterator[tuple[Environment, Any]]:
        """A durable write transaction.  Its first failure sets the halt latch and is raised as `DurabilityError`."""
        environment = self._enter()
        try:
            with environment.env.begin(write=True) as txn:
                yield environment, txn
        except WriteError as exc:
            self._latch(purpose, exc)
            raise DurabilityError(f"the store could not {purpose}: {exc}", hint=_REOPEN_HINT) from exc
        finally:
            self._leave()

    @contextmanager
    def _counted(self, purpose: str) -> Iterator[tuple[Environment, Any, Counters]]:
        """A durable write transaction that changes the counters."""
        with self._write(purpose) as (environment, txn):
            counters = Counters.unpack(txn.get(COUNTERS_KEY))
            yield environment, txn, counters
            txn.put(COUNTERS_KEY, counters.pack())

    def _latch(self, purpose: str, exc: Exception) -> None:
        if self.halt_reason is not None:
            return
        self.halt_reason = f"could not {purpose}: {exc}"
        _log.critical("durable write failed, enqueueing is halted", extra={"purpose": purpose, "error": str(exc)})
        self.on_halt(self.halt_reason)

    def check_not_halted(self) -> None:
        """Raise `DurabilityError` when the halt latch is set."""
        if self.halt_reason is not None:
            raise DurabilityError(f"enqueueing is halted: the store {self.halt_reason}", hint=_REOPEN_HINT)

    # -- enqueueing

    def append(self, submissions: list[Append]) -> None:
        """Store all submissions in one commit.  Outcomes are left in them; only a failed write raises.

        Raises `DurabilityError` (all are in doubt) or `StoreFull` (none was stored).
        """
        self.check_not_halted()
        size = sum(OVERHEAD + len(r.args) + len(r.types) for sub in submissions for r in sub.records)
        rows = sum(len(sub.records) for sub in submissions)
        self._check_free_disk(size)
        with self._write("enqueue") as (environment, txn):
            # Another thread's write may have failed while this one waited for LMDB's writer lock.
            self.check_not_halted()
            self._check_quota(environment, txn, size, rows)
            counters = Counters.unpack(txn.get(COUNTERS_KEY))
            stored = rows > 1 and self._append_fresh(environment, txn, counters, submissions)
            if not stored:
                for submission in submissions:
                    stored |= self._append_one(environment, txn, counters, submission)
            if stored:
                txn.put(COUNTERS_KEY, counters.pack())

    def _append_fresh(self, environment: Environment, txn: Any, counters: Counters, submissions: list[Append]) -> bool:
        """Store everything, if no key was used before; else nothing, and return False.

        Three calls of LMDB, however many entries: with each call another thread may take the interpreter, and all who
        enqueue wait for this one.
        """
        keys = [record.key for submission in submissions for record in submission.records]
        with txn.cursor(db=environment.idempotency) as cursor:
            if len({*keys}) < len(keys) or cursor.getmulti(keys):
                return False
            seq, last_us = counters.next_seq, counters.last_us
            numbered: list[list[Record]] = []
            for submission in submissions:
                group, members = (seq, len(submission.records)) if len(submission.records) > 1 else (0, 0)
                fresh: list[Record] = []
                for record in submission.records:
                    last_us = max(last_us + 1, record.captured_us)
                    fresh.append(record.numbered(seq, last_us, group, members))
                    seq += 1
                numbered.append(fresh)
            rows = [(seq_key(record.seq), record) for fresh in numbered for record in fresh]
            cursor.putmulti([(record.key, key + record.payload_hash) for key, record in rows])
        with txn.cursor(db=environment.pending) as cursor:
            _, added = cursor.putmulti([(key, pack(record)) for key, record in rows], append=True)
        if added != len(rows):
            number = rows[added][1].seq
            raise StoreCorrupt(f"{self.directory}: sequence number {number} is already behind the last pending one")
        for submission, submission.stored in zip(submissions, numbered, strict=True):
            submission.error = None
        counters.next_seq, counters.last_us = seq, last_us
        counters.acknowledged += len(rows)
        return True

    def _append_one(self, environment: Environment, txn: Any, counters: Counters, submission: Append) -> bool:
        first: dict[bytes, Record] = {}
        fresh: list[Record] = []
        submission.stored, submission.error = [], None
        for record in submission.records:
            known = first.get(record.key) or self._by_key(environment, txn, record)
            if known is not None and known.payload_hash != record.payload_hash:
                submission.error = IdempotencyConflict(
                    f"key {record.key.hex()} of operation {record.operation!r} is used by entry {known.seq or 'above'} "
                    "with other arguments",
                    hint="one intent, one key: use another key for another write",
                )
                return False
            if known is None:
                fresh.append(record)
            first.setdefault(record.key, known or record)
        group, members = (counters.next_seq, len(fresh)) if len(fresh) > 1 else (0, 0)
        for record in fresh:
            counters.last_us = max(counters.last_us + 1, record.captured_us)
            new = record.numbered(counters.next_seq, counters.last_us, group, members)
            if not txn.put(key := seq_key(new.seq), pack(new), db=environment.pending, append=True):
                raise StoreCorrupt(
                    f"{self.directory}: sequence number {new.seq} is already behind the last pending one"
                )
            txn.put(new.key, key + new.payload_hash, db=environment.idempotency)
            counters.next_seq += 1
            counters.acknowledged += 1
            first[new.key] = new
        submission.stored = [first[record.key] for record in submission.records]
        return bool(fresh)

    def _by_key(self, environment: Environment, txn: Any, record: Record) -> Record | None:
        """The first record stored under `record`'s key, or None."""
        value = txn.get(record.key, db=environment.idempotency)
        if value is None:
            return None
        if len(value) != 24:
            raise StoreCorrupt(f"the idempotency record of key {record.key.hex()} has {len(value)} bytes, expected 24")
        seq = key_seq(value[:8])
        for handle in (environment.pending, environment.ledger):
            data = txn.get(value[:8], db=handle)
            if data is not None:
                return unpack(seq, data)
        if txn.get(ledger.QUARANTINE_PREFIX + value[:8]) is not None:
            lost = "its record is damaged and quarantined"
            return replace(record, seq=seq, payload_hash=value[8:], status=EntryStatus.FAILED, error=lost)
        # Settled without a ledger copy: all that is left of it is that it was completed.
        return replace(record, seq=seq, payload_hash=value[8:], status=EntryStatus.COMPLETED)

    def _check_free_disk(self, size: int) -> None:
        if not self.reserve_bytes:
            return
        free = self._free_disk_bytes()
        if free < self.reserve_bytes + size * _ENTRY_COST:
            raise StoreFull(
                f"{free >> 20} MiB are free at {self.directory}, {self.reserve_bytes >> 20} MiB are kept for draining",
                hint="halt trading and free disk space",
            )

    def _check_quota(self, environment: Environment, txn: Any, size: int, rows: int) -> None:
        limit = int(self.max_bytes * QUOTA_SHARE)
        # Pages in use are never more than the file has had, and that is cheaper to learn.
        if environment.high_water_bytes() + size + rows * OVERHEAD <= limit:
            return
        used = _live_bytes(environment, txn)
        if used + size + rows * OVERHEAD > limit:
            mapped = self.max_bytes == environment.map_bytes
            bound, way_out = ("the address space", "ulimit -v") if mapped else ("OUTBOX_MAX_SIZE_MB",) * 2
            raise StoreFull(
                f"the store uses {used >> 20} MiB, enqueueing stops at {limit >> 20} MiB, "
                f"85 % of {bound}={self.max_bytes >> 20}",
                hint=f"halt trading; drain and compact, or raise {way_out}",
            )

    # -- reading

    def peek(self, after_seq: int, limit: int, *, max_bytes: int = 1 << 62) -> Peeked:
        """Up to `limit` oldest pending records after `after_seq`, and all the rest of the last one's group."""
        records: list[Record] = []
        damaged: list[tuple[int, bytes, str]] = []
        last, size = after_seq, 0
        with self._read() as (environment, txn), txn.cursor(db=environment.pending) as cursor:
            counters = Counters.unpack(txn.get(COUNTERS_KEY))
            for key, value in cursor.iternext() if cursor.set_range(seq_key(after_seq + 1)) else ():
                seq = key_seq(key)
                full = len(records) >= limit or size >= max_bytes
                try:
                    record = unpack(seq, value)
                except StoreCorrupt as exc:
                    if full or len(damaged) >= max(limit, MANY_DAMAGED):
                        break
                    damaged.append((seq, bytes(value), str(exc)))
                    last = seq
                    continue
                if full and not (record.group and record.group == records[-1].group):
                    break
                records.append(record)
                size += len(value)
                last = seq
        return Peeked(records, damaged, last, counters.next_seq - 1, counters.releases)

    def records(
        self, name: str, *, first: int = 0, on_damage: Callable[[int, StoreCorrupt], None] | None = None
    ) -> Iterator[Record]:
        """All records of sub-database `name` from sequence number `first` on, oldest first, in bounded memory.

        At a damaged one it calls `on_damage` with its sequence number, or else raises `StoreCorrupt`.
        """
        while True:
            with self._read() as (environment, txn), txn.cursor(db=getattr(environment, name)) as cursor:
                rows = list(islice(cursor.iternext(), _CHUNK)) if cursor.set_range(seq_key(first)) else []
            for key, value in rows:
                try:
                    record = unpack(key_seq(key), value)
                except StoreCorrupt as exc:
                    if on_damage is None:
                        raise
                    on_damage(key_seq(key), exc)
                else:
                    yield record
            if len(rows) < _CHUNK:
                return
            first = key_seq(rows[-1][0]) + 1

    def dead(self) -> list[tuple[int, str | None]]:
        """`(seq, ordering key)` of every dead letter, oldest first."""
        return [(seq, codec.from_json(value)) for seq, value in self._prefixed(ledger.DEAD_PREFIX)]

    def quarantined(self) -> list[tuple[int, bytes]]:
        """`(seq, raw bytes)` of every damaged record that was set aside."""
        return self._prefixed(ledger.QUARANTINE_PREFIX)

    def record(self, name: str, seq: int) -> Record | None:
        """One record of sub-database `name`, or None.  Raises `StoreCorrupt`."""
        with self._read() as (environment, txn):
            data = txn.get(seq_key(seq), db=getattr(environment, name))
        return None if data is None else unpack(seq, data)

    def find(self, key: bytes) -> Record | None:
        """The record stored under an idempotency key, or None; also None where only the key is left of it."""
        with self._read() as (environment, txn):
            value = txn.get(key, db=environment.idempotency)
            for handle in (environment.pending, environment.ledger) if value is not None else ():
                data = txn.get(value[:8], db=handle)
                if data is not None:
                    return unpack(key_seq(value[:8]), data)
        return None

    def is_pending(self, seq: int) -> bool:
        """Whether entry `seq` still waits for delivery."""
        with self._read() as (environment, txn):
            return txn.get(seq_key(seq), db=environment.pending) is not None

    def _prefixed(self, prefix: bytes) -> list[tuple[int, bytes]]:
        with self._read() as (_, txn):
            return [(key_seq(key), value) for key, value in _prefixed(txn, prefix)]

    def figures(self) -> Figures:
        """Sizes and counts, in constant time."""
        with self._read() as (environment, txn):
            counters = Counters.unpack(txn.get(COUNTERS_KEY))
            with txn.cursor(db=environment.pending) as cursor:
                first = (key_seq(cursor.key()), bytes(cursor.value())) if cursor.first() else None
            try:
                oldest = unpack(*first).captured_us if first else None
            except StoreCorrupt:
                oldest = None  # the relay will quarantine it; a status must not fail on it
            return Figures(
                counters=counters,
                pending=txn.stat(environment.pending)["entries"],
                idempotency=txn.stat(environment.idempotency)["entries"],
                ledger=txn.stat(environment.ledger)["entries"],
                first_pending=first[0] if first else None,
                oldest_us=oldest,
                live_bytes=_live_bytes(environment, txn),
                file_bytes=environment.file_bytes(),
                map_bytes=environment.map_bytes,
                free_disk_bytes=self._free_disk_bytes(),
                alarms={name.removeprefix(ALARM_PREFIX): value.decode() for name, value in _metas(txn, ALARM_PREFIX)},
            )

    def _free_disk_bytes(self) -> int:
        info = os.statvfs(self._directory_name)
        return info.f_bavail * info.f_frsize

    # -- settling

    def settle(self, settlement: Settlement) -> None:
        """Record what PostgreSQL did with a batch, in one commit.  Entries that are no longer pending are left alone.

        Where there is no room for that, completed entries are deleted without their ledger copy, so that a full store
        still drains; what else is in the settlement stays pending.  Raises `DurabilityError` unless all was settled;
        settling again later is harmless, since the receipts in PostgreSQL keep the effect from being repeated.
        """
        failure: DurabilityError
        for _ in range(2):
            try:
                self._settle(settlement, keep_ledger=True)
                return
            except DurabilityError as exc:
                failure = exc
                if no_room(exc.__cause__):
                    break
        # Out of room, or what lasts: LMDB calls a write that was cut short at the end of the disk an I/O error.
        done = Settlement(completed=settlement.completed, mark=settlement.mark)
        if not done:
            raise failure
        _log.warning("settling without ledger copies", extra={"entries": len(done.completed), "why": str(failure)})
        self._settle(done, keep_ledger=False)
        if settlement != done:
            raise failure

    def _settle(self, settlement: Settlement, *, keep_ledger: bool) -> None:
        with self._counted("settle") as (environment, txn, counters):
            ledger.settle(environment, txn, counters, settlement, self._now_us(), keep_ledger=keep_ledger)

    def quarantine(self, damaged: Sequence[tuple[int, bytes, str]]) -> None:
        """Set damaged pending records aside with their raw bytes.  Raises `DurabilityError`."""
        with self._counted("quarantine damaged entries") as (environment, txn, counters):
            ledger.quarantine(environment, txn, counters, damaged)
        fields = {"entries": len(damaged), "first_seq": damaged[0][0], "why": damaged[0][2]}
        _log.critical("damaged entries quarantined", extra=fields)

    def requeue(self, seq: int, audit: Record) -> list[Record]:
        """Put dead letter `seq`, and the group it belongs to, back at its old place in `pending`.

        `audit` becomes a ledger record of its own.  Raises `EntryNotFound` or `DurabilityError`.
        """
        with self._counted("requeue") as (environment, txn, counters):
            return ledger.requeue(environment, txn, counters, seq, audit, self._now_us())

    def discard(self, seq: int, reason: str, audit: Record, *, free_key: bool = False) -> list[Record]:
        """Give up dead letter `seq`, and the group it belongs to; it stays in the ledger with `reason`.

        With `free_key` its idempotency key may be used by another entry.
        Raises `EntryNotFound` or `DurabilityError`.
        """
        with self._counted("discard") as (environment, txn, counters):
            return ledger.discard(environment, txn, counters, seq, reason, audit, self._now_us(), free_key=free_key)

    def prune(self, before_us: int, *, most: int | None = None) -> int:
        """Delete ledger records settled before `before_us` with their idempotency keys; returns how many.

        Dead letters stay.  Small transactions, so that enqueueing goes on; stops after about `most` rows.  Raises
        `DurabilityError`.
        """
        total, first = 0, 0
        while True:
            with self._write("prune the ledger") as (environment, txn):
                pruned, go_on = ledger.prune(environment, txn, first, _CHUNK, before_us)
            total += pruned
            if go_on is None or (most is not None and total >= most):
                return total
            first = go_on

    # -- what PostgreSQL has forgotten

    def marks(self) -> list[Mark]:
        """What PostgreSQL last acknowledged, by lane; empty before the first delivery."""
        with self._read() as (_, txn):
            return [Mark.unpack(value) or UNKNOWN for _, value in _prefixed(txn, ledger.MARK_PREFIX)]

    def watermark(self) -> int:
        """Highest sequence number with nothing unsettled at or below it."""
        with self._read() as (environment, txn), txn.cursor(db=environment.pending) as cursor:
            return (key_seq(cursor.key()) if cursor.first() else Counters.unpack(txn.get(COUNTERS_KEY)).next_seq) - 1

    def put_back(self, records: Sequence[Record]) -> int:
        """Put completed entries back at their old places in `pending`, in one commit; returns how many.

        Groups must be whole.  Those that have left the ledger meanwhile are left out.  Raises `DurabilityError`.
        """
        with self._counted("put back what PostgreSQL has forgotten") as (environment, txn, counters):
            return ledger.put_back(environment, txn, counters, records)

    def rebase(self, mark: Mark, audit: Record) -> None:
        """From now on compare PostgreSQL with `mark`.  `audit` becomes a ledger record.  Raises `DurabilityError`."""
        with self._counted("note a reconciliation") as (environment, txn, counters):
            ledger.rebase(environment, txn, counters, mark, audit, self._now_us())

    def without_record(self) -> Iterator[Record]:
        """What is left of entries that were settled without a ledger copy: key, payload hash, sequence number."""
        first = b""
        while True:
            with self._read() as (environment, txn), txn.cursor(db=environment.idempotency) as cursor:
                rows = [(bytes(key), bytes(value)) for key, value in islice(_from(cursor, first), _CHUNK)]
                bare = [
                    (key, value)
                    for key, value in rows
                    if txn.get(value[:8], db=environment.pending) is None
                    and txn.get(value[:8], db=environment.ledger) is None
                    and txn.get(ledger.QUARANTINE_PREFIX + value[:8]) is None
                ]
            for key, value in bare:
                yield Record(key_seq(value[:8]), key, b"", "", None, value[8:], b"", b"", b"")
            if len(rows) < _CHUNK:
                return
            first = rows[-1][0] + b"\0"

    # -- small records for those above

    def get_meta(self, name: str) -> bytes | None:
        """A small durable record of an integration (id reserves, snapshots), or None."""
        with self._read() as (_, txn):
            value = txn.get(_META_PREFIX + name.encode())
        return None if value is None else bytes(value)

    def put_meta(self, name: str, value: bytes) -> None:
        """Store a small record durably.  Raises `DurabilityError` or, for a name or value too large, `InvalidEntry`."""
        if not 0 < len(name.encode()) <= 400 or len(value) > 1 << 20:
            raise InvalidEntry(f"meta record {name!r} has {len(value)} bytes", hint="allowed: at most 1 MiB")
        self.check_not_halted()
        with self._write(f"store {name!r}") as (_, txn):
            txn.put(_META_PREFIX + name.encode(), value)

    def delete_meta(self, name: str) -> bool:
        """Delete a small record durably; whether there was one.  Raises `DurabilityError`."""
        self.check_not_halted()
        with self._write(f"delete {name!r}") as (_, txn):
            return bool(txn.delete(_META_PREFIX + name.encode()))

    def metas(self, prefix: str) -> list[tuple[str, bytes]]:
        """`(name, value)` of every small record whose name begins with `prefix`, in the order of the names."""
        with self._read() as (_, txn):
            return _metas(txn, prefix)

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

        A `DurabilityError` of the action sets the halt latch.
        """
        with self._gate:
            self._gate.wait_for(lambda: not self._inside)
            self._usable().close()
            self._environment = None
            try:
                action()
            except DurabilityError as exc:
                self._latch("swap the file", exc)
                raise
            finally:
                self._environment = Environment(self.directory)

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
        """Close the environment after the threads inside have left; may be called twice."""
        with self._gate:
            environment, self._environment = self._environment, None
            self._gate.wait_for(lambda: not self._inside)
            if environment is not None:
                environment.close()


def _live_bytes(environment: Environment, txn: Any) -> int:
    """Bytes of pages in use: freed pages are reused and do not count."""
    pages = page_size = 0
    for handle in (environment.pending, environment.idempotency, environment.ledger):
        stat = txn.stat(handle)
        pages += stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]
        page_size = stat["psize"]
    return int(pages * page_size)


def _metas(txn: Any, prefix: str) -> list[tuple[str, bytes]]:
    return [(prefix + key.decode(), value) for key, value in _prefixed(txn, _META_PREFIX + prefix.encode())]


def _prefixed(txn: Any, prefix: bytes) -> list[tuple[bytes, bytes]]:
    """The records of the main database whose keys begin with `prefix`, without it, in order."""
    with txn.cursor() as cursor:
        rows = takewhile(lambda row: row[0].startswith(prefix), _from(cursor, prefix))
        return [(bytes(key[len(prefix) :]), bytes(value)) for key, value in rows]


def _from(cursor: Any, first: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The rows from key `first` on."""
    found = cursor.set_range(first) if first else cursor.first()
    return cursor.iternext() if found else iter(())


def _ignore(reason: str) -> None:
    """No listener."""
