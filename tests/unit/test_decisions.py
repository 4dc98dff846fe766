"""Which comparisons of a manager's code tell kinds of calls apart, and which are not computed."""

from __future__ import annotations

import _pydecimal
import argparse
import ast
import email.message
import functools
import smtplib
import tarfile
import unittest.mock
import zipfile
from decimal import Decimal
from enum import Enum
from types import ModuleType
from typing import Any

import pytest

from outbox.integrations.operations import ManagerOperation
from outbox.integrations.roles import Position
from outbox.integrations.view import branches
from outbox.integrations.view.decisions import TEXT, Decision, Unreadable

FEES = {"taker": Decimal(2)}
MAJORS = ("BTC", "ETH")


class Reason(Enum):
    STOP = "stop"


def number(value: Any) -> Decimal:
    """As a number."""
    return value if isinstance(value, Decimal) else Decimal(str(value))


class Deciding:
    """Each method decides in one way, by what its call says or by what it does not."""

    cap = 5
    LIMIT = 10
    rows: Any
    log: Any

    def plain(self, size: float) -> int:
        return 1 if size > 10 else 2

    def converted(self, size: Any) -> int:
        amount = number(size)
        return 1 if amount * 2 > self.LIMIT else 2

    def defaulted(self, size: float = 20.0) -> int:
        return self._tier(size=size)

    def _tier(self, size: float, over: float = 10.0) -> int:
        return 1 if size >= over else 2

    def named(self, reason: str, symbol: str) -> int:
        if reason == Reason.STOP.value or symbol.upper() not in MAJORS:
            return 1
        return 2

    def capped(self, size: float) -> float:
        return min(size, 10.0)

    def signed(self, size: float) -> float:
        return abs(size)

    def nested(self, trade: dict[str, Any]) -> int:
        return 1 if trade["size"] > 10 else 2

    def of_row(self, position_id: int, price: float) -> int:
        row = self.rows.get(position_id)
        return 1 if price > row.stop else 2

    def of_itself(self, size: float) -> float:
        if size > self.cap:
            self.cap += 1
        return max(size, self.cap)

    def refuses(self, size: float) -> None:
        if size < 0:
            raise ValueError(size)
        assert size < 1000
        if size > 100:
            self.log.warning("large")

    def renewed(self, size: Any) -> int:
        rest, _ = size, 1
        rest = number(rest)
        return 1 if rest > size else 2

    def doubled(self, size: Any) -> int:
        a = size + size
        b = a + a
        c = b + b
        d = c + c
        e = d + d
        f = e + e
        g = f + f
        h = g + g
        return 1 if h > 10 else 2

    def rounded(self, size: Any) -> Any:
        return self._quantized(number(size))

    def _quantized(self, amount: Decimal) -> Decimal | None:
        if amount.is_nan():
            return None
        return amount if abs(amount) >= 1000 else amount.quantize(Decimal("0.01"))

    def charged(self, size: float) -> float:
        return self._fee(size)

    def _fee(self, amount: float) -> float:
        return amount * 2 if amount >= 1000 else amount

    def truths(self, session_id: int | None, note: str) -> int:
        session_id = session_id or 1
        return session_id if note else 2

    def asks(self, size: float) -> Any:
        return self.rows.filter(self.rows.size > size)


def outcomes(method: str, row: dict[str, Any] | None = None, **call: Any) -> list[str]:
    operation = ManagerOperation(method, position=Position.OPENS)
    found = branches.of(operation, Deciding).decisions.values()
    outcomes = (one.outcome(call, [] if row is None else [row]) for one in found)
    return [outcome for outcome in outcomes if outcome is not None]


@pytest.mark.parametrize(
    ("method", "call", "expected"),
    [
        ("plain", {"size": 11}, ["size > 10: True"]),
        ("plain", {"size": Decimal(10)}, ["size > 10: False"]),
        ("plain", {"size": None}, []),
        ("plain", {"size": "11"}, []),
        ("converted", {"size": "5.5"}, ["amount * 2 > self.LIMIT: True"]),
        ("converted", {"size": 5}, ["amount * 2 > self.LIMIT: False"]),
        ("defaulted", {}, ["size >= over for size: True"]),
        ("defaulted", {"size": 9.5}, ["size >= over for size: False"]),
        (
            "named",
            {"reason": "stop", "symbol": "btc"},
            ["reason == Reason.STOP.value: True", "symbol.upper() not in MAJORS: False"],
        ),
        ("capped", {"size": 11.0}, ["min(size, 10.0): 2"]),
        ("capped", {"size": 9.0}, ["min(size, 10.0): 1"]),
        ("capped", {"size": 10.0}, []),
        ("signed", {"size": -1}, ["size < 0: True"]),
        ("nested", {"trade": {"size": 11}}, ["trade['size'] > 10: True"]),
        ("nested", {"trade": {}}, []),
        ("refuses", {"size": 5}, []),
        ("asks", {"size": 5}, []),
        ("truths", {"session_id": 5, "note": "x"}, ["note: True"]),
        ("truths", {"session_id": 5, "note": ""}, ["note: False"]),
        # What gives back what it was given decides nothing.
        ("rounded", {"size": 5}, []),
        ("charged", {"size": 5}, ["amount >= 1000 for size: False"]),
        # What a name stands for may not be written out without end.
        ("renewed", {"size": 5}, []),
        ("doubled", {"size": 5}, []),
    ],
)
def test_outcome_is_that_of_the_methods_own_code(method: str, call: dict[str, Any], expected: list[str]) -> None:
    assert outcomes(method, **call) == expected


def test_outcome_with_a_column_needs_the_row() -> None:
    assert outcomes("of_row", {"stop": 4.0}, position_id=1, price=5.0) == ["price > row.stop: True"]
    assert outcomes("of_row", {"stop": 6.0}, position_id=1, price=5.0) == ["price > row.stop: False"]
    assert outcomes("of_row", {"stop": None}, position_id=1, price=5.0) == []
    assert outcomes("of_row", position_id=1, price=5.0) == []


def test_comparison_with_what_the_call_does_not_show_is_hidden() -> None:
    found = branches.of(ManagerOperation("of_itself", position=Position.OPENS), Deciding)
    assert list(found.hidden) == ["size > self.cap", "max(size, self.cap)"]
    assert not found.decisions


@pytest.mark.slow
@pytest.mark.parametrize("module", [_pydecimal, argparse, email.message, smtplib, tarfile, unittest.mock, zipfile])
def test_code_of_any_style_can_be_looked_at(module: ModuleType) -> None:
    classes = [one for one in vars(module).values() if isinstance(one, type)]
    methods = [(one, name) for one in classes for name in dir(one) if callable(getattr(one, name, None))]
    assert len(methods) > 30
    for cls, method in methods:
        for decision in branches.of(ManagerOperation(method, position=Position.OPENS), cls).decisions.values():
            for value in (0, 1.5, "x", [1], {"a": 1}, object()):
                call = {name.removeprefix("arg:"): value for name in decision.names}
                decision.outcome(call, [{name.removeprefix("row:"): value for name in decision.names}])


@pytest.mark.parametrize(
    "text",
    ["a.commit() > 1", "a.secret > 1", "open(a) > 1", "__import__('os') > a", "f(a, *b) > 1", "(lambda: a)() > 1"],
)
def test_code_that_may_do_something_is_not_computed(text: str) -> None:
    node = ast.parse(text, mode="eval").body
    for one in ast.walk(node):
        if isinstance(one, ast.Name) and one.id in ("a", "b"):
            one.id = f"arg:{one.id}"
    with pytest.raises(Unreadable):
        Decision.read(text, node, {})


def test_decorator_that_carries_the_defaults_is_looked_through() -> None:
    """As tenacity's."""

    def deciding(self: Any, size: float = 20.0, *, over: float = 10.0) -> int:
        return 1 if size > over else 2

    @functools.wraps(deciding, (*functools.WRAPPER_ASSIGNMENTS, "__defaults__", "__kwdefaults__"))
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return deciding(*args, **kwargs)

    manager_class = type("Retrying", (), {"deciding": wrapper})
    found = branches.of(ManagerOperation("deciding", position=Position.OPENS), manager_class)
    assert [one.outcome({"size": 30.0}, []) for one in found.decisions.values()] == ["size > over: True"]


def test_what_a_test_decides_about_is_found() -> None:
    class Labels:
        def write(self, size: float, row: Any) -> None:
            row.grade = "large" if size > 10 else "small"
            fee = 1 if size > 100 else 0
            if size > 1000:
                row.count += 1
                row.note = "huge"
            elif size < 0:
                row.losses += 1
            if size > 2000:
                row.spent += fee
            tier = "high" if size > 3000 else "low"
            row.fee = FEES[tier] + FEES["taker" if size > 4000 else "maker"]
            self.cap = "c" if size > 5000 else None

        cap = None

    found = branches.of(ManagerOperation("write", position=Position.OPENS), Labels).decisions
    assert {text: one.sets for text, one in found.items()} == {
        "size > 10": {TEXT},
        "size > 100": None,
        "size > 1000": {"count", TEXT, "losses"},
        "size < 0": {"losses"},
        # What is bought with an amount, or found by a text, may be an amount.
        "size > 2000": None,
        "size > 3000": None,
        "size > 4000": None,
        "size > 5000": None,
    }
