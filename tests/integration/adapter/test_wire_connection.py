"""`wire` refuses a manager whose connection the relay cannot take over, before the engine trades."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine
from sqlalchemy.orm import sessionmaker

from outbox import ConfigError, OutboxConfig
from outbox.integrations.trading_engine import wire
from outbox.testing import PostgresServer

from .small import SmallManager


class Engine:
    def __init__(self, manager: Any) -> None:
        self.db_manager = manager

    def enter_close_only(self, reason: str) -> None:
        """No new entries."""


class Serializable(SmallManager):
    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.engine.dispose()
        address = "postgresql+psycopg2://" + url.partition("://")[2]
        self.engine = create_engine(address, isolation_level="SERIALIZABLE")
        self.session_factory = sessionmaker(bind=self.engine)


def test_isolation_level_of_the_engine_is_refused_at_wiring(postgres_url: str, outbox_dir: Path) -> None:
    manager = Serializable(postgres_url)
    engine = Engine(manager)
    config = OutboxConfig(dir=str(outbox_dir), database_url=postgres_url, min_free_mb=0)
    with pytest.raises(ConfigError, match=r"(?i)isolation|serializable"):
        wire(engine, config=config)
    assert engine.db_manager is manager
    manager.engine.dispose()


def test_another_database_than_the_relays_is_refused_at_wiring(
    postgres_server: PostgresServer, postgres_url: str, outbox_dir: Path
) -> None:
    other = postgres_server.create_database("somewhere_else")
    engine = Engine(SmallManager(postgres_url))
    config = OutboxConfig(dir=str(outbox_dir), database_url=other, min_free_mb=0)
    with pytest.raises(ConfigError, match="somewhere_else"):
        wire(engine, config=config)
    engine.db_manager.engine.dispose()
    postgres_server.drop_database("somewhere_else")
