"""A target in memory: delivers as PostgreSQL does, for tests that need no server.

One file of contract tests runs against it and against `PostgresTarget` (`tests/integration/test_target_contract.py`).
Handlers and tables are not used: `effect` stands for both.  Unlike PostgreSQL's, it parks no operation of which every
entry fails: their retries are counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from uuid import UUID

from outbox.entry import Entry
from outbox.errors import EntryRejected, OutboxError, Reject, RetryLater, TargetMisconfigured, TargetUnavailable
from outbox.fate import Fate, of_unit
from outbox.handlers import is_for_the_thread
from outbox.operation import Operation, operations_by_name
from outbox.store.continuity import Mark
from outbox.store.envelope import Record
from outbox.target import Outcome, Unit, is_best_effort, ordering_keys, units
from outbox.words import text_of


class InMemoryTarget:
    """Keep delivered entries in memory: one effect per key, in order, groups undivided.

    Used by one thread at a time, as every target.  A test changes its attributes between two batches.

    Args:
        operations: those that it can apply; entries of others wait, as at PostgreSQL.
        effect: called with each entry that is applied, in place of a handler, and under a handler's rules: `Reject`
            makes a dead letter, `RetryLater` lets the entry wait, any other exception means "try again".
    """

    def __init__(self, operations: Iterable[Operation], effect: Callable[[Entry], object] | None = None) -> None:
        self.operations: Mapping[str, Operation] = operations_by_name(operations)
        self.effect = effect
        # The sequence numbers of every call of `apply`, and of every effect, in order.
        self.calls: list[list[int]] = []
        self.applied: list[int] = []
        # While set, every call ends with it and applies nothing: `TargetUnavailable` is an outage.
        self.down: OutboxError | None = None
        # Why an entry is refused, by sequence number.
        self.refuse: dict[int, EntryRejected] = {}
        # Why an operation cannot be applied now, by name.
        self.broken: dict[str, OutboxError] = {}
        # Entries that take too long, as where another session has locked their rows; so does a batch with one of them.
        self.stalls: set[int] = set()
        # Called first in every `apply`; its exception is that of `apply`.
        self.before: Callable[[Sequence[Record]], None] | None = None
        # The store of the last call, and the mark that the next outcome carries.
        self.store_id: UUID | None = None
        self.mark: Mark | None = None
        # How often each was called.
        self.interrupted = self.closed = 0
        self.lanes = 1
        # What the next outcomes say of each lane: `Outcome.by_lane`.
        self.by_lane: list[int] = []
        self._delivered: list[Record] = []
        # Hashes of the arguments, by idempotency key.
        self._receipts: dict[bytes, bytes] = {}

    @property
    def delivered(self) -> list[Entry]:
        """The entries that took effect, in the order of their effects."""
        return [record.entry() for record in self._delivered]

    @contextmanager
    def outage(self) -> Iterator[None]:
        """Be unavailable within the block."""
        before, self.down = self.down, TargetUnavailable("simulated outage")
        try:
            yield
        finally:
            self.down = before

    def apply(self, store_id: UUID, records: Sequence[Record]) -> Outcome:
        """See `Target.apply`."""
        self.calls.append([record.seq for record in records])
        self.store_id = store_id
        if self.before is not None:
            self.before(records)
        outcome = Outcome(marks=[] if self.mark is None else [self.mark], by_lane=list(self.by_lane))
        if self.down is not None:
            outcome.interruption = self.down
        elif self.stalls.intersection(record.seq for record in records):
            outcome.interruption = TargetUnavailable("57014: statement timeout", stalled=True)
            first, *more = units(records)
            outcome.stalled = [] if more else first
        else:
            self._apply(records, outcome)
        return outcome

    def _apply(self, records: Sequence[Record], outcome: Outcome) -> None:
        blocked: set[str] = set()
        for unit in units(records):
            keys = ordering_keys(unit)
            if keys & blocked:
                blocked |= keys
                continue
            fault = self._parked(unit) or self._tried(unit)
            if fault is None:
                outcome.completed += [(record, b"") for record in unit]
                continue
            error, operation = fault
            failed = of_unit(unit, error, operation)
            outcome.failed.append(failed)
            if failed.fate is Fate.PARKED:
                outcome.parked[operation] = error
            if failed.holds_back and not is_best_effort(unit, self.operations):
                blocked |= keys

    def _parked(self, unit: Unit) -> tuple[OutboxError, str] | None:
        """Why none of an operation in `unit` can be applied, and which it is."""
        for record in unit:
            if record.operation in self.broken:
                return self.broken[record.operation], record.operation
            if record.operation not in self.operations:
                return TargetMisconfigured(f"operation {record.operation!r} is not declared here"), record.operation
        return None

    def _tried(self, unit: Unit) -> tuple[OutboxError, str] | None:
        """Apply a unit completely; else why that failed, and by which operation."""
        new = [record for record in unit if record.key not in self._receipts]
        for record in unit:
            error = self._refusal(record, is_new=record in new)
            if error is not None:
                return error, record.operation
        self._receipts.update({record.key: record.payload_hash for record in new})
        self.applied += [record.seq for record in new]
        self._delivered += new
        return None

    def _refusal(self, record: Record, *, is_new: bool) -> OutboxError | None:
        if record.seq in self.refuse:
            return self.refuse[record.seq]
        if not is_new:
            if self._receipts[record.key] == record.payload_hash:
                return None
            return EntryRejected("a receipt exists with other arguments", permanent=True)
        if self.effect is None:
            return None
        try:
            self.effect(record.entry())
        except RetryLater as exc:
            return exc
        except Reject as exc:
            return EntryRejected(str(exc), permanent=True, holds_back=exc.holds_back)
        except BaseException as exc:  # as a handler's: the entry's trouble, which may pass
            if is_for_the_thread(exc):
                raise
            return EntryRejected(f"{type(exc).__name__}: {text_of(exc)}", permanent=False)
        return None

    def interrupt(self) -> None:
        """Count the call; nothing runs that could be interrupted."""
        self.interrupted += 1

    def close(self) -> None:
        """Count the call; what was delivered stays."""
        self.closed += 1
