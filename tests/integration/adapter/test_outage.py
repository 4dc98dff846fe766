"""What callers see of an outage: nothing raises, ids are final, reads are right, and PostgreSQL agrees afterwards."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from outbox import Outbox, OutboxConfig, PostgresTarget, Relay
from outbox.integrations.durable import DurableDatabaseManager, NotCaughtUp
from outbox.integrations.paper import DatabaseManager
from outbox.integrations.view.local_view import UnknownLocally
from outbox.testing import PostgresServer
from tests.unit.fakes.waiting import LONG

from .days import PaperEngine

NOW = datetime(2024, 5, 6, 7, 8, 9, 123456, tzinfo=UTC)


@dataclass
class Running:
    """One life of a program with a wrapped manager."""

    manager: Any
    box: Outbox
    relay: Relay

    def caught_up(self) -> None:
        assert self.relay.drain(timeout=LONG)


@contextmanager
def running(server: PostgresServer, directory: Path, **settings: Any) -> Iterator[Running]:
    factory = functools.partial(DatabaseManager, server.url())
    with Outbox.open(directory, OutboxConfig(backoff_base=0.05, backoff_cap=0.3)) as box:
        durable = DurableDatabaseManager(factory, box, **settings)
        with Relay(box, PostgresTarget(server.url(), durable.outbox_operations, config=box.config)) as relay:
            try:
                yield Running(durable, box, relay)
            finally:
                relay.stop()
                durable.detach_outbox()


def rows(server: PostgresServer, sql: str) -> list[Any]:
    manager = DatabaseManager(server.url())
    with manager.engine.connect() as connection:
        found = [tuple(row) for row in connection.execute(text(sql))]
    manager.close()
    return found


def taught(run: Running) -> None:
    """Days of another session, from which the view learns what the manager does."""
    day = PaperEngine(run.manager)
    day.begin()
    for turn in range(3):
        day.work(turn)
    run.manager.end_trading_session(day.session_id)


def begun(run: Running) -> int:
    session_id: int = run.manager.create_trading_session("s", "IBM", "1d", "paper", Decimal(1000))
    run.manager.update_balance(Decimal(1000), "start")
    return session_id


def trade(position_id: int, pnl: Decimal) -> dict[str, Any]:
    return {
        "symbol": "IBM", "side": "long", "entry_price": 100, "exit_price": 101, "size": Decimal("0.1"),
        "entry_time": NOW, "exit_time": NOW + timedelta(hours=1), "pnl": pnl, "exit_reason": "signal",
        "strategy_name": "s", "position_id": position_id,
    }  # fmt: skip


def open_position(run: Running, name: str) -> int:
    position_id: int = run.manager.log_position(
        "IBM", "long", Decimal(100), Decimal("0.1"), "s", f"o-{name}", quantity=Decimal(2), client_order_id=name
    )
    return position_id


def test_program_restarted_in_an_outage_trades_on(own_postgres: PostgresServer, outbox_dir: Path) -> None:
    with running(own_postgres, outbox_dir) as run:
        taught(run)
        session_id = begun(run)
        kept = open_position(run, "kept")
        gone = open_position(run, "gone")
        own_postgres.kill()
        assert run.manager.log_trade(**trade(gone, Decimal(5))) is not None
        with run.manager.atomic_balance_update(Decimal(5), "trade", correlation_id="t1") as change:
            assert (change.old_balance, change.new_balance, change.change) == (1000, 1005, 5)
        assert run.manager.update_position(kept, stop_loss=Decimal(95)) is True
        late = open_position(run, "late")
        run.manager.create_order_journal_entry(session_id, "open-order", "IBM", "buy", "entry", Decimal(1), "s")
        run.manager.log_event("outage", "still trading")

    with running(own_postgres, outbox_dir) as run:
        assert run.manager.get_active_session_id() == session_id
        assert run.manager.get_last_session_id(24.0, strategy_name="s") == session_id
        run.manager.set_current_session(session_id)
        assert run.manager.get_current_balance() == 1005.0
        assert run.manager.recover_last_balance(session_id) == 1005.0
        positions = run.manager.get_active_positions(session_id)
        assert [row["id"] for row in positions] == [kept, late]
        assert positions[0]["stop_loss"] == 95
        assert [row["client_order_id"] for row in run.manager.get_unresolved_orders()] == ["open-order"]
        run.manager.apply_partial_exit_update(late, Decimal("0.04"), Decimal(103), 1)
        assert run.manager.get_active_positions()[1]["current_size"] == Decimal("0.06")
        with run.manager.atomic_balance_update(Decimal("-1.25"), "fee"):
            last = open_position(run, "last")
        own_postgres.start()
        run.caught_up()
        assert run.manager.get_current_balance() == 1003.75
        assert [row["id"] for row in run.manager.get_active_positions()] == [kept, late, last]
        status = run.box.status()
        assert (status.pending, status.dead_letters, status.alarms) == (0, 0, {})

    mine = f"WHERE session_id = {session_id}"
    assert rows(
        own_postgres, f"SELECT id, client_order_id, status, current_size FROM positions {mine} ORDER BY id"
    ) == [
        (kept, "kept", "open", Decimal("0.1")),
        (gone, "gone", "closed", Decimal("0.1")),
        (late, "late", "open", Decimal("0.06")),
        (last, "last", "open", Decimal("0.1")),
    ]
    assert rows(own_postgres, f"SELECT total_balance FROM account_balances {mine} ORDER BY last_updated") == [
        (Decimal(1000),), (Decimal(1005),), (Decimal("1003.75"),),
    ]  # fmt: skip
    assert rows(own_postgres, "SELECT count(*) FROM system_events WHERE event_type = 'outage'") == [(1,)]


def test_value_unknown_to_the_local_view_is_an_error_not_empty(own_postgres: PostgresServer, outbox_dir: Path) -> None:
    with running(own_postgres, outbox_dir) as run:
        own_postgres.kill()
        with pytest.raises(UnknownLocally):
            run.manager.get_active_positions(7)
        with pytest.raises(UnknownLocally):
            run.manager.get_active_session_id()
        own_postgres.start()
        session_id = begun(run)
        own_postgres.kill()
        with pytest.raises(UnknownLocally, match="session 999"):
            run.manager.get_current_balance(999)
        assert run.manager.get_current_balance(session_id) == 1000.0
        with pytest.raises(OperationalError):
            run.manager.is_system_halted()
        run.manager.log_event("e", "m")
        with pytest.raises(NotCaughtUp):
            run.manager.set_system_halt(True, "no")


def test_a_session_from_before_the_outbox_is_known_during_an_outage(
    own_postgres: PostgresServer, outbox_dir: Path
) -> None:
    plain = DatabaseManager(own_postgres.url())
    session_id = plain.create_trading_session("old", "IBM", "1d", "paper", Decimal(50))
    position_id = plain.log_position("IBM", "long", 5, 1, "old", "o1")
    plain.close()
    with running(own_postgres, outbox_dir):
        pass
    own_postgres.kill()
    with running(own_postgres, outbox_dir) as run:
        assert run.manager.get_active_session_id() == session_id
        assert run.manager.get_current_balance(session_id) == 50.0
        assert [row["id"] for row in run.manager.get_active_positions(session_id)] == [position_id]


def test_first_start_in_an_outage_fails_with_the_reason(own_postgres: PostgresServer, outbox_dir: Path) -> None:
    own_postgres.kill()
    with running(own_postgres, outbox_dir) as run, pytest.raises(Exception, match="reserve of trading_sessions"):
        begun(run)


def test_a_balance_below_zero_is_refused_where_the_manager_did(own_postgres: PostgresServer, outbox_dir: Path) -> None:
    """In an outage, before anything is stored, with the manager's own kind of error."""
    with running(own_postgres, outbox_dir) as run:
        begun(run)
        with pytest.raises(ValueError, match="below zero"), run.manager.atomic_balance_update(-4000, "x"):
            pass
        own_postgres.kill()
        open_position(run, "first-of-the-outage")
        before = run.box.status().acknowledged
        with pytest.raises(ValueError, match="cannot become"), run.manager.atomic_balance_update(-5000, "x"):
            pass
        with pytest.raises(ValueError, match="side"):
            run.manager.log_position("IBM", "up", 5, 1, "s", "o9")
        with pytest.raises(TypeError):
            run.manager.log_position("IBM")
        assert run.manager.update_balance("much", "x") is False
        assert run.box.status().acknowledged == before


def test_rows_after_an_outage_have_the_times_of_their_calls(own_postgres: PostgresServer, outbox_dir: Path) -> None:
    with running(own_postgres, outbox_dir) as run:
        begun(run)
        own_postgres.kill()
        for _ in range(20):
            with run.manager.atomic_balance_update(Decimal(1), "tick"):
                pass
        position_id = open_position(run, "p")
        run.manager.log_event("e", "m")
        last = datetime.now(UTC).replace(tzinfo=None)
        own_postgres.start()
        run.caught_up()
        assert run.manager.get_current_balance() == 1020.0
    stamps = [row[0] for row in rows(own_postgres, "SELECT last_updated FROM account_balances ORDER BY id")]
    assert stamps == sorted(set(stamps))
    assert max(stamps) < last
    (row,) = rows(own_postgres, f"SELECT entry_time, last_update FROM positions WHERE id = {position_id}")
    assert row[0] == row[1] < last
    assert rows(own_postgres, "SELECT max(timestamp) FROM system_events")[0][0] < last


def another_writes(server: PostgresServer, session_id: int) -> None:
    other = DatabaseManager(server.url())
    other.set_current_session(session_id)
    with other.atomic_balance_update(Decimal(-100), "theirs"):
        pass
    other.close()


def test_another_writer_in_an_outage_is_reported_as_a_divergence(
    own_postgres: PostgresServer, outbox_dir: Path
) -> None:
    with running(own_postgres, outbox_dir, write_behind=True) as run:
        session_id = begun(run)
        run.caught_up()
        run.relay.stop()
        with run.manager.atomic_balance_update(Decimal(10), "mine"):
            pass
        another_writes(own_postgres, session_id)
        run.relay.start()
        run.caught_up()
        status = run.box.status()
        assert f"diverged-balance-{session_id}" in status.alarms
        assert "another writer" in status.alarms[f"diverged-balance-{session_id}"]
        assert status.health == 2
        assert run.manager.get_current_balance(session_id) == 910.0


def test_calls_behind_a_divergence_are_not_stamped_before_it(own_postgres: PostgresServer, outbox_dir: Path) -> None:
    """The manager takes the row with the latest time for the balance, and the last call was lost behind another one."""
    with running(own_postgres, outbox_dir, write_behind=True) as run:
        session_id = begun(run)
        run.caught_up()
        run.relay.stop()
        with run.manager.atomic_balance_update(Decimal(10), "mine"):
            pass
        assert run.manager.update_balance(Decimal(500), "set")
        another_writes(own_postgres, session_id)
        run.relay.start()
        run.caught_up()
        assert run.manager.get_current_balance(session_id) == 500.0


def test_write_behind_never_waits(own_postgres: PostgresServer, outbox_dir: Path) -> None:
    with running(own_postgres, outbox_dir, write_behind=True) as run:
        begun(run)
        with run.manager.atomic_balance_update(Decimal(2), "seen"):
            pass
        run.caught_up()
        own_postgres.pause()
        try:
            assert run.manager.update_balance(Decimal(7), "now") is True
            with run.manager.atomic_balance_update(Decimal(1), "now") as change:
                assert change.old_balance == 7
        finally:
            own_postgres.resume()
        run.caught_up()
        assert run.manager.get_current_balance() == 8.0


def test_equal_changes_each_count_and_a_repeated_order_counts_once(
    own_postgres: PostgresServer, outbox_dir: Path
) -> None:
    with running(own_postgres, outbox_dir) as run:
        session_id = begun(run)
        position_id = open_position(run, "p")
        own_postgres.kill()
        for stop in (90, 95, 90):
            assert run.manager.update_position(position_id, stop_loss=Decimal(stop))
        for _ in range(2):
            run.manager.apply_partial_exit_update(position_id, Decimal("0.02"), Decimal(101), 1)
            with run.manager.atomic_balance_update(Decimal("-2.5"), "fee"):
                pass
            run.manager.create_order_journal_entry(session_id, "c1", "IBM", "buy", "entry", Decimal(1), "s")
            assert open_position(run, "twice") == open_position(run, "twice")
        own_postgres.start()
        run.caught_up()
    assert rows(
        own_postgres, f"SELECT stop_loss, current_size, partial_exits_taken FROM positions WHERE id = {position_id}"
    ) == [(Decimal(90), Decimal("0.06"), 2)]
    assert rows(own_postgres, "SELECT total_balance FROM account_balances ORDER BY id DESC LIMIT 1") == [
        (Decimal(995),)
    ]
    assert rows(own_postgres, "SELECT count(*) FROM orders WHERE client_order_id = 'c1'") == [(1,)]
    assert rows(own_postgres, "SELECT count(*) FROM positions WHERE client_order_id = 'twice'") == [(1,)]


def test_balance_block_is_one_group_and_records_nothing_on_an_error(
    own_postgres: PostgresServer, outbox_dir: Path
) -> None:
    with running(own_postgres, outbox_dir) as run:
        taught(run)
        session_id = begun(run)
        position_id = open_position(run, "p")
        own_postgres.kill()
        run.manager.log_event("e", "the outage is known now")
        before = run.box.status().acknowledged
        with pytest.raises(KeyError), run.manager.atomic_balance_update(Decimal(5), "trade"):
            run.manager.log_trade(**trade(position_id, Decimal(5)))
            raise KeyError
        assert run.box.status().acknowledged == before
        assert len(run.manager.get_active_positions()) == 1
        with run.manager.atomic_balance_update(Decimal(5), "trade"):
            run.manager.log_trade(**trade(position_id, Decimal(5)))
            run.manager.update_balance(Decimal(2000), "inside")
        group = [entry for entry in run.box.pending() if entry.group is not None]
        assert [entry.operation for entry in group] == ["atomic_balance_update", "log_trade", "update_balance"]
        assert run.manager.get_current_balance() == 2000.0
        own_postgres.start()
        run.caught_up()
        assert run.manager.get_current_balance() == 2000.0
    mine = f"WHERE session_id = {session_id}"
    assert rows(own_postgres, f"SELECT total_balance FROM account_balances {mine} ORDER BY last_updated") == [
        (Decimal(1000),), (Decimal(1005),), (Decimal(2000),),
    ]  # fmt: skip
