"""Value objects: columns of rows that show an object of values, such as an amount with its currency.

The view keeps their values as columns of their own, so that each can be explained by an argument.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from datetime import date, time, timedelta
from enum import Enum
from typing import Any
from uuid import UUID

from .containers import SIMPLE, Container, is_made_again, is_value, put_together, taken_apart
from .explanations import Unknown
from .rows import Row

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
