"""A primary, its standby and an engine's outbox, about to lose commits that were acknowledged."""

from __future__ import annotations

import uuid
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import psycopg2.errors

from outbox import Outbox, OutboxConfig, PostgresTarget, Relay
from outbox.store.reads import FORGOTTEN
from outbox.testing import PostgresServer, Standby
from tests.unit.fakes.waiting import LONG, until

from .audit import OPERATIONS, SCHEMA, Audit


class Desk:
    """An engine's outbox, its relay and the audit of what it was told.  Use it in a `with` block."""

    def __init__(self, directory: Path, url: str, **settings: Any) -> None:
        self._directory, self._url = directory, url
        self._config = OutboxConfig(
            **{"backoff_base": 0.01, "backoff_cap": 0.1, "connect_timeout": 2.0, "batch_size": 10, **settings}
        )
        self.audit = Audit(url)
        self.open()

    def open(self) -> None:
        """A new process's outbox and relay."""
        self.box = Outbox.open(self._directory, self._config, OPERATIONS)
        self.relay = self.new_relay(self._url)

    def new_relay(self, url: str) -> Relay:
        return Relay(self.box, PostgresTarget(url, OPERATIONS, config=self._config))

    def close(self) -> None:
        self.relay.stop()
        self.box.close()

    def __enter__(self) -> Desk:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def trade(self, count: int, **options: Any) -> list[int]:
        return self.audit.trade(self.box, count, **options)

    def deliver(self) -> None:
        """Deliver all that is pending; it must work."""
        assert self.relay.drain(LONG), self.box.status()
        assert self.box.status().pending == 0

    def stop_at_loss(self, relay: Relay | None = None) -> None:
        """Deliver until the relay has found out that PostgreSQL forgot something, which takes a step or two."""
        relay = relay or self.relay

        def found_out() -> bool:
            assert not relay.drain(0.1), "everything was delivered"
            return FORGOTTEN in self.box.status().alarms

        until(found_out)

    def problems(self) -> list[str]:
        return self.audit.problems(self.box)

    def reconciliations(self) -> list[dict[str, Any]]:
        """What the ledger says of each."""
        return [dict(entry.args) for entry in self.box.ledger() if entry.operation == "outbox.reconcile"]


def multi_host(*servers: PostgresServer) -> str:
    """A URL that finds the primary among several servers."""
    hosts = ",".join(f"127.0.0.1:{server.port}" for server in servers)
    return f"postgresql://postgres@{hosts}/postgres?target_session_attrs=read-write"


def lose_primary(primary: PostgresServer, standby: Standby) -> None:
    """Kill the primary and promote the standby, which lacks what came after it was detached."""
    primary.kill()
    standby.promote()


def create_tables(server: PostgresServer) -> None:
    server.execute(SCHEMA)


class Past:
    """A database that can be set back: same server, same address, an older copy of its content."""

    def __init__(self, server: PostgresServer) -> None:
        self._server, self._name = server, f"desk_{uuid.uuid4().hex}"
        self._copies: list[str] = []
        self.url = server.create_database(self._name)
        server.execute(SCHEMA, database=self._name)

    def remember(self) -> str:
        """Make a copy of the database as it is now."""
        copy = f"{self._name}_{len(self._copies)}"

        def copied() -> bool:
            self._disconnect()
            # A relay at work may have connected again.
            with suppress(psycopg2.errors.ObjectInUse):
                self._server.execute(f'CREATE DATABASE "{copy}" TEMPLATE "{self._name}"')
                return True
            return False

        until(copied)
        self._copies.append(copy)
        return copy

    def set_back(self, copy: str) -> None:
        """Put a copy in the place of the database; may be done again with the same one."""
        self._server.drop_database(self._name)
        self._server.execute(f'CREATE DATABASE "{self._name}" TEMPLATE "{copy}"')

    def execute(self, sql: str) -> list[tuple[Any, ...]]:
        return self._server.execute(sql, database=self._name)

    def close(self) -> None:
        for name in (self._name, *self._copies):
            self._server.drop_database(name)

    def _disconnect(self) -> None:
        which = f"datname = '{self._name}' AND pid <> pg_backend_pid()"
        self._server.execute(f"SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE {which}")
