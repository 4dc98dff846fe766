"""A team's own test suite runs on the durable class: patches of the class, subclasses, schemas made anew."""

from __future__ import annotations

import abc
import contextlib
import inspect
import sys
import unittest
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import pytest
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.exc import DataError, OperationalError
from sqlalchemy.orm import sessionmaker

from outbox.integrations.durable import DurableDatabaseManager
from outbox.integrations.trading_engine import wire

from .scripted import Engine as TradingEngine
from .scripted import config
from .small import Base, SmallManager, Trade


class Manager(SmallManager, abc.ABC):
    """What tests patch: helpers, constants, hooks of the constructor, a cache."""

    SYMBOLS: ClassVar[frozenset[str]] = frozenset({"A", "B"})
    POOL = 3

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.engine = self.connect(url)
        self.session_factory = sessionmaker(bind=self.engine)
        self.cache: dict[str, Any] = {}
        self._migrate()

    def connect(self, url: str) -> Engine:
        return create_engine("postgresql+psycopg2://" + url.partition("://")[2], pool_size=self.POOL)

    def _migrate(self) -> None:
        self.migrated = True

    def _check(self, symbol: str) -> None:
        if symbol not in self.SYMBOLS:
            raise ValueError(symbol)

    def log_trade(self, symbol: str, note: Any = None, session_id: int | None = None) -> int:
        self._check(symbol)
        made = super().log_trade(symbol, note)
        self._notify(made)
        return made

    def _notify(self, trade: int) -> None:
        self.cache["notified"] = trade

    def get_current_balance(self, session_id: int | None = None) -> Decimal:
        self.cache["reads"] = self.cache.get("reads", 0) + 1
        if "balance" not in self.cache:
            self.cache["balance"] = super().get_current_balance(session_id)
        return Decimal(self.cache["balance"])

    def update_balance(self, new_balance: Any, update_reason: str, session_id: int | None = None) -> bool:
        done = super().update_balance(new_balance, update_reason, session_id)
        self.cache.pop("balance", None)
        return done


Durable = DurableDatabaseManager.of(Manager)
Make = Callable[..., Any]


@pytest.fixture
def make(postgres_url: str, outbox_dir: Path) -> Iterator[Make]:
    """Makes and wires managers of one database."""
    with contextlib.ExitStack() as stack:
        made: list[Any] = []

        def one(cls: Any = Durable) -> Any:
            manager = cls(postgres_url)
            made.append(manager)
            settings = config(outbox_dir.with_name(f"outbox{len(made)}"), postgres_url)
            stack.enter_context(wire(TradingEngine(manager), config=settings))
            return manager

        yield one
        for manager in made:
            assert manager._adapter.outbox.status().alarms == {}
    for manager in made:
        manager.engine.dispose()


def test_mock_in_the_durable_class_is_called_as_in_the_plain_one(make: Make) -> None:
    db = make()
    with mock.patch.object(Durable, "_check") as check, mock.patch.object(Durable, "_notify", autospec=True) as notify:
        made = db.log_trade("unknown")
    check.assert_called_once_with("unknown")
    notify.assert_called_once_with(db, made)
    with pytest.raises(ValueError, match="unknown"):
        db.log_trade("unknown")
    assert db.count_trades() == 1


def test_function_and_constant_in_the_durable_class_are_replayed(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    db, told = make(), []
    monkeypatch.setattr(Durable, "_notify", lambda self, trade: told.append((trade, self.migrated)))
    monkeypatch.setattr(Durable, "SYMBOLS", frozenset({"C"}))
    before = db._adapter.outbox.status().acknowledged
    made = db.log_trade("C")
    assert told == [(made, True)]
    assert db._adapter.outbox.status().acknowledged == before + 1
    with pytest.raises(ValueError, match="A"):
        db.log_trade("A")


def test_function_in_place_of_a_helper_is_replayed(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    db = make()
    monkeypatch.setattr(db, "_check", lambda symbol: None)
    assert db.log_trade("unknown") == 1


def test_constructor_uses_what_was_patched_or_overridden(make: Make, postgres_url: str) -> None:
    class Small(Durable):  # type: ignore[misc, valid-type]
        POOL = 1

        def __init__(self, url: str) -> None:
            self.made = 0
            super().__init__(url)

        def connect(self, url: str) -> Engine:
            self.made += 1
            return super().connect(url)  # type: ignore[no-any-return]

    db = make(Small)
    assert (db.made, db.engine.pool.size(), db.migrated) == (1, 1, True)
    assert type(db._host.built) is Manager
    with mock.patch.object(Durable, "_migrate") as migrate:
        other = make()
    migrate.assert_called_once_with()
    assert not hasattr(other, "migrated")


def test_mock_in_place_of_the_constructor_leaves_it_out() -> None:
    with mock.patch.object(Durable, "__init__", return_value=None), mock.patch.object(Durable, "_check"):
        db: Any = Durable("no URL")
        db.session_factory, db.cache = mock.MagicMock(), {"balance": 2}
        assert db.get_current_balance() == 2
        db.log_event("to the mock")
    db.session_factory.begin.assert_called_once()


def test_function_as_session_factory_is_called(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    db, tries = make(), []
    real = db.session_factory

    def flaky() -> Any:
        tries.append(1)
        raise OperationalError("SELECT 1", None, Exception("down"))

    flaky.begin = flaky  # type: ignore[attr-defined]
    db.log_event("before")
    with monkeypatch.context() as patch:
        patch.setattr(db, "session_factory", flaky)
        with pytest.raises(OperationalError):
            db.create_order_journal_entry("a")
    assert (len(tries), db.session_factory) == (1, real)


def test_traced_session_factory_stays_durable(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    # No test runs, and some library has loaded `unittest.mock`.
    monkeypatch.delenv("PYTEST_CURRENT_TEST")
    assert "unittest.mock" in sys.modules
    db = make()
    real, before = db.session_factory, db._adapter.outbox.status().acknowledged
    with monkeypatch.context() as patch:
        patch.setattr(db, "session_factory", lambda: real())
        made = db.log_trade("A")
    assert db._adapter.outbox.status().acknowledged == before + 1
    assert (made, db.count_trades()) == (1, 1)


def test_function_as_session_factory_is_called_in_unittest(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTEST_CURRENT_TEST")
    db, tries = make(), []

    class Suite(unittest.TestCase):
        def test_failure(self) -> None:
            def flaky() -> Any:
                tries.append(1)
                raise OperationalError("SELECT 1", None, Exception("down"))

            flaky.begin = flaky  # type: ignore[attr-defined]
            with mock.patch.object(db, "session_factory", flaky), pytest.raises(OperationalError):
                db.create_order_journal_entry("a")

    result = unittest.TestResult()
    Suite("test_failure").run(result)
    assert (result.errors, result.failures, len(tries)) == ([], [], 1)


def test_test_in_a_transaction_leaves_nothing_behind(make: Make) -> None:
    db = make()
    with db.engine.connect() as connection, connection.begin() as transaction:
        db.session_factory = sessionmaker(bind=connection, join_transaction_mode="create_savepoint")
        db.log_trade("A")
        assert db.count_trades() == 1
        transaction.rollback()
    db.session_factory = sessionmaker(bind=db.engine)
    assert db.count_trades() == 0


def test_spy_of_a_read_and_learning_leave_caches_alone(make: Make) -> None:
    """The adapter's own reads would fill the cache with the balance before the call."""
    db = make()
    db.create_trading_session("s", Decimal(100))
    for new in range(5):
        db.update_balance(Decimal(new), "set")
        assert db.get_current_balance() == new
    assert db.cache == {"reads": 5, "balance": Decimal(4)}


@pytest.mark.parametrize("again", ["drop", "truncate"])
def test_ids_begin_anew_with_the_tables(make: Make, again: str) -> None:
    db = make()
    assert [db.log_trade("A"), db.log_trade("B")] == [1, 2]
    if again == "drop":
        Base.metadata.drop_all(db.engine)
        Base.metadata.create_all(db.engine)
    else:
        with db.engine.begin() as connection:
            connection.execute(text("TRUNCATE trades RESTART IDENTITY"))
    assert db.log_trade("A") == 1
    other = make()
    with db.session_factory.begin() as session:
        session.add(Trade(symbol="by hand"))
    assert len({db.log_trade("A"), other.log_trade("A"), db.log_trade("B")}) == 3
    assert db.count_trades() == 5


def test_wrong_arguments_are_refused_in_pythons_words(make: Make) -> None:
    db = make()
    with pytest.raises(TypeError) as plain:
        db._host.built.log_trade("A", None, 1, 2)
    with pytest.raises(TypeError) as durable:
        db.log_trade("A", None, 1, 2)
    assert str(durable.value) == str(plain.value)


def test_members_of_an_unwired_manager_can_all_be_looked_at(postgres_url: str) -> None:
    db = Durable(postgres_url)
    assert "log_trade" in dict(inspect.getmembers(db))
    db.engine.dispose()


class Pickled(Manager):
    """Goes to other processes, and connects anew there."""

    def __getstate__(self) -> dict[str, str]:
        return {"url": str(self.engine.url.render_as_string(hide_password=False))}

    def __setstate__(self, state: dict[str, str]) -> None:
        self.__init__(state["url"])  # type: ignore[misc]

    def log_trade(self, symbol: str, note: Any = None, session_id: int | None = None) -> int:
        self.cache["trades"] = self.cache.get("trades", 0) + 1
        return super().log_trade(symbol, note)


def test_manager_that_pickles_its_url_only_keeps_its_state(make: Make) -> None:
    db = make(DurableDatabaseManager.of(Pickled))
    assert [db.log_trade("A"), db.log_trade("A"), db.cache["trades"]] == [1, 2, 2]


class Failing(Manager):
    """Counts its failures, as a breaker does."""

    def log_trade(self, symbol: str, note: Any = None, session_id: int | None = None) -> int:
        try:
            with self.session_factory.begin() as session:
                return int(session.execute(text("SELECT 1 / 0")).scalar_one())
        except DataError:
            self.cache["failures"] = self.cache.get("failures", 0) + 1
            raise


def test_failure_that_a_method_counts_is_counted_once(make: Make) -> None:
    db = make(DurableDatabaseManager.of(Failing))
    with pytest.raises(DataError):
        db.log_trade("A")
    assert db.cache == {"failures": 1}
