"""Reads: every read of the environment, each in one snapshot and in bounded memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice, takewhile
from typing import Any

from .. import codec
from ..errors import StoreCorrupt
from . import ledger, quarantine, small, withdrawal
from .continuity import UNKNOWN, Mark, RelaySessions, kept_late, kept_sessions
from .envelope import Counters, Record, key_seq, seq_key, unpack
from .environment import Environment
from .gate import COUNTERS_KEY, Guarded
from .key_row import place_of, unpack_row

# Of the names of those small records that are alarms.
ALARM_PREFIX = "alarm:"
# And of those that are notices.
NOTICE_PREFIX = "notice:"
# The name of the one that pauses deliveries: among the notices, so that a status reads them all at once.
PAUSE = NOTICE_PREFIX + "operator:pause"
# The name of the one that holds an operator's order for a reconciliation.
ORDER = "reconcile"
# The databases that PostgreSQL's address named when it last had everything.
PLACES = "postgresql-places"
# While this one is up, PostgreSQL lacks something that has not been put back yet, and nothing may leave the ledger.
FORGOTTEN = "postgresql-forgot"
# Rows of one look, and of one maintenance transaction: a writer waits for the whole of it, and each row call releases
# the GIL.
CHUNK = 250
# Free bytes of a file system that does not know how large it is.
UNKNOWN_BYTES = 1 << 62
# So many of the newest receipts are looked for, where it must be known whether all are gone.
PROOFS = 100
# So many damaged entries in a row, and no sound one, are no single fault.
MANY_DAMAGED = 16


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
    # How many commits the oldest reader is behind: the file grows by what they freed.
    pinned_commits: int
    alarms: dict[str, str]
    # By name, as `Notices` packs them.
    notices: dict[str, bytes]
    # As `Pauses` packs it, or None.
    pause: bytes | None


class Reader(Guarded):
    """The reading half of the store.  Thread-safe."""

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
        self, *names: str, first: int = 0, on_damage: Callable[[int, StoreCorrupt], None] | None = None
    ) -> Iterator[Record]:
        """All records of these sub-databases from sequence number `first` on, oldest first, in bounded memory.

        Of `pending` and `ledger` together none is left out that is settled meanwhile.  At a damaged one it calls
        `on_damage` with its sequence number, or else raises `StoreCorrupt`.
        """
        while True:
            with self._read() as (environment, txn):
                read = [_chunk(txn, getattr(environment, name), seq_key(first)) for name in names]
            # Beyond the end of a chunk that is full there is more of its sub-database.
            ends = [rows[-1][0] for rows in read if len(rows) == CHUNK]
            for key, value in sorted(row for rows in read for row in rows):
                if ends and key > min(ends):
                    break
                try:
                    record = unpack(key_seq(key), value)
                except StoreCorrupt as exc:
                    if on_damage is None:
                        raise
                    on_damage(key_seq(key), exc)
                else:
                    yield record
            if not ends:
                return
            first = key_seq(min(ends)) + 1

    def dead(self) -> list[tuple[int, str | None]]:
        """`(seq, ordering key)` of every dead letter, oldest first."""
        listed = self._prefixed(ledger.DEAD_PREFIX)
        return [(seq, codec.from_json(ledger.dead_order(seq_key(seq), value))) for seq, value in listed]

    def is_dead(self, seq: int) -> bool:
        """Whether entry `seq` is a dead letter; a rejected one that is none was given up, or was best effort."""
        with self._read() as (_, txn):
            return ledger.is_dead(txn, seq)

    def is_quarantined(self, seq: int) -> bool:
        """Whether the record of entry `seq` was damaged and set aside."""
        with self._read() as (_, txn):
            return quarantine.holds(txn, seq)

    def quarantined(self) -> list[tuple[int, bytes]]:
        """`(seq, raw bytes)` of every damaged record that was set aside."""
        kept = self._prefixed(quarantine.PREFIX)
        return [(seq, quarantine.raw_of(seq_key(seq), value)) for seq, value in kept]

    def withdrawn(self) -> list[int]:
        """Sequence numbers that were discarded while pending, and whose receipts have not been looked up yet."""
        return [seq for seq, _ in self._prefixed(withdrawal.PREFIX)]

    def standing(self) -> tuple[int, int]:
        """`Counters.releases` and the watermark: if the former has changed, a batch read before may be outdated."""
        with self._read() as (environment, txn):
            counters = Counters.unpack(txn.get(COUNTERS_KEY))
            return counters.releases, _watermark(environment, txn, counters)

    def record(self, name: str, seq: int) -> Record | None:
        """One record of sub-database `name`, or None.  Raises `StoreCorrupt`."""
        with self._read() as (environment, txn):
            data = txn.get(seq_key(seq), db=getattr(environment, name))
        return None if data is None else unpack(seq, data)

    def find(self, key: bytes) -> Record | None:
        """The record stored under an idempotency key, or None; also None where only the key is left of it."""
        with self._read() as (environment, txn):
            value = txn.get(key, db=environment.idempotency)
            place = b"" if value is None else unpack_row(key, bytes(value))[0]
            for handle in (environment.pending, environment.ledger) if place else ():
                data = txn.get(place, db=handle)
                if data is not None:
                    return unpack(key_seq(place), data)
        return None

    def is_pending(self, seq: int) -> bool:
        """Whether entry `seq` still waits for delivery."""
        with self._read() as (environment, txn):
            return txn.get(seq_key(seq), db=environment.pending) is not None

    def first_pending(self) -> int | None:
        """The oldest entry that waits for delivery, None when there is none; far cheaper than `figures`."""
        with self._read() as (environment, txn), txn.cursor(db=environment.pending) as cursor:
            return key_seq(cursor.key()) if cursor.first() else None

    def _prefixed(self, prefix: bytes) -> list[tuple[int, bytes]]:
        with self._read() as (_, txn):
            return [(key_seq(key), value) for key, value in _prefixed(txn, prefix)]

    def figures(self) -> Figures:
        """Sizes and counts, in constant time.

        Where the data file is no longer in its place, that sets the halt latch, and its size is 0.
        """
        in_place = self.is_in_place()
        with self._read() as (environment, txn):
            counters = Counters.unpack(txn.get(COUNTERS_KEY))
            with txn.cursor(db=environment.pending) as cursor:
                first = (key_seq(cursor.key()), bytes(cursor.value())) if cursor.first() else None
            try:
                oldest = unpack(*first).captured_us if first else None
            except StoreCorrupt:
                oldest = None  # the relay will quarantine it; a status must not fail on it
            notices = dict(_metas(txn, NOTICE_PREFIX))
            return Figures(
                counters=counters,
                pending=txn.stat(environment.pending)["entries"],
                idempotency=txn.stat(environment.idempotency)["entries"],
                ledger=txn.stat(environment.ledger)["entries"],
                first_pending=first[0] if first else None,
                oldest_us=oldest,
                live_bytes=live_bytes(environment, txn),
                file_bytes=environment.file_bytes() if in_place else 0,
                map_bytes=environment.map_bytes,
                free_disk_bytes=self.free_disk_bytes() if in_place else 0,
                pinned_commits=max(0, environment.pinned_commits()),
                alarms={name.removeprefix(ALARM_PREFIX): value.decode() for name, value in _metas(txn, ALARM_PREFIX)},
                pause=notices.pop(PAUSE, None),
                notices={name.removeprefix(NOTICE_PREFIX): value for name, value in notices.items()},
            )

    def get_meta(self, name: str) -> bytes | None:
        """A small durable record of an integration (id reserves, snapshots), or None.  Raises `StoreCorrupt`."""
        with self._read() as (_, txn):
            value = txn.get(small.PREFIX + name.encode())
        return None if value is None else small.unpack(bytes(value), name.encode()).value

    def existing_metas(self, *names: str) -> set[str]:
        """Which small records of these names there are."""
        with self._read() as (_, txn):
            return {name for name in names if txn.get(small.PREFIX + name.encode()) is not None}

    def free_disk_bytes(self) -> int:
        """Free bytes of the store's disk, or `UNKNOWN_BYTES`.

        Raises `DurabilityError`, and sets the halt latch, where the disk does not answer.
        """
        try:
            return self._free_disk_bytes()
        except OSError as exc:
            raise self._failed("learn how much disk is free", exc) from exc

    def _free_disk_bytes(self) -> int:
        info = os.statvfs(self._directory_name)
        free = int(info.f_bavail * info.f_frsize)
        # Without a limit, or behind FUSE, it reports no blocks.
        return free if free or info.f_blocks else UNKNOWN_BYTES

    # -- what PostgreSQL may have forgotten

    def marks(self) -> list[Mark]:
        """What PostgreSQL last acknowledged, by lane; empty before the first delivery."""
        with self._read() as (_, txn):
            return [Mark.unpack(value) or UNKNOWN for _, value in _prefixed(txn, ledger.MARK_PREFIX)]

    def watermark(self) -> int:
        """Highest sequence number with nothing unsettled at or below it."""
        with self._read() as (environment, txn):
            return _watermark(environment, txn, Counters.unpack(txn.get(COUNTERS_KEY)))

    def last_seq(self) -> int:
        """Highest sequence number that was given out."""
        with self._read() as (_, txn):
            return Counters.unpack(txn.get(COUNTERS_KEY)).next_seq - 1

    def sessions(self) -> RelaySessions | None:
        """The connections to PostgreSQL that were begun; None in a store of an older version before its first."""
        with self._read() as (_, txn):
            return kept_sessions(txn)

    def late(self) -> tuple[int, int] | None:
        """The lowest entry that an unfinished reconciliation put back, and the newest sequence number of then."""
        with self._read() as (_, txn):
            return kept_late(txn)

    def proofs(self) -> list[Record]:
        """A few of those entries that PostgreSQL acknowledged last, whose receipts must be there."""
        with self._read() as (environment, txn), txn.cursor(db=environment.ledger) as cursor:
            rows = [(bytes(key), bytes(value)) for key, value in islice(cursor.iterprev(), PROOFS)]
        return ledger.acknowledged(rows)

    def without_record(self) -> Iterator[Record]:
        """What is left of entries that were settled without a ledger copy: key, payload hash, sequence number."""
        first = b""
        while True:
            with self._read() as (environment, txn), txn.cursor(db=environment.idempotency) as cursor:
                rows = [(bytes(key), bytes(value)) for key, value in islice(_from(cursor, first), CHUNK)]
                bare = [
                    (key, value, place)
                    for key, value in rows
                    if txn.get(place := place_of(value), db=environment.pending) is None
                    and txn.get(place, db=environment.ledger) is None
                    and txn.get(quarantine.PREFIX + place) is None
                ]
            for key, value, place in bare:
                yield Record(key_seq(place), key, b"", "", None, unpack_row(key, value)[1], b"", b"", b"")
            if len(rows) < CHUNK:
                return
            first = rows[-1][0] + b"\0"


def live_bytes(environment: Environment, txn: Any) -> int:
    """Bytes of pages in use: freed pages are reused and do not count."""
    pages = page_size = 0
    for handle in (environment.pending, environment.idempotency, environment.ledger):
        stat = txn.stat(handle)
        pages += stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]
        page_size = stat["psize"]
    return int(pages * page_size)


def _watermark(environment: Environment, txn: Any, counters: Counters) -> int:
    with txn.cursor(db=environment.pending) as cursor:
        return (key_seq(cursor.key()) if cursor.first() else counters.next_seq) - 1


def _metas(txn: Any, prefix: str) -> list[tuple[str, bytes]]:
    rows = _prefixed(txn, small.PREFIX + prefix.encode())
    return [(prefix + key.decode(), small.unpack(value, prefix.encode() + key).value) for key, value in rows]


def _prefixed(txn: Any, prefix: bytes) -> list[tuple[bytes, bytes]]:
    """The records of the main database whose keys begin with `prefix`, without it, in order."""
    with txn.cursor() as cursor:
        rows = takewhile(lambda row: row[0].startswith(prefix), _from(cursor, prefix))
        return [(bytes(key[len(prefix) :]), bytes(value)) for key, value in rows]


def _from(cursor: Any, first: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The rows from key `first` on."""
    found = cursor.set_range(first) if first else cursor.first()
    return cursor.iternext() if found else iter(())


def _chunk(txn: Any, handle: Any, first: bytes) -> list[tuple[bytes, bytes]]:
    """At most `CHUNK` rows of a sub-database from key `first` on."""
    with txn.cursor(db=handle) as cursor:
        return list(islice(cursor.iternext(), CHUNK)) if cursor.set_range(first) else []
