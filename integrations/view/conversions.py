"""Conversions: how a manager converts a value between a call and its answers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, date, datetime
from decimal import ROUND_HALF_UP, Context, Decimal, InvalidOperation
from enum import Enum
from functools import cache
from typing import Any
from uuid import UUID

# One conversion, in a form that can be stored: its kind and what it needs.
Conversion = list[Any]

# Decimal places that columns of money were seen to have; None for a value that is not rounded.
SCALES: tuple[int | None, ...] = (None, 0, 2, 3, 4, 5, 6, 8, 10, 12, 18)
# In which arithmetic a manager adds; both may come to the same, before rounding too.
EXACT, FLOAT = "exact", "float"
ARITHMETIC = (EXACT, FLOAT)
_CASES = ("as it is", "upper", "lower")
_HOW = ("text", "name")
# More digits than a column holds, and the traps of the host's own arithmetic left out.
_WIDE = Context(prec=80)
_AMOUNT = re.compile(r"-?\d+(\.\d+)?(E[+-]?\d+)?")
# A shorter text may be part of another by chance.
_TELLING_LENGTH = 3


class Unknown(Exception):
    """A value cannot be derived from what is known."""


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


def added(one: Any, other: Any, arithmetic: str) -> Decimal:
    """The sum of two amounts, as that arithmetic gives it."""
    one, other = number(one), number(other)
    return number(float(one) + float(other)) if arithmetic == FLOAT else one + other


def rounded(value: Decimal, scale: int | None) -> Decimal:
    """`value` as a NUMERIC column of that scale holds it."""
    if scale is None:
        return value
    return value.quantize(_unit(scale), ROUND_HALF_UP, _WIDE)


@cache
def _unit(scale: int) -> Decimal:
    return Decimal(1).scaleb(-scale)


def bare(value: Decimal) -> Decimal:
    """An amount without the zeros at its end, which say how it was shown."""
    found = value.normalize(_WIDE)
    return found.quantize(Decimal(1), context=_WIDE) if found.as_tuple().exponent > 0 else found  # type: ignore[operator]


def alike(one: Any, other: Any) -> bool:
    """Whether two values are equal, of one type and spelled alike (1.50 is not 1.5), inside containers too."""
    if type(one) is not type(other):
        return False
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(alike(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(alike, one, other))
    if isinstance(one, float | Decimal):
        return str(one) == str(other)
    return bool(one == other)


def conversions(value: Any, shown: Any, scales: Iterable[int | None], *, spelled: bool = False) -> list[Conversion]:
    """Every conversion that makes `shown` out of `value`, which is not None.

    `spelled`: the value is a text that callers spell in several ways.
    """
    if isinstance(shown, str) and isinstance(value, str):
        # A text that is the same in both is passed on, whatever its letters.
        as_it_is: Conversion = ["text", "text", "as it is"]
        if _makes(as_it_is, value, shown):
            cases = ("upper", "lower") if spelled else ()
            return [as_it_is, *(one for case in cases if _makes(one := ["text", "text", case], value, shown))]
        if len(value) >= _TELLING_LENGTH and value in shown:
            before, _, after = shown.partition(value)
            within: Conversion = ["around", before, after]
            if _makes(within, value, shown):
                return [within]
    possible = [one for one in _possible(shown, scales) if isinstance(value, Enum) or "name" not in one]
    # An amount that is not rounded may have the type in which the caller gives it.
    possible += [["same"]] if type(shown) in (int, float, Decimal) and None in scales else []
    return [conversion for conversion in possible if _makes(conversion, value, shown)]


def convert(conversion: Conversion, value: Any) -> Any:
    """Apply a conversion.  Raises `Unknown` where it does not fit the value."""
    kind, *details = conversion
    try:
        return _CONVERTERS[kind](value, *details)
    except (ValueError, TypeError, AttributeError, ArithmeticError) as exc:
        raise Unknown(f"{value!r} cannot be converted by {conversion}") from exc


def _makes(conversion: Conversion, value: Any, shown: Any) -> bool:
    try:
        return alike(convert(conversion, value), shown)
    except Unknown:
        return False


def _possible(shown: Any, scales: Iterable[int | None]) -> Iterator[Conversion]:
    if isinstance(shown, Enum):
        yield from (["enum", class_name(type(shown)), how] for how in _HOW)
    elif isinstance(shown, bool):
        yield ["same"]
    elif isinstance(shown, float | Decimal):
        yield from ([type(shown).__name__.lower(), scale] for scale in scales)
        if isinstance(shown, float):
            yield ["epoch"]
    elif isinstance(shown, int):
        yield ["int"]
    elif isinstance(shown, str):
        yield from (["text", how, case] for how in _HOW for case in _CASES)
        yield from (["iso", zone] for zone in ("naive", "utc"))
        if is_amount_text(shown):
            yield from (["written", kind, scale] for kind in ("decimal", "float") for scale in scales)
    elif isinstance(shown, datetime):
        yield from (["same"], ["naive"], ["utc"], ["naive second"], ["utc second"])
    elif isinstance(shown, UUID):
        yield ["uuid"]
    else:
        yield ["same"]


def text_of(value: Any, how: str) -> str:
    """The text that a value stands for; an enum member by its value or its name."""
    if isinstance(value, Enum):
        value = value.name if how == "name" else value.value
    if isinstance(value, bool) or not isinstance(value, str | int | UUID):
        raise TypeError(f"{value!r} is no text")
    return str(value)


def _text(value: Any, how: str, case: str) -> str:
    text = text_of(value, how)
    return text.upper() if case == "upper" else text.lower() if case == "lower" else text


def _enum(value: Any, name: str, how: str) -> Any:
    cls = class_named(name)
    if cls is None:
        raise Unknown(f"the enum {name} is not loaded")
    wanted = text_of(value, how).casefold()
    for member in cls:
        if str(member.value).casefold() == wanted or member.name.casefold() == wanted:
            return member
    raise ValueError(f"{name} has no member {wanted}")


def _utc(value: Any) -> datetime:
    if not isinstance(value, datetime):
        raise TypeError(f"{value!r} is no time")
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def _naive(value: Any) -> datetime:
    return _utc(value).replace(tzinfo=None)


def _int(value: Any) -> int:
    found = number(value)
    if found != int(found):
        raise ValueError(f"{value!r} is not whole")
    return int(found)


def _amount(value: Any, scale: int | None) -> Decimal:
    if isinstance(value, bool | datetime | date):
        raise TypeError(f"{value!r} is no amount")
    return rounded(number(value), scale)


_CONVERTERS: dict[str, Any] = {
    "same": lambda value: value,
    "float": lambda value, scale: float(_amount(value, scale)),
    "decimal": _amount,
    "int": _int,
    "text": _text,
    "iso": lambda value, zone: (_naive(value) if zone == "naive" else _utc(value)).isoformat(),
    "around": lambda value, before, after: f"{before}{text_of(value, 'text')}{after}",
    "written": lambda value, kind, scale: str(_CONVERTERS[kind](value, scale)),
    "enum": _enum,
    "naive": _naive,
    "utc": _utc,
    "naive second": lambda value: _naive(value).replace(microsecond=0),
    "utc second": lambda value: _utc(value).replace(microsecond=0),
    "epoch": lambda value: _utc(value).timestamp(),
    "uuid": lambda value: UUID(str(value)),
}


def class_name(cls: type) -> str:
    """Under which name a class is stored."""
    return f"{cls.__module__}:{cls.__qualname__}"


def class_named(name: str) -> Any:
    """The class of that name among the loaded modules; None where there is none: nothing is imported by name."""
    import sys

    module, _, path = name.partition(":")
    found: Any = sys.modules.get(module)
    for part in path.split("."):
        found = getattr(found, part, None)
    return found if isinstance(found, type) else None
