"""What the host's listeners set for a connection when a session takes it holds for a replay, too."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, text

from outbox.testing import PostgresServer

from .small import Scene, SmallManager, Trade, scene

schema: ContextVar[str] = ContextVar("schema", default="public")


class OfTenants(SmallManager):
    """Has a schema for each tenant."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        with self.engine.begin() as connection:
            like = "CREATE TABLE IF NOT EXISTS tenant.trades (LIKE public.trades INCLUDING ALL)"
            connection.execute(text(f"CREATE SCHEMA IF NOT EXISTS tenant; {like}"))
        self.listen()

    def listen(self) -> None:
        event.listen(self.engine, "checkout", lambda raw, *_: _use(raw, schema.get()))

    def log_trade(self, symbol: str, note: Any = None, session_id: int | None = None) -> int:
        with self.session_factory.begin() as session:
            trade = Trade(symbol=symbol)
            session.add(trade)
            session.flush()
            return trade.id


class Reconnecting(OfTenants):
    """Has one schema at a time, and new connections after a change."""

    schema = "public"

    def listen(self) -> None:
        event.listen(self.engine, "connect", lambda raw, _: _use(raw, self.schema))

    def use(self, name: str) -> None:
        self.schema = name
        self.engine.dispose()


def _use(raw: Any, name: str) -> None:
    with raw.cursor() as cursor:
        cursor.execute(f"SET search_path TO {name}")
    raw.commit()


@contextmanager
def in_schema(name: str) -> Iterator[None]:
    token = schema.set(name)
    try:
        yield
    finally:
        schema.reset(token)


def _written(made: Scene) -> dict[str, list[str]]:
    found = {}
    for name in ("public", "tenant"):
        found[name] = [symbol for (symbol,) in made.rows(f"SELECT symbol FROM {name}.trades ORDER BY id")]
    return found


@pytest.mark.parametrize("running", [False, True])
def test_call_is_delivered_as_a_listener_of_the_pool_sets_it(running: bool, postgres_url: str, tmp_path: Path) -> None:
    """Sessions were compared once for each connection of the relay: a tenant's rows went to the first one's schema."""
    with scene(postgres_url, tmp_path / "outbox", OfTenants) as made:
        if running:
            made.relay.start()
        made.manager.log_trade("A")
        for symbol in ("B", "C"):
            with in_schema("tenant"):
                made.manager.log_trade(symbol)
        made.manager.log_trade("D")
        assert made.drain()
        assert _written(made) == {"public": ["A", "D"], "tenant": ["B", "C"]}


def test_connections_that_are_made_anew_are_compared_anew(postgres_url: str, tmp_path: Path) -> None:
    with scene(postgres_url, tmp_path / "outbox", Reconnecting) as made:
        made.relay.start()
        made.manager.log_trade("A")
        made.manager.use("tenant")
        made.manager.log_trade("B")
        made.manager.use("public")
        made.manager.log_trade("C")
        assert made.drain()
        assert _written(made) == {"public": ["A", "C"], "tenant": ["B"]}


def test_kept_connection_is_made_anew_after_an_outage(own_postgres: PostgresServer, tmp_path: Path) -> None:
    class NotTested(OfTenants):
        def listen(self) -> None:
            super().listen()
            self.engine.pool._pre_ping = False

    with scene(own_postgres.url(), tmp_path / "outbox", NotTested) as made:
        made.relay.start()
        for symbol in ("A", "B"):
            made.manager.log_trade(symbol)
        own_postgres.kill()
        own_postgres.start()
        with in_schema("tenant"):
            made.manager.log_trade("C")
        assert made.drain()
        assert _written(made) == {"public": ["A", "B"], "tenant": ["C"]}
        assert not list(made.box.dead_letters())
