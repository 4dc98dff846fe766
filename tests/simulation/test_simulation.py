"""Simulated lives end well, and each deliberate defect makes some of them end badly."""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import lmdb
import pytest

from outbox import EntryRejected, Outbox, OutboxConfig, OutboxError
from outbox.counters import Counters
from outbox.envelope import Record, to_us
from outbox.guarded import COUNTERS_KEY
from outbox.ledger import Settlement
from outbox.scan import Scan
from outbox.store import Store
from outbox.target import Outcome, Unit

from .__main__ import violations_of
from .database import OPERATIONS, SimulatedTarget
from .memory import MemoryEnvironment
from .world import OpenedInMemory, SeededClock, World

SEEDS = range(400)


@pytest.fixture(autouse=True)
def quiet() -> Any:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def test_simulated_lives_violate_nothing() -> None:
    assert {seed: found for seed in SEEDS if (found := violations_of(seed))} == {}


def test_every_kind_of_fault_strikes() -> None:
    struck: Counter[str] = Counter()
    for seed in range(60):
        world = World(seed)
        world.run()
        struck.update(world.target.struck)
    assert set(struck) == {
        "refused", "cut before commit", "cut after commit", "read only", "deadlock", "stall", "misconfigured", "defect",
    }  # fmt: skip


def test_a_seed_gives_the_same_life_twice() -> None:
    said: list[list[str]] = [[], []]
    for lines in said:
        World(7, lines.append).run()
    assert said[0] == said[1]
    assert len(said[0]) > 20


# -- deliberate defects: each must be found by some of the first seeds


def skip_a_poison_row(patch: pytest.MonkeyPatch) -> None:
    real = SimulatedTarget.apply

    def apply(self: SimulatedTarget, store_id: UUID, records: Sequence[Record]) -> Outcome:
        outcome = real(self, store_id, records)
        outcome.completed += [(record, b"") for record, _ in outcome.rejected]
        outcome.rejected = []
        return outcome

    patch.setattr(SimulatedTarget, "apply", apply)


def count_outages_as_retries(patch: pytest.MonkeyPatch) -> None:
    real = World.relay_class._settle

    def settle(self: Any, batch: Any, outcome: Outcome, now: float) -> None:
        if outcome.interruption is not None:
            outcome.rejected += [(record, EntryRejected("outage", permanent=False)) for record in batch.records]
        real(self, batch, outcome, now)

    patch.setattr(World.relay_class, "_settle", settle)


def settle_before_applying(patch: pytest.MonkeyPatch) -> None:
    real = World.relay_class._apply

    def apply(self: Any, batch: Any) -> Outcome:
        self._box.store.settle(Settlement(completed=[(record, b"") for record in batch.records]))
        return real(self, batch)

    patch.setattr(World.relay_class, "_apply", apply)


def do_not_hold_back_behind_dead_letters(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Scan, "_block", lambda self, unit: None)
    real = Scan.restart

    def restart(self: Scan) -> None:
        real(self)
        self._dead = {}

    patch.setattr(Scan, "restart", restart)


def forget_waiting_keys(patch: pytest.MonkeyPatch) -> None:
    real = Scan._must_wait

    def must_wait(self: Scan, unit: Unit, batch: Any) -> bool:
        self._waiting_keys = set()
        return real(self, unit, batch)

    patch.setattr(Scan, "_must_wait", must_wait)


def block_backwards(patch: pytest.MonkeyPatch) -> None:
    """What waits behind a refused row also blocks what lies before itself; this was a defect once."""
    from outbox import postgres

    real = postgres._free_of

    def free_of(part: list[Unit], blocked: set[str]) -> tuple[list[int], set[str]]:
        free, behind = real(part, blocked)
        blocked |= behind
        return free, behind

    patch.setattr(postgres, "_free_of", free_of)


def split_groups(patch: pytest.MonkeyPatch) -> None:
    from outbox import postgres

    patch.setattr(postgres, "units", lambda records: ([record] for record in records))


def ignore_receipts(patch: pytest.MonkeyPatch) -> None:
    real = SimulatedTarget._apply

    def apply(self: SimulatedTarget, record: Record, receipts: Any, effects: Any, index: int) -> None:
        known = self.database.receipts
        self.database.receipts = {}
        try:
            real(self, record, receipts, effects, index)
        finally:
            self.database.receipts = known

    patch.setattr(SimulatedTarget, "_apply", apply)


def go_on_after_a_durability_error(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Store, "_latch", lambda self, purpose, exc: None)


def do_not_distrust_after_a_failed_settlement(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Scan, "distrust", lambda self: None)
    real = World.relay_class._settle

    def settle(self: Any, batch: Any, outcome: Outcome, now: float) -> None:
        self._scan.passed(batch, {record.seq for record in batch.records})
        real(self, batch, outcome, now)

    patch.setattr(World.relay_class, "_settle", settle)


def drop_what_fails_for_an_unlisted_reason(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(World.relay_class, "_best_effort", lambda self, records: {record.seq for record in records})


def never_look_again_after_an_answer(patch: pytest.MonkeyPatch) -> None:
    real = Scan.next_batch

    def next_batch(self: Scan, now: float, limit: int) -> Any:
        self._releases = self._store.peek(self._cursor, 1).releases
        return real(self, now, limit)

    patch.setattr(Scan, "next_batch", next_batch)


def new_key_for_a_repeated_call(patch: pytest.MonkeyPatch) -> None:
    real = Outbox._hash
    seen: set[bytes | None] = set()

    def hashed(self: Outbox, operation: Any, name: str, args: Any, key: str | None) -> bytes | None:
        # As if nothing but the call itself identified it; the simulation knows entries by the right hash.
        right = real(self, operation, name, args, key)
        if right is None or right not in seen:
            seen.add(right)
            return right
        return right[::-1]

    patch.setattr(Outbox, "_hash", hashed)


DEFECTS = (
    skip_a_poison_row, count_outages_as_retries, settle_before_applying, do_not_hold_back_behind_dead_letters,
    forget_waiting_keys, block_backwards, split_groups, ignore_receipts, go_on_after_a_durability_error,
    do_not_distrust_after_a_failed_settlement, drop_what_fails_for_an_unlisted_reason, never_look_again_after_an_answer,
    new_key_for_a_repeated_call,
)  # fmt: skip


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.__name__)
def test_a_defect_is_found(defect: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    defect(monkeypatch)
    assert any(violations_of(seed) for seed in range(2000)), f"{defect.__name__} was not found in 2000 seeds"


# -- the memory behaves as LMDB does


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
                now_us=lambda clock=clocks[1]: to_us(clock.now()),  # type: ignore[misc]
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
