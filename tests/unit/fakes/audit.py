"""What the tests were told is durable, compared with what PostgreSQL and the store say in the end."""

from __future__ import annotations

from sqlalchemy import Connection, text

from outbox import Entry, Operation, Outbox
from tests.faults import evidence
from tests.faults.invariants import Call, Observation, Told, check

from .database import query as query

# `number` is deliberately not unique: a doubled row must be able to exist, so that it can be found.
SCHEMA = "CREATE TABLE trades (id bigserial PRIMARY KEY, number bigint NOT NULL, account text NOT NULL, padding text)"


def book(connection: Connection, entry: Entry) -> int:
    """A handler with the same effect as the table operation."""
    statement = text("INSERT INTO trades (number, account) VALUES (:number, :account) RETURNING id")
    return int(connection.execute(statement, dict(entry.args)).scalar_one())


OPERATIONS = (
    Operation("trade", table="trades", order_by="account"),
    Operation("booking", handler=book, order_by="account"),
)


class Audit:
    """Enqueues trades, keeps its own record of what was acknowledged, and compares."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.acknowledged: list[Entry] = []
        # The numbers of trades that PostgreSQL has a reason to refuse.
        self.refusable: set[int] = set()

    def trade(self, box: Outbox, count: int, *, accounts: int = 3, operation: str = "trade") -> list[int]:
        """Enqueue so many trades over some accounts; returns their sequence numbers."""
        return [self._note(box, operation, number % accounts) for number in range(count)]

    def group(self, box: Outbox, count: int) -> list[int]:
        """Enqueue so many trades as one transaction."""
        first = len(self.acknowledged)
        with box.transaction() as transaction:
            for number in range(count):
                transaction.enqueue("trade", {"number": first + number, "account": "joint"})
        self.acknowledged += transaction.entries
        return [entry.seq for entry in transaction.entries]

    def _note(self, box: Outbox, operation: str, account: int) -> int:
        entry = box.enqueue(operation, {"number": len(self.acknowledged), "account": f"account-{account}"})
        self.acknowledged.append(entry)
        return entry.seq

    def problems(self, box: Outbox) -> list[str]:
        """Everything that is not as promised; empty when all is well."""
        history = [
            Call(
                key=entry.args["number"],
                told=Told.ACKNOWLEDGED,
                seq=entry.seq,
                order_by=entry.order_by,
                group=entry.group,
            )
            for entry in self.acknowledged
        ]
        status = box.status()
        intents = {entry.key: (entry.args["number"], entry.seq) for entry in self.acknowledged}
        seen = Observation(
            history=history,
            stored=evidence.contents(box),
            effects=evidence.effects(self._url),
            receipts=evidence.receipts(self._url, status.store_id, intents),
            counters=evidence.counters(box),
            unledgered=status.unledgered,
            refusable=self.refusable,
        )
        return check(seen)
