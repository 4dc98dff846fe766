"""The store that is damaged, and everything that is known of it while it is whole."""

from __future__ import annotations

import shutil
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from outbox import Outbox, OutboxConfig
from outbox.rescue.pages import DataFile, Walk
from outbox.rescue.salvage import Salvage
from outbox.store.continuity import Mark
from outbox.store.entry_json import State
from outbox.store.envelope import Record
from outbox.store.ledger import Settlement
from tests.unit.fakes.rig import FakeClock

CONFIG = OutboxConfig(min_free_mb=0)
SETTLED, PENDING, EARLY = 60, 40, 20
METAS = {"ids:positions": b'{"next":41,"last":90}', "snapshot": bytes(range(256)) * 20, "enums": b"[]"}

MARK = Mark(uuid.UUID(int=7), uuid.UUID(int=8), 9)


class NamingClock(FakeClock):
    """Also gives ids that are the same in every run."""

    def __init__(self, first: int = 1) -> None:
        super().__init__()
        self._ids = first

    def new_id(self) -> uuid.UUID:
        self._ids += 1
        self.advance(0.001)
        return uuid.UUID(int=self._ids)


@dataclass
class Template:
    """A store that was not closed properly, with a history: entries of every state, groups, large and small ones."""

    directory: Path
    # As it was some commits earlier, and another store.
    earlier: Path
    foreign: Path
    page_size: int = 0
    data: bytes = b""
    # What a sound store gives: every record as LMDB returns it, its state, and the pages that it lies on.
    records: dict[int, Record] = field(default_factory=dict)
    states: dict[int, State] = field(default_factory=dict)
    pages: dict[int, set[int]] = field(default_factory=dict)
    # Everything that was ever acknowledged, as it was first: salvage may find old versions of it.
    acknowledged: dict[int, Record] = field(default_factory=dict)
    # Which pages each tree has, and which are free.
    trees: dict[str, list[int]] = field(default_factory=dict)
    next_seq: int = 0
    counters: dict[str, int] = field(default_factory=dict)
    keys: dict[bytes, bytes] = field(default_factory=dict)


def args_of(number: int) -> dict[str, Any]:
    """Arguments that tell an entry from every other; some need pages of their own."""
    size = {0: 3000, 1: 9000}.get(number % 9, number % 7 * 30)
    return {
        "number": number,
        "price": Decimal(number) / 8,
        "at": datetime(2024, 1, 1, 12, number % 60, tzinfo=UTC),
        "note": f"{number}-" * (size // 4),
    }


def build(folder: Path) -> Template:
    """Make the template in an empty folder."""
    template = Template(folder / "template", folder / "earlier", folder / "foreign")
    with Outbox.open(template.foreign, CONFIG, clock=NamingClock(1 << 64)) as box:
        box.enqueue("trade", args_of(7))
    clock = NamingClock()
    with Outbox.open(template.directory, CONFIG, clock=clock) as box:
        for name, value in METAS.items():
            box.store.put_meta(name, b"older")
            box.store.put_meta(name, value)
        for number in range(SETTLED + PENDING):
            _enqueue(box, number)
            template.acknowledged |= {record.seq: record for record in box.store.records("pending")}
            if number == SETTLED // 2:
                _settle(box, EARLY)
                # What was settled first is forgotten: of the past only free pages tell.
                clock.advance(3600)
                forgotten = box.compact(timedelta(minutes=30))
                assert forgotten
        _settle(box, SETTLED)
    shutil.copytree(template.directory, template.earlier)
    with Outbox.open(template.directory, CONFIG, clock=clock) as box:
        _retried(box)
        _dead(box)
        _remember(template, box)
    (template.directory / "clean").unlink()
    _look_at_pages(template)
    return template


def _enqueue(box: Outbox, number: int) -> None:
    if number % 10 == 3:
        with box.transaction() as tx:
            for member in range(3):
                args = args_of(1000 + number * 10 + member)
                tx.enqueue("trade", args, key=f"g{number}-{member}", order_by=f"o{member}")
    box.enqueue("trade", args_of(number), key=f"k{number}" if number % 2 else None, order_by=f"o{number % 4}")


def _oldest(box: Outbox, count: int) -> list[Record]:
    return box.store.peek(0, count).records


def _settle(box: Outbox, count: int) -> None:
    for _ in range(0, count, 7):
        box.store.settle(Settlement(completed=[(record, b'{"id":1}') for record in _oldest(box, 7)], marks=[MARK]))


def _retried(box: Outbox) -> None:
    box.store.settle(Settlement(retried=[(record, "may pass") for record in _oldest(box, 3)]))


def _dead(box: Outbox) -> None:
    """Two dead letters, one that was given up, one whose key was freed, and one that was tried again."""
    rejected = [record for record in _oldest(box, 20) if not record.group][:5]
    box.store.settle(Settlement(dead=[(record, "refused") for record in rejected]))
    box.discard(rejected[2].seq, "by hand")
    box.discard(rejected[3].seq, "by hand too", free_key=True)
    box.requeue(rejected[4].seq)
    dropped = next(record for record in _oldest(box, 40) if not record.group and record.seq > rejected[4].seq)
    box.store.settle(Settlement(dropped=[(dropped, "best effort")]))


def _remember(template: Template, box: Outbox) -> None:
    dead = {seq for seq, _ in box.store.dead()}
    for record in box.store.records("pending"):
        template.records[record.seq], template.states[record.seq] = record, State.PENDING
    for record in box.store.records("ledger"):
        template.records[record.seq] = record
        failed = record.status.name == "FAILED"
        note = record.operation.startswith("outbox.")
        settled = State.NOTE if note else State.COMPLETED
        template.states[record.seq] = (State.DEAD if record.seq in dead else State.DISCARDED) if failed else settled
    figures = box.store.figures().counters
    template.counters = {name: getattr(figures, name) for name in figures.__dataclass_fields__}
    template.next_seq = figures.next_seq
    with box.store._read() as (environment, txn):
        template.keys = {bytes(key): bytes(value) for key, value in txn.cursor(db=environment.idempotency)}


def _look_at_pages(template: Template) -> None:
    path = template.directory / "data.mdb"
    template.data = path.read_bytes()
    with DataFile(path) as file, Salvage(template.directory) as salvage:
        assert salvage.sound, salvage.problems
        assert {one.record.seq: one.record for one in salvage.entries()} == template.records
        assert {one.record.seq: one.state for one in salvage.entries()} == template.states
        assert file.meta is not None
        template.page_size = file.page_size
        main = Walk("main")
        for row in file.rows(file.meta.main, main):
            tree = file.tree(row)
            walk = Walk(row.key.decode())
            for inner in file.rows(tree, walk) if tree is not None else ():
                if walk.name in ("pending", "ledger"):
                    seq = int.from_bytes(inner.key, "big")
                    last = (inner.offset + inner.size - 1) // file.page_size
                    first = inner.offset // file.page_size
                    template.pages[seq] = {inner.key_offset // file.page_size, *range(first, last + 1)}
            if tree is not None:
                template.trees[walk.name] = sorted(walk.pages)
        template.trees["main"] = sorted(main.pages)
        free = Walk("free")
        list(file.rows(file.meta.free, free))
        template.trees["free list"] = sorted(free.pages)
        template.trees["free"] = sorted(file.free_pages())
        template.trees["meta"] = [0, 1]
