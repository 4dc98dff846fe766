"""Ids of one table's rows are in the order of the calls, however a method inserts its rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert, text

from outbox.integrations.durable import TRADING_OPERATIONS, ManagerOperation
from outbox.testing import PostgresServer
from tests.unit.fakes.waiting import until

from .small import SmallManager, Trade, scene

HOW = ("many", "returning", "one_statement", "mappings", "by_text", "by_text_of_several", "by_orm")
OPERATIONS = (*TRADING_OPERATIONS, *map(ManagerOperation, HOW))

_trades: Any = Trade.__table__


class Importing(SmallManager):
    """Trades come one by one, with an id for the engine, and in bulk."""

    def many(self, *symbols: str) -> None:
        with self.session_factory.begin() as session:
            session.execute(insert(Trade), [{"symbol": symbol} for symbol in symbols])

    def returning(self, *symbols: str) -> None:
        with self.session_factory.begin() as session:
            made = insert(Trade).returning(Trade.id, sort_by_parameter_order=True)
            rows = session.execute(made, [{"symbol": symbol} for symbol in symbols]).all()
            # They are those of the rows, in the order of the parameters.
            numbers = [session.get_one(Trade, row.id).symbol for row in rows]
            assert numbers == list(symbols)

    def one_statement(self, *symbols: str) -> None:
        with self.session_factory.begin() as session:
            session.connection().execute(insert(_trades).values([{"symbol": symbol} for symbol in symbols]))

    def mappings(self, *symbols: str) -> None:
        with self.session_factory.begin() as session:
            session.bulk_insert_mappings(Trade, ({"symbol": symbol} for symbol in symbols))

    def by_text(self, *symbols: str) -> None:
        with self.session_factory.begin() as session:
            for symbol in symbols:
                session.execute(text("INSERT INTO trades (symbol) VALUES (:symbol)"), {"symbol": symbol})

    def by_text_of_several(self, *symbols: str) -> None:
        with self.session_factory.begin() as session:
            made = text("INSERT INTO trades (symbol, note) VALUES (:symbol, upper(:symbol))")
            session.execute(made, [{"symbol": symbol} for symbol in symbols])

    def by_orm(self, *symbols: str) -> None:
        with self.session_factory.begin() as session:
            session.add_all([Trade(symbol=symbol) for symbol in symbols])

    def symbols(self) -> list[str]:
        with self.session_factory() as session:
            return list(session.execute(text("SELECT symbol FROM trades ORDER BY id")).scalars())


def trade(manager: Any, how: str, name: str) -> list[str]:
    manager.log_trade(f"{name} 1")
    getattr(manager, how)(f"{name} 2", f"{name} 3")
    manager.log_trade(f"{name} 4")
    return [f"{name} {number}" for number in range(1, 5)]


@pytest.mark.parametrize("how", HOW)
def test_rows_of_several_ways_have_ids_in_their_order(how: str, own_postgres: PostgresServer, outbox_dir: Path) -> None:
    """Rows that an `insert()` or SQL text made came behind all that a reserved id was given to."""
    with scene(own_postgres.url(), outbox_dir, Importing, OPERATIONS) as made:
        made.relay.start()
        manager = made.manager
        manager.create_trading_session("ma", 100)
        wanted = trade(manager, how, "up")
        assert manager.symbols() == wanted
        until(lambda: manager._adapter.keeper.view.is_sure(manager._adapter.sessions.current))
        own_postgres.kill()
        wanted += trade(manager, how, "outage")
        own_postgres.start()
        assert made.drain()
        wanted += trade(manager, how, "after")
        assert manager.symbols() == wanted
        assert made.box.status().alarms == {}
