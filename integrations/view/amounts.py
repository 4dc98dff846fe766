"""Amounts: numbers of any type that callers use, exactly, and as columns and people round them.

The decimal places of columns are those of their types, or as PostgreSQL has them (`DatabaseScales`).  And sums of a
time and a duration, as managers make them of arguments, of rows and of constants.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_UP, Context, Decimal, InvalidOperation
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

from sqlalchemy import Column, Connection, Float, Integer, MetaData, Numeric, Table, TypeDecorator, text

# More digits than a column holds, and the traps of the host's own arithmetic left out.
WIDE = Context(prec=80)
_AMOUNT = re.compile(r"-?\d+(\.\d+)?(E[+-]?\d+)?")
# Decimal places that columns of money were seen to have; None for a value that is not rounded.
SCALES: tuple[int | None, ...] = (None, 0, 2, 3, 4, 5, 6, 8, 10, 12, 18)


def number(value: Any) -> Decimal:
    """An amount of any type that callers use.  Raises `ValueError`."""
    value = value.item() if hasattr(value, "item") else value
    try:
        found = value if isinstance(value, Decimal) else Decimal(str(value))
    except InvalidOperation:
        raise ValueError(f"{value!r} is not a number") from None
    if not found.is_finite():
        raise ValueError(f"{value!r} is not a finite number")
    return found


def is_number(value: Any) -> bool:
    """Whether it is an amount: no bool, no text."""
    value = value.item() if hasattr(value, "item") else value
    return isinstance(value, int | float | Decimal) and number_or_none(value) is not None


def number_or_none(value: Any) -> Decimal | None:
    """`number`, or None for what is none."""
    try:
        return None if value is None or isinstance(value, bool) else number(value)
    except ValueError:
        return None


def is_amount_text(value: Any) -> bool:
    """Whether it is a text of an amount that is no whole number: `str` of a Decimal."""
    return isinstance(value, str) and _AMOUNT.fullmatch(value) is not None and not value.lstrip("-").isdigit()


def rounded(value: Decimal, scale: int | None, mode: str = ROUND_HALF_UP) -> Decimal:
    """`value` as a NUMERIC column of that scale holds it; `mode`: as other code rounds it."""
    if scale is None:
        return value
    return value.quantize(_unit(scale), mode, WIDE)


@cache
def _unit(scale: int) -> Decimal:
    return Decimal(1).scaleb(-scale)


def places(value: Decimal) -> int:
    """How many decimal places an amount has, without the zeros at its end."""
    exponent = value.normalize(WIDE).as_tuple().exponent
    return max(0, -exponent) if isinstance(exponent, int) else 0


def bare(value: Decimal) -> Decimal:
    """An amount without the zeros at its end, which say how it was shown."""
    found = value.normalize(WIDE)
    return found.quantize(Decimal(1), context=WIDE) if found.as_tuple().exponent > 0 else found  # type: ignore[operator]


def nearly_equal(one: Decimal, other: Decimal, scale: int | None = None) -> bool:
    """Whether two amounts differ by no more than the arithmetic in which they were summed.

    `scale`: the decimal places that both were rounded to, where that is known; less than one of the last is noise.
    """
    if scale is None:
        return abs(one - other) <= Decimal("2e-8") * max(Decimal(1), abs(one).scaleb(-6))
    # Beyond 15 digits floats of one amount differ.
    return abs(one - other) <= max(Decimal("0.5").scaleb(-scale), abs(one).scaleb(-15))


# In which an amount may be given.
UNITS = ("milliseconds", "seconds", "minutes", "hours", "days", "weeks")
# Of a duration that is one already, and of a constant number of microseconds.
WHOLE, MICROSECONDS = "whole", "microseconds"
_ANY = datetime(5000, 1, 1, tzinfo=UTC)
# A longer one is hardly a constant.
_LONGEST = timedelta(days=3660)


def utc(value: Any) -> datetime:
    """A time in UTC; a naive one is taken for that."""
    if not isinstance(value, datetime):
        raise TypeError(f"{value!r} is no time")
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def naive(value: Any) -> datetime:
    """A time in UTC, without a time zone."""
    return utc(value).replace(tzinfo=None)


def after(base: Any, amount: Any, unit: str, sign: int) -> datetime:
    """The time that lies an amount of a unit after `base`, or before it.  Raises `TypeError` and `ArithmeticError`."""
    if isinstance(amount, bool):
        raise TypeError(f"{amount!r} is no duration")
    # A Decimal is no number of hours: a manager makes a float of it.
    amount = float(amount) if isinstance(amount, Decimal) else amount
    return utc(base) + sign * (timedelta() + amount if unit == WHOLE else timedelta(**{unit: amount}))


def durations(value: Any, between: timedelta) -> Iterator[tuple[str, int]]:
    """The units in which `value` is the time `between` two others, with its sign."""
    for unit, sign in ((unit, sign) for unit in (WHOLE, *UNITS) for sign in (1, -1)):
        try:
            if value and after(_ANY, value, unit, sign) - _ANY == between:
                yield unit, sign
        except (TypeError, ValueError, ArithmeticError):
            continue


def is_constant(between: timedelta) -> bool:
    """Whether a time may lie that long behind another one in every call: whole seconds."""
    return timedelta() != between and abs(between) <= _LONGEST and not between.microseconds


_IN_DATABASE = text("""
    SELECT table_name, column_name, numeric_scale FROM information_schema.columns WHERE data_type = 'numeric'
    AND table_name = ANY (:tables) AND table_schema = ANY (current_schemas(false) || CAST(:schemas AS text[]))
""")

# (table, column) -> the decimal places that PostgreSQL keeps.
InDatabase = Mapping[tuple[str, str], int | None]


class DatabaseScales:
    """The decimal places of columns as PostgreSQL has them, which a migration may have changed."""

    def __init__(self) -> None:
        self._known: WeakKeyDictionary[MetaData, InDatabase] = WeakKeyDictionary()

    def ask(self, metadata: MetaData, connection: Connection) -> None:
        """Ask for the columns of these tables, once."""
        if metadata not in self._known:
            tables = metadata.tables.values()
            schemas = sorted({table.schema for table in tables if table.schema is not None})
            given = {"tables": [table.name for table in tables], "schemas": schemas}
            self._known[metadata] = {(row[0], row[1]): row[2] for row in connection.execute(_IN_DATABASE, given)}

    def of(self, column: Column[Any]) -> tuple[int | None, ...]:
        """The decimal places that amounts of a column may have, None where it does not round them."""
        known = self._known.get(column.table.metadata, {}) if isinstance(column.table, Table) else {}
        place = getattr(column.table, "name", ""), column.name
        if place in known and isinstance(column.type, Numeric | Float):
            return (known[place],)
        return scales_of(column.type)

    def within(self, metadata: MetaData) -> set[int | None]:
        """The decimal places of all columns of the tables."""
        return {scale for table in metadata.tables.values() for column in table.columns for scale in self.of(column)}


def scales_of(kind: Any) -> tuple[int | None, ...]:
    """The decimal places that amounts of a column may have, None where it does not round them."""
    if isinstance(kind, TypeDecorator):
        # Its own code may round.
        return SCALES if isinstance(kind.impl_instance, Numeric | Float | Integer) else ()
    # SQLAlchemy 2.0 derives Float from Numeric, 2.1 does not.
    if isinstance(kind, Float):
        return (None,)
    return (kind.scale,) if isinstance(kind, Numeric) else ()
