"""The classic engine, wired as its engineer would: what its constructor did before, its halt method, its end."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from outbox.errors import ConfigError
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


def test_wire_of_finished_engine_reaches_or_refuses_components(postgres_url: str, tmp_path: Path) -> None:
    """Six components took the plain manager before; one that keeps it would lose its writes in an outage."""
    plain = ClassicManager(postgres_url)
    engine = engine_of(plain, tmp_path)
    try:
        wiring = wire(engine, config=config(postgres_url, tmp_path / "outbox"), halt_method=HALT)
    except ConfigError:
        assert engine.db_manager is plain
        return
    with wiring:
        kept = [name for name in COMPONENTS if getattr(engine, name).db_manager is plain]
        assert kept == []
    plain.engine.dispose()


def test_named_halt_method_that_is_missing_is_refused(postgres_url: str, tmp_path: Path) -> None:
    engine = durable_engine(postgres_url, tmp_path)
    with pytest.raises(ConfigError, match="stop_entries"):
        wire(engine, config=config(postgres_url, tmp_path / "outbox"), halt_method="stop_entries")


def test_engine_without_halt_method_is_warned_of(
    postgres_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The default names a method that this engine does not have."""
    engine = durable_engine(postgres_url, tmp_path)
    with caplog.at_level(logging.WARNING), wire(engine, config=config(postgres_url, tmp_path / "outbox")):
        shown = str(engine.get_outbox_status())  # type: ignore[attr-defined]
    assert any("halt" in record.getMessage() for record in caplog.records)
    assert "halt" in shown.replace("halted", "").replace("halt_reason", "")


def test_event_of_the_constructor_is_kept(postgres_url: str, tmp_path: Path) -> None:
    """The engine logs before it can be wired."""
    engine = durable_engine(postgres_url, tmp_path)
    with wire(engine, config=config(postgres_url, tmp_path / "outbox"), halt_method=HALT):
        engine.start()
        engine.stop()
    assert "engine constructed" in messages(postgres_url)
