"""The durable manager as a Python object: what tests, monitoring and hosts do with a manager works with it."""

from __future__ import annotations

import copy
import gc
import inspect
import pickle
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import pytest
from sqlalchemy.exc import ArgumentError, OperationalError

from outbox import ConfigError
from outbox.integrations.durable import TRADING_OPERATIONS, DurableDatabaseManager, ManagerOperation
from outbox.integrations.trading_engine import Wiring, wire
from outbox.testing import PostgresServer
from tests.unit.fakes.waiting import LONG

from . import scripted
from .scripted import Engine, Manager, Timed, config

Durable = DurableDatabaseManager.of(Manager)


@pytest.fixture(params=[Manager, Durable], ids=["wired", "of"])
def wired(request: pytest.FixtureRequest, postgres_url: str, outbox_dir: Path) -> Iterator[Any]:
    """A wired manager in a session with a balance of 100, made either way."""
    manager = request.param(postgres_url)
    engine = Engine(manager)
    with wire(engine, config=config(outbox_dir, postgres_url)) as wiring:
        db: Any = engine.db_manager
        db.create_trading_session("s", "I", "1d", "paper", Decimal(100))
        db.update_balance(Decimal(100), "start")
        db.wiring = wiring
        yield db
    manager.close()


def recorded(db: Any) -> int:
    wiring: Wiring = db.wiring
    assert wiring.outbox is not None
    return wiring.outbox.status().acknowledged


def test_class_of_the_durable_manager_is_a_subclass(wired: Any) -> None:
    plain: Any = wired._host.built
    assert isinstance(wired, Manager)
    assert issubclass(type(wired), Manager)
    assert issubclass(Durable, Manager)
    assert inspect.signature(Durable) == inspect.signature(Manager)
    assert inspect.signature(wired.update_balance) == inspect.signature(plain.update_balance)


def test_members_of_every_kind_are_the_managers(wired: Any) -> None:
    assert (wired.LIMIT, wired.Settings.retries, wired.engine_name) == (5, 3, "scripted")
    assert (Durable.LIMIT, Durable.Settings, Durable.doubled(4)) == (5, Manager.Settings, 8)
    assert (len(wired), wired[3], wired(9), repr(wired)) == (5, 3, 9, "<Manager of scripted>")
    assert wired.secret() == 7
    assert wired.token is wired.token
    assert wired.balance == 100.0
    assert wired == copy.copy(wired)
    assert (type(wired).__name__, type(wired).__module__) == ("Manager", Manager.__module__)
    assert hash(wired) == hash("manager")
    assert not hasattr(wired, "missing")
    with pytest.raises(AttributeError, match="'missing'"):
        wired.missing  # noqa: B018 - read
    assert {"engine", "session_factory", "_Manager__secret"} <= vars(wired).keys()
    assert {"engine", "log_trade", "secret", "LIMIT"} <= set(dir(wired))


def test_context_manager_of_the_manager_gives_the_durable_one(wired: Any) -> None:
    with wired as entered:
        assert entered is wired
    made: Any = Durable.at("postgresql://nobody@127.0.0.1:1/none")
    assert type(made) is Durable


def test_further_manager_of_its_class_is_made_as_the_plain_one(wired: Any, postgres_url: str) -> None:
    for further in (wired.at(postgres_url), type(wired)(postgres_url)):
        assert isinstance(further, Manager)
        assert further != wired
        assert further.get_current_balance(wired._current_session_id) == 100.0
        further.close()
    with pytest.raises(TypeError):
        type(wired)()
    assert inspect.signature(type(wired)) == inspect.signature(Manager)


def test_attribute_set_on_either_object_is_seen_on_both(wired: Any) -> None:
    plain = wired._host.built
    wired.engine_name = "new"
    assert plain.engine_name == repr(plain)[12:-1] == "new"
    plain.fresh = 1
    assert wired.fresh == 1
    del wired.fresh
    assert not hasattr(plain, "fresh")
    with pytest.raises(AttributeError):
        del wired.fresh


def test_method_set_on_the_object_reads_back_and_is_called(wired: Any) -> None:
    double = mock.MagicMock(return_value=False)
    wired.update_balance = double
    assert wired.update_balance is double
    assert wired.record_fill(1) is False
    double.assert_called_once_with(Decimal(1), "fill")
    del wired.update_balance
    assert wired.record_fill(101) is True
    assert wired.balance == 101.0
    with pytest.raises(AttributeError):
        del wired.update_balance


def test_timed_method_stays_durable_without_recursion(wired: Any) -> None:
    wired.update_balance = timed = Timed(wired.update_balance)
    before = recorded(wired)
    assert wired.update_balance(Decimal(101), "x") is True
    assert wired.record_fill(102) is True
    assert (timed.calls, recorded(wired) - before, wired.balance) == (2, 2, 102.0)


def test_timed_helper_is_used_once_and_stays_durable(wired: Any) -> None:
    """A replay and a rehearsal run on copies; what surrounds a helper must not send them to the manager itself."""
    wired.get_session = timed = Timed(wired.get_session)
    before = recorded(wired)
    assert wired.update_balance(Decimal(101), "x") is True
    assert wired.wiring.relay.drain(timeout=LONG)
    assert (recorded(wired) - before, wired.balance) == (1, 101.0)
    assert timed.calls > 0
    del wired.get_session
    assert "get_session" not in vars(wired)


def test_double_of_a_read_is_not_what_postgresql_holds(wired: Any) -> None:
    """The local view is renewed from the manager; an answer that a test made up must not get into it."""
    session_id = wired._current_session_id
    keeper = wired._adapter.keeper
    with mock.patch.object(wired, "get_current_balance", return_value=-5.0):
        assert wired.get_current_balance(session_id) == -5.0
        assert wired.balance == -5.0
        assert wired.wiring.relay.drain(timeout=LONG)
        assert keeper.observe(session_id)
        assert keeper.view.balance(session_id) == 100
    assert wired.balance == 100.0


def test_mock_that_wraps_the_method_is_durable(wired: Any) -> None:
    wired.update_balance = mock.MagicMock(wraps=wired.update_balance)
    before = recorded(wired)
    assert wired.record_fill(103) is True
    wired.update_balance.assert_called_once()
    assert (recorded(wired) - before, wired.balance) == (1, 103.0)


@pytest.mark.parametrize("target", ["object", "class", "plain class"])
@pytest.mark.parametrize("autospec", [False, True])
def test_patched_method_is_called_and_nothing_stays_behind(wired: Any, target: str, autospec: bool) -> None:
    patched: Any = {"object": wired, "class": type(wired), "plain class": Manager}[target]
    before, own = recorded(wired), set(vars(wired))
    with mock.patch.object(patched, "update_balance", autospec=autospec, return_value=44) as double:
        assert wired.update_balance(Decimal(1), "x") == 44
        assert wired.record_fill(1) == 44
        assert double.call_count == 2
    assert recorded(wired) == before
    assert set(vars(wired)) == own
    assert wired.update_balance(Decimal(104), "x") is True
    assert wired.balance == 104.0


def test_class_that_the_host_imported_can_be_patched(wired: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scripted, "Manager", Durable)
    with mock.patch.object(scripted.Manager, "update_balance", return_value=45):
        assert not isinstance(wired, Durable) or wired.record_fill(1) == 45
    with mock.patch("tests.integration.adapter.scripted.Manager", autospec=True) as double:
        made: Any = scripted.Manager("url")
        made.update_balance(1, "x")
        with pytest.raises(TypeError):
            made.update_balance()
        double.assert_called_once_with("url")


def test_patches_that_are_nested_end_in_their_order(wired: Any) -> None:
    with mock.patch.object(wired, "update_balance") as outer:
        with mock.patch.object(wired, "update_balance", return_value=2):
            assert wired.record_fill(1) == 2
        assert wired.update_balance is outer
    with mock.patch.object(wired, "engine") as engine, mock.patch.object(wired, "LIMIT", 6):
        assert (wired.engine, wired.LIMIT, len(wired)) == (engine, 6, 6)
    assert (wired.LIMIT, "LIMIT" in vars(wired)) == (5, False)
    assert wired.record_fill(105) is True


def test_monkeypatch_puts_the_method_back(wired: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wired, "update_balance", lambda *_: "patched")
        patch.setattr(Manager, "_book", lambda *_: "helper")
        assert (wired.update_balance(1), wired.record_fill(1)) == ("patched", "helper")
    before = recorded(wired)
    assert wired.record_fill(106) is True
    assert recorded(wired) == before + 1
    assert "update_balance" not in vars(wired)


def test_copy_has_attributes_of_its_own_and_is_durable(wired: Any) -> None:
    copied = copy.copy(wired)
    copied.fresh = 1
    assert not hasattr(wired, "fresh")
    assert type(copied) is type(wired)
    before = recorded(wired)
    assert copied.update_balance(Decimal(107), "copy") is True
    assert (recorded(wired), wired.balance) == (before + 1, 107.0)


@pytest.mark.parametrize("take", [copy.deepcopy, pickle.dumps])
def test_deep_copy_and_pickle_fail_as_those_of_the_manager(wired: Any, take: Any) -> None:
    with pytest.raises((TypeError, AttributeError)) as plain:
        take(wired._host.built)
    with pytest.raises(type(plain.value)) as durable:
        take(wired)
    assert str(durable.value) == str(plain.value)


def test_object_without_its_constructor_is_a_manager_without(wired: Any) -> None:
    bare: Any = Durable.__new__(Durable)
    assert not hasattr(bare, "missing")
    assert vars(bare) == {}
    bare.session_factory, bare.engine_name = wired.session_factory, "bare"
    assert repr(bare) == "<Manager of bare>"
    assert bare.get_current_balance(wired._current_session_id) == 100.0


def test_constructor_raises_what_is_wrong_with_its_arguments() -> None:
    with pytest.raises(TypeError):
        Durable()  # type: ignore[call-arg]
    with pytest.raises(ArgumentError):
        Durable("no URL")


def test_class_of_can_decorate_a_subclass() -> None:
    @DurableDatabaseManager.of
    class Decorated(Manager):
        LIMIT = 8

    assert (len(Decorated("postgresql://nobody@127.0.0.1:1/none")), Decorated.__name__) == (8, "Decorated")
    assert issubclass(Decorated, DurableDatabaseManager)


def test_class_with_a_metaclass_and_subclass_hook_can_be_stood_for() -> None:
    """Managers may be singletons, and may register their subclasses: those made here are not among them."""
    registered: list[str] = []

    class Single(type):
        made: ClassVar[dict[type, Any]] = {}

        def __call__(cls, *args: Any, **kwargs: Any) -> Any:
            if cls not in Single.made:
                Single.made[cls] = super().__call__(*args, **kwargs)
            return Single.made[cls]

    class One(metaclass=Single):
        def __init__(self, url: str) -> None:
            raise OperationalError("SELECT 1", {}, ConnectionError(url))

        def __init_subclass__(cls, **kwargs: Any) -> None:
            registered.append(cls.__name__)

        def log_trade(self) -> None: ...

    durable = DurableDatabaseManager.of(One)
    assert durable("a") is durable("b")
    assert registered == []

    class Mine(durable):  # type: ignore[misc, valid-type]
        def __init__(self, name: str) -> None:
            self.name = name
            super().__init__("url")

    assert registered == ["Mine"]
    assert list(inspect.signature(Mine).parameters) == ["name"]
    assert Mine("n").name == "n"


def test_durable_object_that_is_collected_leaves_the_manager_open(postgres_url: str, outbox_dir: Path) -> None:
    ended: list[str] = []

    class Ending(Manager):
        def __del__(self) -> None:
            ended.append("ended")

    plain = Ending(postgres_url)
    with wire(Engine(plain), config=config(outbox_dir, postgres_url)):
        """Nothing is called."""
    gc.collect()
    assert ended == []
    plain.close()


def test_no_copy_that_makes_a_call_ends_as_the_manager_does(postgres_url: str, outbox_dir: Path) -> None:
    ended: list[str] = []

    class Ending(Manager):
        def __del__(self) -> None:
            ended.append("ended")
            self.close()

    engine = Engine(Ending(postgres_url))
    with wire(engine, config=config(outbox_dir, postgres_url)):
        session = engine.db_manager.create_trading_session("s", "BTC", "1h", "paper", 1000)
        engine.db_manager.log_event("started", "it runs", session_id=session)
        assert engine.db_manager.get_current_balance(session) == 1000
        gc.collect()
        assert ended == []
    engine.db_manager.close()


def test_subclass_with_super_is_durable_in_an_outage(own_postgres: PostgresServer, outbox_dir: Path) -> None:
    class Mine(Durable):  # type: ignore[misc, valid-type]
        seen = 0

        def update_balance(self, *args: Any, **kwargs: Any) -> Any:
            self.seen += 1
            return super().update_balance(*args, **kwargs)

    url = own_postgres.url()
    engine: Any = Engine(Mine(url))
    with wire(engine, config=config(outbox_dir, url)) as wiring:
        db = engine.db_manager
        db.create_trading_session("s", "I", "1d", "paper", Decimal(100))
        db.update_balance(Decimal(100), "start")
        own_postgres.kill()
        db.log_event = timed = Timed(db.log_event)
        assert db.record_fill(200) is True
        assert (db.balance, db.seen) == (200.0, 2)
        assert db.log_event("e", "m") is None
        assert timed.calls == 1
        own_postgres.start()
        assert wiring.relay is not None
        assert wiring.relay.drain(timeout=LONG)
        assert db._host.built.get_current_balance(db._current_session_id) == 200.0
        db.close()


def test_start_in_an_outage_serves_what_needs_no_manager(own_postgres: PostgresServer, outbox_dir: Path) -> None:
    url = own_postgres.url()
    first: Any = Engine(Durable(url))
    with wire(first, config=config(outbox_dir, url)) as wiring:
        session_id = first.db_manager.create_trading_session("s", "I", "1d", "paper", Decimal(100))
        first.db_manager.update_balance(Decimal(100), "start")
        first.db_manager.close()
    own_postgres.kill()
    db: Any = Durable(url, connect_timeout=30)
    with wire(Engine(db), config=config(outbox_dir, url)) as wiring:
        assert (db.LIMIT, len(db), db.doubled(2), hasattr(db, "missing"), hasattr(db, "__iter__")) == (
            5,
            5,
            4,
            False,
            False,
        )
        with pytest.raises(OperationalError):
            hasattr(db, "engine")
        db.note, db._current_session_id = "early", session_id
        assert db.balance == 100.0
        assert db.is_solvent() is True
        assert db.record_fill(101) is True
        assert (db.balance, db.note, db._current_session_id) == (101.0, "early", session_id)
        db.update_balance = timed = Timed(db.update_balance)
        assert db.record_fill(102) is True
        own_postgres.start()
        assert wiring.relay is not None
        assert wiring.relay.drain(timeout=LONG)
        assert (db.balance, db._host.built.note, timed.calls, db.update_balance) == (102.0, "early", 1, timed)
        db.close()


def test_method_that_a_constructor_replaced_is_still_durable(postgres_url: str, outbox_dir: Path) -> None:
    """A manager that wraps its own methods (retries) would send its callers past the outbox."""

    class Retrying(Manager):
        def __init__(self, url: str) -> None:
            super().__init__(url)
            self.update_balance = Timed(self.update_balance)  # type: ignore[method-assign]
            self.secret = Timed(self.secret)  # type: ignore[method-assign]

    engine: Any = Engine(Retrying(postgres_url))
    plain = engine.db_manager
    with wire(engine, config=config(outbox_dir, postgres_url)) as wiring:
        db = engine.db_manager
        db.create_trading_session("s", "I", "1d", "paper", Decimal(100))
        assert wiring.outbox is not None
        before = wiring.outbox.status().acknowledged
        assert db.update_balance(Decimal(1), "x") is True
        assert wiring.outbox.status().acknowledged == before + 1
        assert db.secret() == 7
        assert plain.secret.calls == 1
        with mock.patch.object(db, "update_balance", return_value=3):
            assert db.update_balance(1) == 3
        assert db.update_balance(Decimal(2), "x") is True
        assert wiring.outbox.status().acknowledged == before + 2
    plain.close()


def test_operation_with_a_private_name_is_durable(postgres_url: str, outbox_dir: Path) -> None:
    class Private(Manager):
        def _save(self, balance: int) -> bool:
            return bool(Manager.update_balance(self, Decimal(balance), "private"))

        def save(self, balance: int) -> bool:
            return self._save(balance)

    engine: Any = Engine(Private(postgres_url))
    operations = (*TRADING_OPERATIONS, ManagerOperation("_save"))
    with wire(engine, config=config(outbox_dir, postgres_url), operations=operations, relay_here=False) as wiring:
        db = engine.db_manager
        db.create_trading_session("s", "I", "1d", "paper", Decimal(100))
        db.save(5)
        assert wiring.outbox is not None
        assert [entry.operation for entry in wiring.outbox.pending()][-1] == "_save"
    db._host.built.close()


def test_manager_with_slots_beside_attributes_is_served(postgres_url: str, outbox_dir: Path) -> None:
    """Python allows no subclass of two classes with slots; attributes are handed on instead."""

    class Slotted(Manager):
        __slots__ = ("note",)
        note: str

        def noted(self) -> str:
            return f"{self.note}: {self.record_fill(3)}"

    engine: Any = Engine(Slotted(postgres_url))
    with wire(engine, config=config(outbox_dir, postgres_url), relay_here=False) as wiring:
        db = engine.db_manager
        db.create_trading_session("s", "I", "1d", "paper", Decimal(100))
        db.note = "n"
        assert isinstance(engine.db_manager, Slotted)
        assert (db.note, db._host.built.note, "note" in vars(db), db.LIMIT, type(db).LIMIT) == ("n", "n", False, 5, 5)
        assert (db.noted(), repr(db), len(db)) == ("n: True", "<Manager of scripted>", 5)
        assert wiring.outbox is not None
        assert [entry.operation for entry in wiring.outbox.pending()][-1] == "update_balance"
        del db.note
        assert not hasattr(db, "note")
    engine.db_manager.close()


def test_manager_with_slots_only_is_refused(postgres_url: str, outbox_dir: Path) -> None:
    class Slotted:
        __slots__ = ("_current_session_id", "engine", "session_factory")

        def __init__(self, inner: Manager) -> None:
            self.engine, self.session_factory = inner.engine, inner.session_factory
            self._current_session_id = None

        def log_trade(self, symbol: str) -> int:
            return 1

    inner = Manager(postgres_url)
    with pytest.raises(ConfigError, match="keeps its attributes in slots only"):
        wire(Engine(Slotted(inner)), config=config(outbox_dir, postgres_url))
    inner.close()


def test_class_of_what_is_no_class_is_refused() -> None:
    manager: Any = 3
    with pytest.raises(ConfigError, match="takes the manager's class, and got a int"):
        DurableDatabaseManager.of(manager)
