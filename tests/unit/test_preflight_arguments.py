"""Preflight: arguments that hold what cannot be stored, and writes that only hand the manager over."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray
from sqlalchemy.dialects.postgresql import insert as pg_insert

from outbox import ConfigError
from outbox.integrations.durable import ManagerOperation
from outbox.integrations.preflight.preflight import Fit, Kind, look

from .managers_that_misfit import Sound, Trade


class Scout(NamedTuple):
    trade: Trade
    ratio: float


class Ticket:
    """Writes by the manager that it is given."""

    def __init__(self, manager: Any, symbol: str) -> None:
        with manager.get_session() as session:
            session.add(Trade(symbol=symbol))


class Feed:
    """It is more than what is set on it."""

    def __getstate__(self) -> object:
        return None


class Holder:
    feed: Feed


class Failure(Exception):
    """It is written in C, in part."""


class Batches(Sound):
    def of_a_feed(self, feed: Feed) -> None:
        self.in_a_list([])

    def of_a_failure(self, failure: Failure) -> None:
        self.in_a_list([])

    def of_a_holder(self, holder: Holder | None) -> None:
        self.in_a_list([])

    def of_a_curve(self, curve: np.ndarray) -> None:
        self.in_a_list([])

    def of_typed_curves(self, curves: dict[str, NDArray[np.float64]]) -> None:
        self.in_a_list([])

    def of_a_size(self, size: np.float64, at: np.datetime64) -> None:
        self.in_a_list([])

    def in_a_list(self, trades: list[Trade]) -> None:
        with self.get_session() as session:
            session.add_all(trades)

    def in_a_dict(self, trades: dict[str, Sequence[Trade | None]]) -> None:
        self.in_a_list([one for some in trades.values() for one in some if one])

    def in_tuples(self, scouts: list[Scout]) -> None:
        self.in_a_list([scout.trade for scout in scouts])

    def by_name(self, trades: list[Trade] | list[str] | str, pair: tuple[str, int]) -> None:
        self.in_a_list([])

    def start_ticket(self, symbol: str) -> Ticket:
        return Ticket(self, symbol)

    def create_database(self) -> None:
        with self.get_session() as session:
            session.add(Trade(symbol="first"))

    def book(self, symbol: str) -> None:
        with self.scope() as s:
            s.add(Trade(symbol=symbol))

    def note(self, symbol: str) -> None:
        with self.scope(commit=True) as s:
            s.execute(pg_insert(Trade).values(symbol=symbol))

    def symbols(self) -> set[str]:
        with self.scope() as s:
            found = {row.symbol for row in s.query(Trade)}
            found.add("cash")
            return found

    @contextmanager
    def scope(self, *, commit: bool = True) -> Iterator[Any]:
        with self.get_session() as session:
            yield session
            if commit:
                session.commit()

    @contextmanager
    def unit(self) -> Iterator[Any]:
        with self.get_session() as session:
            yield session


def fit_of(*names: str) -> Fit:
    return look(Batches, [ManagerOperation(name) for name in names])


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("in_a_list", "'trades' holds a Trade"),
        ("in_a_dict", "'trades' holds a Trade"),
        ("in_tuples", "holds a Trade"),
        ("of_a_feed", "'feed' is a Feed"),
        ("of_a_holder", "'holder' holds a Feed"),
        ("of_a_failure", "'failure' is a Failure"),
        ("of_a_curve", "'curve' is a ndarray"),
        ("of_typed_curves", "'curves' holds a ndarray"),
    ],
)
def test_argument_that_holds_what_no_entry_can_is_refused(name: str, what: str) -> None:
    with pytest.raises(ConfigError, match=f"{what}, which cannot be stored"):
        fit_of(name).check()


def test_argument_that_may_hold_something_else_is_accepted() -> None:
    fit_of("by_name", "of_a_size").check()


def test_write_that_hands_the_manager_over_is_seen() -> None:
    assert "start_ticket" in fit_of("by_name").writes_that_pass


def test_hint_names_the_writes_that_pass() -> None:
    with pytest.raises(ConfigError, match="it has book, by_name, cancel_order, in_a_dict, in_a_list, in_tuples, log_"):
        look(Batches, [ManagerOperation("missing", optional=True)]).check()
    assert not any(one.name == "create_database" and one.warning for one in fit_of("by_name").methods)


@pytest.mark.parametrize("name", ["unit", "scope"])
def test_scope_of_the_manager_is_no_read(name: str) -> None:
    unit = next(one for one in fit_of("by_name").methods if one.name == name)
    assert (unit.kind, unit.reason, unit.warning) == (Kind.PASSES, "", "")


def test_write_by_what_a_scope_yields_is_seen() -> None:
    passing = fit_of("by_name").writes_that_pass
    assert {"book", "note"} <= {*passing}
    assert "symbols" not in passing
