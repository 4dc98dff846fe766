"""Effects: how one kind of call changes rows and balances, learned from the manager's answers before and after.

The rows of a session are tables by name: `positions` (open ones), `orders` (unresolved ones), and `positions.orders`
and its like for rows that are nested in a position's row.  A nested row knows its position under the key "".
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from enum import Enum
from functools import cached_property
from itertools import product
from typing import TYPE_CHECKING, Any
from uuid import UUID

from ..roles import Order, Position
from .as_declared import AsDeclared
from .conversions import is_number, number, text_of
from .learning import DECISIVE, Space, is_id, predict_row

if TYPE_CHECKING:
    from ..operations import ManagerOperation
    from .decisions import Decision
    from .row_forms import RowForms

Row = dict[str, Any]
Tables = dict[str, dict[Any, Row]]

POSITIONS, ORDERS = "positions", "orders"
# Orders that are no longer shown: a position that is opened later may show one of them again.
RESOLVED = "resolved"
_RESOLVED_KEPT = 200
# The longest text that may be one of a few: the name of an account, a currency.
_WORD = 40
# The key under which a session holds the sequence number of the entry that resolved an order, by the order's id.
_RESOLVED_BY = "resolved_by"
# The key under which a nested row holds the id of its position.
PARENT = ""
# Under this name a row has the key of the dict that shows it, where it shows no key itself.
KEY = "(key)"
# Parts of the names of quantities, and of amounts that are none.
NOT = "not "
_QUANTITIES = ("size", "quantity", "qty", "amount", "volume", "units", "lots", "contracts", "shares")
_FILLED = ("fill", "exec")
_PRICES = ("price", "value", "cost", "fee", "pnl", "percent", "pct")


@dataclass(slots=True)
class Effect:
    """What one operation does, called with arguments of one kind."""

    count: int = 0
    # What is learned of calls with any values of their arguments: those that were seen.
    values: set[str] | None = None
    # Names of arguments with + where a learned call gave them, - where one did not.
    given: set[str] = field(default_factory=set)
    # table -> key -> its explanations, for a new row and for a row that the call names.
    made: dict[str, dict[str, Space]] = field(default_factory=dict)
    changed: dict[str, dict[str, Space]] = field(default_factory=dict)
    # table -> whether a new row appears; table -> whether the named row goes away.  None: it was seen to differ.
    makes: dict[str, bool | None] = field(default_factory=dict)
    removes: dict[str, bool | None] = field(default_factory=dict)
    # Tables in which rows changed that the call does not name.
    strangers: set[str] = field(default_factory=set)
    # Whether the balance became what the declaration makes of it.
    balance: AsDeclared = field(default_factory=AsDeclared)
    # Arguments that were seen to name another session which the call changes too.
    beside: set[str] = field(default_factory=set)
    # The balance of a session that the call begins.
    start: Space = field(default_factory=Space)
    # "table.column" -> how many rows with a reserved id it writes besides the one whose id it returns.
    sides: dict[str, int] = field(default_factory=dict)

    def dump(self) -> dict[str, Any]:
        """Its state, to be stored."""
        spaces = {
            name: {table: {key: space.dump() for key, space in keys.items()} for table, keys in found.items()}
            for name, found in (("made", self.made), ("changed", self.changed))
        }
        return {
            "count": self.count, "given": sorted(self.given), "makes": self.makes, "removes": self.removes,
            "strangers": sorted(self.strangers), "beside": sorted(self.beside), "balance": self.balance.dump(),
            "start": self.start.dump(),
            "sides": self.sides, "values": None if self.values is None else sorted(self.values), **spaces,
        }  # fmt: skip

    @classmethod
    def load(cls, state: Mapping[str, Any]) -> Effect:
        """The inverse of `dump`."""
        spaces = {
            name: {table: {key: Space(*space) for key, space in keys.items()} for table, keys in state[name].items()}
            for name in ("made", "changed")
        }
        simple = {name: state[name] for name in ("count", "makes", "removes", "sides")}
        values = state.get("values")
        sets = {"given": set(state["given"]), "strangers": set(state["strangers"])}
        sets |= {"beside": set(state.get("beside", ()))}
        sets |= {} if values is None else {"values": set(values)}
        read: dict[str, Any] = {**simple, **sets, **spaces}
        return cls(**read, start=Space(*state["start"]), balance=AsDeclared.load(state["balance"]))

    def knows(self, table: str) -> bool:
        """Whether it was seen what becomes of a table, whose rows may be shown in a form that is not understood."""
        return table in self.makes or table in self.strangers or table not in (POSITIONS, ORDERS)

    def unexplained(self) -> set[str]:
        """What of the rows that such calls change an outage does not answer."""
        keys = ((table, key, space) for spaces in (self.made, self.changed) for table in spaces
                for key, space in spaces[table].items() if key != PARENT)  # fmt: skip
        strange = {f"rows of {table} that it does not name" for table in self.strangers}
        return strange | {f"{key} of {table}" for table, key, space in keys if not space.is_explained}

    def predict(
        self, spaces: Mapping[str, Space], sources: Mapping[str, Any], old: Row | None = None
    ) -> tuple[Row, dict[str, str]]:
        """The values of a row by key, and why others are not known; `old`: the row as it was, None for a new one."""
        return predict_row(spaces, sources, old, by_values=self.values is not None)


@dataclass
class Seen:
    """One call beside the rows of its session, as its effect is learned or predicted.

    What it says of them is worked out once: it is made anew for each look at rows that change.
    """

    operation: ManagerOperation
    # Arguments by standard name, notes of the adapter, rows of the session before the call.
    call: Mapping[str, Any]
    notes: Mapping[str, Any]
    tables: Tables
    # Amounts that the replay wrote, as they were before columns rounded them.
    written: Collection[Decimal] = ()
    # How the manager shows rows; None where each has an `id`.
    forms: RowForms | None = None
    # Comparisons by which the manager's method decides.
    decisions: Collection[Decision] = ()
    # table -> the ids of its rows that the call names, once asked for.
    _named: dict[str, list[Any]] = field(default_factory=dict, init=False)

    @property
    def touches_rows(self) -> bool:
        """Whether its declaration gives it a part in positions or orders."""
        return self.operation.position is not None or self.operation.order is not None

    @property
    def amount(self) -> Any:
        """By how much, or to what, the call changes the balance."""
        amount = self.operation.amount
        return None if amount is None else self.call.get(self.operation.standard_name(amount))

    def named(self, table: str) -> list[Any]:
        """The ids of the rows of a table that the call names."""
        found = self._named.get(table)
        if found is None:
            found = self._named[table] = self._find_named(table)
        return found

    def _find_named(self, table: str) -> list[Any]:
        rows = self.tables.get(table, {})
        if not rows:
            return []
        if table == POSITIONS:
            return self._positions() if self.operation.position is not None else []
        return named_orders(self.tables, table, self.call, self.key(table), self._names("client_order_id"))

    def _positions(self) -> list[Any]:
        return named_positions(self.tables.get(POSITIONS, {}), self.operation, self.call)

    def key(self, table: str) -> str:
        """The column by which rows of a table are told apart."""
        return "id" if self.forms is None else self.forms.key(table)

    def _names(self, standard: str) -> Collection[str]:
        return (standard,) if self.forms is None else self.forms.names(standard)

    def standard_names(self, table: str, columns: Iterable[str]) -> dict[str, str]:
        """The standard names of columns of a table, as far as declarations give them one."""
        key, client_ids, found = self.key(table), self._names("client_order_id"), dict[str, str]()
        for column in columns:
            name = self.operation.standard_name(column)
            is_own = column == KEY or (name not in client_ids and not is_id(name))
            found[column] = "id" if column == key and is_own else name
        return found

    def opens(self, table: str) -> bool:
        """Whether the id that the call returns is that of a new row of this table."""
        if table == POSITIONS:
            return self.operation.position is Position.OPENS
        return self.operation.order is Order.OPENS

    @cached_property
    def kind(self) -> str:
        """The name under which calls are learned together: all that decides what such a call does."""
        return "|".join((self.shape, *self.values))

    @cached_property
    def values(self) -> list[str]:
        """The values that may decide what the call does: of its arguments, and the side of its position."""
        found = {name: _decisive(name, value) for name, value in sorted(self.call.items())}
        for id_ in self.named(POSITIONS):
            side = self.tables[POSITIONS][id_].get("side")
            found["of"] = None if side is None else str(_decisive("side", side))
        values = [f"{name}={text}" for name, text in found.items() if text is not None]
        return [*values, *self.outcomes, *self.ends]

    @cached_property
    def outcomes(self) -> dict[str, Decision]:
        """What comes out of the comparisons by which the method decides, of those that can be told."""
        if not self.decisions:
            return {}
        rows = [self.tables[table][id_] for table in (POSITIONS, ORDERS) for id_ in self.named(table)[:1]]
        found = ((one.outcome(self.call, rows), one) for one in self.decisions)
        return {outcome: one for outcome, one in found if outcome is not None}

    def sessions_beside(self, sessions: Collection[Any]) -> dict[str, Any]:
        """Which arguments may name other sessions than that of the call, by what is known of `sessions`."""
        own = self.notes.get("session")
        given = {name: value for name, value in self.call.items() if name != "session_id" and value != own}
        return {name: one for name, one in given.items() if type(one) in (int, str, UUID) and one in sessions}

    @cached_property
    def words(self) -> dict[str, str | int]:
        """The texts and whole numbers that the call gives, by argument, but for the amount of the balance."""
        amount = None if self.operation.amount is None else self.operation.standard_name(self.operation.amount)
        given = {name: value for name, value in self.call.items() if name not in ("session_id", amount)}
        return {
            name: value
            for name, value in given.items()
            if type(value) is int or (isinstance(value, str) and len(value) <= _WORD)
        }

    @cached_property
    def shape(self) -> str:
        """The name under which calls are learned together, whatever the values of their arguments."""
        parts = [f"in {table}" for table in sorted(self.tables) if table != POSITIONS and self.named(table)]
        position_id = self.call.get("position_id")
        if self.operation.position is None and position_id is not None:
            parts += ["at an open position" if self._positions() else "at a position"]
        return "|".join((self.operation.name, *parts))

    @property
    def may_end(self) -> list[str]:
        """The tables of which the call may end the row that it names."""
        moves = self.operation.position in (Position.REDUCES, Position.CLOSES)
        updates = self.operation.order is Order.UPDATES
        return [table for table, ends in ((POSITIONS, moves), (ORDERS, updates)) if ends and self.named(table)]

    @cached_property
    def ends(self) -> list[str]:
        """Whether the call takes or fills quantities of a row to the last, which may end the row."""
        rows = [self.tables[table][id_] for table in self.may_end for id_ in self.named(table)]
        found: dict[str, bool] = {}
        for row, (name, value) in product(rows, self.call.items()):
            for key, left in _lefts(row, name) if _is_quantity(name, value) else ():
                found[key] = found.get(key, False) or abs(number(value)) >= left
        return [key if reached else f"{NOT}{key}" for key, reached in sorted(found.items())]

    @cached_property
    def given(self) -> set[str]:
        """Which arguments the call gives, and which not."""
        return {f"{name}{'-' if value is None else '+'}" for name, value in self.call.items() if name != "session_id"}

    def sources(self, row: tuple[str, Row] | None = None) -> dict[str, Any]:
        """What values can be explained by; `row`: the table and the row that is explained, as it was."""
        if row is None:
            return self._own_sources
        return self._own_sources | {f"row:{row[0]}:{key}": value for key, value in row[1].items()}

    @cached_property
    def _own_sources(self) -> dict[str, Any]:
        found = {f"arg:{name}": value for name, value in self.call.items() if name != "session_id"}
        found |= {f"note:{name}": self.notes[name] for name in ("id", "session", "at") if name in self.notes}
        for column, ids in self.notes.get("side", {}).items():
            found |= {f"note:side:{column}:{index}:id": id_ for index, id_ in enumerate(ids)}
        for table in self.tables:
            for id_ in self.named(table)[:1]:
                found |= {f"row:{table}:{key}": value for key, value in self.tables[table][id_].items()}
        return found


def _lefts(row: Row, name: str) -> Iterator[tuple[str, Decimal]]:
    """What is left of a row's quantities of which the argument `name` may be the last part."""
    found = {key: abs(number(value)) for key, value in row.items() if _is_quantity(key, value)}
    filled = [value for key, value in found.items() if _is_filled(key)]
    whole = [key for key in found if not _is_filled(key)]
    # A size that is a share of the balance is not compared with a number of units.
    alike = [key for key in whole if any(one in key and one in name for one in _QUANTITIES)]
    for key in alike or whole:
        yield f"all of {key}", found[key]
        yield from ((f"the rest of {key}", found[key] - one) for one in filled)


def _is_quantity(name: str, value: Any) -> bool:
    """Whether a value is how much of something is held, ordered or filled, by its name."""
    known = any(one in name for one in (*_QUANTITIES, *_FILLED)) and not any(one in name for one in _PRICES)
    return known and is_number(value)


def _is_filled(name: str) -> bool:
    """Whether a quantity is the part of an order that was filled."""
    return any(one in name for one in _FILLED)


def _decisive(name: str, value: Any) -> str | None:
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, Enum):
        return f"{type(value).__qualname__}.{value.name}"
    return text_of(value, "text") if name in DECISIVE and isinstance(value, str) else None


@dataclass(slots=True)
class Prediction:
    """What a call makes of a session's rows.  `doubts`: (table, id or None for the table, key) -> why not known."""

    rows: list[tuple[str, Any, Row]] = field(default_factory=list)
    gone: list[tuple[str, Any]] = field(default_factory=list)
    doubts: dict[tuple[str, Any, str], str] = field(default_factory=dict)


def predict(effect: Effect | None, seen: Seen, new: Collection[str] = ()) -> Prediction:
    """What a call will have done, as far as that is learned; `new`: those of its values that were never seen."""
    found = Prediction()
    if not seen.touches_rows:
        return found
    name = seen.operation.name
    news = seen.given - effect.given if effect is not None else set()
    given = ", ".join(sorted(one[:-1] for one in news if one.endswith("+")))
    values = f" with {', '.join(new or seen.values)}" if seen.values else ""
    never = f"{name} was never seen"
    why = f"{never}{values}" if effect is None else f"{never} with {given or 'so few arguments'}"
    strange = effect is None or bool(news)
    for table in _tables_of(effect, seen):
        for id_ in seen.named(table):
            _predict_named(found, effect, seen, table, id_)
            if strange:
                found.doubts[table, id_, "*"] = why
        if effect is not None and not strange and not effect.knows(table):
            found.doubts[table, None, "*"] = f"{name} was never seen with {table} that could be understood"
        if effect is not None and table in effect.strangers:
            found.doubts[table, None, "*"] = f"{name} changes rows that it does not name"
        if effect is not None and effect.makes.get(table, False) is not False:
            _predict_made(found, effect, seen, table, why if strange else "")
        elif strange and _may_make(seen, table):
            found.doubts[table, None, "*"] = why
    counters = {key for value in new if value in seen.outcomes for key in seen.outcomes[value].sets or ()}
    found.doubts |= {
        (table, id_, key): f"{never}{values}" for table, id_, row in found.rows for key in counters & row.keys()
    }
    return found


def _may_make(seen: Seen, table: str) -> bool:
    """Whether the declaration lets a call make a row of this table."""
    if table == POSITIONS:
        return seen.operation.position is Position.OPENS
    if seen.operation.order is Order.OPENS:
        return table == ORDERS or seen.call.get("position_id") is not None
    return seen.operation.position is Position.OPENS


def _tables_of(effect: Effect | None, seen: Seen) -> list[str]:
    made = {} if effect is None else effect.makes
    return sorted({POSITIONS, ORDERS, *seen.tables, *made} - {RESOLVED}, key=lambda name: ("." in name, name))


def _predict_named(found: Prediction, effect: Effect | None, seen: Seen, table: str, id_: Any) -> None:
    if effect is None:
        return
    removes = effect.removes.get(table, False)
    if removes:
        found.gone.append((table, id_))
        return
    old = seen.tables[table][id_]
    name = seen.operation.name
    if removes is None:
        found.doubts[table, id_, "*"] = f"{name} was seen to end it and not to end it"
    row, doubts = effect.predict(effect.changed.get(table, {}), seen.sources((table, old)), old)
    found.doubts |= {(table, id_, key): f"{name}: {reason}" for key, reason in doubts.items()}
    found.rows.append((table, id_, row))


def _predict_made(found: Prediction, effect: Effect, seen: Seen, table: str, why: str) -> None:
    name = seen.operation.name
    if effect.makes[table] is None:
        found.doubts[table, None, "*"] = f"{name} was seen to make a row of {table} and not to make one"
        return
    row, unknown = effect.predict(effect.made[table], seen.sources())
    doubts = {key: f"{name}: {reason}" for key, reason in unknown.items()} | ({"*": why} if why else {})
    parent, key_ = row.get(PARENT), seen.key(table)
    if row.get(key_) is None or ("." in table and parent is None):
        found.doubts[table, None, key_] = doubts.get(key_, f"{name}: its {key_} is not known")
        return
    found.rows.append((table, row[key_], row))
    found.doubts |= {(table, row[key_], key): reason for key, reason in doubts.items()}


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
    rows, order_id, client_id = tables.get(table, {}), call.get("order_id"), call.get("client_order_id")
    ids = {shown_id(rows, order_id)} if key not in names else set()
    # What the dict of the rows has as their keys is either.
    ids |= {client_id} if key == KEY else set()
    # A row that is nested in a position may lack the key by which the call names the order.
    for known in (table, ORDERS, RESOLVED) if client_id is not None else ():
        shown = tables.get(known, {}).items()
        ids |= {id_ for id_, row in shown if str(client_id) in [str(row[name]) for name in names if name in row]}
    return [id_ for id_ in rows if id_ in ids]


def resolve(session: Row, id_: Any, seen: Seen) -> None:
    """Keep an order that is not shown any more, with the arguments of the call that resolved it."""
    tables = session["tables"]
    row, kept = tables[ORDERS].pop(id_, None), tables.setdefault(RESOLVED, {})
    if row is not None:
        kept[id_] = {**row, **{f"by:{name}": value for name, value in seen.call.items()}}
        for old in list(kept)[:-_RESOLVED_KEPT]:
            del kept[old]
        numbers = {**session.get(_RESOLVED_BY, {}), id_: seen.notes["seq"]}
        session[_RESOLVED_BY] = {one: seq for one, seq in numbers.items() if one in kept}


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
