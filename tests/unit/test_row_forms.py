"""Row forms: how a manager's rows are told apart and made again, table by table."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from copy import deepcopy
from dataclasses import dataclass
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from sqlalchemy import ForeignKey
from sqlalchemy.engine import result_tuple
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from outbox import registered
from outbox.codec import from_json, to_json
from outbox.integrations.operations import TRADING_OPERATIONS, ManagerOperation
from outbox.integrations.view.containers import _mapped, is_made_again, put_together, taken_apart
from outbox.integrations.view.folds import fold, seen_of
from outbox.integrations.view.local_view import LocalView, UnknownLocally
from outbox.integrations.view.row_forms import RowForms
from outbox.integrations.view.rows import Tables
from outbox.integrations.view.seen import Seen
from outbox.registered import class_name

BY_NAME = {operation.name: operation for operation in TRADING_OPERATIONS}
NOTES = {"session": 1, "at": datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)}


@dataclass(frozen=True, slots=True)
class Ticket:
    ref: str
    px: int


class Held(NamedTuple):
    ref: str
    px: int


class Plain:
    def __init__(self, ref: str) -> None:
        self.ref, self.px = ref, 5

    def __eq__(self, other: object) -> bool:
        return vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]


class Slotted:
    """As of attrs."""

    __slots__ = ("__weakref__", "px", "ref")

    def __init__(self, ref: str) -> None:
        self.ref, self.px = ref, 5

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Slotted) and (self.ref, self.px) == (other.ref, other.px)

    __hash__ = None  # type: ignore[assignment]


class Private:
    __slots__ = ("__px", "ref")

    def __init__(self, ref: str) -> None:
        self.ref, self.__px = ref, 5

    def price(self) -> int:
        return self.__px


class Model:
    """As of pydantic: an object that is made without its constructor lacks what it is compared by."""

    __slots__ = ("__dict__", "__fields_set__")

    def __init__(self, **values: Any) -> None:
        self.__dict__.update(values)
        self.__fields_set__ = set(values)

    @classmethod
    def model_construct(cls, **values: Any) -> Model:
        return cls(**values)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Model) and (vars(self), self.__fields_set__) == (vars(other), other.__fields_set__)

    __hash__ = None  # type: ignore[assignment]


class Base(DeclarativeBase):
    pass


class Position(Base):
    __tablename__ = "positions"
    id: Mapped[int] = mapped_column(primary_key=True)
    orders: Mapped[list[Order]] = relationship()


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    position_id: Mapped[int] = mapped_column(ForeignKey("positions.id"))


ROW = result_tuple(["ref", "px"])(["a", 5])


def test_row_of_an_unconfigured_mapper_is_put_together() -> None:
    """After a restart in an outage no query has configured the mappers yet."""

    class Fresh(DeclarativeBase):
        pass

    class Lot(Fresh):
        __tablename__ = "lots"
        id: Mapped[int] = mapped_column(primary_key=True)

    made = _mapped(Lot, {"id": 7})
    assert (made.id, type(made)) == (7, Lot)


def declared(**args: str) -> RowForms:
    forms = RowForms()
    forms.declare([ManagerOperation("place", like="create_order_journal_entry", args=args, creates="tickets.ref_no")])
    return forms


@pytest.mark.parametrize(
    "row",
    [
        {"ref": "a", "px": 5},
        OrderedDict(ref="a", px=5),
        Ticket("a", 5),
        Held("a", 5),
        Plain("a"),
        Slotted("a"),
        Model(ref="a", px=5),
        ROW,
        ROW._mapping,
    ],
    ids=lambda row: type(row).__name__,
)
def test_rows_are_shown_again_as_they_were(row: Any) -> None:
    forms = declared(ref="client_order_id")
    tables, unknown = forms.tables_of([], [row])
    assert not unknown
    assert tables["orders"] == {"a": {"ref": "a", "px": 5}}
    again = RowForms()
    again.load(forms.dump())
    shown = again.shown("orders", {"px": 5, "ref": "a"})
    assert type(shown) is type(row)
    assert shown == row
    assert again.key("orders") == "ref"


def test_objects_of_values_in_a_row_are_columns_of_the_view() -> None:
    """As of composite(): each value can be explained by an argument, also after a restart."""
    forms = declared(ref="client_order_id")
    rows: list[dict[str, Any]] = [
        {"ref": "a", "cost": None},
        {"ref": "b", "cost": Held("x", 5)},
        {"ref": "c", "cost": Ticket(Plain("y"), 6)},  # type: ignore[arg-type]
    ]
    assert "an object of" in forms.tables_of([], rows)[1]["orders"]
    forms = declared(ref="client_order_id")
    rows[1]["cost"] = Ticket(None, 5)  # type: ignore[arg-type]
    tables, unknown = forms.tables_of([], rows)
    assert not unknown
    assert tables["orders"]["b"]["cost.px"] == 5
    assert tables["orders"]["c"]["cost.ref.ref"] == "y"
    assert forms.tables_of([], rows[:1])[0]["orders"]["a"] == {
        "ref": "a", "cost": None, "cost.ref": None, "cost.px": None, "cost.ref.ref": None, "cost.ref.px": None,
    }  # fmt: skip
    again = RowForms()
    again.load(from_json(to_json(forms.dump())))
    assert [again.shown("orders", dict(row)) for row in tables["orders"].values()] == rows
    # A column of several kinds, and a row that a version kept which left objects as they are.
    mixed: list[dict[str, Any]] = [{"ref": "d", "cost": "free"}, {"ref": "e", "cost": 0}]
    assert [forms.shown("orders", row) for row in forms.tables_of([], mixed)[0]["orders"].values()] == mixed
    assert forms.shown("orders", dict(rows[1])) == rows[1]


@pytest.mark.parametrize(
    ("row", "key"),
    [
        ({"ref_no": 7, "id": 1, "ref": "a"}, "ref_no"),
        ({"id": 1, "ref": "a"}, "id"),
        ({"order": 3, "ref": "a", "client_order_id": "b"}, "order"),
        ({"ref": "a", "client_order_id": "b"}, "ref"),
        ({"client_order_id": "b"}, "client_order_id"),
    ],
)
def test_key_is_the_column_that_names_the_row(row: dict[str, Any], key: str) -> None:
    """The column of `creates=` first, then `id`, then the manager's own names of the arguments that name it."""
    forms = declared(ref="client_order_id", order="order_id")
    assert list(forms.tables_of([], [row])[0]["orders"]) == [row[key]]
    assert forms.key("orders") == key


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        ([{"symbol": "x"}], "show none of ref_no, id, order_id, ref, client_order_id"),
        ([{"ref": "a"}, {"ref": "a"}], "cannot be told apart by 'ref'"),
        ([{"ref": None}], "cannot be told apart by 'ref'"),
        ([{"ref": ["a"]}], "cannot be told apart by 'ref'"),
        ([{"ref": "a"}, Ticket("b", 5)], "not all one kind"),
        ([3], "not all one kind"),
        ([("a", 5)], "not all one kind"),
        (LookupError("no"), "a LookupError, which is no list, tuple or dict"),
        ({"x": {"ref": "a"}}, "as a dict by no column of theirs"),
        ({"a": 3}, "not all one kind"),
        ([{"ref": "a", "of": object()}], "cannot be kept"),
        ([namedtuple("Elsewhere", "ref")("a")], "cannot be made again"),
    ],
)  # fmt: skip
def test_rows_that_are_not_understood_leave_the_other_table_alone(rows: Any, why: str) -> None:
    tables, unknown = declared(ref="client_order_id").tables_of([{"id": 5}], rows)
    assert tables == {"positions": {5: {"id": 5}}}
    assert list(unknown) == ["orders"]
    assert why in unknown["orders"]


def test_mapped_rows_with_a_relationship_are_understood() -> None:
    """A manager may answer with the rows of its session, with their orders loaded."""
    forms = RowForms()
    row = Position(id=5, orders=[Order(id=9, position_id=5)])
    tables, unknown = forms.tables_of([row], [])
    assert not unknown
    assert tables["positions.orders"] == {9: {"id": 9, "position_id": 5, "": 5}}
    shown = forms.shown("positions", {"id": 5, "orders": [{"id": 9, "position_id": 5}]}, ["positions.orders"])
    assert type(shown.orders) is type(row.orders)
    assert [(type(one), one.id, one.position_id) for one in shown.orders] == [(Order, 9, 5)]


def test_nested_rows_keep_their_form() -> None:
    forms = RowForms()
    forms.declare(TRADING_OPERATIONS)
    shown = [{"id": 5, "orders": [Numbered(2), Numbered(3)], "tags": ["a"]}]
    tables, _ = forms.tables_of(shown, [])
    view = LocalView()
    view.learning.forms = forms
    view.observe_session(1, 1.0, tables, active=True)
    assert view.open_positions(1) == shown


@dataclass
class Numbered:
    order_id: int


def test_list_that_is_empty_in_some_rows_is_shown_as_it_is() -> None:
    """Texts are no rows of another table, though an empty list may stand for either."""
    view = LocalView()
    for tags in ([], ["a"]):
        tables, _ = view.learning.forms.tables_of([{"id": 5, "tags": tags}], [])
        view.observe_session(1, 1.0, tables, active=True)
        assert view.open_positions(1) == [{"id": 5, "tags": tags}]


def taught(view: LocalView, operation: ManagerOperation, after: Tables, **call: Any) -> None:
    before = deepcopy(seen_of(view, operation, call, NOTES).tables)
    before = {name: rows for name, rows in before.items() if name in after}
    view.learning.learn(Seen(operation, operation.standard(call), NOTES, before, forms=view.learning.forms), after)


def test_new_row_without_id_is_known_by_what_the_caller_named_it() -> None:
    view = LocalView()
    place = ManagerOperation("place", like="create_order_journal_entry", args={"ref": "client_order_id", "px": "price"})
    move = ManagerOperation("move", like="update_order_journal", args={"reference": "client_order_id", "to": "status"})
    view.learning.forms.declare([place, move])

    def shown(*rows: tuple[str, int, str]) -> Tables:
        tables, _ = view.learning.forms.tables_of([], [{"ref": ref, "px": px, "state": to} for ref, px, to in rows])
        return tables

    view.observe_session(1, 1.0, shown(("a", 5, "NEW")), active=True)
    taught(view, place, shown(("a", 5, "NEW"), ("b", 6, "NEW")), ref="b", px=6, tag="b")
    fold(view, seen_of(view, place, {"ref": "b", "px": 6, "tag": "b"}, NOTES))
    taught(view, move, shown(("a", 5, "NEW"), ("b", 6, "DONE")), reference="b", to="done")
    fold(view, seen_of(view, place, {"ref": "c", "px": 7, "tag": "other"}, NOTES))
    fold(view, seen_of(view, move, {"reference": "c", "to": "done"}, NOTES))
    rows = {row["ref"]: row for row in view.unresolved_orders(1)}
    assert rows["c"] == {"ref": "c", "px": 7, "state": "DONE"}
    assert rows["b"]["state"] == "NEW"


def test_table_that_was_not_understood_is_not_answered_after_a_call() -> None:
    """What is learned of the orders says nothing about positions."""
    view, order = LocalView(), {"id": 9, "client_order_id": "o"}
    tables, unknown = view.learning.forms.tables_of([], [order])
    view.observe_session(1, 1.0, tables, active=True)
    taught(view, BY_NAME["log_position"], {"orders": tables["orders"]}, symbol="x")
    fold(view, seen_of(view, BY_NAME["log_position"], {"symbol": "x"}, {**NOTES, "id": 5}))
    assert view.unresolved_orders(1) == [order]
    with pytest.raises(UnknownLocally, match="never seen with positions that could be understood"):
        view.open_positions(1)
    assert not unknown


def test_row_of_a_class_made_in_c_is_made_again() -> None:
    """As a Struct of msgspec, which Python's own `object.__new__` does not make either."""
    row = SimpleNamespace(id=1, symbol="A")
    container, values = taken_apart(row)
    assert is_made_again(container, values, row)
    assert put_together(container, values) == (row,)


def test_row_with_private_slots_is_made_again_with_them() -> None:
    made = put_together(*taken_apart(Private("a")))
    assert made is not None
    assert (made[0].ref, made[0].price()) == ("a", 5)


class Keyed(NamedTuple):
    id: Held
    px: int


def test_rows_whose_key_is_an_object_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registered, "records", {class_name(Held): Held})
    rows = [Keyed(Held("a", 1), 5), Keyed(Held("a", 2), 6)]
    tables, unknown = RowForms().tables_of(rows)
    assert (list(tables["positions"]), unknown) == ([Held("a", 1), Held("a", 2)], {})
