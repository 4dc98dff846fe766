"""Row forms: the key column and the type of a manager's rows, table by table, and what has the rows of one answer.

Rows are dicts, named tuples, objects of mapped classes or others that hold values only, and their key need not be
called `id`: it is the column that `creates=` of a declaration names, or what the methods call the id that they take, or
the key of a dict that has the rows.  Amounts that are shown as texts are amounts here, so that they can be computed.
Of an object of values, such as an amount with its currency, the view keeps the values as columns of their own, so that
each can be explained by an argument.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping
from dataclasses import dataclass
from datetime import date, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import TYPE_CHECKING, Any
from uuid import UUID

from ... import InvalidEntry
from ...codec import encode
from ..roles import Order, Position
from .amounts import is_amount_text
from .containers import SIMPLE, Container, is_made_again, is_value, put_together, taken_apart
from .explanations import Unknown
from .rows import KEY, ORDERS, PARENT, POSITIONS, Row, ShownRows, Tables

if TYPE_CHECKING:
    from ..operations import ManagerOperation

_KINDS = {list: "list", tuple: "tuple", dict: "dict", type(None): "none"}
# A column, and whether the dict has its text.
By = list[Any]


@dataclass(frozen=True, slots=True)
class Gathering:
    """How a manager gives the rows of one table: what it was seen to give with rows, and without any."""

    full: str | None = None
    empty: str | None = None
    # What the keys of the dict may be, as far as every answer agrees; None before one had rows.
    by: list[By] | None = None

    def opened(self, table: str, shown: Any) -> tuple[list[Any], list[Any] | None]:
        """The rows in an answer, and the keys of the dict that has them.  Raises `Unknown`."""
        kind = _KINDS.get(type(shown))
        if kind is None:
            raise Unknown(f"{table} are shown as a {type(shown).__name__}, which is no list, tuple or dict")
        if kind == "dict":
            return list(shown.values()), list(shown)
        return list(shown or ()), None

    def learned(self, table: str, shown: Any, keys: list[Any] | None, rows: list[Row]) -> Gathering:
        """What is known with one more answer.  Raises `Unknown` where it is of another kind than before."""
        kind = _KINDS[type(shown)]
        before = self.full if rows else self.empty
        if before not in (None, kind):
            raise Unknown(f"{table} are shown as a {before} and as a {kind}")
        if not rows:
            return Gathering(self.full, kind, self.by)
        by = None if keys is None else [one for one in _fitting(keys, rows) if self.by is None or one in self.by]
        if by == []:
            raise Unknown(f"{table} are shown as a dict by no column of theirs")
        return Gathering(kind, self.empty, by)

    def put_together(self, table: str, shown: list[Any], rows: list[Row]) -> Any:
        """An answer with these rows; `rows` are the same with all that is known of them.  Raises `Unknown`."""
        kind = (self.full or self.empty) if shown else (self.empty or self.full)
        if kind == "none" and not shown:
            return None
        if kind == "none" or (kind == "dict" and shown and self.by is None):
            raise Unknown("how the manager shows rows was never seen")
        if kind != "dict":
            return tuple(shown) if kind == "tuple" else shown
        answers = [[_key(one, row) for row in rows] for one in self.by or ()]
        if any(one != answers[0] for one in answers[1:]):
            names = " or ".join(sorted({repr(one[0]) for one in self.by or ()}))
            raise Unknown(f"whether {table} are shown by {names} was not seen")
        return dict(zip(answers[0], shown, strict=True)) if shown else {}

    def dump(self) -> list[Any]:
        """The state, to be stored."""
        return [self.full, self.empty, self.by]


def _key(by: By, row: Row) -> Any:
    column, as_text = by
    return str(row.get(column)) if as_text else row.get(column)


def _fitting(keys: list[Any], rows: list[Row]) -> Iterable[By]:
    columns = [column for column in rows[0] if all(column in row for row in rows)]
    for by in ([column, as_text] for column in columns for as_text in (False, True)):
        found = [_key(by, row) for row in rows]
        if found == keys and [type(one) for one in found] == [type(one) for one in keys]:
            yield by


_PLAIN = (*SIMPLE, type(None), bytes, list, dict, set, frozenset, date, time, timedelta, UUID, Enum)


class ValueObjects:
    """The columns of one manager's rows that show objects.  Thread-safe, since its state is replaced as a whole."""

    def __init__(self, state: Mapping[str, Any] | None = None) -> None:
        """`state`: what `dump` gave."""
        # table -> column -> the container of its objects and the names in it; an outer one before those inside it.
        self._columns: dict[str, dict[str, tuple[Container, list[str]]]] = {
            table: {column: (one[0], one[1]) for column, one in columns} for table, columns in (state or {}).items()
        }

    def dump(self) -> dict[str, Any]:
        """The state, to be stored: as lists, whose order is kept."""
        return {table: [[column, list(one)] for column, one in columns.items()]
                for table, columns in self._columns.items()}  # fmt: skip

    def apart(self, table: str, row: Row, key: str) -> Row:
        """A row with the values of its objects as columns.  Raises `Unknown` where a column shows several classes.

        The column `key` stays whole: by its objects rows are told apart.
        """
        flat, known, todo = dict[str, Any](), dict(self._columns.get(table, {})), list(row.items())
        while todo:
            column, value = todo.pop(0)
            parts = None if column == key else _parts(value)
            if parts is None:
                flat[column] = value
                todo += [(f"{column}.{name}", None) for name in known[column][1]] if column in known else []
                continue
            container, values = parts
            if known.setdefault(column, (container, list(values))) != (container, list(values)):
                raise Unknown(f"{column} of {table} is shown as an object of {container[-1]}, and otherwise")
            flat[column] = container[-1]
            todo += [(f"{column}.{name}", one) for name, one in values.items()]
        if known:
            self._columns = {**self._columns, table: known}
        return flat

    def together(self, table: str, row: Row) -> Row:
        """The inverse of `apart`.  Raises `Unknown`."""
        made = dict(row)
        for column, (container, names) in reversed(self._columns.get(table, {}).items()):
            values = {name: made.pop(f"{column}.{name}", None) for name in names}
            # Anything else is not of that class: None, a plain value, or an object that was kept as it is.
            if made.get(column) != container[-1]:
                continue
            found = put_together(container, values)
            if found is None:
                raise Unknown(f"{column} of {table} is of the class {container[-1]}, which is not loaded")
            made[column] = found[0]
        return made


def _parts(value: Any) -> tuple[Container, dict[str, Any]] | None:
    """The class and the values of an object that is nothing but its values; None for anything else."""
    if isinstance(value, _PLAIN) or type(value) is tuple:
        return None
    container, values = taken_apart(value)
    is_plain = container[0] == "named" or (container[0] == "object" and dataclasses.is_dataclass(value))
    good = is_made_again(container, values, value) if is_plain else is_value(container, values, value)
    return (container, values) if good and values else None


# The arguments by which calls name a row, by table.
_NAMED_BY = {POSITIONS: ("position_id",), ORDERS: ("order_id", "client_order_id")}
_NOT_ROWS = ("none", "value", "tuple", "list")
# For the rows of a read that the manager was not asked.
_UNASKED: Any = object()


class RowForms:
    """The forms of one manager's rows.  Thread-safe, since each state is replaced as a whole."""

    def __init__(self) -> None:
        # Standard name of an argument -> the manager's names of it.
        self._own: dict[str, tuple[str, ...]] = {}
        # Called with rows that cannot be stored; returns whether they can be afterwards.
        self.met: Callable[[Any], bool] = lambda _: False
        # table -> the columns that may be its key, the likeliest first.
        self._possible = {table: ("id", *names) for table, names in _NAMED_BY.items()}
        # table -> the column that is its key, the container of a row, and the names in it in their order.
        self.keys: dict[str, str] = {}
        self._containers: dict[str, Container] = {}
        self._names: dict[str, list[str]] = {}
        # table -> column -> whether it shows amounts as texts.
        self._texts: dict[str, dict[str, bool]] = {}
        # table -> how many rows the read shows at most; of its code, and not stored.
        self.most: dict[str, int] = {}
        # Tables of which the read shows no more than a number that its code does not show; of its code, too.  And how
        # many rows it has shown at once.
        self.limited: frozenset[str] = frozenset()
        self._together: dict[str, int] = {}
        self.shown_rows = ShownRows()
        self._objects = ValueObjects()
        # table -> what has its rows in an answer.
        self._gatherings: dict[str, Gathering] = {}

    def declare(self, operations: Iterable[ManagerOperation]) -> None:
        """Take the names of keys from declarations."""
        declared = tuple(operations)
        opening = {
            POSITIONS: [one for one in declared if one.position is Position.OPENS],
            ORDERS: [one for one in declared if one.order is Order.OPENS],
        }
        self._own = {
            standard: tuple(dict.fromkeys((*(one.own_name(standard) for one in declared), standard)))
            for standards in _NAMED_BY.values()
            for standard in standards
        }
        for table, standards in _NAMED_BY.items():
            created = [one.id_column.column for one in opening[table] if one.creates]
            own = [name for standard in standards for name in self.names(standard)]
            self._possible[table] = tuple(dict.fromkeys((*created, "id", *own)))

    def names(self, standard: str) -> tuple[str, ...]:
        """What an argument with that standard name is called in the manager's methods, and so perhaps in its rows."""
        return self._own.get(standard, (standard,))

    def key(self, table: str) -> str:
        """The column by which rows of a table are told apart."""
        return self.keys.get(table, "id")

    # -- understanding

    def tables_of(self, positions: Any = _UNASKED, orders: Any = _UNASKED) -> tuple[Tables, dict[str, str]]:
        """The rows that a manager showed, as tables, and why one of them is not understood; it is then left out.

        A table that the manager was not asked for has no rows, and nothing is learned of how it is shown.
        """
        tables: Tables = {}
        unknown: dict[str, str] = {}
        for table, shown in ((POSITIONS, positions), (ORDERS, orders)):
            try:
                tables |= {table: {}} if shown is _UNASKED else self._understood(table, shown)
            except Unknown as exc:
                unknown[table] = str(exc)
        return tables, unknown

    def _understood(self, table: str, shown: Any) -> Tables:
        gathering = self._gatherings.get(table, Gathering())
        rows, keys = gathering.opened(table, shown)
        if len(rows) >= self.most.get(table, len(rows) + 1):
            raise Unknown(f"the manager shows {len(rows)} {table} at most, and may have more")
        self._together = {**self._together, table: max(len(rows), self._together.get(table, 0))}
        flat = [self._objects.apart(table, row, self.key(table)) for row in self._rows(table, rows, keys)]
        self._gatherings = {**self._gatherings, table: gathering.learned(table, shown, keys, flat)}
        found: Tables = {table: {row[self.key(table)]: row for row in flat}}
        for id_, row in found[table].items() if table == POSITIONS else ():
            for name, nested in list(row.items()):
                items = self._nested(f"{table}.{name}", nested)
                if items is not None:
                    del row[name]
                    inner = found.setdefault(f"{table}.{name}", {})
                    inner |= {item[self.key(f"{table}.{name}")]: {**item, PARENT: id_} for item in items}
        for name, of_table in found.items():
            self._read_amounts(name, of_table.values())
            self._require_storable(name, of_table)
        self.shown_rows.observe(table, found[table].values())
        return found

    def _read_amounts(self, table: str, rows: Collection[Row]) -> None:
        """Make amounts of texts where a column shows nothing else.  Raises `Unknown` where it showed something else."""
        known = dict(self._texts.get(table, {}))
        # By their key rows are found, whatever it looks like.
        for column in {name: None for row in rows for name in row if name not in (PARENT, self.key(table))}:
            values = [row[column] for row in rows if row.get(column) is not None]
            if not values or known.get(column) is False:
                continue
            is_text = isinstance(values[0], str) and all(map(is_amount_text, values))
            if known.setdefault(column, is_text) and not is_text:
                raise Unknown(f"{column} of {table} is shown as the text of an amount, and otherwise")
            for row in rows if known[column] else ():
                if row.get(column) is not None:
                    row[column] = Decimal(row[column])
        self._texts = {**self._texts, table: known}

    def _nested(self, table: str, shown: Any) -> list[Row] | None:
        """Rows that are shown inside another row; None for any other value."""
        if type(shown) is not list or any(taken_apart(item)[0][0] in _NOT_ROWS for item in shown):
            return None
        try:
            return [self._objects.apart(table, row, self.key(table)) for row in self._rows(table, shown)]
        except Unknown:
            return None

    def _rows(self, table: str, shown: list[Any], keys: list[Any] | None = None) -> list[Row]:
        """The rows of a table as dicts; `keys`: those of a dict that has them.

        Raises `Unknown` where they cannot be told apart, or not be made again.
        """
        if not shown:
            return []
        apart = [taken_apart(row) for row in shown]
        containers, rows = [one for one, _ in apart], [row for _, row in apart]
        if containers[0][0] in _NOT_ROWS or any(one != containers[0] for one in containers):
            raise Unknown(f"rows of {table} are not all one kind of dict or object with names")
        if keys is not None and not any(name in row for name in self._candidates(table) for row in rows):
            rows = [{**row, KEY: key} for row, key in zip(rows, keys, strict=True)]
        key = self._key_of(table, rows)
        if not is_made_again(containers[0], apart[0][1], shown[0]):
            raise Unknown(f"a {type(shown[0]).__name__} of {table} cannot be made again from what is in it")
        self.keys = {**self.keys, table: key}
        self._containers = {**self._containers, table: containers[0]}
        self._names = {**self._names, table: list(rows[0])}
        return rows

    def _candidates(self, table: str) -> tuple[str, ...]:
        # The rows of a nested table may be orders.
        return self._possible.get(table, self._possible[ORDERS])

    def _key_of(self, table: str, rows: list[Row]) -> str:
        known, possible = self.keys.get(table), self._candidates(table)
        shown = [name for name in (*possible, KEY) if any(name in row for row in rows)]
        key = known if known in shown else next(iter(shown), None)
        if key is None:
            raise Unknown(f"rows of {table} show none of {', '.join(possible)}, by which they could be told apart")
        ids = [row.get(key) for row in rows]
        if any(id_ is None or not isinstance(id_, Hashable) for id_ in ids) or len(set(ids)) < len(ids):
            raise Unknown(f"rows of {table} cannot be told apart by {key!r}")
        return key

    def _require_storable(self, table: str, rows: Mapping[Any, Row]) -> None:
        try:
            encode(list(rows.values()))
        except InvalidEntry as exc:
            if not self.met(rows):
                raise Unknown(f"rows of {table} cannot be kept: {exc}") from exc
            try:
                encode(list(rows.values()))
            except InvalidEntry as again:
                raise Unknown(f"rows of {table} cannot be kept: {again}") from again

    # -- showing

    def answer(self, table: str, rows: list[Row], nested: Iterable[str] = ()) -> Any:
        """All rows of a table, as the manager shows them.  Raises `Unknown`."""
        if len(rows) > self.most.get(table, len(rows)):
            raise Unknown(f"the manager shows {self.most[table]} of them at most")
        if table in self.limited and len(rows) > max(1, self._together.get(table, 0)):
            raise Unknown(f"the manager limits them, and was never seen to show {len(rows)} of them")
        self.shown_rows.check(table, rows)
        nested = tuple(nested)
        keyed = [dict(row) for row in rows]
        shown = [self.shown(table, row, nested) for row in rows]
        return self._gatherings.get(table, Gathering()).put_together(table, shown, keyed)

    def shown(self, table: str, row: Row, nested: Iterable[str] = ()) -> Any:
        """A row as the manager shows it, with rows of other tables in it.  Raises `Unknown`."""
        for name in nested:
            inner = name.partition(".")[2]
            if inner in row:
                row[inner] = [self.shown(name, item) if isinstance(item, dict) else item for item in row[inner]]
        container, names = self._containers.get(table, ["dict"]), self._names.get(table, [])
        for name, is_text in self._texts.get(table, {}).items():
            if is_text and row.get(name) is not None:
                row[name] = str(row[name])
        row = self._objects.together(table, row)
        ordered = {name: row[name] for name in (*(one for one in names if one in row), *row) if name != KEY}
        made = put_together(container, ordered)
        if made is None:
            raise Unknown(f"rows of {table} are of the class {container[-1]}, which is not loaded")
        return made[0]

    # -- durability

    def dump(self) -> dict[str, Any]:
        """The state, to be stored."""
        gatherings = {table: one.dump() for table, one in self._gatherings.items()}
        return {"keys": self.keys, "containers": self._containers, "names": self._names, "texts": self._texts,
                "gatherings": gatherings, "objects": self._objects.dump(), "together": self._together,
                "shown": self.shown_rows.dump()}  # fmt: skip

    def load(self, state: Mapping[str, Any]) -> None:
        """Take over what `dump` gave."""
        self.keys, self._containers = dict(state.get("keys", {})), dict(state.get("containers", {}))
        self._names, self._texts = dict(state.get("names", {})), dict(state.get("texts", {}))
        self._objects = ValueObjects(state.get("objects"))
        self._together = dict(state.get("together", {}))
        tests, self.shown_rows = self.shown_rows.tests, ShownRows(state.get("shown"))
        self.shown_rows.tests = tests
        self._gatherings = {table: Gathering(*one) for table, one in state.get("gatherings", {}).items()}
