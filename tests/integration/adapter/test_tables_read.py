"""Reads of tables that the code of the read does not name: by a view, a function, reflection, SQL put together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import MetaData, func, insert, select, text

from outbox.integrations.durable import TRADING_OPERATIONS, ManagerOperation, ManagerRead
from outbox.integrations.view.local_view import UnknownLocally

from .small import SmallManager, scene

SWITCHES = "switches"
SERVER = (
    f"CREATE TABLE IF NOT EXISTS {SWITCHES} (id serial PRIMARY KEY, name text)",
    f"CREATE OR REPLACE VIEW tripped AS SELECT name FROM {SWITCHES}",
    f"""CREATE OR REPLACE FUNCTION count_tripped() RETURNS bigint LANGUAGE sql STABLE AS
    $$ SELECT count(*) FROM {SWITCHES} $$""",
)
READS = ("by_view", "by_function", "by_reflection", "put_together")
OPERATIONS = (
    *TRADING_OPERATIONS,
    ManagerOperation("trip", returns=True),
    *(ManagerRead(name, keep_last=True) for name in READS),
)


class Switches(SmallManager):
    def __init__(self, url: str) -> None:
        super().__init__(url)
        with self.engine.begin() as connection:
            for statement in SERVER:
                connection.execute(text(statement))
        self.meta = MetaData()
        self.meta.reflect(self.engine)

    def trip(self, name: str) -> bool:
        with self.session_factory.begin() as session:
            session.execute(text("INSERT INTO switches (name) VALUES (:name)"), {"name": name})
        return True

    def log_trade(self, symbol: str, note: Any = None, session_id: int | None = None) -> int:
        """A call with a role, which trips a switch on the side."""
        made = super().log_trade(symbol, note, session_id)
        with self.session_factory.begin() as session:
            session.execute(insert(self.meta.tables[SWITCHES]).values(name=symbol))
        return made

    def by_view(self) -> int:
        return self._one("SELECT count(*) FROM tripped")

    def by_function(self) -> int:
        return self._one("SELECT count_tripped() FROM (SELECT count(*) FROM trading_sessions) AS sessions")

    def put_together(self) -> int:
        assert self._one("SELECT count(*) FROM trading_sessions") >= 0
        return self._one(f"SELECT count(*) FROM {SWITCHES}")

    def by_reflection(self) -> int:
        assert self._one("SELECT count(*) FROM trading_sessions") >= 0
        with self.session_factory() as session:
            return int(session.scalar(select(func.count()).select_from(self.meta.tables[SWITCHES])) or 0)

    def _one(self, sql: str) -> int:
        with self.session_factory() as session:
            return int(session.execute(text(sql)).scalar_one())


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("call", ["trip", "log_trade"])
def test_kept_answer_of_hidden_table_is_outdated_by_call(
    postgres_url: str, tmp_path: Path, read: str, call: str
) -> None:
    """A kill switch that was tripped in an outage read as not tripped."""
    with scene(postgres_url, tmp_path / "outbox", Switches, OPERATIONS, write_behind=True, wait_s=0.02) as made:
        made.manager.create_trading_session("s", 100)
        getattr(made.manager, call)("before")
        assert made.drain()
        assert getattr(made.manager, read)() == 1
        getattr(made.manager, call)("in the outage")
        with pytest.raises(UnknownLocally, match=call):
            getattr(made.manager, read)()
        assert made.drain()
        assert getattr(made.manager, read)() == 2


@pytest.mark.parametrize("read", READS)
def test_kept_answer_stays_where_calls_write_elsewhere(postgres_url: str, tmp_path: Path, read: str) -> None:
    with scene(postgres_url, tmp_path / "outbox", Switches, OPERATIONS, write_behind=True, wait_s=0.02) as made:
        made.manager.create_trading_session("s", 100)
        made.manager.create_order_journal_entry("o-1")
        assert made.drain()
        assert getattr(made.manager, read)() == 0
        made.manager.create_order_journal_entry("o-2")
        assert getattr(made.manager, read)() == 0
