"""Rows: what a session holds, as the local view and the learning of effects keep it, and in which order it is shown.

The rows of a session are tables by name: `positions` (open ones), `orders` (unresolved ones), and `positions.orders`
and its like for rows that are nested in a position's row.  A nested row knows its position under the key "".

The order is learned from answers with several rows, or named by the read's code (`RowOrders`).  A read may leave rows
out, or show them in another way, that it never had to show while PostgreSQL was up (`ShownRows`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from datetime import datetime
from decimal import Decimal
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from ..code.row_tests import RowTest
from .explanations import Unknown

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


Tests = tuple[Collection[RowTest], Collection[str]]


class ShownRows:
    """What came out for the rows of each table that a manager has shown.  State is replaced as a whole."""

    def __init__(self, seen: Mapping[str, Collection[str]] | None = None) -> None:
        """`seen`: what `dump` gave."""
        # table -> the tests of its read, and the columns of which it may show each value once; not stored.
        self.tests: Mapping[str, Tests] = {}
        self._seen = {table: frozenset(found) for table, found in (seen or {}).items()}

    def observe(self, table: str, rows: Collection[Row]) -> None:
        """Take in the rows of one answer."""
        found = self._outcomes(table, rows)
        if not found.keys() <= self._seen.get(table, frozenset()):
            self._seen = {**self._seen, table: self._seen.get(table, frozenset()) | found.keys()}

    def check(self, table: str, rows: Collection[Row]) -> None:
        """Raise `Unknown` where the read may decide otherwise about these rows than about those that it has shown."""
        for outcome, why in self._outcomes(table, rows).items():
            if outcome not in self._seen.get(table, ()):
                raise Unknown(why)

    def _outcomes(self, table: str, rows: Collection[Row]) -> dict[str, str]:
        """What comes out for the rows, each with the reason why it is not known when it is new."""
        tests, united = self.tests.get(table, ((), ()))
        found: dict[str, str] = {}
        for test in tests:
            for outcome in {test.outcome(row) for row in rows} - {None}:
                found[f"{test}: {outcome}"] = f"no row was shown for which `{test}` is {outcome}"
        for column in united:
            if _has_twins(row.get(column) for row in rows):
                found[f"{column} twice"] = f"two rows with one {column} were never shown"
        return found

    def dump(self) -> dict[str, list[str]]:
        """The state, to be stored."""
        return {table: sorted(found) for table, found in self._seen.items()}


def _has_twins(values: Iterable[Any]) -> bool:
    found = [value for value in values if isinstance(value, str | int)]
    return len(set(found)) < len(found)


# A key of the rows, and whether they descend by it.
Order = list[Any]

# The order in which they were made; "" is no key of the manager's.
_AS_MADE: Order = ["", False]
# Parts of the names of times that are those of the call which makes a row, and what else such a name consists of.
_MADE_AT = frozenset({"created", "inserted", "opened", "entry", "entered", "placed", "start", "started"})
_OF_TIMES = frozenset({"at", "on", "time", "date", "datetime", "timestamp", "ts", "dt", "ms", "us", "utc"})


class RowOrders:
    """The order of rows by table.  Not thread-safe: the view's lock is held."""

    def __init__(self) -> None:
        # table -> all orders that fit every answer so far.
        self._fitting: dict[str, list[Order]] = {}
        # table -> the keys by which the code of the read orders its rows, none where it is not understood; of the code,
        # and not stored.
        self.named: dict[str, tuple[tuple[str, bool], ...]] = {}

    def observe(
        self, table: str, rows: Iterable[Mapping[str, Any]], id_: str = "id", before: Collection[Any] | None = None
    ) -> None:
        """Take in rows as the manager showed them, with their key `id_`; `before`: the ids shown before one call."""
        found = list(rows)
        if len(found) < 2:
            return
        orders = self._fitting.get(table)
        if orders is None:
            keys = [key for key in found[0] if key]
            orders = [_AS_MADE, *([key, descending] for key in keys for descending in (False, True))]
        as_made = before is None or _is_as_made([row[id_] for row in found], before)
        self._fitting[table] = [order for order in orders if (as_made if order == _AS_MADE else _fits(order, found))]

    def sorted(self, table: str, rows: Iterable[dict[str, Any]], id_: str = "id") -> list[dict[str, Any]]:
        """Rows as the manager shows them; they are given as they were made.

        By their key `id_` while that fits; ids that are no numbers have no order of their own, and their rows are as
        they were made while that fits.  Raises `Unknown` where other orders differ.
        """
        found = list(rows)
        if len(found) < 2:
            return found
        if (named := self.named.get(table)) is not None and not _is_as_they_were_made(named, id_, found):
            return self._as_named(table, named, found)
        by_id = [id_, False]
        numbered, orders = all(isinstance(row[id_], int) for row in found), self._fitting.get(table)
        of_itself = by_id if numbered else _AS_MADE
        if not orders or orders == [_AS_MADE] or of_itself in orders:
            return _by(by_id, found) if numbered else found
        if not any(_was_seen(order, orders) or _is_by_text(order, found) for order in orders):
            # No key orders the rows that were shown: callers cannot rely on an order.
            return _by(by_id, found) if numbered else found
        return self._as_seen(table, orders, found)

    def _as_named(
        self, table: str, named: tuple[tuple[str, bool], ...], found: list[dict[str, Any]]
    ) -> list[dict[str, Any]]:
        """Rows in an order that the code names, and that nothing shown contradicts."""
        orders = self._fitting.get(table)
        fits = bool(named) and (orders is None or list(named[0]) in orders)
        if fits and all(_is_ordered_alike(row.get(key)) for row in found for key, _ in named):
            # Rows that are equal by these keys come in any order.
            for key, descending in reversed(named):
                found = _by([key, descending], found)
            return found
        if not orders:
            keys = " or ".join(sorted({repr(key) for key, _ in named})) or "what the code of the read orders them by"
            raise Unknown(f"whether rows of {table} are ordered by {keys} was not seen")
        return found if orders == [_AS_MADE] else self._as_seen(table, orders, found)

    def _as_seen(self, table: str, orders: list[Order], found: list[dict[str, Any]]) -> list[dict[str, Any]]:
        # An order that leaves rows equal shows nothing about them.
        answers = [_by(order, found) for order in orders if _fits(order, found, either=True)]
        if not answers or any(one != answers[0] for one in answers[1:]):
            keys = " or ".join(sorted({repr(order[0]) for order in orders if order != _AS_MADE}))
            raise Unknown(f"whether rows of {table} are ordered by {keys} was not seen")
        return answers[0]

    def dump(self) -> dict[str, list[Order]]:
        """The state, to be stored."""
        return self._fitting

    def load(self, state: Mapping[str, list[Order]]) -> None:
        """Take over what `dump` gave."""
        self._fitting = dict(state)


def _is_as_they_were_made(named: tuple[tuple[str, bool], ...], id_: str, rows: list[dict[str, Any]]) -> bool:
    """Whether the code orders rows by their key, or by the time of the call that makes them.

    A time that the rows show may be one that the caller gave.
    """
    key, descending = named[0] if named else ("", True)
    if descending or key == id_:
        return not descending
    parts = set(key.split("_"))
    # `entry` alone is a price.
    names_time = not parts.isdisjoint(_MADE_AT) and parts <= _MADE_AT | _OF_TIMES and key not in ("entry", "start")
    return names_time and not all(isinstance(row.get(key), datetime) for row in rows)


def _is_ordered_alike(value: Any) -> bool:
    """Whether PostgreSQL orders such values as Python does: texts have a collation, and a NULL comes last."""
    return isinstance(value, bool | int | float | Decimal | datetime)


def _was_seen(order: Order, orders: Collection[Order]) -> bool:
    """Whether it is by a key in which rows differed; else both directions of the key fit every answer."""
    return order != _AS_MADE and [order[0], not order[1]] not in orders


def _is_by_text(order: Order, rows: list[dict[str, Any]]) -> bool:
    """Whether rows differ in a text by which a manager may order them: not a flag, a counter or an amount."""
    values = [row.get(order[0]) for row in rows]
    return any(isinstance(value, str) and value != values[0] for value in values)


def _by(order: Order, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    key, descending = order
    return sorted(rows, key=lambda row: row[key], reverse=descending)


def _is_as_made(ids: list[Any], before: Collection[Any]) -> bool:
    """Whether rows have kept their order, and a new one is the last."""
    kept = [id_ for id_ in ids if id_ in before]
    return kept == [id_ for id_ in before if id_ in kept] and ids[: len(kept)] == kept


def _fits(order: Order, rows: list[Any], *, either: bool = False) -> bool:
    """Whether rows are in that order; `either`: whether the order tells all of them apart."""
    key, descending = order
    try:
        if either:
            values = sorted(row[key] for row in rows)
            return all(one < other for one, other in pairwise(values))
        values = [row[key] for row in rows]
        return all(one >= other if descending else one <= other for one, other in pairwise(values))
    except (KeyError, TypeError):
        return False
