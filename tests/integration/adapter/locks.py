"""Tables that another session locks, as a migration does."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg2

# A test that waits for the lock goes on after this time, and fails.
HELD_S = 30.0


@contextmanager
def locked(url: str, tables: str) -> Iterator[None]:
    """Nobody else can use the tables in the block, which has to end before the lock does."""
    connection = psycopg2.connect(url)
    connection.cursor().execute(f"LOCK TABLE {tables} IN ACCESS EXCLUSIVE MODE")
    waited = threading.Event()

    def end() -> None:
        waited.set()
        connection.rollback()

    late = threading.Timer(HELD_S, end)
    late.start()
    try:
        yield
        assert not waited.is_set(), "it waited for the lock"
    finally:
        late.cancel()
        connection.close()
