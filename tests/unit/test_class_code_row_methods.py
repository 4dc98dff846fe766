"""Methods of mapped classes that a manager's methods call: which fields they take, and by what they decide."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from outbox.integrations.code.class_code import ClassCode
from outbox.integrations.operations import ManagerOperation
from outbox.integrations.preflight.records import items_of
from outbox.integrations.roles import Order as Role
from outbox.integrations.view import branches


class Base(DeclarativeBase):
    """No class of the host's."""


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str]
    amount: Mapped[float]

    def reported(self, report: dict[str, Any]) -> None:
        self.status = report.get("status", self.status)
        if report["filled"] >= self.amount:
            self.status = "closed"

    @classmethod
    def found_by(cls, asked: dict[str, Any]) -> Any:
        return asked["ref"]

    @staticmethod
    def is_large(size: float) -> bool:
        return size > 100


class Manager:
    session: Any

    def of_a_row(self, order_id: int, report: dict[str, Any]) -> None:
        order = self.session.get(Order, order_id)
        order.reported(report)

    def of_the_class(self, asked: dict[str, Any]) -> Any:
        return Order.found_by(asked)

    def of_a_module(self, report: dict[str, Any]) -> Any:
        return self.session.reported_elsewhere(report)

    def sized(self, size: float) -> int:
        return 1 if Order.is_large(size) else 2


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("of_a_row", {"report": {"status", "filled"}}),
        ("of_the_class", {"asked": {"ref"}}),
        ("of_a_module", {}),
    ],
)
def test_fields_that_a_row_takes_are_found(name: str, found: dict[str, set[str]]) -> None:
    assert items_of(name, ClassCode(Manager)) == found


@pytest.mark.parametrize(
    ("method", "call", "expected"),
    [
        ("of_a_row", {"report": {"filled": 2.0}}, "report['filled'] >= self.amount for report: False"),
        ("of_a_row", {"report": {"filled": 3.0}}, "report['filled'] >= self.amount for report: True"),
        ("sized", {"size": 101.0}, "size > 100 for size: True"),
    ],
)
def test_comparison_in_a_method_of_a_row_tells_calls_apart(method: str, call: dict[str, Any], expected: str) -> None:
    operation = ManagerOperation(method, order=Role.UPDATES)
    found = branches.of(operation, Manager).decisions.values()
    assert expected in [one.outcome(call, [{"status": "open", "amount": 3.0}]) for one in found]
