"""A migration that locks tables for long stops neither the start of an engine nor its calls."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from outbox import OutboxConfig
from outbox.integrations.durable import DurableDatabaseManager
from outbox.integrations.manager.session_state import variables_known
from outbox.integrations.trading_engine import Wiring, wire
from tests.unit.fakes.waiting import LONG

from .locks import locked
from .small import SmallManager

_OWN = "trades, account_balances, trading_sessions, orders"
_OTHER = """
    CREATE TABLE other (id serial PRIMARY KEY, at timestamptz DEFAULT now(), n int CHECK (n > 0));
    ALTER TABLE other ENABLE ROW LEVEL SECURITY;
    CREATE POLICY positive ON other USING (n > 1);
    CREATE VIEW seen AS SELECT n FROM other
"""


@pytest.fixture(autouse=True)
def impatient_callers(patient_callers: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Callers wait for no delivery longer than this."""
    defaults = DurableDatabaseManager.__init__.__kwdefaults__
    assert defaults is not None
    monkeypatch.setitem(defaults, "wait_s", 0.2)


class Engine:
    def __init__(self, manager: Any) -> None:
        self.db_manager = manager

    def enter_close_only(self, reason: str) -> None:
        """No new entries."""


@contextmanager
def wired(url: str, directory: Path) -> Iterator[tuple[Any, Wiring]]:
    engine = Engine(SmallManager(url))
    config = OutboxConfig(dir=str(directory), database_url=url, min_free_mb=0)
    with wire(engine, config=config) as wiring:
        yield engine.db_manager, wiring
    engine.db_manager.engine.dispose()


def count_trades(url: str) -> int:
    connection = psycopg2.connect(url)
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM trades")
        found = cursor.fetchone()
    connection.close()
    assert found is not None
    return int(found[0])


def test_lock_on_a_foreign_table_holds_up_no_call(postgres_url: str, outbox_dir: Path) -> None:
    connection = psycopg2.connect(postgres_url)
    connection.cursor().execute(_OTHER)
    connection.commit()
    with locked(postgres_url, "other"), wired(postgres_url, outbox_dir) as (manager, wiring):
        manager.create_trading_session("s", 1000)
        manager.log_trade("BTC")
        assert wiring.relay is not None
        assert wiring.relay.drain(timeout=LONG)
        assert count_trades(postgres_url) == 1
    connection.close()


def test_engine_writes_on_while_its_tables_are_locked(postgres_url: str, outbox_dir: Path) -> None:
    with wired(postgres_url, outbox_dir) as (manager, wiring):
        manager.create_trading_session("s", 1000)
        with manager.atomic_balance_update(Decimal(-10), "fee"):
            manager.log_trade("BTC")
        assert manager.get_current_balance() == 990
        with locked(postgres_url, _OWN):
            with manager.atomic_balance_update(Decimal(-10), "fee") as told:
                assert told["new_balance"] == 980
            manager.log_trade("ETH")
        assert wiring.relay is not None
        assert wiring.relay.drain(timeout=LONG)
        assert manager.get_current_balance() == 980
        assert count_trades(postgres_url) == 2


def test_engine_is_wired_while_its_tables_are_locked(postgres_url: str, outbox_dir: Path) -> None:
    manager = SmallManager(postgres_url)
    with locked(postgres_url, _OWN):
        engine = Engine(manager)
        config = OutboxConfig(dir=str(outbox_dir), database_url=postgres_url, min_free_mb=0)
        wiring = wire(engine, config=config)
        assert isinstance(engine.db_manager.log_trade("BTC"), int)
    assert wiring.relay is not None
    assert wiring.relay.drain(timeout=LONG)
    assert count_trades(postgres_url) == 1
    wiring.close()
    manager.engine.dispose()


def test_lock_on_a_table_that_names_a_variable_is_not_waited_for(postgres_url: str) -> None:
    connection, other = psycopg2.connect(postgres_url), psycopg2.connect(postgres_url)
    connection.cursor().execute("CREATE TABLE named (tenant text DEFAULT current_setting('app.tenant', true))")
    connection.commit()
    assert "app.tenant" in variables_known(other)
    other.rollback()
    with locked(postgres_url, "named"), pytest.raises(psycopg2.OperationalError, match="lock timeout"):
        variables_known(other)
    connection.close()
    other.close()
