"""Learning: finds the argument, id, time or constant that explains a value of an answer.

For each value all explanations are kept that agreed with every answer so far.  While they agree on a new call too, the
value is known; where they differ, or none is left, it is not, and nothing is answered by guess.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from datetime import datetime, timedelta
from decimal import Decimal
from enum import Enum
from itertools import combinations, product
from typing import Any
from uuid import UUID

from ...registered import class_name
from .amounts import MICROSECONDS, durations, is_amount_text, is_constant, is_number, number, places, rounded, utc
from .explanations import (
    ABSENT,
    ARITHMETIC,
    FARTHEST,
    FROM_NULL,
    WITHOUT,
    Conversion,
    Explanation,
    Sources,
    Space,
    Unknown,
    alike,
    explains,
    is_beyond,
    makes,
    multiplied,
    sharpest,
    subtracted,
    total,
    won,
)
from .rows import POSITIONS

# Arguments whose value decides what a call does; callers spell them in several ways.
DECISIVE = ("status", "side", "order_type")
_SHARES: Mapping[str, float] = {"relative": 1.0, "percent": 100.0}
_FORMS = ("absolute", *_SHARES)
# What a float may be off by, relatively, with a wide margin.
_FLOAT_ERROR = 1e-12
_CASES = ("as it is", "upper", "lower")
_HOW = ("text", "name")
# So many combinations of arguments are told apart.
_MOST_GIVEN = 64
# To so many decimal places code rounds for people.
_ROUNDED = 5
# Parts of the names of prices, which replace one another.
_NO_SUMS = frozenset({"price", "stop", "limit", "target", "take"})
# A shorter text may be part of another by chance.
_TELLING_LENGTH = 3


def observe(
    space: Space,
    key: str,
    shown: Any,
    sources: Sources,
    old: Any = ABSENT,
    *,
    scales: Iterable[int | None],
    new: Iterable[str] = (),
    given: str | None = None,
) -> None:
    """Take an answer in; `new` are the sources that were never given before, and may explain more.

    `given`: the arguments that the call gives.
    """
    scales = tuple(scales)
    left = sharpest([one for one in space.candidates if explains(one, shown, sources, old)], shown, sources, old)
    before = None if given is None else space.before(given)
    if before is not None and not any(explains(one, shown, sources, old) for one in space.by_given[before].candidates):
        del space.by_given[before]
    space.agreed += 1
    # An answer that could not be explained contradicts the explanation of the next one.
    strikes = int(not left and (bool(space.candidates) or space.agreed > 1))
    if not left or new:
        widely = space.strikes + strikes * (not new) > 0
        more = sharpest(explain(key, shown, sources, old, scales, widely=widely), shown, sources, old)
        by_new = [one for one in more if one not in left and not set(new).isdisjoint(map(str, one))]
        if by_new and not left and given is not None and not _stays_without(space, old):
            names = ",".join(f"{name.removeprefix('arg:')}+" for name in new)
            space.by_given.setdefault(f"{WITHOUT}{names}", Space(space.candidates, 0, space.agreed - 1))
        # What was never given before may change a value without contradicting what was seen.
        strikes = 0 if by_new else strikes
        left = left + by_new if left else more
    if strikes:
        space.strikes, space.agreed = space.strikes + 1, 0
    space.candidates = left
    if (
        given is not None
        and (space.strikes or space.by_given)
        and (given in space.by_given or len(space.by_given) < _MOST_GIVEN)
    ):
        observe(space.by_given.setdefault(given, Space()), key, shown, sources, old, scales=scales)


def _stays_without(space: Space, old: Any) -> bool:
    """Whether a value is as it was, or None in a new row, where nothing is given for it."""
    return (["const", None] if old is ABSENT else ["keep"]) in space.candidates


def observe_row(
    spaces: dict[str, Space],
    names: Mapping[str, str],
    row: Mapping[str, Any],
    old: Mapping[str, Any] | None,
    sources: Sources,
    apart: Mapping[str, Sources],
    *,
    scales: Iterable[int | None],
    new: Iterable[str] = (),
    given: str | None = None,
) -> None:
    """Take a row in; `names`: the standard names of its keys, `old`: as `predict_row`, `apart`: sources of some."""
    known = set(spaces)
    for key, shown in row.items():
        before = ABSENT if old is None else old.get(key, ABSENT)
        # A key that other rows lack cannot be told of the next row.
        space = spaces.setdefault(key, Space(strikes=int(bool(known) and key not in known)))
        observe(space, names[key], shown, apart.get(key, sources), before, scales=scales, new=new, given=given)
    for key in spaces.keys() - row.keys():
        spaces[key].strikes += 1


def explain(
    key: str, shown: Any, sources: Sources, old: Any, scales: tuple[int | None, ...], *, widely: bool = False
) -> list[Explanation]:
    """All explanations of a value, by the nearest kind that has one; `widely`: by all kinds."""
    telling = is_telling(key, shown) and not widely
    found: list[Explanation] = [["keep"]] if old is not ABSENT and alike(old, shown) else []
    given = [name for name in sources if not name.startswith("row:")]
    direct = _named(key, _direct(key, given, shown, sources, scales))
    # An id that stays is not the session's, however equal.
    found += [one for one in direct if not found or one[1] != "note:session" or "session" in key]
    # From nothing a sum equals what is added.
    if found and telling and not (_is_nothing(old) and _may_be_sum(key, shown)):
        return found
    if old is not ABSENT and is_number(shown) and not alike(old, shown):
        found += _counted(key, shown, sources, old, scales)
        # At its first fill the rest of an order is still its quantity; an exit says what it takes off a position.
        others = [name for name in sources if not name.startswith(f"row:{POSITIONS}:")] if found else []
        twins = [name for name in others if is_number(sources[name]) and sources[name] == old]
        found += _differences(key, shown, sources, twins, scales)
        found += [] if found and not widely else _profits(shown, sources, scales)
        if found and telling:
            return found
    if widely and old is not ABSENT and is_number(shown):
        found += _farthest(shown, sources, old, scales)
    if (not found or widely) and not is_id(key):
        found += _differences("" if old is ABSENT else key, shown, sources, sources, scales)
    if not found and not is_id(key):
        found += [*_products(shown, sources, scales), *_laters(shown, sources, scales)]
    rows = [name for name in sources if name.startswith("row:")]
    if old is ABSENT:
        found += _named(key, _direct(key, rows, shown, sources, scales))
    if ["keep"] in found or (found and is_telling(key, shown)):
        return found
    return [*found, ["const", deepcopy(shown)]] if _can_be_stored(shown) else found


def _direct(
    key: str, names: list[str], shown: Any, sources: Sources, scales: tuple[int | None, ...]
) -> Iterator[Explanation]:
    for name in names:
        # An id is no amount and no count, however equal, and no amount is an id.
        from_id = is_id(name.rpartition(":")[2]) or name == "note:session"
        is_amount = isinstance(sources[name], bool | float | Decimal) and not from_id
        other = is_number(shown) and ((from_id and not is_id(key)) or (is_amount and is_id(key)))
        if sources[name] is not None and shown is not None and not other:
            spelled = name.removeprefix("arg:") in DECISIVE
            for conversion in conversions(sources[name], shown, scales, spelled=spelled):
                yield ["of", name, conversion]
            is_given = name.startswith("arg:") and type(shown) is Decimal and None in scales
            if is_given and makes(["of float"], sources[name], shown):
                # A text of an amount is a Decimal here, and may be that of a float: 516.0, where the caller gives 516.
                yield ["of", name, ["of float"]]


def _named(key: str, found: Iterable[Explanation]) -> list[Explanation]:
    """Of several sources of one value the one that has the value's name."""
    every = list(found)
    if "session" not in key:
        every = [one for one in every if one[1] != "note:session"] or every
    names = {one[1]: one[1].rpartition(":")[2] for one in every}
    exact = [one for one in every if names[one[1]] == key or (one[1] == "note:session" and key == "session_id")]
    near = [one for one in every if min(len(key), len(names[one[1]])) > 3 and _overlap(key, names[one[1]])]
    return exact or near or every


def _overlap(one: str, other: str) -> bool:
    return one in other or other in one


def _counted(key: str, shown: Any, sources: Sources, old: Any, scales: tuple[int | None, ...]) -> Iterator[Explanation]:
    if old is None and _may_be_sum(key, shown):
        for one in _counted(key, shown, sources, type(shown)(0), scales):
            yield [f"{one[0]}{FROM_NULL}", *one[1:]]
    if not is_number(old):
        return
    if type(old) is type(shown) and shown == old + 1:
        yield ["next"]
    for name, value in sources.items():
        if name.startswith("arg:") and is_number(value):
            for sign, arithmetic, floored in product((1, -1), ARITHMETIC, (False, True)):
                sum_ = total(sources, old, name, sign, arithmetic, floored)
                for conversion in conversions(sum_, shown, scales):
                    yield ["sum", name, sign, arithmetic, floored, conversion]


def _is_nothing(old: Any) -> bool:
    return old is None or (is_number(old) and not old)


def _may_be_sum(key: str, shown: Any) -> bool:
    """Whether a value that was nothing may be added to: not a price, by its name."""
    return is_number(shown) and not is_id(key) and _NO_SUMS.isdisjoint(key.split("_"))


def _farthest(shown: Any, sources: Sources, old: Any, scales: tuple[int | None, ...]) -> Iterator[Explanation]:
    """A highest or lowest amount so far: a trailing stop, the best price."""
    for way, (name, value) in product(FARTHEST, sources.items()):
        if not name.startswith("arg:") or not is_number(value) or not (old is None or is_number(old)):
            continue
        beyond = is_beyond(way, value, old)
        if beyond or alike(old, shown):
            for conversion in conversions(value if beyond else number(shown), shown, scales):
                yield [way, name, conversion]


def _profits(shown: Any, sources: Sources, scales: tuple[int | None, ...]) -> Iterator[Explanation]:
    if not isinstance(shown, float | Decimal):
        return
    numbers = {name: value for name, value in sources.items() if is_number(value)}
    rows = {name: float(number(value)) for name, value in numbers.items() if name.startswith("row:")}
    prices = [name for name in numbers if name.startswith("arg:")]
    amount = number(shown)
    # No conversion rounds away more than this.
    near = Decimal(1).scaleb(-places(amount)) + abs(amount) * Decimal(str(_FLOAT_ERROR))
    for price, scale in product(prices, dict.fromkeys((None, *scales))):
        at = float(rounded(number(sources[price]), scale))
        for (entry, basis), size, form in product(rows.items(), (None, *rows), _FORMS):
            # Of a wide row there are thousands: most are ruled out by floats.
            factor = 1.0 if size is None else rows[size]
            share = 1.0 if form == "absolute" else _SHARES[form] / basis if basis else math.nan
            error = _FLOAT_ERROR * abs((abs(at) + abs(basis)) * factor * share)
            if abs(abs((at - basis) * factor * share) - abs(float(amount))) > float(near) + error:
                continue
            for sign in (1, -1):
                try:
                    profit = won(sources, price, scale, entry, size, form, sign)
                except Unknown:
                    continue
                if abs(profit - amount) <= near:
                    for conversion in conversions(profit, shown, scales):
                        yield ["profit", price, scale, entry, size, form, sign, conversion]


def _products(shown: Any, sources: Sources, scales: tuple[int | None, ...]) -> Iterator[Explanation]:
    """An amount times another one, of the call or of the row: a notional, a fee at a rate."""
    if not isinstance(shown, float | Decimal) or not shown:
        return
    factors = [
        name
        for name, value in sources.items()
        if name.startswith(("arg:", "row:")) and is_number(value) and value != 1 and not is_id(name.rpartition(":")[2])
    ]
    for one, other in combinations(factors, 2):
        if one.startswith("row:") and other.startswith("row:"):
            continue
        for arithmetic in ARITHMETIC:
            product_ = multiplied(sources[one], sources[other], arithmetic)
            if abs(product_ - number(shown)) <= 1:
                for conversion in conversions(product_, shown, scales):
                    yield ["product", one, other, arithmetic, conversion]


def _differences(
    key: str, shown: Any, sources: Sources, of: Iterable[str], scales: tuple[int | None, ...]
) -> Iterator[Explanation]:
    """An amount among `of` in the row, less another one of the row or of the call: the rest of an order."""
    if not is_number(shown) or not shown:
        return
    named = ((name, name.rpartition(":")[2]) for name, value in sources.items() if is_number(value))
    # Less than itself is a sum.
    amounts = [name for name, column in named if not is_id(column) and not (column == key and name.startswith("row:"))]
    wholes = [name for name in amounts if name.startswith("row:") and name in of]
    for one, other in product(wholes, (name for name in amounts if name.startswith(("row:", "arg:")))):
        for arithmetic in ARITHMETIC if one != other and sources[other] else ():
            for conversion in conversions(subtracted(sources[one], sources[other], arithmetic), shown, scales):
                yield ["difference", one, other, arithmetic, conversion]


def _laters(shown: Any, sources: Sources, scales: tuple[int | None, ...]) -> Iterator[Explanation]:
    """A time of the call or of the row and a duration: when an order expires, when a position is to be closed."""
    try:
        end = utc(datetime.fromisoformat(shown) if isinstance(shown, str) else shown)
    except (TypeError, ValueError):
        return
    times = {name: utc(value) for name, value in sources.items() if isinstance(value, datetime)}
    given = {
        name: value
        for name, value in sources.items()
        if isinstance(value, timedelta) or (is_number(value) and not is_id(name.rpartition(":")[2]))
    }
    given.pop("note:session", None)
    for name, base in times.items():
        moves: list[tuple[Any, str, int]] = [
            (one, unit, sign) for one, value in given.items() for unit, sign in durations(value, end - base)
        ]
        moves += [((end - base) // timedelta(microseconds=1), MICROSECONDS, 1)] if is_constant(end - base) else []
        for conversion in conversions(end, shown, scales):
            yield from (["later", name, *move, conversion] for move in moves)


def is_telling(key: str, value: Any) -> bool:
    """Whether two equal values of this kind are hardly a coincidence."""
    if value is None or isinstance(value, bool) or (isinstance(value, str | list | dict | tuple) and not value):
        return False
    if is_id(key):
        return True
    return not (is_number(value) and abs(value) in (0, 1))


def is_id(key: str) -> bool:
    """Whether a value is an id, by its name."""
    return key in ("", "id") or key.endswith("_id")


def _can_be_stored(value: Any) -> bool:
    return isinstance(value, str | int | float | Decimal | Enum | type(None)) or value in ([], {}, ())


def conversions(value: Any, shown: Any, scales: Iterable[int | None], *, spelled: bool = False) -> list[Conversion]:
    """Every conversion that makes `shown` out of `value`, which is not None.

    `spelled`: the value is a text that callers spell in several ways.
    """
    if isinstance(shown, str) and isinstance(value, str):
        # A text that is the same in both is passed on, whatever its letters.
        as_it_is: Conversion = ["text", "text", "as it is"]
        if makes(as_it_is, value, shown):
            cases = ("upper", "lower") if spelled else ()
            return [as_it_is, *(one for case in cases if makes(one := ["text", "text", case], value, shown))]
        if len(value) >= _TELLING_LENGTH and value in shown:
            before, _, after = shown.partition(value)
            within: Conversion = ["around", before, after]
            if makes(within, value, shown):
                return [within]
    if isinstance(shown, list | tuple) and isinstance(value, list | tuple):
        return _of_items(value, shown, tuple(scales))
    possible = [one for one in _possible(shown, scales) if isinstance(value, Enum) or "name" not in one]
    # An amount that is not rounded may have the type in which the caller gives it.
    possible += [["same"]] if type(shown) in (int, float, Decimal) and None in scales else []
    return [conversion for conversion in possible if makes(conversion, value, shown)]


def _of_items(
    value: list[Any] | tuple[Any, ...], shown: list[Any] | tuple[Any, ...], scales: tuple[int | None, ...]
) -> list[Conversion]:
    """A list that a column of an array makes of a tuple, or of other numbers."""
    whole: list[Conversion] = [["same"]] if makes(["same"], value, shown) else []
    pairs = [(one, other) for one, other in zip(value, shown, strict=False) if None not in (one, other)]
    inner = conversions(*pairs[0], scales) if pairs else [["same"]]
    kind = "tuple" if isinstance(shown, tuple) else "list"
    return whole + [one for each in inner if makes(one := ["items", kind, each], value, shown)]


def _possible(shown: Any, scales: Iterable[int | None]) -> Iterator[Conversion]:
    if isinstance(shown, Enum):
        yield from (["enum", class_name(type(shown)), how] for how in _HOW)
    elif isinstance(shown, bool):
        yield ["same"]
    elif isinstance(shown, float | Decimal):
        kind = type(shown).__name__.lower()
        yield from ([kind, scale] for scale in scales)
        yield from ([f"{kind} even", scale] for scale in scales if scale is not None and scale <= _ROUNDED)
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
