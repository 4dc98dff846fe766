"""The store in memory answers as the store on disk does."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import lmdb

from outbox import Outbox, OutboxConfig, OutboxError
from outbox.store.envelope import Counters, to_us
from outbox.store.gate import COUNTERS_KEY
from outbox.store.ledger import Settlement
from outbox.store.store import Store

from .database import OPERATIONS
from .memory import InlineWriter, MemoryEnvironment
from .world import OpenedInMemory, SeededClock


def test_the_store_in_memory_is_the_store_on_disk(tmp_path: Path) -> None:
    for seed in range(12):
        rng = random.Random(seed)
        clocks = SeededClock(random.Random(seed)), SeededClock(random.Random(seed))
        with Outbox.open(tmp_path / str(seed), OutboxConfig(min_free_mb=0), OPERATIONS, clock=clocks[0]) as disk:
            clocks[1].new_id()  # as the creation on disk did
            environment = MemoryEnvironment(disk.store.identity.store_id)
            environment.main.set(COUNTERS_KEY, Counters().pack())
            store = Store(
                environment,  # type: ignore[arg-type]
                max_bytes=1 << 40,
                reserve_bytes=0,
                retention_us=1 << 60,
                now_us=lambda clock=clocks[1]: to_us(clock.now()),  # type: ignore[misc]
                writer=InlineWriter,  # type: ignore[arg-type]
            )
            memory = Outbox(OpenedInMemory(store), disk.config, OPERATIONS, clocks[1])  # type: ignore[arg-type]
            for _ in range(60):
                both(rng, disk, memory)
                for clock in clocks:
                    clock.advance(1.0)
                assert contents(disk) == contents(memory)


def both(rng: random.Random, *boxes: Outbox) -> None:
    """One random action on each; both must answer alike."""
    action = rng.choice(("enqueue", "group", "complete", "bury", "requeue", "discard", "retry", "compact", "conflict"))
    number, few = rng.randrange(30), rng.randint(1, 4)
    said = []
    for box in boxes:
        try:
            said.append(act(box, action, number, few))
        except (OutboxError, lmdb.Error) as exc:
            said.append((type(exc).__name__, str(exc).replace(str(box.path), "")))
    assert said[0] == said[1]


def act(box: Outbox, action: str, number: int, few: int) -> Any:
    pending = list(box.store.peek(number % 3, few).records)
    dead = [seq for seq, _ in box.store.dead()]
    if action == "enqueue":
        return box.enqueue("write", {"n": number}, key=f"k{number}", order_by=number % 3).seq
    if action == "conflict":
        return box.enqueue("write", {"n": -1}, key=f"k{number}").seq
    if action == "group":
        with box.transaction() as transaction:
            for at in range(few):
                transaction.enqueue("write", {"n": number, "at": at}, key=f"g{number}-{at}")
        return [entry.seq for entry in transaction.entries]
    if action == "complete":
        return box.store.settle(Settlement(completed=[(record, b"1") for record in pending]))
    if action == "bury":
        return box.store.settle(Settlement(dead=[(record, "no") for record in pending]))
    if action == "retry":
        return box.store.settle(Settlement(retried=[(record, "later") for record in pending]))
    if action == "compact":
        return box.store.prune(to_us(box.clock.now()) - 20_000_000)
    seq = dead[number % len(dead)] if dead else number
    return [entry.seq for entry in (box.requeue(seq) if action == "requeue" else box.discard(seq, "why"))]


def contents(box: Outbox) -> Any:
    figures = box.store.figures()
    return (
        [list(box.pending()), list(box.ledger())],
        figures.counters,
        (figures.pending, figures.idempotency, figures.ledger, figures.first_pending, figures.oldest_us),
        box.store.dead(),
    )
