"""Preflight: an attribute that the setter of `session_factory` assigns is the session factory by another name."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import create_engine, select
from sqlalchemy.orm import scoped_session, sessionmaker

from outbox import ConfigError
from outbox.integrations.durable import ManagerOperation
from outbox.integrations.preflight.preflight import Fit, Kind, look

from .managers_that_misfit import URL, Trade


class Desk:
    """Calls its session factory otherwise, as managers do that were written for nobody else."""

    def __init__(self, url: str = URL) -> None:
        self._engine = create_engine(url)
        self.Sessions: Any = sessionmaker(bind=self._engine)

    def book(self, symbol: str) -> None:
        with self.Sessions.begin() as session:
            session.add(Trade(symbol=symbol))

    def booked(self) -> list[str]:
        with self.Sessions() as session:
            return list(session.scalars(select(Trade.symbol)))


class Named(Desk):
    @property
    def session_factory(self) -> Any:
        return self.Sessions

    @session_factory.setter
    def session_factory(self, factory: Any) -> None:
        self.Sessions = factory


class Registered(Desk):
    """Makes a registry of the factory, and writes by that."""

    def __init__(self, url: str = URL) -> None:
        super().__init__(url)
        self.Sessions = scoped_session(self.Sessions)

    session_factory = Named.session_factory


class Inner:
    def __init__(self, factory: Any) -> None:
        self.factory = factory


class Handed(Named):
    """Writes by a part of it, which its copies share: the setter would change it for all of them."""

    def __init__(self, url: str = URL) -> None:
        super().__init__(url)
        self.inner = Inner(self.Sessions)

    @property
    def session_factory(self) -> Any:
        return self.inner.factory

    @session_factory.setter
    def session_factory(self, factory: Any) -> None:
        self.inner.factory = factory

    def book(self, symbol: str) -> None:
        with self.inner.factory.begin() as session:
            session.add(Trade(symbol=symbol))


def fit_of(manager_class: Any, *, built: bool) -> Fit:
    return look(manager_class, [ManagerOperation("book")], manager=manager_class() if built else None)


@pytest.mark.parametrize("built", [False, True])
@pytest.mark.parametrize("manager_class", [Named, Registered])
def test_attribute_behind_the_settable_factory_is_accepted(manager_class: Any, built: bool) -> None:
    fit = fit_of(manager_class, built=built)
    fit.check()
    kinds = {method.name: method for method in fit.methods}
    assert kinds["book"].kind is Kind.DURABLE
    assert "a read that an outage does not answer" in kinds["booked"].reason


@pytest.mark.parametrize("built", [False, True])
def test_way_out_that_a_refusal_names_leads_out(built: bool) -> None:
    with pytest.raises(ConfigError, match="self.Sessions is one: rename it, or add a property session_factory with a"):
        fit_of(Desk, built=built).check()


def test_part_that_the_setter_changes_for_all_is_refused() -> None:
    with pytest.raises(ConfigError, match="self.inner, which is a Inner with a session factory"):
        fit_of(Handed, built=True).check()


def test_mapped_class_is_no_manager() -> None:
    """Its objects are rows, which the engine of such a bot changes and saves itself."""
    fit = look(Trade, (ManagerOperation("close"),))
    with pytest.raises(ConfigError, match="Trade is a mapped class, and its objects are rows"):
        fit.check()
