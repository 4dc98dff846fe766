"""`wire` refuses a manager whose connection the relay cannot take over, before the engine trades.

All reasons: `tests/integration/replaying/test_connection.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine
from sqlalchemy.orm import sessionmaker

from outbox import ConfigError, OutboxConfig
from outbox.integrations.durable import DurableDatabaseManager
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


class Configured(SmallManager):
    """It finds its database itself."""

    url = ""

    def __init__(self) -> None:
        super().__init__(self.url)


def test_address_given_to_the_manager_serves_a_start_in_an_outage(
    postgres_url: str, postgres_server: PostgresServer, outbox_dir: Path
) -> None:
    def life() -> list[int]:
        engine = Engine(DurableDatabaseManager.of(SmallManager)(postgres_url))
        with wire(engine, config=OutboxConfig(dir=str(outbox_dir), min_free_mb=0), drain_s=0.1) as wiring:
            ids = [engine.db_manager.log_trade("IBM") for _ in range(2)]
            status = wiring.get_outbox_status()
            shown = [] if status is None else [one.message for one in status.notices.values()]
            assert shown
            assert not any("DATABASE_URL" in one for one in shown)
        return ids

    first = life()
    postgres_server.kill()
    try:
        assert min(life()) > max(first)
    finally:
        postgres_server.start()


def test_lack_of_an_address_for_an_outage_is_warned_of(
    postgres_url: str, outbox_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Configured, "url", postgres_url)
    engine = Engine(DurableDatabaseManager.of(Configured)())
    with wire(engine, config=OutboxConfig(dir=str(outbox_dir), min_free_mb=0)) as wiring:
        status = wiring.get_outbox_status()
    shown = [] if status is None else [one.message for one in status.notices.values()]
    assert any("DATABASE_URL is not set" in one and "during an outage" in one for one in shown)
