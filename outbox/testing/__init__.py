"""Helpers for testing programs that use the outbox, the library's own tests and the demo included."""

from outbox.testing.postgres_server import PostgresServer
from outbox.testing.replication import Standby

__all__ = ["PostgresServer", "Standby"]
