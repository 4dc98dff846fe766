"""The classic engine, made before it is wired: its components get the durable manager."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine, text

from outbox.integrations.durable import DurableDatabaseManager
from outbox.integrations.trading_engine import wire

from .classic_engine import ClassicEngine
from .classic_manager import ClassicManager
from .durable import config
from .journal import Journal
from .market import prices

HALT = "_enter_close_only_mode"
COMPONENTS = (
    "event_logger",
    "live_position_tracker",
    "dynamic_risk_manager",
    "kill_switch",
    "live_execution_engine",
    "reconciler",
)


def engine_of(manager: Any, folder: Path) -> ClassicEngine:
    return ClassicEngine(manager, Journal(folder / "journal"), prices(60))


def durable_engine(url: str, folder: Path) -> ClassicEngine:
    durable_class: Any = DurableDatabaseManager.of(ClassicManager)
    return engine_of(durable_class(url), folder)


def messages(url: str) -> Iterator[str]:
    engine = create_engine(url.replace("postgresql://", "postgresql+psycopg2://", 1))
    with engine.connect() as connection:
        yield from connection.scalars(text("SELECT message FROM system_events ORDER BY id")).all()
    engine.dispose()


def test_wire_of_finished_engine_reaches_its_components(postgres_url: str, tmp_path: Path) -> None:
    """Six components took the plain manager before; one that keeps it would lose its writes in an outage."""
    plain = ClassicManager(postgres_url)
    engine = engine_of(plain, tmp_path)
    assert all(getattr(engine, name).db_manager is plain for name in COMPONENTS)
    with wire(engine, config=config(postgres_url, tmp_path / "outbox"), halt_method=HALT):
        assert isinstance(engine.db_manager, DurableDatabaseManager)
        assert all(getattr(engine, name).db_manager is engine.db_manager for name in COMPONENTS)
    plain.engine.dispose()
