"""Columns: completes a row and checks it against its `sqlalchemy.Table`, before it is stored.

A row is served as SQLAlchemy would: columns by key or by name, constant defaults filled in.  What only SQLAlchemy's own
INSERT would add (defaults that are functions or SQL) must be passed, else the row would lack it without a word.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal, localcontext
from functools import lru_cache
from numbers import Number
from typing import Any

from .errors import ConfigError, InvalidEntry


class Columns:
    """The declared columns of one operation's table."""

    def __init__(self, operation: str, table: Any) -> None:
        self._operation, self._table = operation, table
        self._columns: dict[str, Any] = {str(column.name): column for column in table.columns}
        self._named = {str(column.key): str(column.name) for column in table.columns}
        self._named = {**{name: name for name in self._columns}, **self._named}
        generated = getattr(table, "autoincrement_column", None)
        self._generated = {
            str(column.name)
            for column in table.columns
            if column.server_default is not None or column.identity is not None or column is generated
        }
        # Values that SQLAlchemy would put into the INSERT; None where only it could say which.
        self._defaults = {
            str(column.name): column.default.arg if getattr(column.default, "is_scalar", False) else None
            for column in table.columns
            if column.default is not None
        }
        # In them a text is a JSON string, as SQLAlchemy stores it.
        self.json_names = frozenset(
            name for name, column in self._columns.items() if hasattr(column.type, "none_as_null")
        )

    def name_of(self, key: str) -> str:
        """The column's name by its key in the program, or by itself.  Raises `ConfigError`."""
        if key not in self._named:
            raise ConfigError(
                f"operation {self._operation!r}: {key!r} is not a column of {self._table.name}",
                hint=f"columns: {', '.join(sorted(self._columns))}",
            )
        return self._named[key]

    def complete(self, args: Mapping[str, Any]) -> Mapping[str, Any]:
        """The row by column names, with constant defaults for columns that are not given.  Raises `InvalidEntry`."""
        row: dict[str, Any] = {}
        for key, value in args.items():
            if key not in self._named:
                raise InvalidEntry(
                    f"operation {self._operation!r} has no column {key!r}",
                    hint=f"columns: {', '.join(sorted(self._columns))}",
                )
            name = self._named[key]
            if name in row:
                raise InvalidEntry(
                    f"operation {self._operation!r}: column {name!r} is given twice, by key and by name",
                    hint="leave one of them out",
                )
            row[name] = value
        for name, default in self._defaults.items():
            if name not in row and default is not None:
                row[name] = default
        return row

    def check(self, row: Mapping[str, Any]) -> None:
        """Raise `InvalidEntry` for a row, by column names, that PostgreSQL would refuse, or would take with a gap."""
        for name, column in self._columns.items():
            if row.get(name) is None:
                self._check_missing(name, column, given=name in row)
            else:
                self._check_value(name, column, row[name])

    def _check_missing(self, name: str, column: Any, *, given: bool) -> None:
        if not given and name in self._defaults:
            raise InvalidEntry(
                f"operation {self._operation!r}: column {name!r} must be given",
                hint="its default is made by SQLAlchemy's INSERT, which is not used here",
            )
        if not column.nullable and (given or name not in self._generated):
            raise InvalidEntry(
                f"operation {self._operation!r}: column {name!r} must not be empty",
                hint="pass a value that is not None",
            )

    def _check_value(self, name: str, column: Any, value: Any) -> None:
        where = f"operation {self._operation!r}: {name!r}"
        if column.computed is not None or (column.identity is not None and column.identity.always):
            raise InvalidEntry(f"{where} is always made by PostgreSQL", hint="leave it out")
        precision, scale = getattr(column.type, "precision", None), getattr(column.type, "scale", None)
        if isinstance(precision, int) and isinstance(scale, int) and is_beyond(value, precision, scale):
            raise InvalidEntry(
                f"{where} is {value}, beyond numeric({precision},{scale})",
                hint=f"at most {precision - scale} digits before the decimal point",
            )
        if isinstance(precision, int) and isinstance(value, bool):
            raise InvalidEntry(f"{where} is {value}, which is no number", hint="pass int or Decimal")
        length = getattr(column.type, "length", None)
        if isinstance(length, int) and isinstance(value, str) and len(value) > length:
            raise InvalidEntry(f"{where} has {len(value)} characters", hint=f"at most {length}")


def is_beyond(value: Any, precision: int, scale: int) -> bool:
    """Whether a number does not fit numeric(precision, scale) after PostgreSQL has rounded it."""
    if isinstance(value, bool) or not isinstance(value, Number):
        return False
    # Compared exactly: copying and comparing do not round.
    return not (value if isinstance(value, Decimal) else Decimal(str(value))).copy_abs() < _limit(precision, scale)


@lru_cache(maxsize=1024)
def _limit(precision: int, scale: int) -> Decimal:
    with localcontext() as context:
        context.prec = precision + scale + 2
        return Decimal(10) ** (precision - scale) - Decimal(5).scaleb(-scale - 1)
