"""Times: sums of a time and a duration, as managers make them of arguments, of rows and of constants."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

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
