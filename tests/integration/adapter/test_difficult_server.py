"""PostgreSQL answers, but not as it should: nothing wrong is shown, nothing wrong is written, nobody waits for long."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from sqlalchemy import create_engine, event, text
from sqlalchemy.exc import ProgrammingError, SQLAlchemyError
from sqlalchemy.orm import sessionmaker

from outbox import Outbox, OutboxConfig, PostgresTarget, Relay
from outbox.integrations.durable import TRADING_OPERATIONS, DurableDatabaseManager, ManagerOperation, NotCaughtUp
from outbox.integrations.manager import away
from outbox.integrations.roles import Balance as Role
from outbox.integrations.trading_engine import wire
from outbox.testing import PostgresServer
from tests.unit.fakes.waiting import LONG

from .locks import HELD_S, locked
from .small import Balance, Scene, SmallManager, scene


class Quiet(SmallManager):
    """It answers 0 where it cannot read the balance, and goes on with other statements."""

    def get_current_balance(self, session_id: int | None = None) -> Decimal:
        with self.session_factory() as session:
            found = self._or_nothing(session, session_id)
            session.execute(text("SELECT count(*) FROM trades"))
            return found

    def _or_nothing(self, session: Any, session_id: int | None) -> Decimal:
        try:
            with session.begin_nested():
                session.execute(text("SET LOCAL lock_timeout = '50ms'"))
                return self._balance(session, session_id or self._current_session_id)
        except SQLAlchemyError:
            return Decimal(0)

    def change_balance(self, amount: Any, session_id: int | None = None) -> bool:
        with self.session_factory.begin() as session:
            total = self._or_nothing(session, session_id) + amount
            session.add(Balance(session_id=session_id or self._current_session_id, total=total))
        return True


class Wrapping(SmallManager):
    """It makes errors of its own of all others."""

    def get_current_balance(self, session_id: int | None = None) -> Decimal:
        try:
            return super().get_current_balance(session_id)
        except Exception as exc:
            raise RuntimeError("no balance") from exc


class Trying(SmallManager):
    """It works with tables of two versions."""

    def get_current_balance(self, session_id: int | None = None) -> Decimal:
        with self.session_factory() as session:
            try:
                with session.begin_nested():
                    return Decimal(session.scalar(text("SELECT total - reserved FROM account_balances")))
            except ProgrammingError:
                return self._balance(session, session_id or self._current_session_id)


_OPERATIONS = (*TRADING_OPERATIONS, ManagerOperation("change_balance", balance=Role.CHANGE, amount="amount"))


def execute(url: str, sql: str) -> None:
    connection = psycopg2.connect(url)
    connection.autocommit = True
    connection.cursor().execute(sql)
    connection.close()


@contextmanager
def trader(server: PostgresServer, url: str) -> Iterator[str]:
    """The URL of a login without privileges but those that it is granted."""
    name = f"trader_{url.rpartition('_')[2][:8]}"
    execute(url, f"CREATE ROLE {name} LOGIN; GRANT ALL ON SCHEMA public TO {name}")
    try:
        yield server.url(url.rpartition("/")[2], user=name)
    finally:
        execute(url, f"DROP OWNED BY {name}; DROP ROLE {name}")


def grant(url: str, name: str) -> None:
    execute(
        url,
        f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {name}; GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO {name}",
    )


def traded(made: Scene) -> None:
    """A session whose balance is 950, all of it delivered and looked at."""
    session_id = made.manager.create_trading_session("s", 1000)
    made.manager.update_balance(Decimal(950), "trade")
    with made.manager.atomic_balance_update(Decimal(-1), "fee"):
        pass
    with made.manager.atomic_balance_update(Decimal(1), "refund"):
        pass
    assert made.drain()
    assert made.manager._adapter.keeper.observe(session_id)
    assert made.manager.get_current_balance() == 950


@contextmanager
def renamed(url: str) -> Iterator[None]:
    execute(url, "ALTER TABLE account_balances RENAME TO moved")
    yield
    execute(url, "ALTER TABLE moved RENAME TO account_balances")


@pytest.mark.parametrize("manager_class", [SmallManager, Quiet, Wrapping])
def test_balance_is_known_while_its_table_has_another_name(
    manager_class: type, postgres_url: str, outbox_dir: Path
) -> None:
    with scene(postgres_url, outbox_dir, manager_class, wait_s=0.5) as made:
        made.relay.start()
        traded(made)
        with renamed(postgres_url):
            assert made.manager.get_current_balance() == 950
            with pytest.raises(ProgrammingError):
                made.manager._adapter.keeper.observe(made.manager._current_session_id)
            with made.manager.atomic_balance_update(Decimal(-3), "fee") as told:
                assert told["new_balance"] == 947
            assert made.manager.get_current_balance() == 947
        assert made.drain()
        assert made.box.status().dead_letters == 0
        assert not made.box.status().alarms
        assert made.rows("SELECT total FROM account_balances ORDER BY id DESC LIMIT 1") == [(Decimal(947),)]


@pytest.mark.parametrize("manager_class", [SmallManager, Quiet, Wrapping])
def test_balance_is_known_without_the_privilege_to_read_it(
    manager_class: type, postgres_server: PostgresServer, postgres_url: str, outbox_dir: Path
) -> None:
    with trader(postgres_server, postgres_url) as url:
        manager_class(postgres_url).engine.dispose()
        name = url.partition("//")[2].partition("@")[0]
        grant(postgres_url, name)
        with scene(url, outbox_dir, manager_class, wait_s=0.5) as made:
            made.relay.start()
            traded(made)
            execute(postgres_url, f"REVOKE SELECT ON account_balances FROM {name}")
            assert made.manager.get_current_balance() == 950
            with made.manager.atomic_balance_update(Decimal(-3), "fee") as told:
                assert told["new_balance"] == 947
            assert made.manager.get_current_balance() == 947
            grant(postgres_url, name)
            assert made.drain()
            assert made.box.status().dead_letters == 0
            assert not made.box.status().alarms
            assert made.rows("SELECT total FROM account_balances ORDER BY id DESC LIMIT 1") == [(Decimal(947),)]


@pytest.mark.parametrize("manager_class", [SmallManager, Quiet])
def test_balance_is_known_after_an_internal_error(manager_class: type, postgres_url: str, outbox_dir: Path) -> None:
    with scene(postgres_url, outbox_dir, manager_class) as made:
        made.relay.start()
        traded(made)
        with unreadable(postgres_url, "XX002"):
            assert made.manager.get_current_balance() == 950


class Silent(SmallManager):
    """It answers 0 where it cannot read the balance."""

    def get_current_balance(self, session_id: int | None = None) -> Decimal:
        try:
            return super().get_current_balance(session_id)
        except SQLAlchemyError:
            return Decimal(0)


def test_balance_is_known_to_a_new_process_without_its_table(
    postgres_url: str, outbox_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with scene(postgres_url, outbox_dir, Silent) as made:
        made.relay.start()
        traded(made)
        session_id = made.manager._current_session_id
    monkeypatch.setattr(away, "_answered", set())
    execute(postgres_url, "ALTER TABLE account_balances RENAME TO moved; CREATE TABLE account_balances (id serial)")
    with scene(postgres_url, outbox_dir, Silent) as made:
        made.relay.start()
        assert made.drain()
        assert made.manager.get_current_balance(session_id) == 950


def test_manager_that_tries_columns_answers_itself(postgres_url: str, outbox_dir: Path) -> None:
    with scene(postgres_url, outbox_dir, Trying) as made:
        made.relay.start()
        traded(made)
        session_id = made.manager._current_session_id
        execute(postgres_url, f"INSERT INTO account_balances (session_id, total) VALUES ({session_id}, 20)")
        assert made.manager.get_current_balance() == 20


def test_write_behind_a_swallowed_timeout_is_made_again(postgres_url: str, outbox_dir: Path) -> None:
    with scene(postgres_url, outbox_dir, Quiet, _OPERATIONS, write_behind=True) as made:
        traded(made)
        made.manager.change_balance(Decimal(1))
        assert made.drain()
        made.manager.change_balance(Decimal(50))
        with unreadable(postgres_url):
            made.relay.step(0.0)
        assert made.drain()
        assert made.rows("SELECT total FROM account_balances ORDER BY id DESC LIMIT 1") == [(Decimal(1001),)]
        assert not made.box.status().alarms


@contextmanager
def unreadable(url: str, sqlstate: str = "57014") -> Iterator[None]:
    """Reading balances fails, by default as where it takes too long, and writing one does not."""
    execute(
        url,
        f"""CREATE FUNCTION slow() RETURNS bool LANGUAGE plpgsql AS $$ BEGIN
               RAISE EXCEPTION 'it cannot be read' USING ERRCODE = '{sqlstate}'; END $$;
           ALTER TABLE account_balances RENAME TO moved;
           CREATE VIEW account_balances AS SELECT * FROM moved WHERE slow()""",
    )
    yield
    execute(url, "DROP VIEW account_balances; ALTER TABLE moved RENAME TO account_balances; DROP FUNCTION slow()")


def test_read_of_a_locked_table_is_answered_locally(postgres_url: str, outbox_dir: Path) -> None:
    with scene(postgres_url, outbox_dir, wait_s=0.2) as made:
        made.relay.start()
        traded(made)
        with locked(postgres_url, "account_balances"):
            assert made.manager.get_current_balance() == 950
            asked: list[str] = []
            event.listen(made.manager.engine, "before_cursor_execute", lambda *given: asked.append(given[2]))
            assert made.manager.get_current_balance() == 950
            # It has waited in vain just before.
            assert asked == []
        assert made.manager.get_current_balance() == 950


class Consistent(SmallManager):
    """It reads within one snapshot."""

    def get_current_balance(self, session_id: int | None = None) -> Decimal:
        with self.session_factory() as session:
            session.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY"))
            return self._balance(session, session_id or self._current_session_id)


def test_read_sets_its_isolation_level(postgres_url: str, outbox_dir: Path) -> None:
    manager: Any = Consistent(postgres_url)
    session_id = manager.create_trading_session("s", 1000)
    with Outbox.open(outbox_dir) as box:
        durable: Any = DurableDatabaseManager(manager, box)
        relay = Relay(box, PostgresTarget(postgres_url, durable.outbox_operations))
        with relay:
            assert relay.drain()
            # Of another writer, so that the manager itself has to answer.
            execute(postgres_url, f"INSERT INTO account_balances (session_id, total) VALUES ({session_id}, 20)")
            assert durable.get_current_balance(session_id) == 20
        durable.detach_outbox()
    manager.engine.dispose()


class Pooled(Quiet):
    """It has one connection, and the host may hold it."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.engine.dispose()
        pool = {"pool_size": 1, "max_overflow": 0, "pool_timeout": HELD_S}
        self.engine = create_engine("postgresql+psycopg2://" + url.partition("://")[2], **pool)
        self.session_factory = sessionmaker(bind=self.engine)


def test_read_without_a_connection_is_answered_locally(postgres_url: str, outbox_dir: Path) -> None:
    with scene(postgres_url, outbox_dir, Pooled) as made:
        made.relay.start()
        traded(made)
        began = time.monotonic()
        with made.manager.engine.connect():
            assert made.manager.get_current_balance() == 950
            with made.manager.atomic_balance_update(Decimal(-3), "fee") as told:
                assert told["new_balance"] == 947
        assert time.monotonic() - began < HELD_S
        assert made.manager.get_current_balance() == 947


class Remembering(SmallManager):
    """It keeps in an attribute what it has written."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.recent: list[str] = []

    def log_trade(self, symbol: str, note: Any = None, session_id: int | None = None) -> int:
        made = super().log_trade(symbol, note, session_id)
        self.recent.append(symbol)
        return made


def test_parked_call_is_waited_for_once(postgres_url: str, outbox_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By every kind of read: an operation may be parked for hours, and the loop must go on."""
    with scene(postgres_url, outbox_dir, Remembering, wait_s=0.5) as made:
        made.relay.start()
        traded(made)
        waits: list[float] = []
        wait = made.box.progress.wait

        def counting(reached: Callable[[], bool], timeout: float, **options: Any) -> bool:
            waits.append(timeout)
            return wait(reached, timeout, **options)

        monkeypatch.setattr(made.box.progress, "wait", counting)
        execute(postgres_url, "ALTER TABLE trades RENAME TO moved")
        made.manager.log_trade("BTC")
        for _ in range(5):
            assert made.manager.get_current_balance() == 950
            with pytest.raises(NotCaughtUp, match="count_trades"):
                made.manager.count_trades()
            with pytest.raises(NotCaughtUp, match="self.recent"):
                _ = made.manager.recent
        assert len(waits) == 1
        execute(postgres_url, "ALTER TABLE moved RENAME TO trades")
        assert made.drain()
        assert made.manager.recent == ["BTC"]
        assert made.manager.count_trades() == 1


class Recording(SmallManager):
    """Its constructor writes."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        with self.session_factory.begin() as session:
            session.execute(text("INSERT INTO trades (symbol) VALUES ('started')"))


def test_engine_starts_beside_a_read_only_server(postgres_url: str, outbox_dir: Path) -> None:
    with scene(postgres_url, outbox_dir, Recording) as made:
        traded(made)
    execute(postgres_url, f"ALTER DATABASE {postgres_url.rpartition('/')[2]} SET default_transaction_read_only = on")
    with Outbox.open(outbox_dir) as box:
        manager: Any = DurableDatabaseManager.of(Recording, box)(postgres_url)
        assert isinstance(manager.log_trade("BTC"), int)
        manager.detach_outbox()


class Engine:
    def __init__(self, manager: Any) -> None:
        self.db_manager = manager

    def enter_close_only(self, reason: str) -> None:
        """No new entries."""


def test_engine_is_wired_beside_a_read_only_server(postgres_url: str, outbox_dir: Path) -> None:
    with scene(postgres_url, outbox_dir) as made:
        traded(made)
    database = postgres_url.rpartition("/")[2]
    execute(postgres_url, f"ALTER DATABASE {database} SET default_transaction_read_only = on")
    engine = Engine(SmallManager(postgres_url))
    with wire(engine, config=OutboxConfig(dir=str(outbox_dir), database_url=postgres_url, min_free_mb=0)) as wiring:
        assert isinstance(engine.db_manager.log_trade("BTC"), int)
        execute(postgres_url, f"BEGIN READ WRITE; ALTER DATABASE {database} RESET ALL; COMMIT")
        engine.db_manager.engine.dispose()
        assert wiring.relay is not None
        assert wiring.relay.drain(timeout=LONG)
        assert made.rows("SELECT symbol FROM trades") == [("BTC",)]
    engine.db_manager.engine.dispose()
