"""Rows of the local view: which of them a call names."""

from __future__ import annotations

from typing import Any

from outbox.integrations.view.rows import named_orders

TABLES: dict[str, dict[Any, dict[str, Any]]] = {
    "orders": {1: {"client_order_id": "a"}, 2: {"status": "open"}},
    "positions.orders": {1: {"": 5}, 3: {"": 5}},
    "resolved": {3: {"client_order_id": "a"}, 4: {"client_order_id": "a"}},
}


def named(table: str, **call: Any) -> list[Any]:
    return named_orders(TABLES, table, call, "id", ["client_order_id"])


def test_a_nested_order_is_named_by_the_table_that_has_its_key() -> None:
    assert named("positions.orders", client_order_id="a") == [1, 3]
    assert named("orders", client_order_id="a") == [1]


def test_a_row_without_the_key_is_not_named_by_an_empty_one() -> None:
    assert named("orders", client_order_id="") == []


def test_an_order_is_named_by_its_id_or_by_its_key() -> None:
    assert named("orders", order_id="2", client_order_id="a") == [1]
    assert named("orders", order_id=2, client_order_id="a") == [1, 2]
    assert named("elsewhere", order_id=2) == []
