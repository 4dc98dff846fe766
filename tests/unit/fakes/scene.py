"""An engine's outbox, a relay and a PostgreSQL that is about to have a bad day."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any
from uuid import UUID

import psycopg2

from outbox import Operation, Outbox, OutboxConfig, PostgresTarget, Relay
from outbox.store.envelope import Record
from outbox.target import Outcome

from .audit import OPERATIONS, SCHEMA, Audit, query
from .waiting import LONG, until


class Observed:
    """A real target that tells what became of each batch."""

    def __init__(self, target: PostgresTarget) -> None:
        self._target = target
        self._changed = threading.Condition()
        self.outcomes: list[Outcome] = []

    @property
    def operations(self) -> Mapping[str, Operation]:
        return self._target.operations

    @property
    def lanes(self) -> int:
        return self._target.lanes

    def apply(self, store_id: UUID, records: Sequence[Record]) -> Outcome:
        outcome = self._target.apply(store_id, records)
        with self._changed:
            self.outcomes.append(outcome)
            self._changed.notify_all()
        return outcome

    def interrupt(self) -> None:
        self._target.interrupt()

    def close(self) -> None:
        self._target.close()

    def interruptions(self) -> list[Any]:
        return [outcome.interruption for outcome in self.outcomes if outcome.interruption is not None]

    def wait_for_interruptions(self, count: int) -> None:
        """Until so many batches have failed."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.interruptions()) >= count, LONG), "no batch failed"


class Scene:
    """Use it in a `with` block; at its end everything must be delivered, and the audit must find nothing."""

    def __init__(
        self, directory: Path, url: str, *operations: Operation, relay_url: str | None = None, **settings: Any
    ) -> None:
        self.url = url
        self._operations = (*OPERATIONS, *operations)
        self._config = OutboxConfig(
            **{"backoff_base": 0.01, "backoff_cap": 0.1, "connect_timeout": 2.0, "batch_size": 10, **settings}
        )
        self.audit = Audit(url)
        self.box = Outbox.open(directory, self._config, self._operations)
        self.target, self.relay = self.new_relay(relay_url or url)

    def new_relay(self, url: str) -> tuple[Observed, Relay]:
        target = Observed(PostgresTarget(url, self._operations, config=self._config))
        return target, Relay(self.box, target)

    def create(self) -> None:
        """Make the table that the trades go to."""
        query(self.url, SCHEMA)

    def trade(self, count: int, **options: Any) -> None:
        self.audit.trade(self.box, count, **options)

    def __enter__(self) -> Scene:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        try:
            if exc is None:
                self.finish()
        finally:
            self.relay.stop()
            self.box.close()

    def finish(self) -> None:
        """Deliver everything, and let the audit look."""
        assert self.relay.drain(LONG), f"not drained: {self.box.status().relay}"
        status = self.box.status()
        assert (status.pending, status.dead_letters) == (0, 0)
        assert status.breaker == "closed"
        assert self.audit.problems(self.box) == []

    @contextmanager
    def batch_in_flight(self) -> Iterator[None]:
        """While this lasts, a batch of the running relay waits inside PostgreSQL, in the middle of its transaction."""
        with closing(psycopg2.connect(self.url)) as other:
            other.cursor().execute("LOCK TABLE trades IN ACCESS EXCLUSIVE MODE")
            self.trade(5)
            self.relay.start()
            until(lambda: self.sessions("Lock") == 1)
            yield

    def sessions(self, waiting_for: str | None = None) -> int:
        """How many sessions of relays there are, or how many that wait for this kind of thing."""
        which = "application_name = 'lmdb-outbox' AND datname = current_database()"
        waiting = "" if waiting_for is None else f" AND wait_event_type = '{waiting_for}'"
        [(count,)] = query(self.url, f"SELECT count(*) FROM pg_stat_activity WHERE {which}{waiting}")
        return int(count)

    def terminate(self) -> int:
        """End the sessions of relays, as an administrator would; returns how many."""
        which = "application_name = 'lmdb-outbox' AND datname = current_database()"
        return len(query(self.url, f"SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE {which}"))
