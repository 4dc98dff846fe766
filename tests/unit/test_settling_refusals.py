"""The members of a group share one fate, whenever each of them was due."""

from __future__ import annotations

import pytest

from outbox import EntryRejected, Operation
from outbox.fate import Failed, Fate
from outbox.relay.link import Breaker, Link
from outbox.relay.scan import Batch, Retry, Waits
from outbox.relay.settling import Refusals
from outbox.store.envelope import Record
from outbox.store.ledger import Settlement
from outbox.target import Outcome
from outbox.testing import InMemoryTarget

REFUSED = EntryRejected("not now", permanent=False)


def member(seq: int, attempts: int) -> Record:
    return Record(
        seq, b"k" * 16, b"i" * 16, "log", "a", b"p" * 16, b"s" * 8, b"{}", b"", group=1, members=2, attempts=attempts
    )


@pytest.mark.parametrize(("now", "counted"), [(6.0, []), (10.0, [1, 2])])
def test_group_that_a_caller_hurried_is_counted_as_one(now: float, counted: list[int]) -> None:
    """Of a group with one member due and the other hurried, one would be a dead letter before the other."""
    target = InMemoryTarget([Operation("log", table="logs")])
    waits = Waits(target)
    waits.retry({1: Retry(5.0, holds=True), 2: Retry(9.0, holds=True)})
    waits.hurry(1.0)
    waits.take_due(now)
    unit = [member(1, attempts=0), member(2, attempts=0)]
    outcome, settlement = Outcome(failed=[Failed(unit, REFUSED, Fate.RETRIED)]), Settlement()
    refusals = Refusals(waits, target, Link(Breaker(1.0, 10.0, lambda: 1.0)), 10)
    retries = refusals.carry_out(Batch(2, 2, exhausted=True, records=unit), outcome, settlement, now)
    assert [record.seq for record, _ in settlement.retried] == counted
    assert len({retries[1], retries[2]}) == 1
