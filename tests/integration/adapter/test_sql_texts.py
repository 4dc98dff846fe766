"""A text of several statements is taken for what all of them do, whatever the first one is."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from outbox.integrations.durable import TRADING_OPERATIONS, ManagerOperation, NotCaughtUp

from .small import Scene, SmallManager, scene

LIMIT = "SET LOCAL lock_timeout = '2s'; "
NOTE = LIMIT + "UPDATE trades SET note = :note WHERE symbol = :symbol"
# Each notes something of a trade; the way to it differs.
METHODS = ("at_begin", "at_commit", "without_answer", "locked", "behind_a_comment", "noted_in_two")


class Several(SmallManager):
    def at_begin(self, symbol: str, note: str) -> bool:
        with self.session_factory.begin() as session:
            session.execute(text(NOTE), {"symbol": symbol, "note": note})
        return True

    def at_commit(self, symbol: str, note: str) -> bool:
        with self.session_factory() as session:
            session.execute(text(NOTE), {"symbol": symbol, "note": note})
            session.commit()
        return True

    def without_answer(self, symbol: str, note: str) -> None:
        self.at_commit(symbol, note)

    def locked(self, symbol: str, note: str) -> bool:
        with self.session_factory() as session:
            query = text(LIMIT + "SELECT id FROM trades WHERE symbol = :symbol FOR UPDATE")
            id_ = session.execute(query, {"symbol": symbol}).fetchone()[0]  # type: ignore[index]
            session.execute(text("UPDATE trades SET note = :note WHERE id = :id"), {"note": note, "id": id_})
            session.commit()
        return True

    def behind_a_comment(self, symbol: str, note: str) -> bool:
        with self.session_factory.begin() as session:
            session.execute(text("/* hint; */ " + NOTE), {"symbol": symbol, "note": note})
        return True

    def noted_in_two(self, symbol: str, note: str) -> bool:
        with self.session_factory.begin() as session:
            first = "UPDATE trades SET number = 7 WHERE symbol = :symbol; "
            session.execute(text(first + NOTE), {"symbol": symbol, "note": note})
        return True

    def insert_trade(self, symbol: str) -> int:
        with self.session_factory.begin() as session:
            sql = text(LIMIT + "INSERT INTO trades (symbol, note) VALUES (:symbol, 'a;b') RETURNING id")
            return int(session.execute(sql, {"symbol": symbol}).scalar_one())


OPERATIONS = (
    *TRADING_OPERATIONS,
    *(ManagerOperation(name, returns=None if name == "without_answer" else True) for name in METHODS),
    ManagerOperation("insert_trade", creates="trades"),
)


@pytest.fixture
def here(postgres_url: str, outbox_dir: Path) -> Iterator[Scene]:
    with scene(postgres_url, outbox_dir, Several, OPERATIONS, wait_s=0.3) as made:
        for name in METHODS:
            made.manager.log_trade(name)
        assert made.drain()
        yield made


@pytest.mark.parametrize("is_up", [True, False])
@pytest.mark.parametrize("name", METHODS)
def test_call_with_a_text_of_several_statements_is_durable(here: Scene, name: str, is_up: bool) -> None:
    before = here.box.status().acknowledged
    if is_up:
        here.relay.start()
    assert getattr(here.manager, name)(name, "noted") is (None if name == "without_answer" else True)
    assert here.box.status().acknowledged == before + 1
    assert here.drain()
    assert here.rows(f"SELECT note FROM trades WHERE symbol = '{name}'") == [("noted",)]
    status = here.box.status()
    assert (status.dead_letters, status.discarded, status.alarms) == (0, 0, {})


def test_row_inserted_behind_a_setting_has_its_callers_id(here: Scene) -> None:
    given = [here.manager.insert_trade(f"s{number}") for number in range(3)]
    assert here.drain()
    assert here.rows("SELECT id, note FROM trades WHERE symbol ~ '^s[0-9]' ORDER BY id") == [
        (id_, "a;b") for id_ in given
    ]
    assert here.box.status().alarms == {}


@pytest.mark.parametrize("begins", ["", LIMIT, "/* hint */ ", "SELECT 1; ", "SHOW lock_timeout; "])
def test_hosts_write_behind_another_statement_overtakes_nothing(here: Scene, begins: str) -> None:
    here.manager.at_begin("locked", "queued")
    with pytest.raises(NotCaughtUp), here.manager.session_factory.begin() as session:
        session.execute(text(begins + "UPDATE trades SET note = 'later' WHERE symbol = 'locked'"))
    assert here.drain()
    assert here.rows("SELECT note FROM trades WHERE symbol = 'locked'") == [("queued",)]


def test_hosts_settings_pass_while_calls_wait(here: Scene) -> None:
    here.manager.log_trade("queued")
    with here.manager.session_factory.begin() as session:
        session.execute(text("SET LOCAL lock_timeout = '1s'; SET LOCAL statement_timeout = '5s'"))
        found: Any = session.execute(text("SHOW lock_timeout; SHOW statement_timeout")).scalar_one()
    assert found == "5s"


def test_block_with_a_text_of_several_statements_is_whole(here: Scene) -> None:
    here.relay.start()
    here.manager.create_trading_session("s", Decimal(100))
    with here.manager.atomic_balance_update(Decimal(-1), "fee"):
        here.manager.at_commit("at_commit", "in a block")
    assert here.rows("SELECT note FROM trades WHERE symbol = 'at_commit'") == [("in a block",)]
    assert here.manager.get_current_balance() == 99
