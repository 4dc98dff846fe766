"""Scalars: values that are texts in JSON, checked as PostgreSQL would, and restored from them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from .errors import InvalidEntry

# Digits of a numeric before and after the decimal point: PostgreSQL documentation, section 8.1.
_MAX_INTEGER_DIGITS = 131_072
_MAX_FRACTION_DIGITS = 16_383


def checked_text(value: str, path: str) -> str:
    """A text that PostgreSQL can hold, or `InvalidEntry`."""
    if "\0" in value:
        raise InvalidEntry(f"{path} contains a NUL character, which PostgreSQL text cannot hold", hint="remove it")
    try:
        value.encode()
    except UnicodeEncodeError as exc:
        raise InvalidEntry(f"{path} contains a lone surrogate at index {exc.start}", hint="pass valid Unicode") from exc
    return value


def checked_decimal(value: Decimal, path: str) -> str:
    """A number that PostgreSQL can hold, as text, or `InvalidEntry`."""
    if not value.is_finite():
        raise InvalidEntry(f"{path} is {value}, which is not a finite number", hint="pass a finite Decimal or None")
    exponent = value.as_tuple().exponent
    assert isinstance(exponent, int)
    if (value and value.adjusted() >= _MAX_INTEGER_DIGITS) or -exponent > _MAX_FRACTION_DIGITS:
        raise InvalidEntry(
            f"{path} has exponent {exponent}, beyond PostgreSQL's numeric",
            hint=f"at most {_MAX_INTEGER_DIGITS} digits before and {_MAX_FRACTION_DIGITS} after the decimal point",
        )
    if exponent > _MAX_INTEGER_DIGITS:
        raise InvalidEntry(f"{path} has exponent {exponent}, beyond PostgreSQL's numeric", hint="normalize the zero")
    return str(value)


def lowered_datetime(value: datetime, path: str) -> tuple[Any, Any]:
    """A point in time as text, and its type tag."""
    offset = value.utcoffset()
    if offset is None:
        return value.isoformat(), ["fold", "naive"] if value.fold else "naive"
    # In UTC, because PostgreSQL ignores an offset that is given to a column without time zone.
    try:
        plain = value.astimezone(UTC).isoformat()
    except OverflowError:
        raise InvalidEntry(
            f"{path} is {value.isoformat()}, which UTC cannot express", hint="pass a time of the years 1 to 9999 in UTC"
        ) from None
    return plain, ["aware", offset.total_seconds()] if offset else "aware"


def lowered_time(value: time, path: str) -> tuple[Any, Any]:
    """A time of the day as text, and its type tag."""
    offset = value.utcoffset()
    if offset is not None:
        return value.isoformat(), ["time", offset.total_seconds()]
    if value.tzinfo is not None:
        raise InvalidEntry(
            f"{path} is {value!r}, whose offset depends on the day", hint="pass a datetime, or a time of a fixed offset"
        )
    return value.isoformat(), ["fold", "time"] if value.fold else "time"


def _interval(text: str) -> timedelta:
    days, _, microseconds, _ = text.split()
    return timedelta(days=int(days), microseconds=int(microseconds))


# By tag, how a value is restored that is a text in JSON.
RESTORED: Mapping[str, Any] = {
    "int": int,
    "decimal": Decimal,
    "aware": datetime.fromisoformat,
    "naive": datetime.fromisoformat,
    "date": date.fromisoformat,
    "time": time.fromisoformat,
    "interval": _interval,
    "uuid": UUID,
    "bytes": lambda text: bytes.fromhex(text[2:]),
}
