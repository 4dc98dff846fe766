"""Helpers for testing programs that use the outbox, the library's own tests and the demo included."""

from outbox.testing.postgres_server import PostgresServer

__all__ = ["PostgresServer"]
