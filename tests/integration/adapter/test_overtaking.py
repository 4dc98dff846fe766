"""Nothing undeclared overtakes what is queued, and no read that the manager makes misses it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from sqlalchemy import create_engine, func, select, text
from sqlalchemy.exc import OperationalError

from outbox import PostgresTarget
from outbox.integrations.durable import TRADING_OPERATIONS, ManagerOperation, ManagerRead, NotCaughtUp
from outbox.integrations.view.local_view import UnknownLocally
from outbox.testing import PostgresServer
from tests.unit.fakes.waiting import LONG, until

from .small import Order, Scene, SmallManager, Trade, scene


@pytest.fixture
def here(postgres_url: str, outbox_dir: Path) -> Any:
    with scene(postgres_url, outbox_dir) as made:
        yield made


@pytest.mark.parametrize("write_behind", [False, True])
def test_undeclared_write_waits_for_what_is_before_it(postgres_url: str, outbox_dir: Path, write_behind: bool) -> None:
    with scene(postgres_url, outbox_dir, write_behind=write_behind) as here:
        here.relay.start()
        for number in range(5):
            assert here.manager.cancel_order(here.manager.create_order_journal_entry(f"c{number}")) == 1
        assert here.rows("SELECT DISTINCT status FROM orders") == [("cancelled",)]


def test_undeclared_write_that_would_overtake_is_refused(here: Scene) -> None:
    order = here.manager.create_order_journal_entry("c1")
    with pytest.raises(NotCaughtUp, match="cancel_order"):
        here.manager.cancel_order(order)
    assert here.drain()
    assert here.manager.cancel_order(order) == 1


def test_undeclared_read_that_would_miss_calls_is_refused(here: Scene) -> None:
    assert here.manager.count_trades() == 0
    here.manager.log_trade("IBM")
    with pytest.raises(NotCaughtUp, match="count_trades"):
        here.manager.count_trades()
    assert here.drain()
    assert here.manager.count_trades() == 1


class WithQuotes(SmallManager):
    """Its market data is in another database."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.quotes = create_engine("sqlite://")

    def quote(self, symbol: str) -> int:
        with self.quotes.connect() as connection:
            return int(connection.scalar(text("SELECT length(:symbol)"), {"symbol": symbol}) or 0)

    def log_trade(self, symbol: str, note: Any = None, session_id: int | None = None) -> int:
        return super().log_trade(symbol, self.quote(symbol), session_id)


class WithReports(SmallManager):
    """Its second engine does not show which database it connects to."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.reports = create_engine("postgresql+psycopg2://", creator=lambda: psycopg2.connect(url))

    def count(self) -> int:
        with self.reports.connect() as connection:
            return int(connection.scalar(text("SELECT count(*) FROM trades")) or 0)


def test_engine_of_an_unknown_database_does_not_overtake(postgres_url: str, outbox_dir: Path) -> None:
    with scene(postgres_url, outbox_dir, WithReports) as here:
        here.manager.log_trade("IBM")
        with pytest.raises(NotCaughtUp):
            here.manager.count()
        assert here.drain()
        assert here.manager.count() == 1
        here.manager.reports.dispose()


def test_another_database_is_read_in_an_outage(postgres_url: str, outbox_dir: Path) -> None:
    """It holds nothing of what is queued, and a delivery may ask it."""
    with scene(postgres_url, outbox_dir, WithQuotes) as here:
        here.manager.log_trade("IBM")
        assert here.manager.quote("IBM") == 3
        assert here.drain()
        assert here.rows("SELECT symbol, note FROM trades") == [("IBM", "3")]


def test_refusal_that_the_manager_swallows_is_raised(here: Scene) -> None:
    here.manager.log_trade("IBM")
    with pytest.raises(NotCaughtUp, match="count_trades works on"):
        here.manager.count_trades_quietly()
    assert here.drain()
    assert here.manager.count_trades_quietly() == 1


def test_refusal_that_an_outer_method_swallows_is_raised(here: Scene) -> None:
    here.manager.log_trade("IBM")
    with pytest.raises(NotCaughtUp, match="calls before it are not delivered"):
        here.manager.count_or_nothing()
    assert here.drain()
    assert here.manager.count_or_nothing() == 1


@pytest.mark.parametrize("call", [lambda m: m.get_current_balance(), lambda m: m.count_trades()])
def test_first_batch_that_takes_long_is_waited_for_once_more(
    postgres_url: str, outbox_dir: Path, monkeypatch: pytest.MonkeyPatch, call: Callable[[Any], Any]
) -> None:
    """Over a long line the first call's wait is over before the relay has connected and looked at what it changes."""
    may_deliver, apply = threading.Event(), PostgresTarget.apply

    def applied_late(*args: Any) -> Any:
        assert may_deliver.wait(LONG)
        return apply(*args)

    monkeypatch.setattr(PostgresTarget, "apply", applied_late)
    with scene(postgres_url, outbox_dir, wait_s=0.05) as s:
        s.relay.start()
        until(lambda: bool(s.box.progress.delivering))
        session = s.manager.create_trading_session("s", Decimal(100))
        s.manager.update_balance(Decimal(7), "x", session)
        s.manager.log_trade("IBM")
        assert s.box.status().pending == 3
        wait = s.box.progress.wait

        def waits(is_over: Callable[[], bool], _: float) -> bool:
            may_deliver.set()
            return wait(is_over, LONG)

        monkeypatch.setattr(s.box.progress, "wait", waits)
        assert call(s.manager) in (7, 1)


class Scoped(SmallManager):
    """Takes its sessions from a public method."""

    @contextmanager
    def session_scope(self) -> Iterator[Any]:
        session = self.session_factory()
        try:
            yield session
            session.commit()
        except Exception:
            session.rollback()
            raise
        finally:
            session.close()

    def count_trades_quietly(self) -> int:
        try:
            with self.session_scope() as session:
                return int(session.scalar(select(func.count()).select_from(Trade)) or 0)
        except Exception:  # noqa: BLE001 - as seen
            return 0


def test_refusal_that_passed_a_scope_is_raised_again(postgres_url: str, outbox_dir: Path) -> None:
    """The end of the scope was taken for another try, with success."""
    with scene(postgres_url, outbox_dir, Scoped) as here:
        here.manager.log_trade("IBM")
        with pytest.raises(NotCaughtUp):
            here.manager.count_trades_quietly()
        assert here.drain()
        assert here.manager.count_trades_quietly() == 1


def test_refusal_that_a_method_tries_again_is_forgotten(here: Scene) -> None:
    here.manager.log_trade("IBM")
    here.manager.between_tries = here.drain
    assert here.manager.count_with_another_try() == 1


def test_session_of_the_host_may_read_but_not_write_before_a_drain(here: Scene) -> None:
    here.manager.log_trade("IBM")
    with here.manager.session_factory() as session:
        assert session.scalar(text("SELECT count(*) FROM trades")) == 0
        with pytest.raises(NotCaughtUp, match="a statement of the host"):
            session.execute(text("UPDATE trades SET symbol = 'x'"))
    assert here.drain()
    with here.manager.session_factory.begin() as session:
        session.execute(text("UPDATE trades SET symbol = 'x'"))
    assert here.rows("SELECT symbol FROM trades") == [("x",)]


def test_write_of_another_thread_is_refused(here: Scene) -> None:
    order = here.manager.create_order_journal_entry("c1")
    raised: list[BaseException] = []

    def cancel() -> None:
        try:
            here.manager.cancel_order(order)
        except NotCaughtUp as exc:
            raised.append(exc)

    thread = threading.Thread(target=cancel)
    thread.start()
    thread.join(LONG)
    assert len(raised) == 1


def test_transaction_that_began_before_a_call_goes_on_after_it(here: Scene) -> None:
    with here.manager.session_factory.begin() as session:
        session.execute(text("INSERT INTO trades (symbol) VALUES ('first')"))
        here.manager.log_trade("queued")
        session.execute(text("INSERT INTO trades (symbol) VALUES ('second')"))
    assert here.drain()
    assert sorted(here.rows("SELECT symbol FROM trades")) == [("first",), ("queued",), ("second",)]


def test_function_that_writes_is_no_read_of_the_host(here: Scene) -> None:
    body = "UPDATE trades SET symbol = upper(symbol); SELECT 1::bigint"
    with here.manager.session_factory.begin() as session:
        session.execute(text(f"CREATE FUNCTION mark() RETURNS bigint LANGUAGE sql AS $${body}$$"))
    here.manager.log_trade("queued")
    with here.manager.session_factory() as session, pytest.raises(NotCaughtUp, match="a statement of the host"):
        session.execute(text("SELECT mark()"))
    with here.manager.session_factory() as session:
        assert session.scalar(text("SELECT upper(concat('a', count(*))) FROM trades")) == "A0"


def test_change_in_a_block_of_what_the_block_has_made_is_refused(here: Scene) -> None:
    here.relay.start()
    session_id = here.manager.create_trading_session("ma", 100)
    older = here.manager.create_order_journal_entry("older")
    with here.manager.atomic_balance_update(1, "fill", session_id=session_id):
        order = here.manager.create_order_journal_entry("c1")
        assert here.manager.cancel_order(older) == 1
        with pytest.raises(NotCaughtUp, match="cancel_order changes no row"):
            here.manager.cancel_order(order)
    assert here.manager.cancel_order(order) == 1
    with here.manager.atomic_balance_update(1, "fee", session_id=session_id):
        assert here.manager.cancel_order(999_999) == 0


def test_change_of_what_was_called_within_its_transaction_is_refused(here: Scene) -> None:
    change = text("UPDATE trades SET symbol = 'x'")
    with here.manager.session_factory() as session:
        session.execute(change)
        here.manager.log_trade("queued")
        with pytest.raises(NotCaughtUp, match="a statement of the host changes no row"):
            session.execute(change)
    assert here.drain()
    with here.manager.session_factory.begin() as session:
        session.execute(change)
        session.execute(text("DELETE FROM orders"))
    assert here.rows("SELECT symbol FROM trades") == [("x",)]


@pytest.mark.parametrize(
    "change",
    [
        "WITH w AS (SELECT 1) UPDATE trades SET symbol = 'x' WHERE symbol = 'queued'",
        "WITH u AS (UPDATE trades SET symbol = 'x' WHERE symbol = 'queued' RETURNING id) SELECT id FROM u",
        "INSERT INTO orders (client_order_id, status) SELECT symbol, 'x' FROM trades WHERE symbol = 'queued'",
    ],
)
def test_statement_that_looks_for_a_queued_row_is_refused(here: Scene, change: str) -> None:
    with here.manager.session_factory() as session:
        session.execute(text("UPDATE trades SET symbol = 'x'"))
        here.manager.log_trade("queued")
        with pytest.raises(NotCaughtUp, match="a statement of the host changes no row"):
            session.execute(text(change))


def test_statement_for_many_rows_is_refused_if_one_is_queued(here: Scene) -> None:
    """The driver gives the sum, which hides that one of them found no row."""
    change = text("UPDATE trades SET note = 'x' WHERE symbol = :symbol")
    with here.manager.session_factory() as session:
        session.execute(text("INSERT INTO trades (symbol) VALUES ('first'), ('second')"))
        here.manager.log_trade("queued")
        done: Any = session.execute(change, [{"symbol": "first"}, {"symbol": "second"}])
        assert done.rowcount == 2
        with pytest.raises(NotCaughtUp, match="a statement of the host changes no row"):
            session.execute(change, [{"symbol": "queued"}, {"symbol": "first"}])


def test_transaction_that_has_only_read_does_not_overtake(here: Scene) -> None:
    """It was taken for one that comes before all calls since its beginning, and wrote before them."""
    change = text("UPDATE orders SET status = 'expired' WHERE status = 'pending_submit'")
    here.manager.create_order_journal_entry("delivered")
    assert here.drain()
    with here.manager.session_factory() as session:
        assert session.scalar(text("SELECT count(*) FROM orders")) == 1
        here.manager.create_order_journal_entry("queued")
        with pytest.raises(NotCaughtUp, match="a statement of the host works on"):
            session.execute(change)
        assert here.drain()
        session.execute(change)
        session.commit()
    assert here.rows("SELECT status FROM orders") == [("expired",)] * 2


def test_transaction_that_holds_a_lock_goes_on_after_a_call(here: Scene) -> None:
    """The call may wait for the lock, so the transaction cannot wait for the call."""
    here.manager.create_order_journal_entry("delivered")
    assert here.drain()
    with here.manager.session_factory.begin() as session:
        session.execute(text("SELECT id FROM orders FOR UPDATE"))
        here.manager.create_order_journal_entry("queued")
        session.execute(text("UPDATE orders SET status = 'expired'"))
    assert here.drain()
    assert sorted(here.rows("SELECT status FROM orders")) == [("expired",), ("pending_submit",)]


def test_statement_in_autocommit_does_not_overtake(here: Scene) -> None:
    engine = here.manager.engine.execution_options(isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text("INSERT INTO trades (symbol) VALUES ('first')"))
        here.manager.create_order_journal_entry("queued")
        with pytest.raises(NotCaughtUp, match="a statement of the host works on"):
            connection.execute(text("UPDATE orders SET status = 'expired'"))
        assert here.drain()
        connection.execute(text("UPDATE orders SET status = 'expired'"))
    assert here.rows("SELECT status FROM orders") == [("expired",)]


def test_read_that_may_be_stale_does_not_wait(postgres_url: str, outbox_dir: Path) -> None:
    operations = (
        *TRADING_OPERATIONS,
        ManagerRead("count_trades", reads_stale=True),
        ManagerRead("cancel_order", reads_stale=True),
    )
    with scene(postgres_url, outbox_dir, operations=operations) as here:
        order = here.manager.create_order_journal_entry("c1")
        assert here.manager.count_trades() == 0
        with pytest.raises(NotCaughtUp):
            here.manager.cancel_order(order)


class Switch(SmallManager):
    halted: bool = False

    def get_system_halt(self, scope: str = "all") -> dict[str, Any]:
        with self.session_factory() as session:
            count = session.scalar(text("SELECT count(*) FROM orders WHERE client_order_id = :scope"), {"scope": scope})
            return {"scope": scope, "halted": bool(count), "limit": Decimal("1.50")}

    def get_halt_quietly(self) -> bool:
        try:
            return bool(self.get_system_halt()["halted"])
        except OperationalError:
            return True


def test_last_answer_is_kept_through_an_outage_and_a_restart(
    own_postgres: PostgresServer, outbox_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    operations = (
        *TRADING_OPERATIONS,
        ManagerRead("get_system_halt", keep_last=True),
        ManagerRead("get_halt_quietly", keep_last=True),
    )
    url = own_postgres.url()
    with scene(url, outbox_dir, Switch, operations) as here:
        here.relay.start()
        known = here.manager.get_system_halt()
        assert here.manager.get_halt_quietly() is False
        own_postgres.kill()
        assert [here.manager.get_system_halt() for _ in range(3)] == [known] * 3
        assert caplog.text.count("get_system_halt is answered as of") == 1
        # The manager swallows the outage and answers with something else.
        assert here.manager.get_halt_quietly() is False
        with pytest.raises(OperationalError):
            here.manager.get_system_halt("other")
        assert "get_system_halt is answered as of" in here.box.status().notices["kept:get_system_halt"].message
        built = here.manager._host.built
    with scene(url, outbox_dir, lambda _: built, operations) as again:
        answer = again.manager.get_system_halt()
        assert answer == known
        assert type(answer["limit"]) is Decimal
        assert again.manager.outbox_age_s("get_system_halt") >= 0
        own_postgres.start()
        assert again.manager.get_system_halt() == known
        assert "kept:get_system_halt" not in again.box.status().notices


def test_notice_of_a_kept_answer_goes_after_a_restart(own_postgres: PostgresServer, outbox_dir: Path) -> None:
    """A process that was killed in the outage has left it."""
    operations = (*TRADING_OPERATIONS, ManagerRead("get_system_halt", keep_last=True))
    url = own_postgres.url()
    with scene(url, outbox_dir, Switch, operations) as here:
        here.relay.start()
        known = here.manager.get_system_halt()
        own_postgres.kill()
        assert here.manager.get_system_halt() == known
    own_postgres.start()
    with scene(url, outbox_dir, Switch, operations) as again:
        assert "kept:get_system_halt" in again.box.status().notices
        assert again.manager.get_system_halt() == known
        assert "kept:get_system_halt" not in again.box.status().notices


class Tripped(Switch):
    """A switch that the engine trips, and a note that has nothing to do with it."""

    def trip(self, reason: str) -> None:
        with self.session_factory.begin() as session:
            session.add(Order(client_order_id="all", status=reason))

    def add_note(self, note: str) -> None:
        with self.session_factory.begin() as session:
            session.add(Trade(symbol="note", note=note))


def test_kept_answer_is_unknown_while_its_change_waits(own_postgres: PostgresServer, outbox_dir: Path) -> None:
    operations = (
        *TRADING_OPERATIONS,
        ManagerOperation("trip"),
        ManagerOperation("add_note"),
        ManagerRead("get_system_halt", keep_last=True),
    )
    url = own_postgres.url()
    with scene(url, outbox_dir, Tripped, operations) as here:
        here.relay.start()
        assert here.manager.get_system_halt()["halted"] is False
        own_postgres.kill()
        here.manager.add_note("unrelated")
        assert here.manager.get_system_halt()["halted"] is False
        here.manager.trip("drawdown")
        with pytest.raises(UnknownLocally, match="while trip is not delivered"):
            here.manager.get_system_halt()
        built = here.manager._host.built
    with scene(url, outbox_dir, lambda _: built, operations) as again:
        with pytest.raises(UnknownLocally, match="while trip is not delivered"):
            again.manager.get_system_halt()
        own_postgres.start()
        assert again.drain()
        assert again.manager.get_system_halt()["halted"] is True


def test_kept_answer_is_unknown_behind_its_change(own_postgres: PostgresServer, outbox_dir: Path) -> None:
    """A switch that was tripped and delivered before the outage, and not read since, must not read as it did before."""
    operations = (
        *TRADING_OPERATIONS,
        ManagerOperation("trip"),
        ManagerOperation("add_note"),
        ManagerRead("get_system_halt", keep_last=True),
    )
    url = own_postgres.url()
    with scene(url, outbox_dir, Tripped, operations) as here:
        here.relay.start()
        assert here.manager.get_system_halt()["halted"] is False
        here.manager.trip("drawdown")
        here.manager.add_note("unrelated")
        own_postgres.kill()
        with pytest.raises(UnknownLocally, match="trip .entry 1. may have changed it since"):
            here.manager.get_system_halt()
        built = here.manager._host.built
    with scene(url, outbox_dir, lambda _: built, operations) as again:
        with pytest.raises(UnknownLocally, match="trip .entry 1. may have changed it since"):
            again.manager.get_system_halt()
        own_postgres.start()
        again.relay.start()
        assert again.manager.get_system_halt()["halted"] is True
        again.manager.add_note("unrelated")
        own_postgres.kill()
        assert again.manager.get_system_halt()["halted"] is True
    with scene(url, outbox_dir, lambda _: built, operations) as last:
        assert last.manager.get_system_halt()["halted"] is True
        own_postgres.start()
