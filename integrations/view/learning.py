"""Learning: finds the argument, id, time or constant that explains a value of an answer.

For each value all explanations are kept that agreed with every answer so far.  While they agree on a new call too, the
value is known; where they differ, or none is left, it is not, and nothing is answered by guess.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from decimal import Decimal, localcontext
from enum import Enum
from itertools import product
from typing import Any

from .conversions import (
    ARITHMETIC,
    Unknown,
    added,
    alike,
    conversions,
    convert,
    is_number,
    number,
    number_or_none,
    rounded,
)

# One explanation, in a form that can be stored: its kind and what it needs.
Explanation = list[Any]
Sources = Mapping[str, Any]

# Arguments whose value decides what a call does; callers spell them in several ways.
DECISIVE = ("status", "side", "order_type")
# For a row that is new.
ABSENT: Any = object()
_STRIKES = 2
_TRUSTED_AGAIN = 3
# How often an amount must be the same to be a constant: after one call it may be computed in a way that is not known.
_SEEN = 2
_FARTHEST = ("max", "min")
_FORMS = ("absolute", "relative", "percent")


@dataclass(slots=True)
class Space:
    """The explanations of one value."""

    candidates: list[Explanation] = field(default_factory=list)
    # How often an answer contradicted all of them, and how many have agreed since.
    strikes: int = 0
    agreed: int = 0

    @property
    def is_explained(self) -> bool:
        """Whether an explanation is left that may be trusted."""
        return bool(self.candidates) and (self.strikes < _STRIKES or self.agreed >= _TRUSTED_AGAIN)

    def predict(self, sources: Sources, old: Any = ABSENT) -> Any:
        """The value; raises `Unknown` where the explanations differ."""
        if not self.is_explained:
            raise Unknown("the manager's answers cannot be explained")
        if self.agreed < _SEEN and any(one[0] == "const" and _is_amount(one[1]) for one in self.candidates):
            raise Unknown("it was seen once only, and may be computed")
        values = [evaluate(candidate, sources, old) for candidate in self.candidates]
        for value in values[1:]:
            if not alike(value, values[0]):
                raise Unknown(f"it may become {values[0]!r} or {value!r}")
        return values[0]

    def observe(
        self,
        key: str,
        shown: Any,
        sources: Sources,
        old: Any = ABSENT,
        *,
        scales: Iterable[int | None],
        new: Iterable[str] = (),
    ) -> None:
        """Take an answer in; `new` are the sources that were never given before, and may explain more."""
        scales = tuple(scales)
        left = [one for one in self.candidates if _explains(one, shown, sources, old)]
        self.agreed += 1
        strikes = int(not left and bool(self.candidates))
        if not left or new:
            more = explain(key, shown, sources, old, scales, widely=self.strikes + strikes * (not new) > 0)
            by_new = [one for one in more if one not in left and not set(new).isdisjoint(map(str, one))]
            # What was never given before may change a value without contradicting what was seen.
            strikes = 0 if by_new else strikes
            left = left + by_new if left else more
        if strikes:
            self.strikes, self.agreed = self.strikes + 1, 0
        self.candidates = left

    def settle(self, written: Collection[Decimal], sources: Sources, old: Any) -> None:
        """Leave out sums in an arithmetic whose total was not `written`, where another's was."""
        totals = {
            str(one): _total(sources, old, *one[1:-1])
            for one in self.candidates
            if one[0] == "sum" and sources.get(one[1]) is not None and is_number(old)
        }
        if not set(totals.values()).isdisjoint(written):
            self.candidates = [one for one in self.candidates if totals.get(str(one)) in (None, *written)]

    def dump(self) -> list[Any]:
        """Its state, to be stored."""
        return [self.candidates, self.strikes, self.agreed]


def predict_row(
    spaces: Mapping[str, Space], sources: Sources, old: Mapping[str, Any] | None = None, *, by_values: bool = False
) -> tuple[dict[str, Any], dict[str, str]]:
    """The values of a row by key, and why others are not known; `old`: the row as it was, None for a new one.

    `by_values`: what was seen to contradict itself depends on the values of the arguments.
    """
    row, doubts = dict(old or {}), dict[str, str]()
    for key, space in spaces.items():
        try:
            if by_values and space.strikes:
                raise Unknown("it depends on the values of the arguments")
            row[key] = space.predict(sources, ABSENT if old is None else old.get(key, ABSENT))
        except Unknown as exc:
            doubts[key] = str(exc)
    return row, doubts


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
) -> None:
    """Take a row in; `names`: the standard names of its keys, `old`: as `predict_row`, `apart`: sources of some."""
    known = set(spaces)
    for key, shown in row.items():
        before = ABSENT if old is None else old.get(key, ABSENT)
        # A key that other rows lack cannot be told of the next row.
        space = spaces.setdefault(key, Space(strikes=int(bool(known) and key not in known)))
        space.observe(names[key], shown, apart.get(key, sources), before, scales=scales, new=new)
    for key in spaces.keys() - row.keys():
        spaces[key].strikes += 1


def evaluate(candidate: Explanation, sources: Sources, old: Any = ABSENT) -> Any:
    """The value that an explanation gives.  Raises `Unknown`."""
    kind, *details = candidate
    if kind == "const":
        return deepcopy(details[0])
    if kind == "keep":
        return _present(old)
    if kind == "of":
        value = sources.get(details[0])
        if details[0] not in sources and not details[0].startswith("arg:"):
            raise Unknown(f"{details[0].partition(':')[2]} is not known")
        if value is None:
            # What is not given leaves a value as it is.
            return None if old is ABSENT else old
        return convert(details[1], value)
    if kind == "next":
        return convert(["same"], type(_present(old))(old + 1))
    if kind == "sum":
        if sources.get(details[0]) is None or old is None:
            return _present(old)
        return convert(details[-1], _total(sources, old, *details[:-1]))
    if kind in _FARTHEST:
        value = sources.get(details[0])
        return convert(details[1], value) if value is not None and _is_beyond(kind, value, old) else _present(old)
    *parts, conversion = details
    return _present(old) if sources.get(parts[0]) is None else convert(conversion, _won(sources, *parts))


def _total(sources: Sources, old: Any, name: str, sign: int, arithmetic: str, floored: bool) -> Decimal:
    """An amount that the call makes larger or smaller, before it is rounded; `floored`: at least 0."""
    total = added(_present(old), sign * number(sources[name]), arithmetic)
    return max(total, Decimal(0)) if floored else total


def _is_beyond(way: str, value: Any, old: Any) -> bool:
    """Whether an amount takes the place of a highest or lowest one, `old`, which None leaves open."""
    present = _present(old)
    if not is_number(value) or not (present is None or is_number(present)):
        raise Unknown(f"{present!r} or {value!r} is no number")
    return present is None or (number(value) > number(present) if way == "max" else number(value) < number(present))


def _present(old: Any) -> Any:
    if old is ABSENT:
        raise Unknown("there is no earlier value")
    return old


def _won(
    sources: Sources, price: str, scale: int | None, entry: str, size: str | None, form: str, sign: int
) -> Decimal:
    """What a position has won at a price: absolute, as a share of its entry price, or in percent of it."""
    basis, factor = sources.get(entry), Decimal(1) if size is None else sources.get(size)
    if not is_number(basis) or not is_number(factor):
        raise Unknown(f"{entry} or {size} is no number")
    with localcontext() as context:
        context.prec = 50
        won = sign * (rounded(number(sources[price]), scale) - number(basis)) * number(factor)
        if form == "absolute":
            return won
        if not number(basis):
            raise Unknown("the entry price is 0")
        return won / number(basis) * (100 if form == "percent" else 1)


def _explains(candidate: Explanation, shown: Any, sources: Sources, old: Any) -> bool:
    try:
        return alike(evaluate(candidate, sources, old), shown)
    except Unknown:
        return False


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
    if found and telling:
        return found
    if old is not ABSENT and is_number(shown) and not alike(old, shown):
        found += _counted(shown, sources, old, scales)
        found += [] if found and not widely else _profits(shown, sources, scales)
        if found and telling:
            return found
    if widely and old is not ABSENT and is_number(shown):
        found += _farthest(shown, sources, old, scales)
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


def _counted(shown: Any, sources: Sources, old: Any, scales: tuple[int | None, ...]) -> Iterator[Explanation]:
    if is_number(old) and type(old) is type(shown) and shown == old + 1:
        yield ["next"]
    if not is_number(old):
        return
    for name, value in sources.items():
        if name.startswith("arg:") and is_number(value):
            for sign, arithmetic, floored in product((1, -1), ARITHMETIC, (False, True)):
                total = _total(sources, old, name, sign, arithmetic, floored)
                for conversion in conversions(total, shown, scales):
                    yield ["sum", name, sign, arithmetic, floored, conversion]


def _farthest(shown: Any, sources: Sources, old: Any, scales: tuple[int | None, ...]) -> Iterator[Explanation]:
    """A highest or lowest amount so far: a trailing stop, the best price."""
    for way, (name, value) in product(_FARTHEST, sources.items()):
        if not name.startswith("arg:") or not is_number(value) or not (old is None or is_number(old)):
            continue
        beyond = _is_beyond(way, value, old)
        if beyond or alike(old, shown):
            for conversion in conversions(value if beyond else number(shown), shown, scales):
                yield [way, name, conversion]


def _profits(shown: Any, sources: Sources, scales: tuple[int | None, ...]) -> Iterator[Explanation]:
    if not isinstance(shown, float | Decimal):
        return
    rows = [name for name, value in sources.items() if name.startswith("row:") and is_number(value)]
    prices = [name for name, value in sources.items() if name.startswith("arg:") and is_number(value)]
    rounding = dict.fromkeys((None, *scales))
    for price, scale, entry, size, form, sign in product(prices, rounding, rows, (None, *rows), _FORMS, (1, -1)):
        try:
            won = _won(sources, price, scale, entry, size, form, sign)
        except Unknown:
            continue
        if abs(won - number(shown)) <= 1:
            for conversion in conversions(won, shown, scales):
                yield ["profit", price, scale, entry, size, form, sign, conversion]


def is_telling(key: str, value: Any) -> bool:
    """Whether two equal values of this kind are hardly a coincidence."""
    if value is None or isinstance(value, bool) or (isinstance(value, str | list | dict | tuple) and not value):
        return False
    if is_id(key):
        return True
    return not (is_number(value) and abs(value) in (0, 1))


def _is_amount(value: Any) -> bool:
    """Whether it is a number, also as a text, that is hardly a default."""
    amount = number_or_none(value)
    return amount is not None and not isinstance(value, bool) and abs(amount) not in (0, 1)


def is_id(key: str) -> bool:
    """Whether a value is an id, by its name."""
    return key in ("", "id") or key.endswith("_id")


def _can_be_stored(value: Any) -> bool:
    return isinstance(value, str | int | float | Decimal | Enum | type(None)) or value in ([], {}, ())
