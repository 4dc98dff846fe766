"""The nasty manager in programs that are killed, cut off and restarted: each call counts once, in order, as of then."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from tests.unit.fakes.proxy import Proxy
from tests.unit.fakes.waiting import LONG

from .lives import Killed, Life, Raised
from .nastier import NASTIER_OPERATIONS, Kind, NastierManager
from .nasty import OrmSide, Side


@dataclass
class World:
    """A database behind a proxy, and programs that use it one after another."""

    url: str
    folder: Path
    proxy: Proxy

    @contextmanager
    def life(self, **options: Any) -> Iterator[Life]:
        factory = functools.partial(NastierManager, self.proxy.url)
        life = Life(factory, self.folder, self.proxy.url, NASTIER_OPERATIONS, **options)
        try:
            yield life
        finally:
            life.kill()

    def outage(self) -> None:
        self.proxy.refuse()
        self.proxy.disconnect()

    def rows(self, sql: str) -> list[Any]:
        manager = NastierManager(self.url)
        with manager.engine.connect() as connection:
            found = [tuple(row) for row in connection.execute(text(sql))]
        manager.close()
        return found


@pytest.fixture
def world(postgres_url: str, outbox_dir: Path) -> Iterator[World]:
    with Proxy(postgres_url) as proxy:
        yield World(postgres_url, outbox_dir, proxy)


def settled(life: Life) -> None:
    assert life.ask("drain", LONG)
    assert life.ask("status") == (0, [], {})


def a_day(life: Any) -> tuple[int, list[int]]:
    """What a nasty engine does; the session's and the positions' ids."""
    session_id = life.create_trading_session("day", strategy_config={"a": [1, {"b": None}]})
    life.update_balance(Decimal("1000.5"))
    ids = [
        life.log_position(Side.LONG, 1.5, client_order_id="c1"),
        life.log_position(OrmSide.SHORT, Decimal(2)),
        life.core_position(3),
    ]
    life.update_position(ids[0], stop_loss=Decimal("0.5"))
    life.update_position(ids[0], stop_loss=Decimal("0.25"))
    life.block(Decimal("-0.25"), "fee", inside=[("close_position", (ids[1],), {}), ("bump", ("inside",), {})])
    life.bump("extra")
    life.bump("extra")
    life.starred("extra", "more")
    life.note(Kind.ENTRY, {"deep": [{"er": 1}]})
    life.log_event("best effort")
    return session_id, ids


def assert_the_day_happened_once(world: World, session_id: int, ids: list[int]) -> None:
    assert world.rows("SELECT id FROM trading_sessions") == [(session_id,)]
    assert world.rows("SELECT id, side, size, stop_loss, status FROM positions ORDER BY size") == [
        (ids[0], "LONG", Decimal("1.5"), Decimal("0.25"), "OPEN"),
        (ids[1], "SHORT", Decimal(2), None, "CLOSED"),
        (ids[2], "CORE", Decimal(3), None, "OPEN"),
    ]
    balances = world.rows("SELECT total_balance, session_id FROM account_balances ORDER BY last_updated")
    assert balances == [(Decimal("1000.5"), session_id), (Decimal("1000.25"), session_id)]
    # An upsert that counts would show a second time.
    counters = [("extra", 3), ("inside", 1), ("more", 1), ("positions", 2)]
    assert world.rows("SELECT name, value FROM counters ORDER BY name") == counters
    assert world.rows("SELECT kind, details::text FROM notes") == [("ENTRY", '{"deep": [{"er": 1}]}')]
    messages = world.rows("SELECT message FROM system_events WHERE message NOT LIKE 'session%' ORDER BY message")
    assert messages == [("balance 1000.25",), ("best effort",)]


@pytest.mark.parametrize("write_behind", [False, True])
def test_a_day_in_an_outage_is_as_a_day_without_one(world: World, write_behind: bool) -> None:
    with world.life() as life:
        # The reserves of ids are filled.
        life.close()
    before = datetime.now(UTC)
    with world.life(write_behind=write_behind) as life:
        world.outage()
        session_id, ids = a_day(life)
        after = datetime.now(UTC)
        # PostgreSQL never showed what such calls do.
        for read in (life.get_current_balance, life.get_active_positions):
            with pytest.raises(Raised) as raised:
                read(session_id)
            assert "UnknownLocally" in raised.value.names
        life.kill()
    world.proxy.accept()
    with world.life() as life:
        settled(life)
        life.close()
    assert_the_day_happened_once(world, session_id, ids)
    times = world.rows(
        "SELECT entry_time FROM positions UNION ALL SELECT updated_at FROM positions WHERE side <> 'CORE' "
        "UNION ALL SELECT last_updated AT TIME ZONE 'UTC' FROM account_balances "
        "UNION ALL SELECT timestamp AT TIME ZONE 'UTC' FROM system_events "
        "UNION ALL SELECT start_time AT TIME ZONE 'UTC' FROM trading_sessions"
    )
    assert all(before < time < after for (time,) in times)


def test_write_behind_result_comes_at_once_and_proves_true(world: World) -> None:
    with world.life(write_behind=True) as life:
        session_id, ids = a_day(life)
        settled(life)
        assert life.get_current_balance(session_id) == 1000.25
        # It cannot know better: what PostgreSQL refuses later is a dead letter, not an answer.
        assert life.update_position(99, stop_loss=1) is True
        assert life.ask("drain", LONG)
        pending, dead, _ = life.ask("status")
        assert (pending, [operation for operation, _ in dead]) == (0, ["update_position"])
        # What the manager refuses by itself is refused at once here too.
        with pytest.raises(Raised, match="too long|characters"):
            life.log_position("sideways and far too long", 1)
        life.close()
    assert_the_day_happened_once(world, session_id, ids)


@pytest.mark.parametrize("moment", ["applied", "committed"])
def test_relay_killed_in_the_middle_doubles_and_loses_nothing(world: World, moment: str) -> None:
    with world.life() as life:
        life.close()
    with world.life() as life:
        world.outage()
        session_id, ids = a_day(life)
        life.ask("die", moment)
        world.proxy.accept()
        with pytest.raises(Killed):
            life.ask("drain", LONG)
    found = world.rows("SELECT count(*) FROM counters")
    assert found == [(0 if moment == "applied" else 4,)]
    with world.life() as life:
        settled(life)
        life.close()
    assert_the_day_happened_once(world, session_id, ids)


@pytest.mark.parametrize("fault", ["cut_at_commit", "cut_before_commit"])
def test_a_commit_of_which_nobody_hears_counts_once(world: World, fault: str) -> None:
    with world.life() as life:
        life.close()
    with world.life() as life:
        world.outage()
        session_id, ids = a_day(life)
        getattr(world.proxy, fault).set()
        world.proxy.accept()
        assert world.proxy.cut.wait(LONG)
        settled(life)
        life.close()
    assert_the_day_happened_once(world, session_id, ids)


@pytest.mark.parametrize("moment", ["not durable", "durable", "applied", "committed"])
def test_a_call_that_is_made_again_after_a_crash_is_one_call(world: World, moment: str) -> None:
    with world.life() as life:
        session_id = life.create_trading_session("day")
        life.update_balance(100)
        # Answered calls may still have to be recorded, which is one of the moments.
        assert life.ask("drain", LONG)
        life.ask("die", moment)
        with pytest.raises(Killed):
            life.block(-1, "fee", correlation_id="one", inside=[("bump", ("inside",), {})])
            # It may have been answered before its recording.
            life.ask("drain", LONG)
    with world.life() as life:
        life.ask("drain", LONG)
        for _ in range(2):
            told = life.block(-1, "fee", session_id=session_id, correlation_id="two")
            assert (told["old_balance"], told["new_balance"]) in ((99, 98), (100, 99))
        expected = 99.0 if moment == "not durable" else 98.0
        assert life.get_current_balance(session_id) == expected
        settled(life)
        life.close()
    assert world.rows("SELECT value FROM counters") == ([] if moment == "not durable" else [(1,)])
