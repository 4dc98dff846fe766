"""What the tests were told is durable, compared with what PostgreSQL and the store say in the end."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import closing
from itertools import pairwise
from typing import Any

import psycopg2
from sqlalchemy import Connection, text

from outbox import Entry, EntryStatus, Operation, Outbox

# `number` is deliberately not unique: a doubled row must be able to exist, so that it can be found.
SCHEMA = "CREATE TABLE trades (id bigserial PRIMARY KEY, number bigint NOT NULL, account text NOT NULL)"


def book(connection: Connection, entry: Entry) -> int:
    """A handler with the same effect as the table operation."""
    statement = text("INSERT INTO trades (number, account) VALUES (:number, :account) RETURNING id")
    return int(connection.execute(statement, dict(entry.args)).scalar_one())


OPERATIONS = (
    Operation("trade", table="trades", order_by="account"),
    Operation("booking", handler=book, order_by="account"),
)


def query(url: str, sql: str, parameters: Sequence[Any] | None = None) -> list[tuple[Any, ...]]:
    """Run statements on a connection of its own, outside a transaction, and return the last one's rows."""
    with closing(psycopg2.connect(url)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(sql, parameters)
            return cursor.fetchall() if cursor.description else []


class Audit:
    """Enqueues trades, keeps its own record of what was acknowledged, and compares."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.acknowledged: list[Entry] = []

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
        status = box.status()
        where = {entry.seq: "pending" for entry in box.pending()}
        for entry in box.ledger():
            if not entry.operation.startswith("outbox."):
                assert entry.seq not in where
                where[entry.seq] = "completed" if entry.status is EntryStatus.COMPLETED else "dead"
        found = []
        if status.acknowledged != len(self.acknowledged):
            found.append(f"acknowledged {len(self.acknowledged)}, the store counts {status.acknowledged}")
        settled = status.completed + status.dead_letters + status.discarded + status.quarantined
        if status.acknowledged != status.pending + settled:
            found.append(f"acknowledged {status.acknowledged} is not pending {status.pending} + settled {settled}")
        rows = query(self._url, "SELECT number, account FROM trades ORDER BY id")
        receipts = query(self._url, "SELECT idempotency_key::text, seq, store_id::text, operation FROM outbox_receipts")
        copies = Counter(number for number, _ in rows)
        proofs = Counter((key.replace("-", ""), *rest) for key, *rest in receipts)
        for entry in self.acknowledged:
            number, state = entry.args["number"], where.pop(entry.seq, "lost")
            proof = (entry.key, entry.seq, status.store_id, entry.operation)
            effects = (copies.pop(number, 0), proofs.pop(proof, 0))
            allowed = {"completed": [(1, 1)], "pending": [(0, 0), (1, 1)], "dead": [(0, 0)]}.get(state, [])
            if effects not in allowed:
                found.append(f"entry {entry.seq} is {state} and has {effects[0]} rows and {effects[1]} receipts")
        found += [f"row {number} belongs to no acknowledged entry" for number in copies]
        found += [f"receipt {proof[0]} belongs to no acknowledged entry" for proof in proofs]
        found += [f"entry {seq} was never acknowledged" for seq in where]
        order = defaultdict(list)
        for number, account in rows:
            order[account].append(number)
        for account, numbers in order.items():
            found += [
                f"{account}: {second} came after {first}" for first, second in pairwise(numbers) if first > second
            ]
        return found
