"""PostgreSQL in memory: receipts and effects that commit together, and every way in which a server fails.

Only the transaction is simulated; how a batch is split and what a refusal blocks is `PostgresTarget`'s own code.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any
from uuid import UUID

from outbox import EntryRejected, Operation
from outbox.envelope import Record
from outbox.errors import TargetMisconfigured, TargetUnavailable
from outbox.operation import operations_by_name
from outbox.postgres import PostgresTarget, _UnitFailed
from outbox.target import Unit

OPERATIONS = (Operation("write", table="rows"), Operation("note", table="notes", best_effort=True))


class Database:
    """One server: survives its clients."""

    def __init__(self) -> None:
        self.receipts: dict[bytes, bytes] = {}
        # (idempotency key, ordering key) of every effect, in the order of the commits.
        self.effects: list[tuple[bytes, str | None]] = []
        # Keys that are refused for good until somebody mends the cause; keys refused for a while, by how often still.
        self.poison: set[bytes] = set()
        self.passing: dict[bytes, int] = {}
        self._backup: tuple[dict[bytes, bytes], list[tuple[bytes, str | None]]] | None = None

    def back_up(self) -> None:
        """Remember this state."""
        self._backup = dict(self.receipts), list(self.effects)

    def restore(self) -> list[bytes]:
        """Go back to the state remembered; the keys that are forgotten."""
        if self._backup is None:
            return []
        lost = [key for key in self.receipts if key not in self._backup[0]]
        self.receipts, self.effects = dict(self._backup[0]), list(self._backup[1])
        return lost


class SimulatedTarget(PostgresTarget):
    """`PostgresTarget` on a `Database`; `fault` says what goes wrong in the next transactions."""

    def __init__(self, database: Database, rng: random.Random) -> None:
        # Without the parent's: no driver and no thread.
        self.operations = operations_by_name(OPERATIONS)
        self.database, self._rng = database, rng
        # Chance of a fault in each transaction; 0 when all is calm.
        self.chance = 0.0
        self.down = False
        self.struck: dict[str, int] = {}
        # Called inside a transaction, before its commit: what somebody else does meanwhile.
        self.meanwhile: Callable[[], Any] | None = None
        self._copy_at_work = False

    def interrupt(self) -> None:
        """Nothing runs."""

    def close(self) -> None:
        """Nothing is open."""

    def _transact(self, store_id: UUID, part: list[Unit]) -> list[tuple[Record, bytes]]:
        del store_id
        if self.down:
            raise TargetUnavailable("connection refused")
        fault = self._draw()
        if fault == "refused":
            raise TargetUnavailable("connection refused")
        if fault == "misconfigured":
            raise TargetMisconfigured("42P01: table rows does not exist")
        if fault == "defect":
            raise RuntimeError("a defect of the target")
        receipts, effects = dict(self.database.receipts), list(self.database.effects)
        for index, unit in enumerate(part):
            for record in unit:
                self._apply(record, receipts, effects, index)
        if self.meanwhile is not None:
            other, self.meanwhile = self.meanwhile, None
            before = len(self.database.effects)
            self._copy_at_work = True
            other()
            self._copy_at_work = False
            if len(self.database.effects) != before:
                # The other one had the store's advisory lock.
                raise TargetUnavailable("another relay of this store is at work in PostgreSQL")
        if fault in ("cut before commit", "read only", "deadlock", "stall"):
            raise TargetUnavailable(fault, stalled=fault == "stall")
        self.database.receipts, self.database.effects = receipts, effects
        if fault == "cut after commit":
            raise TargetUnavailable("the reply to COMMIT was lost")
        return [(record, b"") for unit in part for record in unit]

    def _apply(
        self, record: Record, receipts: dict[bytes, bytes], effects: list[tuple[bytes, str | None]], index: int
    ) -> None:
        known = receipts.setdefault(record.key, record.payload_hash)
        if known != record.payload_hash:
            raise _UnitFailed(EntryRejected("a receipt exists with other arguments", permanent=True), index)
        if record.key in self.database.receipts:
            return
        if record.key in self.database.poison:
            raise _UnitFailed(EntryRejected("23514: check violated", permanent=True), index)
        if self._copy_at_work and record.key in self.database.passing:
            # Else one store could give up what its copy delivers in the same moment.
            raise _UnitFailed(EntryRejected("XX000: unlisted", permanent=False), index)
        if self.database.passing.get(record.key, 0) > 0:
            self.database.passing[record.key] -= 1
            raise _UnitFailed(EntryRejected("XX000: unlisted", permanent=False), index)
        effects.append((record.key, record.order_by))

    def _draw(self) -> str | None:
        if self._rng.random() >= self.chance:
            return None
        kinds = (
            "refused", "cut before commit", "cut after commit", "read only", "deadlock", "stall", "misconfigured",
            "defect",
        )  # fmt: skip
        fault = self._rng.choice(kinds)
        self.struck[fault] = self.struck.get(fault, 0) + 1
        return fault
