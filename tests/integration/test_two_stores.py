"""Two stores that deliver into one database, where rows of one refer to rows of the other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from outbox import Operation, Outbox, OutboxConfig, PostgresTarget, Relay
from outbox.testing import PostgresServer
from tests.unit.fakes.waiting import LONG, until

OPERATIONS = [
    Operation("begin_session", table="sessions"),
    Operation("log_order", table="orders", order_by="session_id"),
]


@pytest.fixture
def server(own_postgres: PostgresServer) -> PostgresServer:
    own_postgres.execute("CREATE TABLE sessions (id integer PRIMARY KEY)")
    own_postgres.execute("CREATE TABLE orders (id integer PRIMARY KEY, session_id integer REFERENCES sessions)")
    return own_postgres


@contextmanager
def store(directory: Path, url: str, max_retries: int = 1_000_000) -> Iterator[tuple[Outbox, Relay]]:
    config = OutboxConfig(backoff_base=0.001, backoff_cap=0.02, max_retries=max_retries)
    with Outbox.open(directory, config, OPERATIONS) as box:
        relay = Relay(box, PostgresTarget(url, OPERATIONS, config=config))
        yield box, relay
        relay.stop()


@pytest.mark.parametrize("restarted", [False, True])
def test_row_waits_after_an_outage_for_that_of_another_store(
    server: PostgresServer, tmp_path: Path, restarted: bool
) -> None:
    url = server.url()
    with store(tmp_path / "sessions", url) as (parents, parents_relay):
        with store(tmp_path / "orders", url) as (children, relay):
            if not restarted:
                relay.start()
                server.stop()
            parents.enqueue("begin_session", {"id": 1})
            for id_ in (1, 2):
                children.enqueue("log_order", {"id": id_, "session_id": 1})
            if not restarted:
                until(lambda: children.status().relay.last_error is not None)
                server.start()
                until(lambda: any(entry.attempts for entry in children.pending()) or any(children.dead_letters()))
        with store(tmp_path / "orders", url) as (children, relay):
            relay.start()
            until(lambda: any(entry.attempts > 2 for entry in children.pending()) or any(children.dead_letters()))
            assert parents_relay.drain(timeout=LONG)
            assert relay.drain(timeout=LONG)
            assert list(children.dead_letters()) == []
    assert server.execute("SELECT id FROM orders ORDER BY id") == [(1,), (2,)]


def test_row_whose_parent_never_comes_becomes_a_dead_letter(server: PostgresServer, tmp_path: Path) -> None:
    with store(tmp_path / "orders", server.url(), max_retries=3) as (box, relay):
        box.enqueue("log_order", {"id": 1, "session_id": 1})
        assert relay.drain(timeout=LONG)
        (dead,) = box.dead_letters()
        assert (dead.attempts, (dead.error or "")[:5]) == (4, "23503")


def test_row_without_a_parent_is_refused_at_once_while_up(server: PostgresServer, tmp_path: Path) -> None:
    """Its caller may wait for the answer."""
    with store(tmp_path / "orders", server.url()) as (box, relay):
        relay.start()
        assert relay.drain(timeout=LONG)
        box.enqueue("log_order", {"id": 1, "session_id": 1})
        assert relay.drain(timeout=LONG)
        (dead,) = box.dead_letters()
        assert dead.attempts <= 1
