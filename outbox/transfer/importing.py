"""Importing: feeds a file that `exporting.export` wrote into a store, all of it in one commit.

Keys, ids, order, times, groups and what became of each entry stay as they were, so that nothing takes effect twice:
what was completed is not delivered again, and what is uncertain is settled by its receipt in PostgreSQL.  Importing a
file again changes nothing.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from uuid import UUID

from .. import codec
from ..clock import Clock
from ..config import OutboxConfig
from ..entry import EntryStatus
from ..errors import InvalidEntry, OutboxError, StoreFormatError
from ..opening import open_store
from ..rescue import verify
from ..store import filesystem, ledger, namespace, quarantine, small, withdrawal
from ..store.continuity import SESSIONS_KEY, RelaySessions, keep_late, kept_sessions
from ..store.creation import IMPORTING, create, prefix_of, workshop
from ..store.entry_json import FORMAT, State, from_object, raw_bytes
from ..store.envelope import Counters, Record, pack, seq_key, unpack
from ..store.environment import Environment
from ..store.gate import COUNTERS_KEY
from ..store.identity import is_vacant, read_identity
from ..store.key_row import pack_row, payload_of
from ..store.reads import ALARM_PREFIX, FORGOTTEN, ORDER, PAUSE, PLACES
from .lines import BAD, REMAINS, check_header, check_line

# The keys of a store are hashes over its namespace; the others are about the relays of that store alone.
_OF_ONE_STORE = frozenset({namespace.NAME, PAUSE, ORDER, PLACES, ALARM_PREFIX + FORGOTTEN})
_CONFLICT = "imported: its idempotency key is in use by another entry with other arguments"


@dataclass
class Restored:
    """What an import did."""

    directory: Path
    store_id: str = ""
    # Whether the store was made by this import.
    created: bool = False
    # Entries that the store did not have, by state.
    entries: Counter[State] = field(default_factory=Counter)
    # Entries that it had.
    known: int = 0
    # Entries whose key was in use with other arguments: now dead letters, or settled without a key.
    conflicts: int = 0
    # Entries of which the file has raw bytes or a key only: now in quarantine.
    remains: int = 0
    small_records: int = 0
    # Whether entries got new sequence numbers, behind all that the store had.
    renumbered: bool = False


class ExportFile:
    """A file of JSON lines, read as often as needed."""

    def __init__(self, path: Path) -> None:
        """Check every line.  Raises `InvalidEntry` naming the first bad one, `StoreFormatError` or OSError."""
        self._path = path
        lines = self._lines()
        number, self.header = next(lines, (1, {}))
        if self.header.get("kind") != "outbox" or number != 1:
            raise self._foreign()
        if self.header.get("format") != FORMAT:
            raise StoreFormatError(
                f"{path} has format {self.header.get('format')!r}, this version reads {FORMAT}",
                hint="use the version of lmdb-outbox that wrote it",
            )
        self.store_id = self._stated_id()
        end: dict[str, Any] = {}
        for number, line in lines:
            if end:
                raise InvalidEntry(f"{path}, line {number}: there is more behind the end", hint="nothing was imported")
            if line.get("kind") == "end":
                end = line
                continue
            try:
                check_line(line)
            except BAD as exc:
                said = exc.message if isinstance(exc, OutboxError) else f"{type(exc).__name__}: {exc}"
                raise InvalidEntry(f"{path}, line {number}: {said}", hint="nothing was imported") from exc
        if end.get("lines") != number - 1:
            raise InvalidEntry(f"{path} ends early, after line {number}", hint="export again; nothing was imported")

    def _foreign(self) -> InvalidEntry:
        return InvalidEntry(
            f"{self._path} is no export of an outbox", hint="give a file that `atb outbox export` wrote"
        )

    def _stated_id(self) -> UUID | None:
        """The id of the exported store, after checking the header.  Raises `InvalidEntry`."""
        try:
            return check_header(self.header)
        except BAD as exc:
            raise InvalidEntry(
                f"{self._path}, line 1: {type(exc).__name__}: {exc}", hint="export again; nothing was imported"
            ) from exc

    def lines(self) -> Iterator[dict[str, Any]]:
        """Each line but the first and the last."""
        return (line for _, line in self._lines() if line["kind"] not in ("outbox", "end"))

    def _lines(self) -> Iterator[tuple[int, dict[str, Any]]]:
        with self._path.open("rb") as file:
            for number, text in enumerate(file, 1):
                try:
                    line = codec.from_json(text)
                except ValueError as exc:
                    if number == 1:
                        raise self._foreign() from exc
                    raise InvalidEntry(
                        f"{self._path}, line {number} is no JSON: {exc}", hint="export again; nothing was imported"
                    ) from exc
                if not isinstance(line, dict):
                    raise InvalidEntry(f"{self._path}, line {number} is no object", hint="nothing was imported")
                yield number, line


def restore(path: Path, directory: Path, config: OutboxConfig, clock: Clock, *, merge: bool = False) -> Restored:
    """Import the file at `path` into the store in `directory`, creating it under the id of the exported one.

    No other process may have the store open.  An existing store with another id is only touched with `merge`, since
    calls that repeat an imported one are not recognised there.  Raises `InvalidEntry`, `StoreLocked`, what
    `Outbox.open` raises, or `DurabilityError`; nothing is imported then.
    """
    file = ExportFile(path)
    if is_vacant(directory):
        return _create(file, directory, config, clock)
    identity = read_identity(directory)
    if file.store_id != identity.store_id and not merge:
        raise InvalidEntry(
            f"{path} is of store {file.store_id}, {directory} is {identity.store_id}",
            hint="import into a directory that does not exist; or give --merge, and calls that repeat an imported one "
            "count as new",
        )
    done = Restored(directory, str(identity.store_id))
    _fill(file, directory, config, clock, done)
    return done


def _create(file: ExportFile, directory: Path, config: OutboxConfig, clock: Clock) -> Restored:
    """Make a store with everything in it, verify it, and put it in place in one rename."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    with workshop(prefix_of(directory.name, IMPORTING), directory.parent) as folder:
        made = folder / directory.name
        store_id = file.store_id or clock.new_id()
        create(made, store_id, {COUNTERS_KEY: Counters().pack()})
        done = Restored(directory, str(store_id), created=True)
        _fill(file, made, config, clock, done)
        verify.check_all(made, python=config.python)
        os.rename(made, directory)
        filesystem.flush_directory(directory.parent)
    return done


def _fill(file: ExportFile, directory: Path, config: OutboxConfig, clock: Clock, done: Restored) -> None:
    opened = open_store(directory, config, clock, engine=True)
    try:
        with opened.alone():
            opened.store.maintain("import", lambda env, txn, now: _Import(env, txn, now, file, done).run())
    finally:
        opened.close()


class _Import:
    """The body of the one transaction."""

    def __init__(
        self, environment: Environment, txn: Any, counters: Counters, file: ExportFile, done: Restored
    ) -> None:
        self._environment, self._txn, self._counters = environment, txn, counters
        self._file, self._done = file, done
        self._same_store = str(file.store_id) == done.store_id
        # The lowest entry that is pending again and may have been settled before, as far as PostgreSQL knows.
        self._top = counters.next_seq
        self._late: int | None = None
        # Entries that were discarded while pending, and whose receipts have not been looked up yet.
        self._withdrawn: set[bytes] = set()
        # New numbers of groups, where entries get new ones.
        self._groups: dict[int, int] = {}

    def run(self) -> None:
        self._done.renumbered = self._counters.next_seq > 1 and any(map(self._collides, self._file.lines()))
        changed = False
        for line in self._file.lines():
            changed |= self._take(line)
        if changed:
            header, counters = self._file.header, self._counters
            counters.next_seq = max(counters.next_seq, 0 if self._done.renumbered else int(header["next_seq"]))
            counters.last_us = max(counters.last_us, int(header["last_us"]))
            counters.releases += 1
            if self._late is not None:
                keep_late(self._txn, self._late, counters.next_seq - 1)

    def _take(self, line: dict[str, Any]) -> bool:
        """Take one line over; whether that changed anything."""
        kind = line["kind"]
        if kind == "small":
            return self._take_small(line)
        if kind == "other":
            name, value = raw_bytes(line["name"]), raw_bytes(line["value"])
            if name.startswith(withdrawal.PREFIX):
                # With its entry, which may get another number.
                self._withdrawn.add(name.removeprefix(withdrawal.PREFIX))
                return False
            if not self._same_store:
                return False  # it is about rows in PostgreSQL that this store does not have
            if name == SESSIONS_KEY:
                return self._take_sessions(value)
            return bool(self._txn.put(name, value, overwrite=False))
        if kind == "entry":
            loose = bool(line.get("loose"))
            return self._take_entry(*from_object(line), owns_key=bool(line["owns_key"]), loose=loose)
        return self._take_remains(line)

    def _take_sessions(self, value: bytes) -> bool:
        """What the exported store began was begun by this one."""
        present, offered = kept_sessions(self._txn), RelaySessions.unpack(value)
        if present is not None and {*offered.newest} <= {*present.newest}:
            return False
        both = offered if present is None else present.begun(*offered.newest)
        return bool(self._txn.put(SESSIONS_KEY, both.pack()))

    def _take_small(self, line: dict[str, Any]) -> bool:
        if line["name"] in _OF_ONE_STORE and not self._same_store:
            return False
        offered = small.SmallRecord(line["name"].encode(), raw_bytes(line["value"]), int(line["stamp"]))
        key = small.PREFIX + offered.name
        present = self._txn.get(key)
        if present is not None and not self._same_store:
            return False  # no other version of that record: a local view counts by the entries of its own store
        if present is not None and small.unpack(bytes(present), offered.name).stamp >= offered.stamp:
            return False
        self._done.small_records += 1
        return bool(self._txn.put(key, offered.pack()))

    def _take_entry(self, record: Record, state: State, *, owns_key: bool, loose: bool) -> bool:
        if self._has_entry(record, owns_key=owns_key):
            self._done.known += 1
            return False
        lookup = record.key if owns_key else record.id
        if self._txn.get(lookup, db=self._environment.idempotency) is not None:
            self._done.conflicts += 1
            lookup = record.id
            if state is State.PENDING:
                state = State.DEAD
                record = record.settled(EntryStatus.FAILED, record.captured_us, error=_CONFLICT)
        withdrawn = seq_key(record.seq) in self._withdrawn
        record = self._numbered(record)
        if self._occupied(record.seq):
            raise InvalidEntry(f"sequence number {record.seq} stands for two entries", hint="nothing was imported")
        key = seq_key(record.seq)
        in_pending = state is State.PENDING
        if in_pending and (loose or record.seq < self._top):
            self._late = min(record.seq, self._late or record.seq)
        self._txn.put(key, pack(record), db=self._environment.pending if in_pending else self._environment.ledger)
        self._txn.put(lookup, pack_row(lookup, key, record.payload_hash), db=self._environment.idempotency)
        if withdrawn:
            self._txn.put(withdrawal.PREFIX + key, b"")
        self._count(record, state)
        self._done.entries[state] += 1
        return True

    def _count(self, record: Record, state: State) -> None:
        counters = self._counters
        counters.last_us = max(counters.last_us, record.captured_us)
        if state is State.NOTE:
            return
        counters.acknowledged += 1
        counters.completed += state is State.COMPLETED
        counters.discarded += state is State.DISCARDED
        if state is State.DEAD:
            counters.dead += 1
            ledger.list_dead(self._txn, record)

    def _take_remains(self, line: dict[str, Any]) -> bool:
        if self._has_remains(line):
            self._done.known += 1
            return False
        seq = self._remaining_seq(line["seq"])
        hashed, key = bytes.fromhex(line["payload_hash"] or "") or bytes(16), self._key_of(line)
        self._txn.put(key, pack_row(key, seq_key(seq), hashed), db=self._environment.idempotency)
        self._counters.acknowledged += 1
        if line["kind"] == "key":
            self._counters.completed += 1
            self._done.entries[State.COMPLETED] += 1
        else:
            quarantine.keep(self._txn, seq, raw_bytes(line["raw"]))
            self._counters.quarantined += 1
            self._done.remains += 1
        return True

    def _numbered(self, record: Record) -> Record:
        seq = self._next_seq(record.seq)
        if seq == record.seq or not record.group:
            return record if seq == record.seq else replace(record, seq=seq)
        return replace(record, seq=seq, group=self._groups.setdefault(record.group, seq))

    def _next_seq(self, seq: int) -> int:
        counters = self._counters
        if not self._done.renumbered:
            counters.next_seq = max(counters.next_seq, seq + 1)
            return int(seq)
        counters.next_seq += 1
        return counters.next_seq - 1

    def _remaining_seq(self, seq: int) -> int:
        """The place of what cannot be read: its number has no checksum, and one that was never given out is wrong."""
        header = int(self._file.header["next_seq"])
        if seq < header or self._done.renumbered:
            return self._next_seq(seq)
        return self._next_seq(max(header, self._counters.next_seq))

    # -- what the store has

    def _collides(self, line: dict[str, Any]) -> bool:
        """Whether the place of an entry that the store does not have is taken by another."""
        if line["kind"] == "entry":
            record, _ = from_object(line)
            return not self._has_entry(record, owns_key=bool(line["owns_key"])) and self._occupied(record.seq)
        if line["kind"] in REMAINS or line["kind"] == "key":
            return not self._has_remains(line) and self._occupied(line["seq"])
        return False

    def _has_entry(self, record: Record, *, owns_key: bool) -> bool:
        """Whether the entry is there: under its key with the same arguments, or its id at its place."""
        owner = self._txn.get(record.key if owns_key else record.id, db=self._environment.idempotency)
        if owner is not None and payload_of(owner) == record.payload_hash:
            return True
        if self._txn.get(record.id, db=self._environment.idempotency) is not None:
            return True
        for handle in (self._environment.pending, self._environment.ledger):
            data = self._txn.get(seq_key(record.seq), db=handle)
            if data is not None and unpack(record.seq, data).id == record.id:
                return True
        return False

    def _has_remains(self, line: dict[str, Any]) -> bool:
        if self._txn.get(self._key_of(line), db=self._environment.idempotency) is not None:
            return True
        return self._same_store and self._occupied(line["seq"])

    def _occupied(self, seq: int) -> bool:
        key = seq_key(seq)
        handles = (self._environment.pending, self._environment.ledger)
        return any(self._txn.get(key, db=handle) is not None for handle in handles) or quarantine.holds(self._txn, seq)

    def _key_of(self, line: dict[str, Any]) -> bytes:
        """The idempotency key of what cannot be read; where that is lost too, one that tells it from others."""
        if line["key"]:
            return bytes.fromhex(line["key"])
        told = f"{self._file.store_id} {line['seq']} {line['raw']}"
        return hashlib.sha256(told.encode()).digest()[:16]
