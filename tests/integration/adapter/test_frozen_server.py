"""A PostgreSQL that is frozen, which neither answers nor closes a connection, stops no call that can do without it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from sqlalchemy import NullPool, create_engine
from sqlalchemy.orm import sessionmaker

from outbox import OutboxConfig
from outbox.integrations.durable import TRADING_OPERATIONS, DurableDatabaseManager, ManagerRead
from outbox.integrations.manager import manager_connection
from outbox.integrations.trading_engine import Wiring, wire
from outbox.testing import PostgresServer
from tests.unit.fakes.waiting import LONG, until

from .small import SmallManager


class Engine:
    def __init__(self, manager: Any) -> None:
        self.db_manager = manager

    def enter_close_only(self, reason: str) -> None:
        """No new entries."""


class NotTested(SmallManager):
    """Its pool hands out connections untested."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.engine.pool._pre_ping = False


@contextmanager
def wired(
    server: PostgresServer, directory: Path, manager_class: Any, operations: Any = TRADING_OPERATIONS
) -> Iterator[tuple[Any, Wiring]]:
    """An engine whose calls are all delivered and known, at a balance of 990."""
    engine = Engine(manager_class(server.url()))
    config = OutboxConfig(
        dir=str(directory), database_url=server.url(), min_free_mb=0, stall_timeout=0.5, connect_timeout=1.0
    )
    with wire(engine, config=config, operations=operations) as wiring:
        engine.db_manager.create_trading_session("s", 1000)
        for _ in range(2):
            with engine.db_manager.atomic_balance_update(Decimal(-5), "fee"):
                pass
        assert wiring.relay is not None
        assert wiring.relay.drain(timeout=LONG)
        keeper = engine.db_manager._durable.adapter.keeper
        until(lambda: keeper.view.is_sure(1) and keeper.view.balance(1) == 990)
        yield engine.db_manager, wiring
    engine.db_manager.engine.dispose()


def _charge(manager: Any) -> Any:
    with manager.atomic_balance_update(Decimal(-5), "fee") as told:
        return told["new_balance"]


CALLS: dict[str, tuple[Callable[[Any], Any], Any]] = {
    "read": (lambda manager: manager.get_current_balance(), 990),
    "balance block": (_charge, 985),
    "write": (lambda manager: isinstance(manager.log_trade("BTC"), int), True),
}


@pytest.mark.parametrize("manager_class", [SmallManager, NotTested])
@pytest.mark.parametrize("call", CALLS)
def test_call_ends_while_the_server_is_frozen(
    own_postgres: PostgresServer, outbox_dir: Path, call: str, manager_class: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    defaults = DurableDatabaseManager.__init__.__kwdefaults__
    assert defaults is not None
    monkeypatch.setitem(defaults, "wait_s", 1.0)
    make, answer = CALLS[call]
    with ThreadPoolExecutor() as pool, wired(own_postgres, outbox_dir, manager_class) as (manager, wiring):
        own_postgres.pause()
        made = pool.submit(make, manager)
        try:
            assert made.result(timeout=60) == answer
        finally:
            own_postgres.resume()
        assert wiring.relay is not None
        assert wiring.relay.drain(timeout=LONG)
        assert manager.get_current_balance() == (985 if call == "balance block" else 990)


@pytest.mark.parametrize("paused", [False, True])
def test_slow_read_of_a_server_that_answers_is_waited_for(
    own_postgres: PostgresServer, outbox_dir: Path, paused: bool
) -> None:
    class Slow(SmallManager):
        def report(self) -> str:
            with self.session_factory() as session:
                session.connection().exec_driver_sql("SELECT pg_sleep(4)")
                return "done"

    with wired(own_postgres, outbox_dir, Slow) as (manager, wiring):
        assert wiring.outbox is not None
        if paused:
            wiring.outbox.pauses.begin("vacuum", 3600)
            until(lambda: wiring.outbox is not None and wiring.outbox.progress.delivering is False)
        assert manager.report() == "done"
        wiring.outbox.pauses.end()


def test_connection_of_a_frozen_server_is_not_looked_at_for_ever(
    own_postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manager_connection, "_SILENT_S", 0.5)
    connection = psycopg2.connect(own_postgres.url())
    own_postgres.pause()
    try:
        with pytest.raises(psycopg2.OperationalError), manager_connection._limited(connection):
            connection.cursor().execute("SELECT 1")
    finally:
        own_postgres.resume()


def test_kept_reads_wait_once_for_a_frozen_server(own_postgres: PostgresServer, outbox_dir: Path) -> None:
    """Each of them waited for the time limit of a connection, at each bar."""

    class Counting(SmallManager):
        def __init__(self, url: str) -> None:
            super().__init__(url)
            self.engine.dispose()
            self.engine = create_engine(self.engine.url, connect_args={"connect_timeout": 3}, poolclass=NullPool)
            self.session_factory = sessionmaker(bind=self.engine)

        def count_again(self) -> int:
            return self.count_trades()

    reads = ("count_trades", "count_again")
    operations = (*TRADING_OPERATIONS, *(ManagerRead(name, keep_last=True) for name in reads))
    with wired(own_postgres, outbox_dir, Counting, operations) as (manager, _):
        known = [getattr(manager, name)() for name in reads]
        own_postgres.pause()
        try:
            began = time.monotonic()
            assert [getattr(manager, name)() for _ in range(3) for name in reads] == known * 3
            # One limit of 3 s, and not one for each read.
            assert time.monotonic() - began < 9
        finally:
            own_postgres.resume()
