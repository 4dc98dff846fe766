"""Reads: which of a manager's methods gives which answer, and what its arguments are called."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from outbox import ConfigError
from outbox.integrations.durable import ManagerRead
from outbox.integrations.view.local_view import LocalView, UnknownLocally
from outbox.integrations.view.reads import (
    ACTIVE_SESSION,
    BALANCE,
    LAST_SESSION,
    LOCAL_READS,
    MISSING,
    READ_ORDERS,
    READ_POSITIONS,
    Reads,
)

NOW = datetime(2026, 1, 2, tzinfo=UTC)


class Manager:
    """Answers with what it was asked."""

    def get_cash(self, symbol: str = "all", *, desk: int) -> Any:
        return "cash", symbol, desk

    def get_active_positions(self, session_id: int, /) -> Any:
        return "positions", session_id

    def get_unresolved_orders(self, *args: Any, **kwargs: Any) -> Any:
        return "orders", args, kwargs

    def get_active_session_id(self) -> Any:
        return "active"

    def get_last_session_id(self, strategy_name: str) -> Any:
        return "last", strategy_name


CASH = ManagerRead("get_cash", like=BALANCE, args={"desk": "session_id"})


@pytest.mark.parametrize(
    ("standard", "values", "answer"),
    [
        (BALANCE, (7,), ("cash", "all", 7)),
        (READ_POSITIONS, (7,), ("positions", 7)),
        (READ_ORDERS, (7,), ("orders", (7,), {})),
        (ACTIVE_SESSION, (), "active"),
        (LAST_SESSION, (), MISSING),
        ("recover_last_balance", (7,), MISSING),
    ],
)
def test_question_is_asked_by_the_managers_own_names(standard: str, values: tuple[Any, ...], answer: Any) -> None:
    assert Reads([CASH]).asking(Manager())(standard, *values) == answer


def test_manager_of_standard_names_needs_no_declaration() -> None:
    reads = Reads()
    assert set(reads.names) == set(LOCAL_READS)
    assert all(reads.local(name) is not None for name in LOCAL_READS)


def test_declared_read_takes_the_place_of_the_standard_one() -> None:
    reads = Reads([CASH, ManagerRead("get_system_halt", keep_last=True)])
    assert reads.local(BALANCE) is None
    assert reads.local("get_cash") is CASH
    assert reads.local("get_system_halt") is None
    assert {"get_cash", "get_system_halt"} < set(reads.names)
    assert BALANCE not in reads.names


@pytest.mark.parametrize(
    ("read", "why"),
    [
        (ManagerRead("get_cash", like="cash"), "declared like 'cash', .*get_current_balance"),
        (ManagerRead("get_cash", args={"desk": "session_id"}), "like= is missing"),
        (ManagerRead("cash_of", like=BALANCE), "get_cash is declared like get_current_balance too"),
    ],
)
def test_declaration_of_which_no_table_is_made_is_refused(read: ManagerRead, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        Reads([CASH, read])


@pytest.mark.parametrize(
    "fields",
    [
        {"like": BALANCE, "keep_last": True},
        {"like": BALANCE, "reads_stale": True},
        {"like": BALANCE, "args": {"desk": "session_id", "book": "session_id"}},
    ],
)
def test_declaration_that_contradicts_itself_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        ManagerRead("get_cash", **fields)


def view_of_two() -> LocalView:
    view = LocalView()
    for session_id, balance in ((1, Decimal(10)), (2, Decimal(20))):
        view.observe_session(session_id, balance, {"positions": {}, "orders": {}}, active=True)
    return view


def answer(read: ManagerRead, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return Reads([read]).answer(read.name, inspect.signature(method), args, kwargs, view_of_two(), 2, NOW)


def hidden(*args: Any, **kwargs: Any) -> None:
    """As a decorator hides a signature."""


def test_answer_is_that_of_the_session_that_is_named() -> None:
    cash = Manager().get_cash
    assert answer(CASH, cash, desk=1) == Decimal(10)
    assert answer(CASH, cash, "all", desk=1) == Decimal(10)
    assert answer(CASH, hidden, 1) == Decimal(10)
    assert answer(CASH, hidden, desk=1) == Decimal(10)
    assert answer(CASH, hidden) == Decimal(20)


def test_argument_that_the_view_does_not_know_is_no_answer() -> None:
    """Rather than the answer to another question."""
    with pytest.raises(UnknownLocally, match="get_cash with symbol='ETH'"):
        answer(CASH, Manager().get_cash, "ETH", desk=1)
    with pytest.raises(UnknownLocally, match=r"args\[0\]='ETH'"):
        answer(CASH, hidden, 1, "ETH")
    with pytest.raises(UnknownLocally, match="get_cash with desk=1"):
        answer(ManagerRead("get_cash", like=BALANCE), Manager().get_cash, desk=1)
