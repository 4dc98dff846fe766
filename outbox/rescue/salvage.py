"""Salvage: which entries are in a data file, sound or damaged, read without LMDB.

First the trees are walked.  What hangs in a sound place is certain.  Where a tree is damaged, the whole file is
searched for records by how they begin and by their checksum: those are *loose*, and among them are old versions of
entries, because LMDB never overwrites what the last commit needs.  Of an entry that is only found loose the version is
taken that is safest to import: completed, else discarded, else pending, for its receipt in PostgreSQL settles that.
"""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from uuid import UUID

from .. import codec
from ..entry import EntryStatus
from ..errors import OutboxError, StoreCorrupt, StoreFormatError
from ..store import quarantine, small
from ..store.entry_json import State, settled_state
from ..store.envelope import BEGINNING, Counters, Record, key_seq, unpack
from ..store.gate import COUNTERS_KEY
from ..store.identity import DATA_FILE, IDENTITY_FILE, IDENTITY_KEY, Identity
from ..store.key_row import KEY_BYTES, MOST_BYTES, payload_of, unpack_row
from ..store.ledger import DEAD_PREFIX, dead_order
from ..store.own_files import read_own
from ..words import counted
from .metas import Tree
from .pages import MAIN, DataFile, Row, Walk, beginnings, check_other, rank

_OURS = b"outbox:"
_LARGEST = 64 << 20


@dataclass(frozen=True, slots=True)
class Salvaged:
    """An entry that can be read."""

    record: Record
    state: State
    # Whether its idempotency key leads to it; false once an operator has freed the key.
    owns_key: bool = True
    # Found outside of the trees, or in those of an earlier commit: it may be in an older state.
    loose: bool = False


@dataclass(frozen=True, slots=True)
class Remains:
    """What is left of an entry whose record cannot be read: its raw bytes, or only its idempotency key, or both."""

    seq: int
    raw: bytes = b""
    key: bytes = b""
    payload_hash: bytes = b""
    why: str = ""
    # Damaged where it waits for delivery: a relay sets it aside by itself.
    in_pending: bool = False


@dataclass
class _Tree:
    """One sub-database: what its walk found."""

    walk: Walk
    places: array[int] = field(default_factory=lambda: array("Q"))

    def each(self) -> Iterable[tuple[int, int, int]]:
        """Sequence number, offset and size of each sound record, in order."""
        places = zip(self.places[::3], self.places[1::3], self.places[2::3], strict=True)
        return places if self.walk.intact else sorted(places)


class Salvage:
    """The contents of a data file that no process writes to.  Use it in a `with` block.  Raises OSError."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._file = DataFile(directory / DATA_FILE)
        # Everything that is wrong, but for single damaged records.
        self.problems = list(self._file.problems)
        self.counters: Counters | None = None
        self.store_id: UUID | None = None
        # The format that the data file names, if it is not ours.
        self._other_format = ""
        # Small records by name, and what else lies in the main database under our prefix.
        self.small: dict[bytes, small.SmallRecord] = {}
        self.other: dict[bytes, bytes] = {}
        # Records that are where they belong and cannot be read, by sequence number; and those in quarantine.
        self.damaged: dict[int, Remains] = {}
        self.quarantined: dict[int, Remains] = {}
        self._dead: dict[int, bytes] = {}
        self._owners: dict[int, int] = {}
        self._loose: dict[int, tuple[int, int, int]] = {}
        # The highest sequence number of a sound record.
        self._highest = 0
        # Keys that sound records have and the index does not.
        self._unmapped: set[bytes] = set()
        try:
            self._survey()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file; may be called twice."""
        self._file.close()

    def __enter__(self) -> Salvage:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def sound(self) -> bool:
        """Whether everything is where it belongs and can be read."""
        return not self.problems and not self.damaged

    @property
    def next_seq(self) -> int:
        """A sequence number that no entry has had."""
        return max(self._highest + 1, self.counters.next_seq if self.counters is not None else 1)

    def entries(self) -> Iterator[Salvaged]:
        """Every entry that can be read, by sequence number, in bounded memory."""
        loose_ones = [(seq, offset, size) for seq, (_, offset, size) in sorted(self._loose.items())]
        # The ledger first: what is in both trees, which is a problem of its own, was settled.
        trees = [self._trees[name].each() for name in ("ledger", "pending")]
        last = 0
        for seq, offset, size in heapq.merge(*trees, loose_ones, key=itemgetter(0)):
            if seq == last:
                continue
            last = seq
            record = unpack(seq, self._file.read(offset, size))
            loose = seq in self._loose or self._outdated
            in_pending = record.status is EntryStatus.PENDING
            state = State.PENDING if in_pending else settled_state(record, dead=self._is_dead(record, loose=loose))
            yield Salvaged(record, state, self._owns_key(record, state), loose)

    def remains(self) -> Iterator[Remains]:
        """Entries that were acknowledged and cannot be read, with their raw bytes as far as there are."""
        for seq, found in sorted({**self.damaged, **self.quarantined}.items()):
            if seq in self._loose:
                continue  # an older version is better than raw bytes
            key, hashed = self._mapping(seq) if seq in self._owners else (b"", b"")
            yield Remains(seq, found.raw, key, hashed, found.why)
        if not self._whole:
            for seq in self._orphans():
                yield Remains(seq, b"", *self._mapping(seq), "lost")

    def bare_keys(self) -> Iterator[Remains]:
        """Idempotency keys of entries that were completed without a ledger copy."""
        if self._whole:
            for seq in self._orphans():
                yield Remains(seq, b"", *self._mapping(seq))

    # -- what the trees say

    def _survey(self) -> None:
        trees = self._survey_main()
        self._identify()
        idempotency = Walk("idempotency")
        self._trees = {name: _Tree(Walk(name)) for name in ("pending", "ledger")}
        if self._file.meta is not None:
            self._survey_keys(trees.get("idempotency"), idempotency)
            for name, tree in self._trees.items():
                self._survey_records(trees.get(name), name, tree)
        walks = [idempotency, *(tree.walk for tree in self._trees.values())]
        # The free list of damaged meta pages may be another commit's.
        self._free = set() if self._file.problems else self._file.free_pages()
        for walk in walks:
            if walk.pages & self._free:
                walk.report(min(walk.pages & self._free), "is in use and free")
        self.problems += [problem for walk in walks for problem in walk.problems]
        rooted = not self._file.problems and self._main_intact
        pending, ledger, keys = (rooted and walk.intact for walk in (*walks[1:], idempotency))
        if pending and ledger:
            # Undamaged trees whose counts differ belong to another commit.
            amiss = self._amiss()
            self.problems += amiss
            rooted = not amiss
        # Whether the trees may be those of an earlier commit.
        self._outdated = not rooted
        # Whether what is in no tree is nowhere.
        self._whole = rooted and pending and ledger
        if self.damaged or not self._whole:
            self._search(pending=rooted and pending, ledger=rooted and ledger, keys=rooted and keys)
        self.problems += self._file.free_list_problems

    def _survey_main(self) -> dict[str, Tree]:
        walk, trees = Walk(MAIN), dict[str, Tree]()
        self._main_intact = False
        if self._file.meta is None:
            return trees
        for row in self._file.rows(self._file.meta.main, walk):
            tree = self._file.tree(row)
            if tree is not None:
                trees[row.key.decode(errors="replace")] = tree
                continue
            try:
                self._take_small(row.key, self._file.read(row.offset, row.size))
            except OutboxError as exc:
                self.problems.append(f"main: {exc.message}")
            except ValueError as exc:
                self.problems.append(f"main: {row.key!r:.60} is damaged: {exc}")
        missing = [name for name in ("pending", "idempotency", "ledger") if name not in trees]
        self.problems += [*walk.problems, *(f"main: there is no database {name}" for name in missing)]
        self._main_intact = walk.intact and not missing
        return trees

    def _identify(self) -> None:
        """Take the store id from the data file, or else from the identity file beside it."""
        try:
            path = self._directory / IDENTITY_FILE
            beside = Identity.parse(read_own(path), path).store_id
        except (OSError, OutboxError) as exc:
            if isinstance(exc, StoreFormatError) and str(exc) == self._other_format:
                # Both say so: it is no damage, and this version could misread it.
                raise
            self.problems.append(f"{IDENTITY_FILE}: {exc.message if isinstance(exc, OutboxError) else exc.strerror}")
            beside = None
        if self.store_id is None:
            self.problems.append("main: the identity is not readable")
            self.store_id = beside
        elif beside not in (None, self.store_id):
            self.problems.append(f"{DATA_FILE} belongs to another store than {IDENTITY_FILE} beside it")

    def _take_small(self, key: bytes, value: bytes) -> None:
        if key == IDENTITY_KEY:
            try:
                self.store_id = Identity.parse(value, self._directory / DATA_FILE).store_id
            except StoreFormatError as exc:
                self._other_format = str(exc)
                raise
        elif key == COUNTERS_KEY:
            self.counters = Counters.unpack(value)
        elif key.startswith(DEAD_PREFIX):
            place = key.removeprefix(DEAD_PREFIX)
            self._dead[key_seq(place)] = dead_order(place, value)
        elif key.startswith(quarantine.PREFIX):
            place = key.removeprefix(quarantine.PREFIX)
            seq = key_seq(place)
            self.quarantined[seq] = Remains(seq, quarantine.raw_of(place, value), why="quarantined")
        elif key.startswith(small.PREFIX):
            found = small.unpack(value, key.removeprefix(small.PREFIX))
            self.small[found.name] = found
        elif key.startswith(_OURS):
            check_other(key, value)
            self.other[key] = value
        else:
            raise StoreCorrupt(f"{key!r:.60} does not belong here")

    def _survey_keys(self, tree: Tree | None, walk: Walk) -> None:
        for row in self._rows(tree, walk):
            try:
                place, _ = unpack_row(row.key, self._file.read(row.offset, min(row.size, 1000)))
            except StoreCorrupt as exc:
                walk.problems.append(f"idempotency: {exc.message}")
                continue
            seq = key_seq(place)
            if seq in self._owners:
                walk.problems.append(f"idempotency: two keys lead to entry {seq}")
            self._owners[seq] = row.key_offset

    def _survey_records(self, tree: Tree | None, name: str, found: _Tree) -> None:
        for row in self._rows(tree, found.walk):
            if len(row.key) != 8:
                found.walk.problems.append(
                    f"{name}: found a key of {counted(len(row.key), 'byte')}: {row.key[:16].hex()}"
                )
                continue
            seq = key_seq(row.key)
            data = self._file.read(row.offset, row.size)
            try:
                record = unpack(seq, data)
            except StoreCorrupt as exc:
                self.damaged[seq] = Remains(seq, data, why=f"{name}: {exc.message}", in_pending=name == "pending")
                if name == "pending" and seq not in self._owners:
                    self.problems.append(f"idempotency: the key of entry {seq} is missing")
                continue
            if (record.status is EntryStatus.PENDING) != (name == "pending"):
                # A page from another time or place; what is on it may be old.
                found.walk.problems.append(f"{name}: entry {seq} has status {record.status}")
                continue
            # What bounds the next number must have a checksum.
            self._highest = max(self._highest, seq)
            found.places.extend((seq, row.offset, row.size))
            self._check_key(record)
            if name == "ledger" and seq in self._dead and self._dead[seq] != codec.to_json(record.order_by):
                self.problems.append(f"main: dead letter {seq} is listed with another ordering key than it has")

    def _rows(self, tree: Tree | None, walk: Walk) -> Iterator[Row]:
        if tree is not None:
            yield from self._file.rows(tree, walk)

    def _check_key(self, record: Record) -> None:
        """Whether the idempotency key of a sound record leads to it."""
        if record.seq in self._owners:
            # An import keeps those that do not own their keys under their ids.
            allowed = [(key, record.payload_hash) for key in (record.key, record.id)]
            if self._mapping(record.seq) not in allowed:
                self.problems.append(f"idempotency: another key leads to entry {record.seq}")
                self._unmapped.add(record.key)
        elif record.key != record.id and not record.is_discarded:
            self.problems.append(f"idempotency: the key of entry {record.seq} is missing")
            self._unmapped.add(record.key)

    def _mapping(self, seq: int) -> tuple[bytes, bytes]:
        """The idempotency key that leads to entry `seq`, and its payload hash."""
        data = self._file.read(self._owners[seq], KEY_BYTES + MOST_BYTES)
        return data[:KEY_BYTES], payload_of(data[KEY_BYTES:])

    def _amiss(self) -> list[str]:
        """What does not add up between the trees."""
        counters, listed = self.counters, set(self._dead)
        settled = {seq for seq, _, _ in self._trees["ledger"].each()} if listed else set()
        amiss = [f"main: dead letter {seq} is not in the ledger" for seq in listed - settled - self.damaged.keys()]
        if counters is None:
            return [*amiss, "main: the counters record is missing or damaged"]
        pending = self._trees["pending"].walk.rows
        found = pending + counters.completed + counters.dead + counters.discarded + counters.quarantined
        if found != counters.acknowledged:
            amiss.append(
                f"{counted(counters.acknowledged, 'entry was', 'entries were')} acknowledged, accounted for: {found}"
            )
        if self._highest >= counters.next_seq:
            amiss.append(f"entry {self._highest} is not below the next sequence number {counters.next_seq}")
        if len(listed) != counters.dead:
            amiss.append(
                f"{counted(counters.dead, 'dead letter is', 'dead letters are')} counted, listed: {len(listed)}"
            )
        if len(self.quarantined) != counters.quarantined:
            kept = counted(counters.quarantined, "record was", "records were")
            amiss.append(f"{kept} quarantined, there: {len(self.quarantined)}")
        return amiss

    # -- what lies outside of the trees

    def _search(self, *, pending: bool, ledger: bool, keys: bool) -> None:
        """Search the whole file for records; the arguments name the sound trees."""
        placed = {seq for tree in self._trees.values() for seq, _, _ in tree.each()}
        for offset, seq, size in beginnings(self._file, BEGINNING):
            if seq in placed or size > _LARGEST:
                continue
            try:
                record = unpack(seq, self._file.read(offset, size))
            except (StoreCorrupt, UnicodeDecodeError):
                continue
            self._highest = max(self._highest, seq)
            settled = record.status is not EntryStatus.PENDING
            if seq not in self.damaged:
                if ledger if settled else pending:
                    continue  # its tree is undamaged, so this is a leftover
                leftover = offset // self._file.page_size in self._free
                if seq not in self._owners and ((keys and not settled) or leftover):
                    continue  # settled long ago, and forgotten since
            safety = rank(record)
            if seq not in self._loose or safety > self._loose[seq][0]:
                self._loose[seq] = (safety, offset, size)
        if self._outdated:
            self._search_small()

    def _search_small(self) -> None:
        for offset, _, size in beginnings(self._file, small.BEGINNING):
            try:
                found = small.unpack(self._file.read(offset, size))
            except StoreCorrupt:
                continue
            known = self.small.get(found.name)
            if known is None or known.stamp < found.stamp:
                self.small[found.name] = found

    def _orphans(self) -> list[int]:
        """Sequence numbers that a key leads to and of which there is no record."""
        known = {seq for tree in self._trees.values() for seq, _, _ in tree.each()}
        known |= self._loose.keys() | self.damaged.keys() | self.quarantined.keys()
        return [seq for seq in sorted(self._owners.keys() - known) if self._mapping(seq)[0] not in self._unmapped]

    def _owns_key(self, record: Record, state: State) -> bool:
        if state is State.NOTE or record.seq not in self._owners:
            return state not in (State.NOTE, State.DISCARDED)
        return state is not State.DISCARDED or self._mapping(record.seq)[0] == record.key

    def _is_dead(self, record: Record, *, loose: bool) -> bool:
        """Whether a rejected entry waits for an operator; where that is not known, it does."""
        if record.is_discarded:
            return False
        return record.seq in self._dead or loose or self._outdated
