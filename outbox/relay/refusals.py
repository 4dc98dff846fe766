"""Refusals: carries out the fates of entries that were not applied: another try, a wait, a dead letter, or nothing."""

from __future__ import annotations

from dataclasses import replace

from ..errors import OutboxError
from ..fate import Failed, Fate, of_refusal, spare_children
from ..log import Log
from ..store.envelope import Unit
from ..store.ledger import Settlement
from ..target import Outcome, Target, is_best_effort
from .link import Link
from .scan import Batch, Retry, Waits

_log = Log("outbox.relay")


class Refusals:
    """Belongs to one relay's step; not thread-safe."""

    def __init__(
        self,
        waits: Waits,
        target: Target,
        link: Link,
        max_retries: int,
    ) -> None:
        """Refused entries are tried again up to `max_retries` times."""
        self._waits, self._target, self._link = waits, target, link
        self._max_retries = max_retries

    def carry_out(self, batch: Batch, outcome: Outcome, settlement: Settlement, now: float) -> dict[int, Retry]:
        """Add to `settlement` what was refused, and let wait what cannot be applied yet.

        Leaves the fates in `outcome.failed`, oldest first.  Returns when the refused entries that are tried again are
        due, by sequence number.
        """
        failed = sorted(outcome.failed, key=lambda one: one.seq)
        failed = spare_children(
            failed,
            is_best_effort=self._is_best_effort,
            waits_before=self._waits.waits_before,
            may_be_late=lambda unit: self._may_be_late(unit, batch),
        )
        self._let_wait([one for one in failed if one.fate.waits], outcome.parked, now)
        settlement.dead += [(record, "another entry of its transaction is damaged") for record in batch.broken]
        retries: dict[int, Retry] = {}
        outcome.failed = [one if one.fate.waits else self._refuse(one, settlement, retries, now) for one in failed]
        return retries

    def _may_be_late(self, unit: Unit, batch: Batch) -> bool:
        """The other may have been on its way on another connection; the next try shows it."""
        beside = self._target.lanes > 1 and batch.records[0].seq < unit[0].seq
        return beside or self._link.is_late(unit[0].seq)

    def _let_wait(self, waiting: list[Failed], parked: dict[str, OutboxError], now: float) -> None:
        """Let units wait that fail though their data is not the cause; they are tried again with backoff."""

        def due(times: int) -> float:
            return now + self._link.breaker.backoff(times)

        # The oldest entry of each operation that is concerned: an entry that waits alone concerns itself only.
        concerned: dict[str, int] = {}
        for one in waiting:
            if one.fate is Fate.PARKED and one.operation is not None and not self._waits.waits_alone(one.unit):
                concerned.setdefault(one.operation, one.seq)
        for name in [name for name in parked if name in concerned]:
            if name not in self._waits.parked:
                _log.error("operation %(operation)r is parked: %(error)s", operation=name, error=parked[name])
            self._waits.park(name, str(parked[name]), concerned[name], due)
        for one in waiting:
            if one.operation not in concerned:
                self._waits.wait(one.unit, str(one.error), due)

    def _refuse(self, one: Failed, settlement: Settlement, retries: dict[int, Retry], now: float) -> Failed:
        """Settle a refused unit, or note when it is tried again; returns it with its fate."""
        lenient, attempts = self._is_best_effort(one.unit), one.unit[0].attempts
        early = None
        if one.fate is Fate.RETRIED:
            # The members of a group share one fate.
            dues = [self._waits.take_early(record.seq, now) for record in one.unit]
            early = max([due for due in dues if due is not None], default=None)
        may_retry = attempts < self._max_retries
        fate = of_refusal(one, early=early is not None, may_retry=may_retry, is_best_effort=lenient)
        why = [(record, str(one.error)) for record in one.unit]
        if fate is Fate.DISCARDED:
            settlement.dropped += why
        elif fate is Fate.DEAD:
            if not one.holds_back:
                # Without its ordering key nothing waits for it.
                why = [(replace(record, order_by=None), said) for record, said in why]
            settlement.dead += why
        else:
            settlement.retried += why if fate is Fate.RETRIED else []
            due = now + self._link.breaker.backoff(attempts + 1) if early is None else early
            retries.update(dict.fromkeys((record.seq for record in one.unit), Retry(due, not lenient)))
        return replace(one, fate=fate)

    def _is_best_effort(self, unit: Unit) -> bool:
        return is_best_effort(unit, self._target.operations)
