"""Refusals: the outcome of entries that were not applied: another try, a wait, a dead letter, or nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from ..errors import EntryRejected
from ..failures import FOREIGN_KEY
from ..log import Log
from ..store.envelope import Record
from ..store.ledger import Settlement
from ..target import Outcome, Target, Waiting, holds_back, is_best_effort, units
from .breaker import Breaker
from .scan import Batch
from .waits import Retry, Waits

_log = Log("outbox.relay")


class Refusals:
    """Belongs to one relay's step; not thread-safe."""

    def __init__(
        self,
        waits: Waits,
        target: Target,
        breaker: Breaker,
        max_retries: int,
        is_late: Callable[[int], bool],
    ) -> None:
        """`is_late(captured_us)`: whether an entry may have waited, so that no caller waits for it any more."""
        self._is_late = is_late
        self._waits, self._target, self._breaker = waits, target, breaker
        self._max_retries = max_retries

    def sort(self, batch: Batch, outcome: Outcome, settlement: Settlement, now: float) -> dict[int, Retry]:
        """Add to `settlement` what was refused, and let wait what cannot be applied yet.

        Returns when the rejected entries that are tried again are due.  A try before that, for a caller, is not
        counted: else a caller who waits would turn a refusal that passes into a dead letter.
        """
        self._spare_children(outcome, batch)
        self._park(outcome, now)
        settlement.dead += [(record, "another entry of its transaction is damaged") for record in batch.broken]
        lenient = self._best_effort(record for record, _ in outcome.rejected)
        retries: dict[int, Retry] = {}
        for record, error in outcome.rejected:
            due = None if error.permanent else self._waits.take_early(record.seq, now)
            if due is not None:
                retries[record.seq] = Retry(due, record.seq not in lenient)
            elif not error.permanent and record.attempts < self._max_retries:
                due = now + self._breaker.backoff(record.attempts + 1)
                retries[record.seq] = Retry(due, record.seq not in lenient)
                settlement.retried.append((record, str(error)))
            elif record.seq in lenient:
                settlement.dropped.append((record, str(error)))
            else:
                # Without its ordering key nothing waits for it.
                kept = record if holds_back([record], error) else replace(record, order_by=None)
                settlement.dead.append((kept, str(error)))
        return retries

    def _spare_children(self, outcome: Outcome, batch: Batch) -> None:
        """Rows may refer to a row that is still to come: they wait while an older entry does.

        Another store may deliver it, which has been in the same outage: what was late is tried again.
        Not for a parked best-effort operation, as in `Waits.waits_before`: each would wait for the other for ever.
        """
        parked = [one for one in outcome.waiting if one.operation in outcome.parked]
        lenient = self._best_effort(record for one in parked for record in one.unit)
        older = [record.seq for one in outcome.waiting for record in one.unit if record.seq not in lenient]
        older += [record.seq for record, error in outcome.rejected if not error.permanent]
        first = min(older, default=batch.newest_seq + 1)
        errors = {record.seq: error for record, error in outcome.rejected}
        outcome.rejected = []
        for unit in units([record for record in batch.records if record.seq in errors]):
            error = errors[unit[0].seq]
            child = error.permanent and error.sqlstate == FOREIGN_KEY
            if child and (first < unit[0].seq or self._waits.waits_before(unit[0].seq)):
                outcome.waiting.append(Waiting(unit, error, None))
                continue
            beside = self._target.lanes > 1 and batch.records[0].seq < unit[0].seq
            if child and (beside or self._is_late(unit[0].captured_us)):
                # The other may have been on its way on another connection; the next try shows it.
                error = EntryRejected(str(error), permanent=False, sqlstate=error.sqlstate)
            outcome.rejected += [(record, error) for record in unit]

    def _park(self, outcome: Outcome, now: float) -> None:
        """Let units wait that fail though their data is not the cause; they are tried again with backoff."""

        def due(times: int) -> float:
            return now + self._breaker.backoff(times)

        # The oldest entry of each operation that is concerned: an entry that waits alone concerns itself only.
        concerned: dict[str, int] = {}
        for one in outcome.waiting:
            if one.operation in outcome.parked and not self._waits.waits_alone(one.unit):
                concerned.setdefault(one.operation, one.unit[0].seq)
        for name, error in outcome.parked.items():
            if name not in concerned:
                continue
            if name not in self._waits.parked:
                _log.error("operation %(operation)r is parked: %(error)s", operation=name, error=error)
            self._waits.park(name, str(error), concerned[name], due)
        for one in outcome.waiting:
            if one.operation not in concerned:
                self._waits.wait(one.unit, str(one.error), due)

    def _best_effort(self, records: Iterable[Record]) -> set[int]:
        """Sequence numbers of those that need no operator: a group does not count unless all of it is best effort."""
        return {
            record.seq for unit in units(records) if is_best_effort(unit, self._target.operations) for record in unit
        }
