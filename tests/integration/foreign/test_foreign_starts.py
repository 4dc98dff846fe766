"""The classic engine starts and ends around an outage, wired in the documented form."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from outbox import Outbox
from outbox.integrations.trading_engine import wire
from outbox.testing import PostgresServer
from tests.unit.fakes.waiting import LONG

from .classic_models import utcnow
from .declarations import OPERATIONS
from .durable import config
from .test_foreign_wiring import HALT, durable_engine, messages


def times(url: str, message: str) -> list[datetime]:
    """When the events of this text were logged, as their rows say."""
    engine = create_engine(url.replace("postgresql://", "postgresql+psycopg2://", 1))
    with engine.connect() as connection:
        query = text("SELECT timestamp FROM system_events WHERE message = :message ORDER BY timestamp")
        found = list(connection.scalars(query, {"message": message}))
    engine.dispose()
    return found


@pytest.fixture
def url(own_postgres: PostgresServer) -> str:
    return own_postgres.create_database("starts")


def test_event_of_the_constructor_in_an_outage_is_kept(url: str, own_postgres: PostgresServer, tmp_path: Path) -> None:
    """The second start finds PostgreSQL away; a best-effort call raises nothing, and nothing is lost."""
    settings = config(url, tmp_path / "outbox")
    first = durable_engine(url, tmp_path)
    with wire(first, config=settings, halt_method=HALT):
        first.start()
        first.stop()
    own_postgres.kill()
    began = utcnow()
    engine = durable_engine(url, tmp_path)
    made = utcnow()
    with wire(engine, config=settings, halt_method=HALT, drain_s=LONG):
        engine.event_logger.note("ALERT", "in the outage")
        own_postgres.start()
        engine.start()
        engine.stop()
    said = list(messages(url))
    assert said.count("engine constructed") == 2
    assert "in the outage" in said
    assert began <= times(url, "engine constructed")[1] <= made


def test_documented_form_delivers_what_is_left(url: str, own_postgres: PostgresServer, tmp_path: Path) -> None:
    """PostgreSQL comes back just before the end; the block's end waits for the delivery."""
    settings = config(url, tmp_path / "outbox")
    engine = durable_engine(url, tmp_path)
    with wire(engine, config=settings, halt_method=HALT, operations=OPERATIONS["classic"], drain_s=LONG):
        engine.start()
        engine.run(0, 10)
        own_postgres.kill()
        engine.run(10, 50)
        assert engine.failed is None
        own_postgres.start()
        engine.stop()
    with Outbox.open(settings.dir, settings) as box:
        left = box.status()
    assert (left.pending, left.dead_letters) == (0, 0)
