"""A relay on a real store with a clock that moves only when told and a target that does what it is told."""

from __future__ import annotations

import random
import subprocess
import sys
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

from outbox import EntryRejected, Operation, Outbox, OutboxConfig, Relay
from outbox.testing import InMemoryTarget

OPERATIONS = (
    Operation("write", table="rows"),
    Operation("book", table="books"),
    Operation("note", table="notes", best_effort=True),
)


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


class TurnedClock(FakeClock):
    """A fake clock whose wall time can be turned forward or back."""

    def __init__(self) -> None:
        super().__init__()
        self._turned = timedelta(0)

    def now(self) -> datetime:
        return super().now() + self._turned

    def turn(self, by: timedelta) -> None:
        self._turned += by


class Rig:
    """A store, a relay, a fake clock and a fake target, closed at the end of a `with` block."""

    def __init__(self, directory: Path, **settings: Any) -> None:
        self.clock = FakeClock()
        self.target = InMemoryTarget(OPERATIONS)
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
