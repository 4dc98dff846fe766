"""What a method decides by is what its earlier statements have made of a row."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from outbox.integrations.operations import ManagerOperation
from outbox.integrations.view import branches


class Base(DeclarativeBase):
    pass


class Work(Base):
    __tablename__ = "work"
    id: Mapped[int] = mapped_column(primary_key=True)
    done: Mapped[int]
    size: Mapped[int]
    status: Mapped[str]

    def fill(self, qty: int) -> None:
        self.add(qty)
        if self.done >= self.size:
            self.status = "done"

    def add(self, qty: int) -> None:
        self.done += qty

    def end(self) -> None:
        if self.done >= self.size:
            self.status = "done"


def add_to(qty: int, work: Work) -> None:
    work.done = work.done + qty


class Deciding:
    """Methods whose code is read, and never run."""

    rows: Any

    def added(self, position_id: int, qty: int) -> None:
        row = self.rows.get(position_id)
        row.done += qty
        if row.done >= row.size:
            row.status = "done"

    def left(self, position_id: int, qty: int) -> None:
        with self.rows as rows:
            row = rows.get(position_id)
            row.done = row.done + qty
            left = row.size - row.done
            row.status = "done" if left <= 0 else "part"

    def left_before(self, position_id: int, qty: int) -> None:
        row = self.rows.get(position_id)
        left = row.size - row.done
        row.done += qty
        if left > qty:
            row.status = "part"

    def returned(self, position_id: int, qty: int) -> None:
        row = self.rows.get(position_id)
        if not row.is_open:
            row.done = 7
            return
        row.done += qty
        if row.done >= row.size:
            row.status = "done"

    def summed(self, position_id: int, qty: int) -> None:
        row = self.rows.get(position_id)
        row.legs.append(qty)
        if sum(row.legs) >= row.size:
            row.status = "done"

    def keyed(self, position_id: int, qty: int) -> None:
        row = self.rows.get(position_id)
        row.legs["last"] = qty
        if row.legs["last"] >= row.size:
            row.status = "done"

    def several(self, position_id: int, qty: int) -> None:
        row = self.rows.get(position_id)
        row.done, row.status = row.done + qty, "part"
        if row.done >= row.size:
            row.status = "done"

    def looped(self, position_id: int, qty: int) -> None:
        row = self.rows.get(position_id)
        for _ in range(qty):
            row.done = row.done + qty
            if row.done >= row.size:
                row.status = "done"

    def one_way(self, position_id: int, qty: int) -> None:
        row = self.rows.get(position_id)
        try:
            row.done += qty
        except TypeError:
            row.done = qty
        if row.done >= row.size:
            row.status = "done"

    def doubled(self, position_id: int, qty: int) -> None:
        row = self.rows.get(position_id)
        row.done += qty
        row.done = row.done + row.done + row.done + row.done
        row.done = row.done + row.done + row.done + row.done
        row.done = row.done + row.done + row.done + row.done
        row.done = row.done + row.done + row.done + row.done
        if row.done >= row.size:
            row.status = "done"

    def other(self, position_id: int, qty: int) -> None:
        row = self.rows.get(position_id)
        row.done += qty
        if row.price >= row.size:
            row.status = "done"

    def by_the_row(self, position_id: int, qty: int) -> None:
        self.rows.get(position_id).fill(qty)
        row = self.rows.get(position_id)
        row.fill(qty)

    def behind_the_row(self, position_id: int, qty: int) -> None:
        row = self.rows.get(position_id)
        row.add(qty)
        if row.done >= row.size:
            row.status = "done"

    def by_the_row_alone(self, position_id: int, qty: int) -> None:
        row = self.rows.get(position_id)
        row.add(qty)
        row.end()

    def by_helpers(self, position_id: int, qty: int) -> None:
        row = self.rows.get(position_id)
        add_to(qty, work=row)
        self._end(row)

    def _end(self, row: Work) -> None:
        if row.done >= row.size:
            row.status = "done"


def found(method: str) -> branches.Branches:
    return branches.of(ManagerOperation(method, like="update_position"), Deciding)


@pytest.mark.parametrize(
    ("method", "text", "outcomes"),
    [
        ("added", "row.done >= row.size", [False, True, True]),
        ("left", "left <= 0", [False, True, True]),
        ("left_before", "left > qty", [True, False, False]),
        ("returned", "row.done >= row.size", [False, True, True]),
        ("by_the_row", "self.done >= self.size for qty", [False, True, True]),
        ("behind_the_row", "row.done >= row.size", [False, True, True]),
        ("by_the_row_alone", "self.done >= self.size for qty", [False, True, True]),
        ("by_helpers", "row.done >= row.size for qty", [False, True, True]),
    ],
)
def test_column_that_was_assigned_is_written_out(method: str, text: str, outcomes: list[bool]) -> None:
    decision = found(method).decisions[text]
    row = {"done": 2, "size": 10}
    told = [decision.outcome({"qty": qty}, [row]) for qty in (7, 8, 9)]
    assert told == [f"{text}: {one}" for one in outcomes]
    assert found(method).hidden == {}


@pytest.mark.parametrize(
    ("method", "text"),
    [
        ("summed", "sum(row.legs) >= row.size"),
        ("keyed", "row.legs['last'] >= row.size"),
        ("several", "row.done >= row.size"),
        ("looped", "row.done >= row.size"),
        ("one_way", "row.done >= row.size"),
        ("doubled", "row.done >= row.size"),
    ],
)
def test_column_whose_change_cannot_be_computed_is_named(method: str, text: str) -> None:
    assert list(found(method).hidden) == [text]
    assert found(method).decisions == {}


def test_comparison_that_no_argument_decides_is_none() -> None:
    assert (found("other").decisions, found("other").hidden) == ({}, {})
