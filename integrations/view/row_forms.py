"""Row forms: the key column and the type of a manager's rows, table by table.

Rows are dicts, dataclasses, named tuples or objects of mapped classes, and their key need not be called `id`: it is the
column that `creates=` of a declaration names, or what the manager's methods call the id that they take.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ... import InvalidEntry
from ...codec import encode
from ..roles import Order, Position
from .containers import Container, put_together, taken_apart
from .conversions import Unknown
from .effects import ORDERS, PARENT, POSITIONS, Row, Tables

if TYPE_CHECKING:
    from ..operations import ManagerOperation

# The arguments by which calls name a row, by table.
_NAMED_BY = {POSITIONS: ("position_id",), ORDERS: ("order_id", "client_order_id")}
_NOT_ROWS = ("none", "value", "tuple", "list")


class RowForms:
    """The forms of one manager's rows.  Thread-safe, since each state is replaced as a whole."""

    def __init__(self) -> None:
        # Standard name of an argument -> the manager's names of it.
        self._own: dict[str, tuple[str, ...]] = {}
        # Hears of rows that cannot be stored; whether they can be afterwards.
        self.met: Callable[[Any], bool] = lambda _: False
        # table -> the columns that may be its key, the likeliest first.
        self._possible = {table: ("id", *names) for table, names in _NAMED_BY.items()}
        # table -> the column that is its key, the container of a row, and the names in it in their order.
        self.keys: dict[str, str] = {}
        self._containers: dict[str, Container] = {}
        self._names: dict[str, list[str]] = {}

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
            created = [one.schema_table_column()[2] for one in opening[table] if one.creates]
            own = [name for standard in standards for name in self.names(standard)]
            self._possible[table] = tuple(dict.fromkeys((*created, "id", *own)))

    def names(self, standard: str) -> tuple[str, ...]:
        """What an argument with that standard name is called in the manager's methods, and so perhaps in its rows."""
        return self._own.get(standard, (standard,))

    def key(self, table: str) -> str:
        """The column by which rows of a table are told apart."""
        return self.keys.get(table, "id")

    # -- understanding

    def tables_of(self, positions: Any, orders: Any) -> tuple[Tables, dict[str, str]]:
        """The rows that a manager showed, as tables, and why one of them is not understood; it is then left out."""
        tables: Tables = {}
        unknown: dict[str, str] = {}
        for table, shown in ((POSITIONS, positions), (ORDERS, orders)):
            try:
                tables |= self._understood(table, shown)
            except Unknown as exc:
                unknown[table] = str(exc)
        return tables, unknown

    def _understood(self, table: str, shown: Any) -> Tables:
        if type(shown) is not list:
            raise Unknown(f"{table} are shown as a {type(shown).__name__}, which is no list")
        flat = [dict(row) for row in self._rows(table, shown)]
        found: Tables = {table: {row[self.key(table)]: row for row in flat}}
        for id_, row in found[table].items() if table == POSITIONS else ():
            for name, nested in list(row.items()):
                items = self._nested(f"{table}.{name}", nested)
                if items is not None:
                    del row[name]
                    rows = found.setdefault(f"{table}.{name}", {})
                    rows |= {item[self.key(f"{table}.{name}")]: {**item, PARENT: id_} for item in items}
        for name, rows in found.items():
            self._require_storable(name, rows)
        return found

    def _nested(self, table: str, shown: Any) -> list[Row] | None:
        """Rows that are shown inside another row; None for any other value."""
        if type(shown) is not list or any(taken_apart(item)[0][0] in _NOT_ROWS for item in shown):
            return None
        try:
            return self._rows(table, shown)
        except Unknown:
            return None

    def _rows(self, table: str, shown: list[Any]) -> list[Row]:
        """The rows of a table as dicts.  Raises `Unknown` where they cannot be told apart, or not be made again."""
        if not shown:
            return []
        apart = [taken_apart(row) for row in shown]
        containers, rows = [one for one, _ in apart], [row for _, row in apart]
        if containers[0][0] in _NOT_ROWS or any(one != containers[0] for one in containers):
            raise Unknown(f"rows of {table} are not all one kind of dict or object with names")
        key = self._key_of(table, rows)
        if not _is_made_again(containers[0], rows[0], shown[0]):
            raise Unknown(f"a {type(shown[0]).__name__} of {table} cannot be made again from what is in it")
        self.keys = {**self.keys, table: key}
        self._containers = {**self._containers, table: containers[0]}
        self._names = {**self._names, table: list(rows[0])}
        return rows

    def _key_of(self, table: str, rows: list[Row]) -> str:
        known = self.keys.get(table)
        # The rows of a nested table may be orders.
        possible = self._possible.get(table, self._possible[ORDERS])
        shown = [name for name in possible if any(name in row for row in rows)]
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

    def shown(self, table: str, row: Row, nested: Iterable[str] = ()) -> Any:
        """A row as the manager shows it, with rows of other tables in it.  Raises `Unknown`."""
        for name in nested:
            inner = name.partition(".")[2]
            if inner in row:
                row[inner] = [self.shown(name, item) if isinstance(item, dict) else item for item in row[inner]]
        container, names = self._containers.get(table, ["dict"]), self._names.get(table, [])
        ordered = {name: row[name] for name in (*(one for one in names if one in row), *row)}
        made = put_together(container, ordered)
        if made is None:
            raise Unknown(f"rows of {table} are of the class {container[-1]}, which is not loaded")
        return made[0]

    # -- durability

    def dump(self) -> dict[str, Any]:
        """The state, to be stored."""
        return {"keys": self.keys, "containers": self._containers, "names": self._names}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take over what `dump` gave."""
        self.keys, self._containers = dict(state.get("keys", {})), dict(state.get("containers", {}))
        self._names = dict(state.get("names", {}))


def _defined(cls: type) -> set[str]:
    """The names that a class and its bases define, but for those of every object."""
    return {name for base in cls.__mro__[:-1] for name in vars(base)}


def _is_made_again(container: Container, values: Row, shown: Any) -> bool:
    """Whether a row that is made from these values is like the one that was shown."""
    try:
        made = put_together(container, dict(values))
        if made is None or type(made[0]) is not type(shown) or taken_apart(made[0]) != (container, values):
            return False
        return "__eq__" not in _defined(type(shown)) or bool(made[0] == shown)
    except Exception:  # noqa: BLE001 - whatever a class of the manager's does when it is made in another way
        return False
