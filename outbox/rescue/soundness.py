"""Soundness: checks the parts of a store that an engine needs, through LMDB, in a process that may crash.

LMDB itself reads the file, and what it returns is held against our own checksums and counters.  Only what was read and
found wrong is reported; whatever keeps the process from reading is raised, since it has no bearing on the content.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from .. import codec
from ..entry import EntryStatus
from ..errors import OutboxError, StoreCorrupt
from ..store import ledger, quarantine, small
from ..store.envelope import Counters, Record, key_seq, seq_key, unpack
from ..store.environment import MAP_BYTES, Environment, LmdbError, structural_problems, translated
from ..store.gate import COUNTERS_KEY
from ..store.identity import DATA_FILE, IDENTITY_KEY, Identity
from ..store.key_row import place_of, unpack_row
from ..store.locks import Role, RoleLock, nobody_writes
from ..words import counted
from . import metas
from .pages import FREE_LIST, MAIN, DataFile, Walk, check_other

_OURS = b"outbox:"
# A history of more rows is not read in one snapshot, which would pin the pages that an engine frees meanwhile.
_LARGE_ROWS = 500_000
_ROWS = 2000
_ROWS_MAPPED = 500


def problems(directory: Path) -> Iterator[str]:
    """Everything wrong with a store.  Raises OutboxError or OSError where it cannot be read.

    Beside a process that may write to it, only what LMDB reads is looked at.
    """
    with nobody_writes(directory) as alone:
        found = _structure(directory) if alone else []
        yield from found
        if not found:  # else LMDB could die of it, and would find nothing more
            yield from _read(directory, _Content.problems)


def essentials(directory: Path) -> Iterator[str]:
    """What is wrong with the part that enqueueing and delivering stand on.  Raises as `problems`.

    Its cost depends on what is pending, not on the history: the ledger and the keys of its entries are left to
    `history`.
    """
    with nobody_writes(directory) as alone:
        found = _metas(directory) or _pages_in_doubt(directory) if alone else []
        yield from found
        if not found:
            yield from _read(directory, _Content.essentials)


def history(directory: Path) -> Iterator[str]:
    """What is wrong with the ledger and the idempotency keys.  Beside an engine; raises as `problems`."""
    access = RoleLock(directory, Role.ACCESS, shared=True)
    try:
        yield from _read(directory, _Content.history)
    finally:
        access.release()


def _metas(directory: Path) -> list[str]:
    return metas.meta_problems(directory / DATA_FILE, most_bytes=MAP_BYTES)


def _pages_in_doubt(directory: Path) -> list[str]:
    """Pages that would be written over though they are in use, and damaged ones of what is pending.

    LMDB offers no way to read its free list, so the reader of raw pages raises the suspicion; LMDB's offline verifier,
    which reads the whole file, must confirm it.
    """
    with DataFile(directory / DATA_FILE) as file:
        walks = file.essential_walks()
    suspected = any(walk.problems for walk in walks)
    return structural_problems(directory) or _unchangeable(directory, walks) if suspected else []


def _structure(directory: Path) -> list[str]:
    """What is wrong with the pages of the whole file."""
    found = _metas(directory) or structural_problems(directory)
    if found:
        return found
    with DataFile(directory / DATA_FILE) as file:
        walks = file.all_walks()
    return _unchangeable(directory, walks)


def _unchangeable(directory: Path, walks: list[Walk]) -> list[str]:
    """Rows that LMDB refuses to delete, of those that the walks found marked as databases.

    It reads them, and its verifier does not look at the marks of large values: nothing else would show it before an
    entry is delivered and cannot be settled.  Changes nothing.
    """
    marked = [(walk.name, key) for walk in walks for key in walk.marked if walk.name != FREE_LIST]
    if not marked:
        return []
    environment = Environment(directory)
    try:
        return [
            f"{name}: {_row_name(name, key)} can be read, and LMDB refuses to change it"
            for name, key in marked
            if not _can_be_deleted(environment, name, key)
        ]
    finally:
        environment.close()


def _row_name(name: str, key: bytes) -> str:
    return f"entry {key_seq(key)}" if name in ("pending", "ledger") and len(key) == 8 else f"key {key.hex()}"


def _can_be_deleted(environment: Environment, name: str, key: bytes) -> bool:
    txn = environment.env.begin(write=True)
    try:
        txn.delete(key, db=None if name == MAIN else getattr(environment, name))
        return True
    except LmdbError:
        return False
    finally:
        txn.abort()


def _read(directory: Path, look: Callable[[_Content], Iterator[str]]) -> Iterator[str]:
    environment = Environment(directory, readonly=True)
    try:
        yield from look(_Content(environment))
    except LmdbError as exc:
        raise translated(exc, directory, hint="restore a backup") from exc
    finally:
        environment.close()


class _Content:
    """The records of a store.  What needs no snapshot of everything is read in one of few rows at a time."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self._txn: Any = None
        self._counters: Counters | None = None
        # Ordering keys of the dead letters, as JSON, by sequence number.
        self._dead: dict[int, bytes] = {}
        self._quarantined = 0
        # Damaged pending records, of which no key has been found yet.
        self._unowned: set[int] = set()
        # The highest sequence number of any record.
        self._highest = 0

    def problems(self) -> Iterator[str]:
        """One sentence for each."""
        with self._snapshot():
            yield from self._main()
            yield from self._tree("pending", self._pending_record)
            yield from self._tree("ledger", self._ledger_record)
            yield from self._keys()
            yield from self._unowned_records()
            yield from self._dead_letters()
            yield from self._totals()

    def essentials(self) -> Iterator[str]:
        """The same of everything but the history."""
        with self._snapshot():
            yield from self._main()
            yield from self._tree("pending", self._pending_record)
            with self._txn.cursor(db=self._environment.ledger) as cursor:
                if cursor.last() and len(cursor.key()) == 8:
                    self._highest = max(self._highest, key_seq(cursor.key()))
            yield from self._dead_letters()
            yield from self._totals()

    def history(self) -> Iterator[str]:
        """The same of the history alone."""
        with self._environment.env.begin() as txn:
            handles = (self._environment.ledger, self._environment.idempotency)
            large = sum(txn.stat(handle)["entries"] for handle in handles) > _LARGE_ROWS
        if large:
            # Entries come and go between the snapshots, so nothing can be counted.
            yield from self._tree("ledger", self._ledger_record)
            yield from self._keys()
            return
        with self._snapshot():
            self._note_damaged_pending()
            yield from self._tree("ledger", self._ledger_record)
            yield from self._keys()
            yield from self._unowned_records()

    @contextmanager
    def _snapshot(self) -> Iterator[None]:
        """Let everything in the block be read from one state of the store."""
        with self._environment.env.begin() as txn:
            self._txn = txn
            try:
                yield
            finally:
                self._txn = None

    def _rows(self, name: str) -> Iterator[tuple[bytes, bytes]]:
        """The rows of a sub-database; of `main`, those that are none.  `_txn` is set while a row is looked at."""
        handle = None if name == "main" else getattr(self._environment, name)
        in_one = self._txn is not None
        if in_one:
            with self._txn.cursor(db=handle) as cursor:
                for key, value in cursor.iternext():
                    yield bytes(key), bytes(value)
            return
        first = b""
        while True:
            with self._snapshot(), self._txn.cursor(db=handle) as cursor:
                found = cursor.set_range(first) if first else cursor.first()
                rows = islice(cursor.iternext(), _ROWS) if found else iter(())
                last = b""
                for key, value in rows:
                    last = bytes(key)
                    yield last, bytes(value)
            if not last:
                return
            first = last + b"\0"

    def _main(self) -> Iterator[str]:
        for key, value in self._rows("main"):
            try:
                self._take_small(key, value)
            except OutboxError as exc:
                yield f"main: {exc.message}"
            except ValueError as exc:
                yield f"main: {key!r:.60} is damaged: {exc}"

    def _take_small(self, key: bytes, value: bytes) -> None:
        if key == IDENTITY_KEY:
            Identity.parse(value, Path(DATA_FILE))
        elif key == COUNTERS_KEY:
            self._counters = Counters.unpack(value)
        elif key.startswith(ledger.DEAD_PREFIX):
            place = key.removeprefix(ledger.DEAD_PREFIX)
            self._dead[key_seq(place)] = ledger.dead_order(place, value)
        elif key.startswith(quarantine.PREFIX):
            quarantine.raw_of(key.removeprefix(quarantine.PREFIX), value)
            self._quarantined += 1
        elif key.startswith(small.PREFIX):
            small.unpack(value, key.removeprefix(small.PREFIX))
        elif key.startswith(_OURS):
            check_other(key, value)
        elif key not in (b"pending", b"idempotency", b"ledger"):
            raise StoreCorrupt(f"{key!r:.60} does not belong here")

    def _tree(self, name: str, check: Callable[[int, bytes], str]) -> Iterator[str]:
        """The records of `pending` or `ledger`, in order and none missing."""
        last, rows = b"", 0
        for key, value in self._rows(name):
            rows += 1
            if len(key) != 8:
                yield f"{name}: found a key of {counted(len(key), 'byte')}: {key[:16].hex()}"
                continue
            self._forget_pages(rows)
            if key <= last:
                yield f"{name}: entry {key_seq(key)} is out of order"
            last = key
            self._highest = max(self._highest, key_seq(key))
            found = check(key_seq(key), value)
            if found:
                yield found
        yield from self._expect_rows(name, rows)

    def _forget_pages(self, rows: int) -> None:
        """Now and then: the key of each record lies on another page, and each maps its neighbours too."""
        if not rows % _ROWS_MAPPED:
            self._environment.forget_pages()

    def _expect_rows(self, name: str, rows: int) -> Iterator[str]:
        if self._txn is None:
            return
        expected = self._txn.stat(getattr(self._environment, name))["entries"]
        if rows != expected:
            yield f"{name}: {rows} of {counted(expected, 'row', 'rows')} can be read"

    def _pending_record(self, seq: int, value: bytes) -> str:
        try:
            record = unpack(seq, value)
        except StoreCorrupt:
            self._unowned.add(seq)
            return ""  # a relay sets it aside by itself, with its raw bytes
        if record.status is not EntryStatus.PENDING:
            return f"pending: entry {seq} has status {record.status}"
        return self._key_of(record)

    def _ledger_record(self, seq: int, value: bytes) -> str:
        try:
            record = unpack(seq, value)
        except StoreCorrupt as exc:
            return f"ledger: {exc.message}"
        if record.status is EntryStatus.PENDING:
            return f"ledger: entry {seq} has status {record.status}"
        return self._key_of(record)

    def _key_of(self, record: Record) -> str:
        """Whether the idempotency key of a sound record leads to it."""
        wanted = seq_key(record.seq), record.payload_hash
        under_key = self._row(record.key)
        # An import keeps those that do not own their keys under their ids.
        if wanted in (under_key, self._row(record.id)):
            return ""
        if under_key is not None and under_key[0] == wanted[0]:
            return f"idempotency: entry {record.seq} is listed with other arguments than it has"
        if record.key == record.id or record.is_discarded:
            return ""  # a note of ours, or a key that an operator has freed
        return f"idempotency: the key of entry {record.seq} is missing"

    def _row(self, key: bytes) -> tuple[bytes, bytes] | None:
        """What an idempotency key leads to, or None; also where its row is damaged."""
        value = self._txn.get(key, db=self._environment.idempotency)
        try:
            return None if value is None else unpack_row(key, bytes(value))
        except StoreCorrupt:
            return None

    def _keys(self) -> Iterator[str]:
        rows, last = 0, b""
        for key, value in self._rows("idempotency"):
            rows += 1
            try:
                unpack_row(key, value)
            except StoreCorrupt as exc:
                yield f"idempotency: {exc.message}"
                continue
            self._forget_pages(rows)
            if key <= last:
                yield f"idempotency: key {key.hex()} is out of order"
            last = key
            self._highest = max(self._highest, key_seq(place_of(value)))
            self._unowned.discard(key_seq(place_of(value)))
        yield from self._expect_rows("idempotency", rows)

    def _note_damaged_pending(self) -> None:
        """Remember which pending records are damaged; what else is wrong there was found before."""
        for key, value in self._rows("pending"):
            try:
                unpack(key_seq(key), value)
            except StoreCorrupt:
                self._unowned.add(key_seq(key))

    def _unowned_records(self) -> Iterator[str]:
        for seq in sorted(self._unowned):
            yield f"idempotency: the key of entry {seq} is missing"

    def _dead_letters(self) -> Iterator[str]:
        for seq, order_by in self._dead.items():
            value = self._txn.get(seq_key(seq), db=self._environment.ledger)
            if value is None:
                yield f"main: dead letter {seq} is not in the ledger"
                continue
            try:
                record = unpack(seq, value)
            except StoreCorrupt as exc:
                yield f"ledger: {exc.message}"
                continue
            if codec.to_json(record.order_by) != order_by:
                yield f"main: dead letter {seq} is listed with another ordering key than it has"

    def _totals(self) -> Iterator[str]:
        """What does not add up."""
        counters = self._counters
        if counters is None:
            yield "main: the counters record is missing or damaged"
            return
        pending = self._txn.stat(self._environment.pending)["entries"]
        found = pending + counters.completed + counters.dead + counters.discarded + counters.quarantined
        if found != counters.acknowledged:
            yield f"{counted(counters.acknowledged, 'entry was', 'entries were')} acknowledged, accounted for: {found}"
        if self._highest >= counters.next_seq:
            yield f"entry {self._highest} is not below the next sequence number {counters.next_seq}"
        if len(self._dead) != counters.dead:
            yield f"{counted(counters.dead, 'dead letter is', 'dead letters are')} counted, listed: {len(self._dead)}"
        if self._quarantined != counters.quarantined:
            kept = counted(counters.quarantined, "record was", "records were")
            yield f"{kept} quarantined, there: {self._quarantined}"
