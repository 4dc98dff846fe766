"""Replays of single calls on a manager of the test's own, without a store and without a relay."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection

from outbox import Entry, EntryStatus, OutboxConfig
from outbox.clock import SystemClock
from outbox.integrations.durable import ManagerOperation
from outbox.integrations.manager.host import Host
from outbox.integrations.operations import NOTES
from outbox.integrations.replay.replay import Replayer
from outbox.postgres.address import Address
from outbox.postgres.connection import GuardedConnection, raw_of

THEN = datetime(2023, 3, 4, 5, 6, 7, 891234, tzinfo=UTC)


def engine_url(url: str) -> str:
    return "postgresql+psycopg2://" + url.partition("://")[2]


def entry_of(name: str, args: Mapping[str, Any], notes: Mapping[str, Any]) -> Entry:
    return Entry(
        seq=1, id=uuid.uuid4(), key="6b" * 16, operation=name, args={**args, NOTES: {"session": None, **notes}},
        order_by=None, group=None, attempts=0, captured_at=THEN, status=EntryStatus.SYNCING, error=None,
    )  # fmt: skip


class Replays:
    """Replays calls on one manager, on a connection like the relay's."""

    def __init__(self, manager: Any, link: GuardedConnection, **settings: Any) -> None:
        self._link = link
        self.replayer = Replayer(Host(manager, SystemClock()), SystemClock(), **settings)

    def call(self, operation: ManagerOperation, notes: Mapping[str, Any] | None = None, **args: Any) -> Any:
        """Replay and commit; what the handler returned."""
        handler = self.replayer.handler(operation)
        connection = self.connection
        with connection.begin():
            value = handler(connection, entry_of(operation.name, args, notes or {}))
            raw = raw_of(connection)
            self._link.owe_settings(raw)
            raw.send_owed()
        return value

    @property
    def connection(self) -> Connection:
        return self._link.get()


@contextmanager
def replays(manager: Any, url: str, **settings: Any) -> Iterator[Replays]:
    link = GuardedConnection(Address(url), OutboxConfig(), SystemClock())
    made = Replays(manager, link, **settings)
    try:
        yield made
    finally:
        made.replayer.close()
        link.close()
