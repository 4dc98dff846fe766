"""A relay on a real store with a clock that moves only when told and a target that does what it is told."""

from __future__ import annotations

import random
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

from outbox import EntryRejected, Operation, Outbox, OutboxConfig, OutboxError, Relay, TargetUnavailable
from outbox.continuity import Mark
from outbox.envelope import Record
from outbox.operation import operations_by_name
from outbox.target import Outcome, ordering_keys, units

OPERATIONS = (Operation("write", table="rows"), Operation("note", table="notes", best_effort=True))


class FakeClock:
    """Stands still until `advance`."""

    def __init__(self) -> None:
        self._elapsed = 1000.0
        self._random = random.Random(7)
        # What `random` answers; None draws from a seeded generator.
        self.jitter: float | None = None

    def monotonic(self) -> float:
        return self._elapsed

    def now(self) -> datetime:
        return datetime(2024, 1, 1, tzinfo=UTC) + timedelta(seconds=self._elapsed)

    def random(self) -> float:
        return self._random.random() if self.jitter is None else self.jitter

    def new_id(self) -> uuid.UUID:
        return uuid.uuid4()

    def advance(self, seconds: float) -> None:
        self._elapsed += seconds


class FakeTarget:
    """Applies entries once per key, in order, groups whole, like PostgreSQL with its receipts."""

    def __init__(self, operations: Iterable[Operation] = OPERATIONS) -> None:
        self.operations: Mapping[str, Operation] = operations_by_name(operations)
        # The sequence numbers of every call, and of every effect, in order.
        self.calls: list[list[int]] = []
        self.applied: list[int] = []
        # While set, every call ends with it and applies nothing.
        self.down: OutboxError | None = None
        # Why an entry is refused, by sequence number.
        self.refuse: dict[int, EntryRejected] = {}
        # These take too long, as where somebody has locked their rows: so does all that is tried together with them.
        self.stalls: set[int] = set()
        # Called first in every `apply`; what it raises gets out.
        self.before: Callable[[Sequence[Record]], None] | None = None
        # Whose entries they were, and what to say of the transaction.
        self.store_id: uuid.UUID | None = None
        self.mark: Mark | None = None
        self.interrupted = self.closed = 0
        self.lanes = 1
        self._receipts: set[bytes] = set()

    def apply(self, store_id: uuid.UUID, records: Sequence[Record]) -> Outcome:
        self.calls.append([record.seq for record in records])
        self.store_id = store_id
        if self.before is not None:
            self.before(records)
        outcome = Outcome(marks=[] if self.mark is None else [self.mark])
        if self.down is not None:
            outcome.interruption = self.down
            return outcome
        if self.stalls.intersection(record.seq for record in records):
            outcome.interruption = TargetUnavailable("57014: statement timeout", stalled=True)
            first, *more = units(records)
            outcome.stalled = [] if more else first
            return outcome
        blocked: set[str] = set()
        for unit in units(records):
            keys = ordering_keys(unit)
            why = next((self.refuse[record.seq] for record in unit if record.seq in self.refuse), None)
            if keys & blocked:
                blocked |= keys
            elif why is not None:
                outcome.rejected += [(record, why) for record in unit]
                if not all(self.operations[record.operation].best_effort for record in unit):
                    blocked |= keys
            else:
                for record in unit:
                    if record.key not in self._receipts:
                        self._receipts.add(record.key)
                        self.applied.append(record.seq)
                    outcome.completed.append((record, b""))
        return outcome

    def interrupt(self) -> None:
        self.interrupted += 1

    def close(self) -> None:
        self.closed += 1


class Rig:
    """A store, a relay, a fake clock and a fake target, closed at the end of a `with` block."""

    def __init__(self, directory: Path, **settings: Any) -> None:
        self.clock = FakeClock()
        self.target = FakeTarget()
        self.box = Outbox.open(directory, OutboxConfig(**settings), OPERATIONS, clock=self.clock)
        self.relay = Relay(self.box, self.target)
        self._number = 0

    def __enter__(self) -> Rig:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.relay.stop()
        self.box.close()

    def enqueue(self, *order_by: str | None, operation: str = "write") -> list[int]:
        """One entry for each ordering key; returns their sequence numbers."""
        return [self.box.enqueue(operation, self._args(), order_by=order).seq for order in order_by]

    def group(self, *order_by: str | None) -> list[int]:
        """One transaction with an entry for each ordering key; returns their sequence numbers."""
        with self.box.transaction() as transaction:
            for order in order_by:
                transaction.enqueue("write", self._args(), order_by=order)
        return [entry.seq for entry in transaction.entries]

    def _args(self) -> dict[str, int]:
        self._number += 1
        return {"number": self._number}

    def step(self) -> float:
        """One step at the clock's time; returns what it returned."""
        return self.relay.step(self.clock.monotonic())

    def settle(self) -> float:
        """Steps until one asks for a pause; returns that pause."""
        for _ in range(1000):
            wait = self.step()
            if wait > 0:
                return wait
        raise AssertionError("the relay never pauses: it is busy with nothing")

    def run(self, seconds: float) -> None:
        """Steps for so many simulated seconds, each when it is due."""
        end = self.clock.monotonic() + seconds
        for _ in range(100_000):
            wait = self.step()
            left = end - self.clock.monotonic()
            if wait >= left:
                self.clock.advance(left)
                return
            self.clock.advance(wait)
        raise AssertionError("the relay never pauses: it is busy with nothing")

    def pending(self) -> list[int]:
        return [entry.seq for entry in self.box.pending()]

    def attempts(self, seq: int) -> int:
        return next(entry.attempts for entry in self.box.pending() if entry.seq == seq)

    def dead(self) -> list[int]:
        return [entry.seq for entry in self.box.dead_letters()]


def passing(message: str = "refused for now") -> EntryRejected:
    """A rejection that may pass."""
    return EntryRejected(message, permanent=False)


def permanent(message: str = "refused for good") -> EntryRejected:
    """A rejection that will not pass."""
    return EntryRejected(message, permanent=True)


_DAMAGE = """
import sys, lmdb
with lmdb.open(sys.argv[1], max_dbs=3, lib_version=0) as environment, environment.begin(write=True) as transaction:
    pending = environment.open_db(b"pending", txn=transaction, create=False)
    for seq in map(int, sys.argv[2:]):
        key = seq.to_bytes(8, "big")
        value = bytearray(transaction.get(key, db=pending))
        value[-1] ^= 1
        transaction.put(key, bytes(value), db=pending)
"""


def damage(directory: Path, *seqs: int) -> None:
    """Flip a bit in pending records, from another process, as a failing disk would."""
    subprocess.run([sys.executable, "-c", _DAMAGE, str(directory), *map(str, seqs)], check=True)
