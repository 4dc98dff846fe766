"""The adapter against a manager that does everything that real ones were seen to do."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.orm import scoped_session

from outbox import ConfigError, Outbox, OutboxConfig, PostgresTarget, Relay
from outbox.integrations.durable import TRADING_OPERATIONS, DurableDatabaseManager, ManagerOperation
from outbox.testing import PostgresServer
from tests.unit.fakes.waiting import LONG, until

from .nasty import InsufficientFunds, NastyManager, OrmSide, Side

OPERATIONS = (
    *TRADING_OPERATIONS,
    ManagerOperation("bump", returns=True),
    ManagerOperation("bump_and_go_around", returns=True),
)


@dataclass
class Running:
    manager: Any
    box: Outbox
    relay: Relay
    url: str

    def rows(self, sql: str) -> list[Any]:
        plain = NastyManager(self.url)
        with plain.engine.connect() as connection:
            found = [tuple(row) for row in connection.execute(text(sql))]
        plain.close()
        return found


@contextmanager
def running(url: str, directory: Path, *, scoped: bool = False, relay: bool = True) -> Iterator[Running]:
    factory = functools.partial(NastyManager, url, scoped=scoped)
    with Outbox.open(directory, OutboxConfig(backoff_base=0.05, backoff_cap=0.3)) as box:
        durable = DurableDatabaseManager(factory, box, OPERATIONS)
        delivery = Relay(box, PostgresTarget(url, durable.outbox_operations, config=box.config))
        if relay:
            delivery.start()
        try:
            yield Running(durable, box, delivery, url)
        finally:
            delivery.stop()
            durable.detach_outbox()
            if durable._host.built is not None:
                durable._host.built.close()


@pytest.fixture(params=[False, True], ids=["sessionmaker", "scoped_session"])
def run(request: pytest.FixtureRequest, postgres_url: str, outbox_dir: Path) -> Iterator[Running]:
    with running(postgres_url, outbox_dir, scoped=request.param) as run:
        yield run


def everything(manager: Any) -> list[Any]:
    """A day of a nasty engine; what each call gave."""
    said: list[Any] = []

    def note(call: Callable[[], Any]) -> None:
        try:
            said.append(call())
        except Exception as exc:  # noqa: BLE001 - what is raised is what is compared
            said.append(type(exc))

    def block(change: Any, **options: Any) -> Any:
        with manager.atomic_balance_update(change, "trade", **options) as told:
            return dict(told)

    note(lambda: manager.create_trading_session("day", strategy_config={"a": [1, {"b": None}]}))
    note(lambda: manager.update_balance(Decimal("1000.5")))
    note(lambda: manager.update_balance("nonsense"))
    note(lambda: manager.log_position(Side.LONG, 1.5, client_order_id="c1"))
    note(lambda: manager.log_position(OrmSide.SHORT, Decimal(2000), stop_loss=3))
    note(lambda: manager.log_position("short", 1, nonsense=1))
    note(lambda: manager.log_position("sideways and far too long", 1))
    note(lambda: manager.update_position(1, stop_loss=0.5))
    note(lambda: manager.update_position(99, stop_loss=0.5))
    note(lambda: manager.update_position(1, stop_loss="high"))
    note(lambda: block(-0.25))
    note(lambda: block(-5000))
    note(lambda: block(Decimal("0.75"), correlation_id="x"))
    note(lambda: manager.get_current_balance())
    note(lambda: manager.close_position(1))
    note(lambda: manager.close_position(2))
    note(lambda: manager.close_position(99))
    note(lambda: manager.bump("extra"))
    note(lambda: manager.log_event("e"))
    note(lambda: manager.get_active_positions())
    note(lambda: manager.end_trading_session(1))
    note(lambda: manager.end_trading_session(99))
    note(lambda: manager.helper(1))
    return said


TABLES = {
    "trading_sessions": "SELECT id, config::text, end_time IS NULL FROM trading_sessions ORDER BY id",
    "positions": "SELECT id, session_id, side, size, stop_loss, status, client_order_id FROM positions ORDER BY id",
    "account_balances": "SELECT id, session_id, total_balance, reason FROM account_balances ORDER BY last_updated",
    "counters": "SELECT name, value FROM counters ORDER BY name",
    "system_events": "SELECT id, regexp_replace(message, '[0-9:.]{15}', 'T') FROM system_events ORDER BY id",
}


def test_with_postgresql_up_a_nasty_manager_behaves_as_without_us(
    run: Running, postgres_server: PostgresServer
) -> None:
    name = run.url.rpartition("/")[2] + "_plain"
    scoped = isinstance(run.manager.session_factory, scoped_session)
    plain = NastyManager(postgres_server.create_database(name), scoped=scoped)
    expected = everything(plain)
    with plain.engine.connect() as connection:
        rows = {table: [tuple(row) for row in connection.execute(text(sql))] for table, sql in TABLES.items()}
    plain.close()
    postgres_server.drop_database(name)
    assert everything(run.manager) == expected
    assert {table: run.rows(sql) for table, sql in TABLES.items()} == rows
    # A call is answered before its delivery is recorded.
    until(lambda: run.box.status().pending == 0)
    status = run.box.status()
    assert (status.dead_letters, status.alarms) == (0, {})


def test_after_an_outage_everything_is_as_if_there_had_been_none(
    own_postgres: PostgresServer, outbox_dir: Path
) -> None:
    url = own_postgres.url()
    with running(url, outbox_dir) as run:
        for size, side in enumerate((Side.LONG, OrmSide.SHORT, Side.LONG, OrmSide.SHORT), 3):
            run.manager.create_trading_session("before")
            run.manager.update_balance(size * 100)
            seen = run.manager.log_position(side, size + 0.5, client_order_id=f"b{size}" if size < 5 else None)
            run.manager.update_position(seen, stop_loss=size)
            with run.manager.atomic_balance_update(size, "seen"):
                pass
        session_id = run.manager.create_trading_session("day")
        run.manager.update_balance(1000)
        own_postgres.kill()
        before = datetime.now(UTC)
        first = run.manager.log_position(Side.LONG, 1.5, client_order_id="c1")
        with run.manager.atomic_balance_update(-0.25, "fee") as told:
            assert type(told) is dict
            assert told["new_balance"] == Decimal("999.75")
        assert run.manager.update_position(first, stop_loss=Decimal("0.5")) is True
        assert run.manager.bump("x") is True
    with running(url, outbox_dir) as run:
        run.manager._current_session_id = session_id
        second = run.manager.log_position(OrmSide.SHORT, 2)
        assert [row["id"] for row in run.manager.get_active_positions(session_id)] == [first, second]
        with run.manager.atomic_balance_update(Decimal(-1), "fee", session_id=session_id):
            pass
        assert run.manager.get_current_balance(session_id) == 998.75
        after = datetime.now(UTC)
        own_postgres.start()
        assert run.relay.drain(timeout=LONG)
        status = run.box.status()
        assert (status.dead_letters, status.alarms) == (0, {})
        mine = f"WHERE session_id = {session_id} ORDER BY id"
        assert run.rows(f"SELECT id, side, size, stop_loss FROM positions {mine}") == [
            (first, "LONG", Decimal("1.5"), Decimal("0.5")),
            (second, "SHORT", Decimal(2), None),
        ]
        for entered, updated in run.rows(f"SELECT entry_time, updated_at FROM positions {mine}"):
            assert before <= entered <= updated <= after
        stamps = [row[0] for row in run.rows(f"SELECT last_updated FROM account_balances {mine}")]
        assert stamps == sorted(set(stamps))
        assert run.rows("SELECT name, value FROM counters ORDER BY name") == [("positions", 6), ("x", 1)]
        assert run.manager.get_current_balance(session_id) == 998.75
        events = run.rows("SELECT timestamp FROM system_events WHERE message LIKE 'balance 99%'")
        assert len(events) == 2
        assert all(at < after.replace(tzinfo=None) for (at,) in events)


class Frank(NastyManager):
    """Tells under which limit it runs."""

    def limit(self) -> bool:
        with self.get_session() as session:
            name = session.scalar(text("SELECT current_setting('statement_timeout')"))
            session.execute(text("INSERT INTO counters VALUES (:name, 1)"), {"name": name})
            session.commit()
        return True


def test_a_setting_of_one_call_does_not_reach_the_next(postgres_url: str, outbox_dir: Path) -> None:
    operations = (*OPERATIONS, ManagerOperation("limit", returns=True))
    with Outbox.open(outbox_dir) as box:
        durable: Any = DurableDatabaseManager(functools.partial(Frank, postgres_url), box, operations)
        durable.create_trading_session("s")
        position_id = durable.log_position("long", 1)
        # It has 100 s; what comes behind it in the same transaction must have the relay's own limit again.
        durable.update_position(position_id, stop_loss=1)
        durable.limit()
        assert Relay(box, PostgresTarget(postgres_url, durable.outbox_operations)).drain(LONG)
        status = box.status()
        assert (status.completed, status.dead_letters) == (4, 0)
        with durable._host.built.engine.connect() as connection:
            limits = connection.execute(text("SELECT name FROM counters WHERE name <> 'positions'")).scalars().all()
        assert limits == [f"{OutboxConfig().stall_timeout:g}s"]
        durable.detach_outbox()
        durable.close()


def test_replay_around_the_session_factory_stops_and_writes_nothing(postgres_url: str, outbox_dir: Path) -> None:
    with running(postgres_url, outbox_dir, relay=False) as run:
        run.manager.create_trading_session("s")
        # A rehearsal ends where the method first turns to its session.
        run.manager.bump_and_go_around("around")
        assert not run.relay.drain(timeout=1.0)
        status = run.box.status()
        assert status.pending
        assert status.dead_letters == 0
        assert "connection of its own" in (status.relay.last_error or "")
        assert run.rows("SELECT * FROM counters") == []


def test_an_error_of_the_hosts_own_is_a_refusal_and_not_an_outage(postgres_url: str, outbox_dir: Path) -> None:
    with running(postgres_url, outbox_dir) as run:
        run.manager.create_trading_session("s")
        run.manager.update_balance(10)
        with pytest.raises(InsufficientFunds), run.manager.atomic_balance_update(-11, "too much"):
            pass
        assert run.manager.get_current_balance() == 10.0


def test_commit_before_an_error_stays_and_the_error_is_raised(postgres_url: str, outbox_dir: Path) -> None:
    with running(postgres_url, outbox_dir) as run:
        run.manager.create_trading_session("s")
        position_id = run.manager.log_position("long", 2000)
        with pytest.raises(RuntimeError, match="large"):
            run.manager.close_position(position_id)
        assert run.rows("SELECT status FROM positions") == [("CLOSED",)]
        assert run.box.status().dead_letters == 0


def test_numpy_values_are_taken(postgres_url: str, outbox_dir: Path) -> None:
    numpy = pytest.importorskip("numpy")
    with running(postgres_url, outbox_dir) as run:
        run.manager.create_trading_session("s")
        run.manager.update_balance(numpy.float64(12.5))
        position_id = run.manager.log_position("long", numpy.float64(0.1))
        run.manager.update_position(position_id, stop_loss=numpy.float32(0.5))
        assert run.rows("SELECT size, stop_loss FROM positions") == [(Decimal("0.1"), Decimal("0.5"))]
        assert run.manager.get_current_balance() == 12.5


def test_naive_and_aware_times_of_the_caller_are_kept(postgres_url: str, outbox_dir: Path) -> None:
    with running(postgres_url, outbox_dir) as run:
        run.manager.create_trading_session("s")
        aware = datetime(2024, 1, 2, 3, 4, 5, 6, tzinfo=UTC) + timedelta(hours=1)
        run.manager.log_position("long", 1, entry_time=aware)
        run.manager.log_position("long", 1, entry_time=aware.replace(tzinfo=None))
        assert run.rows("SELECT entry_time AT TIME ZONE 'UTC' FROM positions") == [(aware.replace(tzinfo=None),)] * 2


@pytest.mark.parametrize(
    ("operation", "why"),
    [
        (ManagerOperation("no_such_method"), "no_such_method"),
        (ManagerOperation("bump", identity="nothing"), "'nothing'"),
        (ManagerOperation("bump", order_by="nothing"), "'nothing'"),
        (ManagerOperation("bump", identity=(("name",), ("nothing",))), "'nothing'"),
    ],
)
def test_a_declaration_that_does_not_fit_fails_at_once(
    postgres_url: str, outbox_dir: Path, operation: ManagerOperation, why: str
) -> None:
    with Outbox.open(outbox_dir) as box, pytest.raises(ConfigError, match=why):
        DurableDatabaseManager(functools.partial(NastyManager, postgres_url), box, [operation])
