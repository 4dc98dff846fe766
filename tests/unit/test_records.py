"""Arguments that hold fields are found by what a method's code does with them, and by their annotations."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import pytest

from outbox import Outbox
from outbox.integrations.code.class_code import ClassCode
from outbox.integrations.operations import ManagerOperation
from outbox.integrations.preflight.records import items_of, remembered, with_records
from outbox.integrations.roles import Balance

T = TypeVar("T")


@dataclass
class Fill:
    pnl: float
    fee: float = 0


@dataclass
class Priced(Generic[T]):
    price: T


class Leg(NamedTuple):
    price: float


def row_of(values: Any) -> Any:
    return {**values, "seen": True}


class Row:
    """Stands for a mapped class."""

    def __init__(self, **fields: Any) -> None:
        self.fields = fields


class Manager:
    session: Any

    def one_by_one(self, fill: dict[str, Any]) -> float:
        return float(fill["pnl"] - fill.get("fee", 0))

    def whole(self, fill: Any) -> Any:
        return dict(**fill)

    def by_helper(self, fill: Any) -> Any:
        return self._saved("fills", values=fill)

    def _saved(self, table: str, values: Any) -> Any:
        return self.session.execute(table, row_of(values))

    def in_a_column(self, symbol: str, details: dict[str, Any], note: Any) -> Any:
        self.session.add((symbol.upper(), details, note.strip()))

    def copied_into_a_column(self, symbol: str, details: Any, notes: Any, more: Any) -> Any:
        text = json.dumps({key: str(value) for key, value in notes.items()})
        self.session.add(Row(symbol=symbol, details=dict(details), more={**more, "version": 1}, text=text))

    def copied_for_a_row(self, fill: Any) -> Any:
        return self._saved("fills", values={**fill, "version": 1})

    def annotated(self, fill: Fill, leg: Leg | None = None) -> Any:
        self.session.add(fill)

    def of_a_kind(self, leg: Priced[float]) -> Any:
        self.session.add(leg)

    def of_many(self, fills: list[Fill], by_name: dict[str, Fill]) -> Any:
        self.session.add_all([*fills, *by_name])

    def attributes(self, fill: Any) -> float:
        return fill.pnl - fill.fee  # type: ignore[no-any-return]

    def looked_through(self, changes: Mapping[str, Any]) -> Any:
        for name, value in changes.items():
            setattr(self.session, name, value)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("one_by_one", {"fill": {"pnl", "fee"}}),
        ("whole", {"fill": set()}),
        ("by_helper", {"fill": set()}),
        ("in_a_column", {}),
        ("copied_into_a_column", {}),
        ("copied_for_a_row", {"fill": set()}),
        ("annotated", {"fill": {"pnl", "fee"}, "leg": {"price"}}),
        ("of_a_kind", {"leg": {"price"}}),
        ("of_many", {}),
        ("attributes", {"fill": {"pnl", "fee"}}),
        ("looked_through", {"changes": set()}),
        ("missing", {}),
    ],
)
def test_fields_that_a_method_takes_are_found(name: str, found: dict[str, set[str]]) -> None:
    assert items_of(name, ClassCode(Manager)) == found


def test_declared_record_is_not_narrowed_by_the_code() -> None:
    declared = ManagerOperation("one_by_one", records=("fill",), balance=Balance.CHANGE, amount="pnl")
    (operation,) = with_records([declared], Manager)
    assert operation.standard({"fill": {"pnl": 1, "venue": "X"}})["venue"] == "X"


def test_name_of_a_record_is_no_list_of_letters() -> None:
    assert ManagerOperation("save", records="fill").records == {"fill": ()}


@pytest.mark.parametrize("declared", [{"args": {"desk": "session_id"}}, {"identity": "ref"}, {"order_by": "desk"}])
def test_item_that_a_declaration_without_role_names_is_found(declared: dict[str, Any]) -> None:
    class Booked(NamedTuple):
        desk: str
        ref: str

    class Books:
        def book(self, fill: Booked) -> None:
            """Its hint is a class, not its name."""

    Books.book.__annotations__["fill"] = Booked
    (operation,) = with_records([ManagerOperation("book", **declared)], Books)
    assert operation.records == {"fill": frozenset({"desk", "ref"})}
    (plain,) = with_records([ManagerOperation("book", args={"fill": "reason"})], Books)
    assert plain.records == {}


def test_records_are_known_before_the_class_is(outbox_dir: Path) -> None:
    operations = [ManagerOperation("one_by_one", balance=Balance.CHANGE, amount="pnl"), ManagerOperation("whole")]
    call = {"fill": {"pnl": 1, "venue": "X"}}
    with Outbox.open(outbox_dir) as box:
        first = remembered(operations, Manager, box)
    with Outbox.open(outbox_dir) as box:
        again = remembered(operations, None, box)
    assert [one.standard(call) for one in again] == [one.standard(call) for one in first]
    assert again[0].standard(call) == {"pnl": 1, **call}
