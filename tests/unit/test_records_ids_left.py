"""The arguments in which a method leaves the id of its new row are found in its code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from outbox import Outbox
from outbox.integrations.code.class_code import ClassCode
from outbox.integrations.operations import ManagerOperation
from outbox.integrations.preflight.records import left_by, with_ids_left


class Manager:
    session: Any

    def attribute(self, fill: Any) -> Any:
        row = self.session.add(fill)
        fill.id = row.id
        return row.id

    def item(self, fill: dict[str, Any]) -> Any:
        row = self.session.add(fill)
        row_id = int(row.id)
        fill["row"] = row_id
        return row_id

    def again(self, fill: Any) -> Any:
        if fill.id is None:
            row = self.session.add(fill)
            fill.id = row.id
        return fill.id

    def item_again(self, fill: dict[str, Any]) -> Any:
        row = self.session.get(fill.get("id")) or self.session.add(fill)
        fill["id"] = row.id
        return row.id

    def other_value(self, fill: Any, order: Any) -> Any:
        row = self.session.add(fill)
        fill.symbol = row.symbol
        fill.id = order.symbol
        fill.at = self.session.id_at
        return row.id

    def own_id(self, fill: Any) -> Any:
        fill.previous = fill.id
        self.last = self.session.id
        return self.session.add(fill).id

    def of_a_local_name(self, symbol: str) -> Any:
        row = self.session.add(symbol)
        fill = self.session.get(symbol)
        fill.id = row.id
        return row.id


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("attribute", {"fill": ("id", False)}),
        ("item", {"fill": ("row", False)}),
        ("again", {"fill": ("id", True)}),
        ("item_again", {"fill": ("id", True)}),
        ("other_value", {}),
        ("own_id", {}),
        ("of_a_local_name", {}),
    ],
)
def test_id_left_in_an_argument_is_found(name: str, left: dict[str, tuple[str, bool]]) -> None:
    assert left_by(ManagerOperation(name, creates="fills"), ClassCode(Manager)) == left


def test_what_was_found_is_known_before_the_class_is(tmp_path: Path) -> None:
    operations = [ManagerOperation("attribute", creates="fills"), ManagerOperation("item", creates="fills.no")]
    with Outbox.open(tmp_path / "outbox") as box:
        assert [one.sets_id for one in with_ids_left(operations, None, box)] == [{}, {}]
        assert [one.sets_id for one in with_ids_left(operations, Manager, box)] == [{"fill": "id"}, {}]
        assert [one.sets_id for one in with_ids_left(operations, None, box)] == [{"fill": "id"}, {}]
