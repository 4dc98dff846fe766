"""Explanations: how a value of an answer follows from a call, as it can be stored, and what it makes of a new call.

`learning.py` finds the explanations; here they are applied.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import date, datetime
from decimal import ROUND_HALF_EVEN, Decimal, localcontext
from enum import Enum
from typing import Any
from uuid import UUID

from ...registered import class_named
from .amounts import MICROSECONDS, WIDE, after, is_number, naive, number, number_or_none, rounded, utc

# How a manager converts a value between a call and its answers: its kind and what it needs.
Conversion = list[Any]
# One explanation: its kind and what it needs, often a conversion at the end.
Explanation = list[Any]
# Arguments, notes and values of rows, by name.
Sources = Mapping[str, Any]

# For a row that is new.
ABSENT: Any = object()
# In which arithmetic a manager adds; both may come to the same, before rounding too.
EXACT, FLOAT = "exact", "float"
ARITHMETIC = (EXACT, FLOAT)
# Ends the kind of a sum or a counter that begins where a value is NULL.
FROM_NULL = " from null"
# Ways to an amount that takes the place of another one only where it is beyond it.
FARTHEST = ("max", "min")
# Begins the key of what explained calls before the arguments behind it were first given.
WITHOUT = "without "
# Of what no call has changed.
_KEPT: list[Explanation] = [["keep"]]
_STRIKES = 2
_TRUSTED_AGAIN = 3
# How often an amount must be the same to be a constant: after one call it may be computed in a way that is not known.
_SEEN = 2


class Unknown(Exception):
    """A value cannot be derived from what is known."""


@dataclass(slots=True)
class Space:
    """The explanations of one value."""

    candidates: list[Explanation] = field(default_factory=list)
    # How often an answer contradicted all of them, and how many have agreed since.
    strikes: int = 0
    agreed: int = 0
    # Since the first contradiction, by the arguments that a call gives: the explanations of such calls.
    by_given: dict[str, Space] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.by_given = {given: Space(*one) if isinstance(one, list) else one for given, one in self.by_given.items()}

    @property
    def is_explained(self) -> bool:
        """Whether an explanation is left that may be trusted."""
        if len(self.by_given) > 1:
            return any(one.is_explained for one in self.by_given.values())
        return bool(self.candidates) and (self.strikes < _STRIKES or self.agreed >= _TRUSTED_AGAIN)

    def predict(self, sources: Sources, old: Any = ABSENT, given: str | None = None) -> Any:
        """The value; raises `Unknown` where the explanations differ.  `given`: the arguments that the call gives."""
        if given is not None and self.by_given.keys() - {given}:
            # What calls with other arguments do is no explanation.
            own = self.by_given.get(given)
            if own is None or own.agreed < _SEEN:
                before = self.before(given)
                own = None if before is None else self.by_given[before]
            if own is not None:
                return own.predict(sources, old)
            if self.strikes:
                raise Unknown("calls with other arguments contradict it")
        if self.strikes or self.by_given or self.agreed < _SEEN or not self.candidates:
            self._refuse_doubtful(given)
        first, *others = self.candidates
        value = evaluate(first, sources, old)
        for one in others:
            if not alike(other := evaluate(one, sources, old), value):
                raise Unknown(f"it may become {value!r} or {other!r}")
        return value

    def _refuse_doubtful(self, given: str | None) -> None:
        """Raise `Unknown` where too little was seen to trust the explanations, or another one."""
        if not self.is_explained:
            raise Unknown("the manager's answers cannot be explained")
        constants = bool(self.strikes) and any(one[0] == "const" for one in self.candidates)
        differences = all(one[0] == "difference" for one in self.candidates)
        if self.agreed < _SEEN and (constants or differences or any(map(_may_be_chance, self.candidates))):
            raise Unknown("it was seen once only, and may be computed")
        if self.strikes and not self.agreed and given is not None:
            raise Unknown("another rule was seen, and this one once only since")
        if self.strikes and any(one[0] == "later" for one in self.candidates):
            raise Unknown("another time was seen")

    def before(self, given: str) -> str | None:
        """The key of what explained calls before an argument was first given that is not among these."""
        names = set(given.split(","))
        found = (key for key in self.by_given if key.startswith(WITHOUT))
        return next((key for key in found if names.isdisjoint(key.removeprefix(WITHOUT).split(","))), None)

    def settle(self, written: Collection[Decimal], sources: Sources, old: Any) -> None:
        """Leave out sums in an arithmetic whose total was not `written`, where another's was."""
        totals = {
            str(one): total(sources, old, *one[1:-1])
            for one in self.candidates
            if one[0] == "sum" and sources.get(one[1]) is not None and is_number(old)
        }
        if not set(totals.values()).isdisjoint(written):
            self.candidates = [one for one in self.candidates if totals.get(str(one)) in (None, *written)]

    def dump(self) -> list[Any]:
        """Its state, to be stored."""
        by_given = {given: one.dump() for given, one in self.by_given.items()}
        return [self.candidates, self.strikes, self.agreed, *([by_given] if by_given else [])]


def predict_row(
    spaces: Mapping[str, Space],
    sources: Sources,
    old: Mapping[str, Any] | None = None,
    *,
    by_values: bool = False,
    given: str | None = None,
) -> tuple[dict[str, Any], dict[str, str]]:
    """The values of a row by key, and why others are not known; `old`: the row as it was, None for a new one.

    `by_values`: what was seen to contradict itself depends on the values of the arguments.
    """
    row, doubts = dict(old or {}), dict[str, str]()
    for key, space in spaces.items():
        if space.candidates == _KEPT and not (space.strikes or space.by_given) and key in row:
            # Most columns: a call changes few of a row.
            continue
        try:
            if by_values and space.strikes:
                raise Unknown("it depends on the values of the arguments")
            row[key] = space.predict(sources, ABSENT if old is None else old.get(key, ABSENT), given)
        except Unknown as exc:
            doubts[key] = str(exc)
    return row, doubts


def evaluate(candidate: Explanation, sources: Sources, old: Any = ABSENT) -> Any:
    """The value that an explanation gives.  Raises `Unknown`."""
    kind, *details = candidate
    if kind == "const":
        return deepcopy(details[0])
    if kind == "keep":
        return _present(old)
    if kind == "of":
        value = sources.get(details[0])
        if details[0] not in sources and (old is ABSENT or not details[0].startswith("arg:")):
            raise Unknown(f"{details[0].partition(':')[2]} is not known")
        if value is None:
            # What is not given leaves a value as it is.
            return None if old is ABSENT else old
        return convert(details[1], value)
    if kind.endswith(FROM_NULL):
        is_added = kind.startswith("next") or sources.get(details[0]) is not None
        old = 0 if old is None and is_added else old
        return evaluate([kind.removesuffix(FROM_NULL), *details], sources, old)
    if kind == "next":
        return convert(["same"], type(_present(old))(old + 1))
    if kind == "sum":
        if sources.get(details[0]) is None or old is None:
            return _present(old)
        return convert(details[-1], total(sources, old, *details[:-1]))
    if kind == "product":
        one, other = map(sources.get, details[:2])
        return _present(old) if None in (one, other) else convert(details[-1], multiplied(one, other, details[2]))
    if kind == "difference":
        one, other = map(sources.get, details[:2])
        return _present(old) if None in (one, other) else convert(details[-1], subtracted(one, other, details[2]))
    if kind == "later":
        name, amount, unit = details[:3]
        base, moved = sources.get(name), amount if unit == MICROSECONDS else sources.get(amount)
        return _present(old) if None in (base, moved) else convert(["after", moved, *details[2:]], base)
    if kind in FARTHEST:
        value = sources.get(details[0])
        return convert(details[1], value) if value is not None and is_beyond(kind, value, old) else _present(old)
    *parts, conversion = details
    return _present(old) if sources.get(parts[0]) is None else convert(conversion, won(sources, *parts))


def sharpest(candidates: list[Explanation], shown: Any, sources: Sources, old: Any) -> list[Explanation]:
    """Of explanations of a time those that give it in the zone in which it is shown, if there are any."""
    if not isinstance(shown, datetime) or shown.tzinfo is None:
        return candidates
    exact = [one for one in candidates if evaluate(one, sources, old).utcoffset() == shown.utcoffset()]
    return exact or candidates


def explains(candidate: Explanation, shown: Any, sources: Sources, old: Any) -> bool:
    """Whether that is the value of an answer."""
    try:
        return alike(evaluate(candidate, sources, old), shown)
    except Unknown:
        return False


def total(sources: Sources, old: Any, name: str, sign: int, arithmetic: str, floored: bool) -> Decimal:
    """An amount that the call makes larger or smaller, before it is rounded; `floored`: at least 0."""
    found = added(_present(old), sign * number(sources[name]), arithmetic)
    return max(found, Decimal(0)) if floored else found


def is_beyond(way: str, value: Any, old: Any) -> bool:
    """Whether an amount takes the place of a highest or lowest one, `old`, which None leaves open."""
    present = _present(old)
    if not is_number(value) or not (present is None or is_number(present)):
        raise Unknown(f"{present!r} or {value!r} is no number")
    return present is None or (number(value) > number(present) if way == "max" else number(value) < number(present))


def _present(old: Any) -> Any:
    if old is ABSENT:
        raise Unknown("there is no earlier value")
    return old


def won(sources: Sources, price: str, scale: int | None, entry: str, size: str | None, form: str, sign: int) -> Decimal:
    """What a position has won at a price: absolute, as a share of its entry price, or in percent of it."""
    basis, factor = sources.get(entry), Decimal(1) if size is None else sources.get(size)
    if not is_number(basis) or not is_number(factor):
        raise Unknown(f"{entry} or {size} is no number")
    with localcontext() as context:
        context.prec = 50
        amount = sign * (rounded(number(sources[price]), scale) - number(basis)) * number(factor)
        if form == "absolute":
            return amount
        if not number(basis):
            raise Unknown("the entry price is 0")
        return amount / number(basis) * (100 if form == "percent" else 1)


def _may_be_chance(one: Explanation) -> bool:
    """Whether an answer may equal what it gives once, and be computed in another way."""
    return one[0] in ("product", "later") or (one[0] == "const" and _is_amount(one[1]))


def _is_amount(value: Any) -> bool:
    """Whether it is a number that is hardly a default, or a text with a digit, such as a token."""
    amount = number_or_none(value)
    if amount is None:
        return isinstance(value, str) and any(map(str.isdigit, value))
    return abs(amount) not in (0, 1)


def added(one: Any, other: Any, arithmetic: str) -> Decimal:
    """The sum of two amounts, as that arithmetic gives it."""
    one, other = number(one), number(other)
    return number(float(one) + float(other)) if arithmetic == FLOAT else one + other


def multiplied(one: Any, other: Any, arithmetic: str) -> Decimal:
    """The product of two amounts, as that arithmetic gives it."""
    if not (is_number(one) and is_number(other)):
        raise Unknown(f"{one!r} or {other!r} is no number")
    if arithmetic == FLOAT:
        return number(float(one) * float(other))
    with localcontext() as context:
        context.prec = WIDE.prec
        return number(one) * number(other)


def subtracted(one: Any, other: Any, arithmetic: str) -> Decimal:
    """The difference of two amounts, as that arithmetic gives it."""
    if not (is_number(one) and is_number(other)):
        raise Unknown(f"{one!r} or {other!r} is no number")
    return added(one, -number(other), arithmetic)


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


def convert(conversion: Conversion, value: Any) -> Any:
    """Apply a conversion.  Raises `Unknown` where it does not fit the value."""
    kind, *details = conversion
    try:
        return _CONVERTERS[kind](value, *details)
    except (ValueError, TypeError, AttributeError, ArithmeticError) as exc:
        raise Unknown(f"{value!r} cannot be converted by {conversion}") from exc


def makes(conversion: Conversion, value: Any, shown: Any) -> bool:
    """Whether a conversion makes `shown` out of `value`."""
    try:
        return alike(convert(conversion, value), shown)
    except Unknown:
        return False


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


def _int(value: Any) -> int:
    found = number(value)
    if found != int(found):
        raise ValueError(f"{value!r} is not whole")
    return int(found)


def _amount(value: Any, scale: int | None) -> Decimal:
    if isinstance(value, bool | datetime | date):
        raise TypeError(f"{value!r} is no amount")
    return rounded(number(value), scale)


def _items(value: Any, kind: str, conversion: Conversion) -> Any:
    if not isinstance(value, list | tuple):
        raise TypeError(f"{value!r} has no items")
    items = [None if one is None else convert(conversion, one) for one in value]
    return tuple(items) if kind == "tuple" else items


_CONVERTERS: dict[str, Any] = {
    "items": _items,
    "same": lambda value: value,
    "float": lambda value, scale: float(_amount(value, scale)),
    "decimal": _amount,
    # As Python rounds, whose halves go to the even digit, or where the nearest float lies.
    "float even": lambda value, scale: round(float(_amount(value, None)), scale),
    "decimal even": lambda value, scale: rounded(_amount(value, None), scale, ROUND_HALF_EVEN),
    "of float": lambda value: number(float(_amount(value, None))),
    "int": _int,
    "text": _text,
    "iso": lambda value, zone: (naive(value) if zone == "naive" else utc(value)).isoformat(),
    "around": lambda value, before, after: f"{before}{text_of(value, 'text')}{after}",
    "written": lambda value, kind, scale: str(_CONVERTERS[kind](value, scale)),
    "enum": _enum,
    "naive": naive,
    "utc": utc,
    "after": lambda value, amount, unit, sign, conversion: convert(conversion, after(value, amount, unit, sign)),
    "naive second": lambda value: naive(value).replace(microsecond=0),
    "utc second": lambda value: utc(value).replace(microsecond=0),
    "epoch": lambda value: utc(value).timestamp(),
    "uuid": lambda value: UUID(str(value)),
}
