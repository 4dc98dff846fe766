"""What every target promises a relay: the same tests run against memory and against PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, text

from outbox import Entry, Operation, Outbox, OutboxConfig, PostgresTarget, Reject, Relay, RetryLater
from outbox.target import Target
from outbox.testing import InMemoryTarget, PostgresServer
from outbox.testing.plugin import Outage
from tests.unit.fakes.database import query
from tests.unit.fakes.waiting import LONG

pytestmark = pytest.mark.slow

TABLE = "CREATE TABLE effects (id bigserial PRIMARY KEY, number bigint NOT NULL)"


class Contract:
    """A store, a relay and a target whose effect raises what the test puts into `trouble`, by number."""

    def __init__(self, directory: Path) -> None:
        self.trouble: dict[int, Exception] = {}
        self.operations = (
            Operation("write", handler=self._handle, order_by="account"),
            Operation("note", handler=self._handle, order_by="account", best_effort=True),
        )
        config = OutboxConfig(
            backoff_base=0.001, backoff_cap=0.01, connect_timeout=2.0, min_free_mb=0, max_retries=2, batch_size=10
        )
        self.config = config
        # Without declarations, so that an operation can be enqueued that the target does not know.
        self.box = Outbox.open(directory, config)

    def deliver_to(self, target: Target, outage: Outage, delivered: Callable[[], list[int]]) -> None:
        self.target, self.outage, self.delivered = target, outage, delivered
        self.relay = Relay(self.box, target)

    def effect(self, entry: Entry) -> None:
        if entry.args["number"] in self.trouble:
            raise self.trouble[entry.args["number"]]

    def _handle(self, connection: Connection, entry: Entry) -> None:
        connection.execute(text("INSERT INTO effects (number) VALUES (:number)"), dict(entry.args))
        self.effect(entry)

    def write(self, *numbers: int, account: str | None = None, operation: str = "write") -> None:
        for number in numbers:
            self.box.enqueue(operation, {"number": number}, order_by=account or f"a{number}")

    def drain(self, timeout: float = LONG) -> bool:
        return self.relay.drain(timeout)

    def dead(self) -> list[int]:
        return [entry.args["number"] for entry in self.box.dead_letters()]

    def pending(self) -> list[int]:
        return [entry.args["number"] for entry in self.box.pending()]


@pytest.fixture(params=["memory", "postgres"])
def contract(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Contract]:
    made = Contract(tmp_path / "outbox")
    if request.param == "memory":
        memory = InMemoryTarget(made.operations, made.effect)
        made.deliver_to(memory, memory.outage, lambda: [entry.args["number"] for entry in memory.delivered])
    else:
        url: str = request.getfixturevalue("outbox_postgres")
        outage: Callable[[], AbstractContextManager[None]] = request.getfixturevalue("outbox_outage")
        query(url, TABLE)
        real = PostgresTarget(url, made.operations, config=made.config)
        made.deliver_to(real, outage, lambda: [n for (n,) in query(url, "SELECT number FROM effects ORDER BY id")])
    yield made
    made.relay.stop()
    made.box.close()


def again(contract: Contract) -> None:
    """Apply everything that the ledger has once more, as after a lost acknowledgement."""
    records = list(contract.box.store.records("ledger"))
    contract.target.apply(contract.box.store.identity.store_id, records)


def test_each_entry_takes_effect_once_however_often_it_comes(contract: Contract) -> None:
    contract.write(1, 2, 3)
    assert contract.drain()
    again(contract)
    assert sorted(contract.delivered()) == [1, 2, 3]


def test_entries_of_an_ordering_key_take_effect_in_order(contract: Contract) -> None:
    for number in range(0, 60, 2):
        contract.write(number, account="even")
        contract.write(number + 1, account="odd")
    assert contract.drain()
    delivered = contract.delivered()
    assert [n for n in delivered if n % 2 == 0] == list(range(0, 60, 2))
    assert [n for n in delivered if n % 2] == list(range(1, 60, 2))


def test_rejected_entry_becomes_a_dead_letter_and_holds_back_its_key(contract: Contract) -> None:
    contract.trouble[2] = Reject("never")
    contract.write(1, 2, 3, account="one")
    contract.write(4, account="other")
    assert contract.drain()
    assert sorted(contract.delivered()) == [1, 4]
    assert (contract.dead(), contract.pending()) == ([2], [3])
    (letter,) = contract.box.dead_letters()
    assert "never" in str(letter.error)


def test_rejected_best_effort_entry_holds_back_nothing(contract: Contract) -> None:
    contract.trouble[1] = Reject("never")
    contract.write(1, operation="note", account="one")
    contract.write(2, account="one")
    assert contract.drain()
    assert contract.delivered() == [2]
    assert (contract.dead(), contract.pending()) == ([], [])


def test_entry_that_asks_for_later_waits_without_using_up_retries(contract: Contract) -> None:
    contract.trouble[1] = RetryLater("not now")
    contract.write(1, 2, account="one")
    contract.write(3, account="other")
    for _ in range(5):
        contract.drain(0.2)
    assert contract.delivered() == [3]
    assert contract.pending() == [1, 2]
    assert [entry.attempts for entry in contract.box.pending()] == [0, 0]
    contract.trouble.clear()
    assert contract.drain()
    assert contract.delivered() == [3, 1, 2]


def test_error_that_may_pass_is_retried_and_then_a_dead_letter(contract: Contract) -> None:
    contract.trouble[1] = ValueError("perhaps later")
    contract.write(1, 2)
    assert contract.drain()
    assert contract.delivered() == [2]
    assert contract.dead() == [1]
    (letter,) = contract.box.dead_letters()
    assert letter.attempts == contract.config.max_retries + 1


def test_outage_uses_up_no_retries_and_loses_nothing(contract: Contract) -> None:
    contract.write(1)
    assert contract.drain()
    with contract.outage():
        contract.write(2, 3, account="one")
        for _ in range(3):
            assert not contract.drain(0.1)
        assert [entry.attempts for entry in contract.box.pending()] == [0, 0]
        assert contract.box.status().breaker != "closed"
    assert contract.drain()
    assert contract.delivered() == [1, 2, 3]


def test_group_takes_effect_whole_or_not_at_all(contract: Contract) -> None:
    contract.trouble[2] = Reject("never")
    with contract.box.transaction() as transaction:
        for number in (1, 2):
            transaction.enqueue("write", {"number": number}, order_by="one")
    with contract.box.transaction() as transaction:
        for number in (3, 4):
            transaction.enqueue("write", {"number": number}, order_by="other")
    assert contract.drain()
    assert contract.delivered() == [3, 4]
    assert contract.dead() == [1, 2]


def test_operation_that_the_target_does_not_know_waits_alone(contract: Contract) -> None:
    contract.write(1, operation="unknown", account="one")
    contract.write(2, account="one")
    contract.write(3, account="other")
    contract.drain(0.3)
    assert contract.delivered() == [3]
    assert contract.pending() == [1, 2]
    assert list(contract.box.status().relay.parked) == ["unknown"]


def test_key_that_comes_again_with_other_arguments_is_rejected(contract: Contract, tmp_path: Path) -> None:
    """Two stores share a namespace, so that neither of them can see the conflict at enqueue."""
    shared = {"namespace": "shared", "min_free_mb": 0}
    for name, number in (("first", 1), ("second", 2)):
        with Outbox.open(tmp_path / name, OutboxConfig(**shared)) as box:  # type: ignore[arg-type]
            box.enqueue("write", {"number": number}, key="same", order_by="one")
            outcome: Any = contract.target.apply(box.store.identity.store_id, box.store.peek(0, 10).records)
        rejected = [error.permanent for _, error in outcome.rejected]
        assert rejected == ([] if name == "first" else [True])
    assert contract.delivered() == [1]


def test_outage_kills_the_server_with_its_data_kept(
    outbox_postgres: str, outbox_outage: Outage, outbox_postgres_server: PostgresServer
) -> None:
    query(outbox_postgres, "CREATE TABLE kept AS SELECT 1 AS number")
    before = outbox_postgres_server.pid
    with outbox_outage():
        assert not outbox_postgres_server.is_running
    assert outbox_postgres_server.pid not in (before, None)
    assert query(outbox_postgres, "SELECT number FROM kept") == [(1,)]
