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
from outbox.integrations.trading_engine import wire

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
