"""A store and a PostgreSQL target side by side, without a relay: what is enqueued is applied when the test says so."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from outbox import Operation, Outbox, OutboxConfig, PostgresTarget
from outbox.store.ledger import Settlement
from outbox.target import Outcome

from .audit import query


class Bench:
    """Use it in a `with` block."""

    def __init__(self, directory: Path, url: str, *operations: Operation, **settings: Any) -> None:
        self.url = url
        config = OutboxConfig(**settings)
        self.box = Outbox.open(directory, config, operations)
        self.target = PostgresTarget(url, operations, config=config)

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.target.close()
        self.box.close()

    def enqueue(self, operation: str, args: Mapping[str, Any], **options: Any) -> int:
        """Enqueue one entry; returns its sequence number."""
        return self.box.enqueue(operation, args, **options).seq

    def apply(self, *seqs: int) -> Outcome:
        """Apply these pending entries, or all, as one batch.  The store is not told."""
        records = self.box.store.peek(0, 1_000_000).records
        chosen = [record for record in records if not seqs or record.seq in seqs]
        return self.target.apply(self.box.store.identity.store_id, chosen)

    def settle(self, outcome: Outcome) -> None:
        """Tell the store what was completed."""
        self.box.store.settle(Settlement(completed=outcome.completed))

    def query(self, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """Run SQL on a connection of its own."""
        return query(self.url, sql, parameters or None)

    def receipts(self) -> list[int]:
        """The sequence numbers that have a receipt."""
        return [row[0] for row in self.query("SELECT seq FROM outbox_receipts ORDER BY seq")]


def completed(outcome: Outcome) -> list[int]:
    return [record.seq for record, _ in outcome.completed]


def parked(outcome: Outcome) -> str:
    """Why an operation is parked; empty where none is."""
    return "; ".join(f"{name}: {error}" for name, error in outcome.parked.items())


def rejected(outcome: Outcome) -> list[int]:
    return [record.seq for record, _ in outcome.rejected]
