"""Classes whose `__new__` says which object is given: singletons, and a base that chooses a subclass."""

from __future__ import annotations

import gc
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from outbox.integrations.durable import DurableDatabaseManager
from outbox.integrations.trading_engine import wire
from outbox.testing import PostgresServer
from tests.unit.fakes.waiting import LONG

from .scripted import Engine, Manager, config


class Once(Manager):
    """Gives the same object each time, and constructs it once."""

    _only: Any = None
    is_ready: bool

    def __new__(cls, *_: Any, **__: Any) -> Once:
        if cls._only is None:
            cls._only = super().__new__(cls)
            cls._only.is_ready = False
        return cls._only  # type: ignore[no-any-return]

    def __init__(self, url: str, **settings: Any) -> None:
        if not self.is_ready:
            super().__init__(url, **settings)
            self.is_ready = True


class Named(Manager):
    """As many write it: nothing keeps its constructor from running again."""

    _only: Any = None

    def __new__(cls, *_: Any, **__: Any) -> Named:
        if Named._only is None:
            Named._only = object.__new__(cls)
        return Named._only  # type: ignore[no-any-return]


@pytest.fixture(autouse=True)
def no_object_yet() -> None:
    Once._only = Named._only = None


@pytest.mark.parametrize("plain", [Once, Named])
def test_singleton_has_one_durable_manager_in_an_outage_too(
    own_postgres: PostgresServer, outbox_dir: Path, plain: Any
) -> None:
    """Before, a second construction gave a manager without an outbox."""
    durable = DurableDatabaseManager.of(plain)
    url = own_postgres.url()
    engine = Engine(durable(url))
    with wire(engine, config=config(outbox_dir, url)) as wiring:
        session = durable(url).create_trading_session("s", "I", "1d", "paper", Decimal(1))
        durable(url).update_balance(Decimal(3), "x", session_id=session)
        assert wiring.relay is not None
        assert wiring.relay.drain(timeout=LONG)
        own_postgres.kill()
        again = durable(url)
        assert again is engine.db_manager
        assert again.update_balance(Decimal(2), "x", session_id=session) is True
        assert again.get_current_balance() == 2.0
        own_postgres.start()
        assert wiring.relay.drain(timeout=LONG)
    assert plain(url).get_current_balance(session) == 2.0
    plain(url).close()


def test_singleton_that_is_made_in_an_outage_is_built_later(own_postgres: PostgresServer, outbox_dir: Path) -> None:
    durable = DurableDatabaseManager.of(Once)
    url = own_postgres.url()
    with wire(Engine(durable(url)), config=config(outbox_dir, url)):
        session = durable(url).create_trading_session("s", "I", "1d", "paper", Decimal(1))
    Once._only.close()
    Once._only = None
    gc.collect()
    own_postgres.kill()
    engine = Engine(durable(url))
    assert durable(url) is engine.db_manager
    with wire(engine, config=config(outbox_dir, url)) as wiring:
        assert durable(url).update_balance(Decimal(2), "x", session_id=session) is True
        own_postgres.start()
        assert wiring.relay is not None
        assert wiring.relay.drain(timeout=LONG)
        assert durable(url).get_current_balance(session) == 2.0
    Once._only.close()


def test_singleton_of_a_subclass_is_its_own(postgres_url: str) -> None:
    durable = DurableDatabaseManager.of(Once)

    class Mine(durable):  # type: ignore[valid-type,misc]
        """A host's own."""

    assert durable(postgres_url) is durable(postgres_url)
    assert type(Mine(postgres_url)) is Mine
    assert Mine(postgres_url) is Mine(postgres_url)
    Once._only.close()


class Chosen(Manager):
    def __new__(cls, _: str, exchange: str = "a") -> Chosen:
        return object.__new__({"a": First, "b": Second}[exchange] if cls is Chosen else cls)

    def __init__(self, url: str, exchange: str = "a") -> None:
        super().__init__(url)
        self.exchange = exchange

    @property
    def fee(self) -> int:
        return 0


class First(Chosen):
    @property
    def fee(self) -> int:
        return 1


class Second(Chosen):
    @property
    def fee(self) -> int:
        return 2


def test_base_that_chooses_a_subclass_gives_that_one_durable(postgres_url: str, outbox_dir: Path) -> None:
    """Before, it had the properties of the base, and was no object of the subclass."""
    durable = DurableDatabaseManager.of(Chosen)
    for name, kind, fee in (("a", First, 1), ("b", Second, 2)):
        engine = Engine(durable(postgres_url, exchange=name))
        with wire(engine, config=config(outbox_dir / name, postgres_url)):
            assert isinstance(engine.db_manager, kind)
            assert isinstance(engine.db_manager, DurableDatabaseManager)
            assert (engine.db_manager.fee, engine.db_manager.exchange) == (fee, name)
            assert engine.db_manager.create_trading_session("s", "I", "1d", "paper", Decimal(1)) > 0
        engine.db_manager.close()
