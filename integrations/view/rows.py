"""Rows: what a session holds, as the local view and the learning of effects keep it.

The rows of a session are tables by name: `positions` (open ones), `orders` (unresolved ones), and `positions.orders`
and its like for rows that are nested in a position's row.  A nested row knows its position under the key "".
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..operations import ManagerOperation

Row = dict[str, Any]
Tables = dict[str, dict[Any, Row]]

POSITIONS, ORDERS = "positions", "orders"
# Orders that are no longer shown: a position that is opened later may show one of them again.
RESOLVED = "resolved"
_RESOLVED_KEPT = 200
# The key under which a session holds the sequence number of the entry that resolved an order, by the order's id.
_RESOLVED_BY = "resolved_by"
# The key under which a nested row holds the id of its position.
PARENT = ""
# Under this name a row has the key of the dict that shows it, where it shows no key itself.
KEY = "(key)"


def shown_id(rows: Mapping[Any, Any], id_: Any) -> Any:
    """The id of a row that a call names as the manager shows it: perhaps as text; None where there is no such row."""
    return next((one for one in (id_, str(id_)) if id_ is not None and one in rows), None)


def named_positions(rows: Mapping[Any, Row], operation: ManagerOperation, call: Mapping[str, Any]) -> list[Any]:
    """The ids of the positions that a call names: one by its key, or those with the value in the argument's own column.

    `call` has the standard names of the arguments.
    """
    position_id, own = call.get("position_id"), operation.own_name("position_id")
    id_ = shown_id(rows, position_id)
    if id_ is not None or position_id is None:
        return [] if id_ is None else [id_]
    return [id_ for id_, row in rows.items() if own in row and str(row[own]) == str(position_id)]


def named_orders(tables: Tables, table: str, call: Mapping[str, Any], key: str, names: Collection[str]) -> list[Any]:
    """The ids of the orders in a table that a call names; `key` of the table, `names` of client_order_id in rows."""
    rows, client_id = tables.get(table, {}), call.get("client_order_id")
    if not rows:
        return []
    ids = {shown_id(rows, call.get("order_id"))} if key not in names else set()
    # What the dict of the rows has as their keys is either.
    ids |= {client_id} if key == KEY else set()
    # A row that is nested in a position may lack the key by which the call names the order.
    for shown in [tables[one] for one in {table, ORDERS, RESOLVED} if one in tables] if client_id is not None else ():
        known, text = rows.keys() & shown.keys(), str(client_id)
        ids |= {id_ for id_ in known for name in names if name in shown[id_] and str(shown[id_][name]) == text}
    return [id_ for id_ in rows if id_ in ids]


def resolve(session: Row, id_: Any, call: Mapping[str, Any], seq: int) -> None:
    """Keep an order that is not shown any more, with the arguments and the number of the call that resolved it."""
    tables = session["tables"]
    row, kept = tables[ORDERS].pop(id_, None), tables.setdefault(RESOLVED, {})
    if row is not None:
        kept[id_] = {**row, **{f"by:{name}": value for name, value in call.items()}}
        for old in list(kept)[:-_RESOLVED_KEPT]:
            del kept[old]
        numbers = {**session.get(_RESOLVED_BY, {}), id_: seq}
        session[_RESOLVED_BY] = {one: seq for one, seq in numbers.items() if one in kept}


def without_resolved(session: Row) -> Row:
    """A session that keeps only what is shown; another view may share the one that was given."""
    tables = {name: rows for name, rows in session["tables"].items() if name != RESOLVED}
    return {**session, "tables": tables, _RESOLVED_BY: {}}


def resolved_before(session: Mapping[str, Any], seq: int) -> dict[Any, Row]:
    """The orders that an earlier entry had resolved: the view may be far ahead of what is replayed."""
    numbers = session.get(_RESOLVED_BY, {})
    return {id_: dict(row) for id_, row in session["tables"].get(RESOLVED, {}).items() if numbers.get(id_, 0) < seq}


def nested_rows(tables: Tables, table: str, position_id: Any) -> list[Row]:
    """The rows of a nested table that belong to one position."""
    return [item for item in tables.get(table, {}).values() if item[PARENT] == position_id]


def joined(tables: Tables, nested: Iterable[str], ordered: Callable[[str, list[Row]], list[Row]]) -> Iterator[Row]:
    """The rows of the positions with what is nested in them, `ordered(table, rows)`."""
    for id_, row in tables.get(POSITIONS, {}).items():
        more = {
            name.partition(".")[2]: [
                {key: value for key, value in item.items() if key != PARENT}
                for item in ordered(name, nested_rows(tables, name, id_))
            ]
            for name in nested
        }
        # A list that is empty in some rows and no rows in others is as it was shown.
        yield {**more, **row}


def new_session(
    strategy_name: Any = None,
    symbol: Any = None,
    balance: Decimal | None = None,
    start_time: datetime | None = None,
) -> Row:
    """What is known of a session; None for what is not."""
    return {
        "strategy_name": strategy_name, "symbol": symbol, "balance": balance, "start_time": start_time,
        "active": True, "tables": {POSITIONS: {}, ORDERS: {}}, "doubts": {},
    }  # fmt: skip
