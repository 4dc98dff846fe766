"""Arguments come back exactly as they went in, in bytes that PostgreSQL can read; what it would refuse is refused."""

from __future__ import annotations

import enum
import json
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, make_dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from functools import cached_property
from typing import Any, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

import attrs
import msgspec
import numpy as np
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Column, Integer, MetaData, String, Table
from sqlalchemy.orm import DeclarativeBase

from outbox import ConfigError, InvalidEntry, codec, register_enum, registered
from outbox.results import decode_result, encode_result


@register_enum
class Side(enum.Enum):
    BUY = "buy"
    SELL = 2
    AMOUNT = Decimal("1.50")
    ODD = (1, 2)
    NESTED = enum.Enum("Inner", "ONE").ONE  # type: ignore[attr-defined]


@register_enum
class Level(enum.IntEnum):
    LOW = 1


class Stranger(enum.Enum):
    ONE = 1


bounded = settings(max_examples=100, deadline=None, database=None)


def exact(value: Any) -> Any:
    """Something comparable that differs wherever type or content of two values differ."""
    kind = type(value).__name__
    if isinstance(value, dict):
        return kind, frozenset((exact(key), exact(item)) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return kind, tuple(map(exact, value))
    if isinstance(value, (set, frozenset)):
        return kind, frozenset(map(exact, value))
    if isinstance(value, datetime):
        # Beside an offset `fold` says nothing.
        return kind, value.replace(tzinfo=None).isoformat(), value.fold if value.tzinfo is None else value.utcoffset()
    if isinstance(value, Decimal):
        return kind, value.as_tuple()
    return kind, repr(value)


def round_trip(value: Any) -> Any:
    return codec.decode(*codec.encode(value))


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
offsets = st.timedeltas(timedelta(hours=-23, minutes=-59), timedelta(hours=23, minutes=59)).map(timezone)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    texts,
    st.decimals(allow_nan=False, allow_infinity=False),
    st.builds(
        lambda sign, digits, exponent: Decimal((sign, digits, exponent)),
        st.integers(0, 1),
        st.lists(st.integers(0, 9), min_size=1, max_size=30).map(tuple),
        st.integers(-400, 400),
    ),
    st.datetimes(),
    st.datetimes(datetime(2, 1, 1), datetime(9998, 1, 1), timezones=offsets),  # noqa: DTZ001 - bounds are naive
    st.dates(),
    st.times(),
    # Beside an offset `fold` says nothing.
    st.times(timezones=offsets).map(lambda value: value.replace(fold=0)),
    st.timedeltas(),
    st.uuids(),
    st.binary(max_size=8),
    st.sampled_from([*Side, *Level]),
)


@st.composite
def scalars(draw: st.DrawFn) -> Any:
    return draw(SCALARS)


@st.composite
def hashables(draw: st.DrawFn) -> Any:
    items = draw(st.lists(scalars(), max_size=3))
    kind = draw(st.sampled_from([tuple, frozenset, None]))
    return draw(scalars()) if kind is None else kind(items)


values = st.recursive(
    st.one_of(scalars(), st.sets(hashables(), max_size=3)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(texts, inner, max_size=3),
        st.dictionaries(hashables(), inner, max_size=3),
    ),
    max_leaves=8,
)


def refuse_constant(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


@pytest.mark.slow
@bounded
@given(values)
def test_every_value_comes_back_with_its_type_and_content(value: Any) -> None:
    plain, types = codec.encode(value)
    back = codec.decode(plain, types)
    assert exact(back) == exact(value)
    assert codec.encode(back) == (plain, types)
    json.loads(plain, parse_constant=refuse_constant)


@pytest.mark.slow
@bounded
@given(st.dictionaries(texts, st.one_of(scalars(), st.sets(hashables(), max_size=4)), max_size=6))
def test_equal_arguments_give_equal_bytes_whatever_their_order(args: dict[str, Any]) -> None:
    shuffled = {name: args[name] for name in reversed(args)}
    for name, value in shuffled.items():
        if isinstance(value, set):
            shuffled[name] = {*reversed(list(value))}
    assert codec.encode(shuffled) == codec.encode(args)


anything = st.one_of(
    SCALARS,
    st.text(st.characters(), max_size=4),
    st.floats(),
    st.decimals(),
    st.integers(2**63 - 2, 2**64 + 2),
    st.datetimes(timezones=st.sampled_from([None, UTC, UTC, ZoneInfo("UTC"), ZoneInfo("Asia/Tokyo")])),
    st.just(datetime(2024, 10, 27, 2, 30, fold=1)),  # noqa: DTZ001
    st.sampled_from(["a\\u0000", Decimal("1E+200000"), Decimal("-0"), Decimal("sNaN"), -0.0]),
)


@pytest.mark.slow
@settings(bounded, max_examples=400)
@given(
    st.one_of(
        st.dictionaries(st.one_of(st.text(st.characters(), max_size=3), st.integers()), anything, max_size=3),
        st.lists(anything, max_size=3),
    )
)
def test_short_encoding_of_common_arguments_equals_the_general_one(value: Any) -> None:
    short = codec.encode_flat(value)
    try:
        general = codec.encode_deep(value)
    except InvalidEntry:
        general = None
    assert short in (None, general)
    if short is not None:
        assert exact(codec.decode(*short)) == exact(value)


def test_common_arguments_take_the_short_way() -> None:
    trade = {"id": 7, "price": Decimal("64250.10"), "ratio": 0.5, "at": datetime.now(UTC), "note": None, "side": "buy"}
    trade["opened"] = datetime(2024, 5, 1, 9, 30)  # noqa: DTZ001 - as engines that mean UTC give it
    encoded = codec.encode_flat(trade)
    assert encoded is not None
    assert exact(codec.decode(*encoded)) == exact(trade)
    assert trade["price"] == Decimal("64250.10")
    assert codec.encode_flat({**trade, "tags": ["a"]}) is None


def test_equal_dicts_with_integer_keys_give_equal_bytes() -> None:
    assert codec.encode({1: "a", 2: "b"}) == codec.encode({2: "b", 1: "a"})


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (Decimal("1.50"), b'"1.50"'),
        (Decimal("1E+5"), b'"1E+5"'),
        (2**63, b'"9223372036854775808"'),
        (2**63 - 1, b"9223372036854775807"),
        (-(2**63), b"-9223372036854775808"),
        (datetime(2024, 3, 1, 12, 30), b'"2024-03-01T12:30:00"'),  # noqa: DTZ001 - naive on purpose
        (datetime(2024, 3, 1, 12, 30, tzinfo=UTC), b'"2024-03-01T12:30:00+00:00"'),
        (datetime(2024, 3, 1, 12, 30, tzinfo=timezone(timedelta(hours=2))), b'"2024-03-01T10:30:00+00:00"'),
        (date(2024, 3, 1), b'"2024-03-01"'),
        (time(1, 2, 3), b'"01:02:03"'),
        (timedelta(days=-1, seconds=1), b'"-1 days 1000000 microseconds"'),
        (UUID(int=1), b'"00000000-0000-0000-0000-000000000001"'),
        (b"\x00\xff", b'"\\\\x00ff"'),
        (Side.BUY, b'"buy"'),
        (Side.SELL, b"2"),
        (Side.AMOUNT, b'"1.50"'),
        (Side.ODD, b'"ODD"'),
        (Level.LOW, b"1"),
        ((1, "a"), b'[1,"a"]'),
        ({2, 1}, b"[1,2]"),
        ({"b": 1, "a": None}, b'{"a":null,"b":1}'),
    ],
    ids=lambda value: repr(value).replace("\\", ""),
)
def test_postgresql_sees_each_type_in_a_form_that_it_casts(value: Any, plain: bytes) -> None:
    assert codec.encode(value)[0] == plain


@pytest.mark.parametrize("value", [None, True, 1, 1.5, "text", [1, [2]], {"a": {"b": [1]}}, {}], ids=repr)
def test_values_that_json_holds_exactly_need_no_types(value: Any) -> None:
    assert codec.encode(value)[1] == b""


def test_a_datetime_of_a_named_zone_keeps_its_offset() -> None:
    summer = datetime(2024, 7, 1, 12, tzinfo=ZoneInfo("Europe/Berlin"))
    assert exact(round_trip(summer)) == exact(summer.astimezone(timezone(timedelta(hours=2))))


@pytest.mark.parametrize("value", [datetime(2024, 10, 27, 2, 30), time(2, 30)], ids=["datetime", "time"])  # noqa: DTZ001
@pytest.mark.parametrize("fold", [0, 1])
def test_of_two_local_times_of_a_day_the_right_one_comes_back(value: Any, fold: int) -> None:
    plain, types = codec.encode({"at": value.replace(fold=fold)})
    assert codec.decode(plain, types)["at"].fold == fold
    assert plain == codec.encode({"at": value})[0]


@pytest.mark.parametrize("fold", [0, 1])
def test_the_hour_that_comes_twice_in_a_named_zone_keeps_its_offset(fold: int) -> None:
    value = datetime(2024, 10, 27, 2, 30, fold=fold, tzinfo=ZoneInfo("Europe/Berlin"))
    assert (round_trip(value).timestamp(), round_trip(value).utcoffset()) == (value.timestamp(), value.utcoffset())


def test_a_time_of_a_named_zone_with_one_offset_is_kept() -> None:
    assert round_trip(time(9, 30, tzinfo=ZoneInfo("UTC"))) == time(9, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.int64(-5), -5),
        (np.uint64(2**64 - 1), 2**64 - 1),
        (np.float64(0.1), 0.1),
        (np.float32(0.5), 0.5),
        (np.bool_(True), True),
        (np.str_("a"), "a"),
        (np.bytes_(b"a"), b"a"),
        (np.array(7), 7),
        (np.datetime64("2024-03-01T12:00:00", "us"), datetime(2024, 3, 1, 12)),  # noqa: DTZ001 - numpy's are naive
        (np.datetime64("2024-03-01"), date(2024, 3, 1)),
        (np.timedelta64(1500, "ms"), timedelta(seconds=1.5)),
    ],
    ids=repr,
)
def test_numpy_scalars_become_the_python_value_they_stand_for(value: Any, expected: Any) -> None:
    assert exact(round_trip(value)) == exact(expected)


def test_pandas_timestamps_become_datetimes() -> None:
    pandas = pytest.importorskip("pandas")
    naive = datetime(2024, 3, 1, 12)  # noqa: DTZ001 - naive on purpose
    assert exact(round_trip(pandas.Timestamp(naive))) == exact(naive)
    aware = round_trip(pandas.Timestamp("2024-03-01 12:00", tz="Europe/Berlin"))
    assert exact(aware) == exact(naive.replace(tzinfo=timezone(timedelta(hours=1))))
    for refused in (pandas.NaT, pandas.NA, pandas.Timestamp(1), pandas.Series([1])):
        with pytest.raises(InvalidEntry, match="pandas"):
            codec.encode(refused)


class Timestamp(datetime):
    """What the codec sees of pandas.Timestamp, where pandas is not installed: a datetime of a class of its own."""

    __module__ = "pandas._libs.tslibs.timestamps"
    nanosecond = 0

    def to_pydatetime(self) -> datetime:
        return datetime(self.year, self.month, self.day, self.hour)  # noqa: DTZ001 - naive on purpose


class Timedelta(timedelta):
    """What the codec sees of pandas.Timedelta, where pandas is not installed."""

    __module__ = "pandas._libs.tslibs.timedeltas"
    nanoseconds = 0

    def to_pytimedelta(self) -> timedelta:
        return timedelta(self.days, self.seconds, self.microseconds)


def test_timedelta_of_pandas_becomes_a_timedelta() -> None:
    assert exact(round_trip(Timedelta(days=1, microseconds=7))) == exact(timedelta(days=1, microseconds=7))
    finer = type("Timedelta", (Timedelta,), {"__module__": "pandas", "nanoseconds": 1})(1)
    with pytest.raises(InvalidEntry, match="pandas"):
        codec.encode(finer)


def test_refused_dataclass_names_the_way_out() -> None:
    with pytest.raises(InvalidEntry, match="register its class with outbox.register_record"):
        codec.encode({"fill": Fill("IBM")})


@dataclass
class Fill:
    symbol: str


@registered.register_record
@dataclass(frozen=True, slots=True)
class Leg:
    symbol: str
    price: Decimal
    tags: tuple[str, ...] = ()


class Quote(NamedTuple):
    bid: Decimal
    at: datetime


@registered.register_record
@dataclass
class Deal:
    """It sets more on itself than its fields."""

    legs: list[Leg]
    quote: Quote | None = None
    late: int = field(init=False)

    def __post_init__(self) -> None:
        self.count = len(self.legs)

    @cached_property
    def total(self) -> int:
        return self.count * 2


registered.register_record(Quote)


def test_records_round_trip_at_any_depth() -> None:
    leg = Leg("IBM", Decimal("1.50"), ("a",))
    deal = Deal([leg, Leg("F", Decimal(2))], Quote(Decimal(1), datetime(2026, 1, 2, tzinfo=UTC)))
    found = round_trip({"deal": deal, "legs": {"one": leg}})
    assert found["legs"] == {"one": leg}
    assert vars(found["deal"]) == vars(deal)
    assert list(map(type, (found["deal"].quote, found["deal"].legs[0].price))) == [Quote, Decimal]


def test_cached_property_changes_no_record() -> None:
    deal = Deal([])
    before = codec.encode(deal)
    assert deal.total == 0
    assert codec.encode(deal) == before


def test_postgres_sees_the_fields_of_a_record() -> None:
    assert json.loads(codec.encode(Leg("IBM", Decimal("1.50")))[0]) == {"price": "1.50", "symbol": "IBM", "tags": []}


def test_record_of_another_version_gets_defaults_or_is_refused() -> None:
    plain, types = codec.encode(Leg("IBM", Decimal("1.50")))
    without = json.loads(plain)
    del without["tags"]
    assert codec.decode(json.dumps(without).encode(), types) == Leg("IBM", Decimal("1.50"))
    del without["symbol"]
    with pytest.raises(ConfigError, match="Leg had no field 'symbol' when it was stored"):
        codec.decode(json.dumps(without).encode(), types)
    with pytest.raises(ConfigError, match="Leg has no field 'venue' any more"):
        codec.decode(json.dumps({**json.loads(plain), "venue": "X"}).encode(), types)
    quote, types = codec.encode(Quote(Decimal(1), datetime(2026, 1, 2, tzinfo=UTC)))
    with pytest.raises(ConfigError, match="Quote has no field 'ask' any more"):
        codec.decode(json.dumps({**json.loads(quote), "ask": 1}).encode(), types)


def test_renamed_field_with_a_default_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, types = codec.encode(Deal([], None))
    renamed = make_dataclass("Deal", [("legs", list), ("price", object, None), ("late", int, 0)])
    monkeypatch.setitem(registered.records, registered.class_name(Deal), renamed)
    with pytest.raises(ConfigError, match="Deal has no field 'quote' any more"):
        codec.decode(plain, types)


class Named(Quote):
    """It has attributes, too."""


def test_attribute_of_a_named_tuple_is_kept() -> None:
    named = registered.register_record(Named)(Decimal(1), datetime(2026, 1, 2, tzinfo=UTC))
    named.venue = "X"  # type: ignore[attr-defined]
    found = round_trip(named)
    assert (found, type(found), vars(found)) == (named, Named, {"venue": "X"})


@dataclass
class Failure(Exception):
    code: int


class Guarded:
    """It acts when it goes."""

    def __del__(self) -> None:
        pass


class Base(DeclarativeBase):
    pass


class Holding(Base):
    __tablename__ = "holdings"
    id: Any = Column(Integer, primary_key=True)


@attrs.frozen
class Lot:
    size: Decimal
    _venue: str = "X"
    notes: list[str] = attrs.field(factory=list)
    late: int = attrs.field(init=False, eq=False, repr=False)


@attrs.define(slots=False, cache_hash=True, unsafe_hash=True)
class Pair:
    base: str
    quote: str = "USD"


class Ticket(pydantic.BaseModel, extra="allow"):
    symbol: str
    size: Decimal = Decimal(1)
    tags: list[str] = pydantic.Field(default_factory=list)
    _seen: int = pydantic.PrivateAttr(default=3)


@pydantic.dataclasses.dataclass
class Checked:
    symbol: str
    tags: list[str] = pydantic.Field(default_factory=list)


class Order(msgspec.Struct, frozen=True, kw_only=True, tag="order", array_like=True):
    symbol: str
    size: Decimal
    tags: list[str] = msgspec.field(default_factory=list)
    note: str | None = None


class LimitOrder(Order, frozen=True, kw_only=True, dict=True):
    price: Decimal


class Signal:
    """As programs write them by hand."""

    __slots__ = ("__dict__", "_strength", "symbol")

    def __init__(self, symbol: str, strength: Decimal) -> None:
        self.symbol, self._strength, self.at = symbol, strength, datetime(2026, 1, 2, tzinfo=UTC)

    @property
    def strength(self) -> Decimal:
        return self._strength


for one in (Lot, Pair, Ticket, Checked, Signal, Order, LimitOrder):
    registered.register_record(one)


def test_objects_of_libraries_of_records_round_trip() -> None:
    hashed = Pair("BTC")
    hash(hashed)
    lot = Lot(Decimal("1.50"), notes=["a"])
    limit = LimitOrder(symbol="BTC", size=Decimal("1.50"), price=Decimal(2), note="x")
    limit.__dict__["venue"] = "X"
    assert vars(round_trip(limit)) == {"venue": "X"}
    order = Order(symbol="BTC", size=Decimal("1.50"), tags=["a"])
    for value in (lot, hashed, Checked("BTC"), Checked("BTC", ["x"]), order, limit):
        assert (found := round_trip([value])[0]) == value
        assert type(found) is type(value)
    assert round_trip(lot)._venue == "X"
    assert not vars(round_trip(hashed)).keys() - {"base", "quote"}
    for more in ({}, {"size": Decimal(2), "tags": []}, {"venue": "X"}):
        ticket = Ticket(symbol="BTC", **more)
        ticket._seen += 1
        found = round_trip(ticket)
        assert (found, found._seen, found.model_fields_set) == (ticket, 4, ticket.model_fields_set)
        assert found.model_dump() == ticket.model_dump()


@pytest.mark.parametrize(
    "value",
    [Lot(Decimal(1)), Ticket(symbol="BTC", size=Decimal(1), tags=[]), Order(symbol="BTC", size=Decimal(1))],
)
def test_field_of_a_library_that_is_new_gets_its_default(value: Any) -> None:
    plain, types = codec.encode(value)
    stored = json.loads(plain)
    name = "notes" if isinstance(value, Lot) else "tags"
    assert stored.pop(name) == []
    assert getattr(codec.decode(json.dumps(stored).encode(), types), name) == []
    required = "size" if isinstance(value, Lot) else "symbol"
    del stored[required]
    with pytest.raises(ConfigError, match=f"had no field '{required}' when it was stored"):
        codec.decode(json.dumps(stored).encode(), types)


def test_object_of_a_plain_class_round_trips() -> None:
    signal: Any = Signal("BTC", Decimal("0.70"))
    signal.more = [Lot(Decimal(1))]
    found: Any = round_trip({"signal": signal})["signal"]
    assert [type(found)] == [Signal]
    assert (found.symbol, exact(found.strength), vars(found)) == ("BTC", exact(Decimal("0.70")), vars(signal))
    assert type(found.more[0]) is Lot


def test_object_that_holds_itself_is_refused_at_once() -> None:
    signal = Signal("BTC", Decimal(1))
    signal.others = [Signal("ETH", Decimal(1)) for _ in range(20)]  # type: ignore[attr-defined]
    for other in signal.others:  # type: ignore[attr-defined]
        other.others, other.first = signal.others, signal  # type: ignore[attr-defined]
    with pytest.raises(InvalidEntry, match="contains itself"):
        codec.encode({"signal": signal})
    assert round_trip(Signal("BTC", Decimal(1))).symbol == "BTC"


def test_object_that_holds_what_cannot_be_stored_is_refused() -> None:
    signal = Signal("BTC", Decimal(1))
    signal.lock = threading.Lock()  # type: ignore[attr-defined]
    with pytest.raises(InvalidEntry, match=r"args.signal.lock has type _thread.lock"):
        codec.encode({"signal": signal})


def test_record_of_an_unknown_class_is_shown_by_its_fields() -> None:
    plain, _ = codec.encode(Leg("IBM", Decimal("1.50")))
    types = json.dumps(["record", "gone:Leg", {"dict": {"price": "decimal"}}]).encode()
    with pytest.raises(ConfigError, match="gone:Leg is not registered"):
        codec.decode(plain, types)
    assert codec.decode(plain, types, strict=False) == {"price": Decimal("1.50"), "symbol": "IBM", "tags": []}


def test_what_is_no_record_class_is_not_registered() -> None:
    for cls in (dict, tuple, Decimal, Failure, Guarded, threading.Thread, Holding, type):
        with pytest.raises(ConfigError, match="hold more than fields"):
            registered.register_record(cls)


def test_timestamp_of_pandas_becomes_a_datetime() -> None:
    assert exact(round_trip(Timestamp(2024, 3, 1, 12))) == exact(datetime(2024, 3, 1, 12))  # noqa: DTZ001


def test_inexact_or_foreign_timestamp_is_refused() -> None:
    finer = type("Timestamp", (Timestamp,), {"__module__": "pandas", "nanosecond": 1})(2024, 3, 1)
    nat = type("NaT", (Timestamp,), {"__module__": "pandas", "__eq__": lambda *_: False, "__hash__": None})(2024, 3, 1)
    series = type("Series", (), {"__module__": "pandas"})()
    foreign = type("Timestamp", (Timestamp,), {"__module__": "elsewhere"})(2024, 3, 1)
    for refused in (finer, nat, series, foreign):
        with pytest.raises(InvalidEntry, match="cannot be stored exactly"):
            codec.encode({"at": refused})


@pytest.mark.parametrize(
    "value",
    [
        np.datetime64("2024-03-01", "ns"),
        np.timedelta64(1, "ns"),
        np.array([7]),
        np.longdouble(1),
        np.datetime64("NaT", "s"),
    ],
    ids=repr,
)
def test_numpy_values_that_python_cannot_express_are_refused(value: Any) -> None:
    with pytest.raises(InvalidEntry, match="cannot be stored exactly"):
        codec.encode(value)


def test_names_of_columns_are_texts() -> None:
    """The keys of a row of a table without a class are of a class of SQLAlchemy's."""
    table = Table("trades", MetaData(), Column("price", Integer), Column("note", String))
    name = table.c.price.name
    assert type(name) is not str
    assert codec.encode({"row": {name: 1, "by": [name]}}) == codec.encode({"row": {"price": 1, "by": ["price"]}})
    assert codec.decode(*codec.encode({name: 1, 2: name})) == {"price": 1, 2: "price"}


def cycle_of_lists() -> Any:
    value: list[Any] = []
    value.append(value)
    return value


def cycle_of_dicts() -> Any:
    value: dict[Any, Any] = {}
    value[1] = value
    return value


class Text(str):
    __slots__ = ()


REFUSED: list[tuple[Any, str]] = [
    (float("nan"), r"args\.x\[0\] is nan, .*not a finite number"),
    (float("inf"), "is inf"),
    (-float("inf"), "is -inf"),
    (Decimal("NaN"), "is NaN"),
    (Decimal("sNaN"), "is sNaN"),
    (Decimal("-Infinity"), "is -Infinity"),
    (np.float64("nan"), "is nan"),
    (np.datetime64("NaT", "s"), "numpy.datetime64"),
    (np.datetime64("2024-01-01T00:00:00", "ns"), "numpy.datetime64"),
    (np.longdouble(1), "numpy.longdouble"),
    (np.array([1, 2]), "numpy.ndarray"),
    ("a\0b", r"args\.x\[0\] contains a NUL"),
    ({"a\0b": 1}, "contains a NUL"),
    ({1: "a\0"}, r"args\.x\[0\]\[0\]\[1\] contains a NUL"),
    ("ab\ud800", "lone surrogate at index 2"),
    ({"\udfff": 1}, "lone surrogate at index 0"),
    (Decimal("1E+131072"), "beyond PostgreSQL's numeric.*131072 digits before and 16383 after"),
    (Decimal("1E-16384"), "beyond PostgreSQL's numeric"),
    (Decimal("0E+131073"), "beyond PostgreSQL's numeric"),
    (10**5000, "too many digits"),
    (Stranger.ONE, "Stranger.ONE.*unregistered enum.*register_enum"),
    (complex(1), "builtins.complex.*allowed: None, bool"),
    (object(), "builtins.object"),
    (Text("a"), "Text"),
    (len, "builtin_function_or_method"),
    (bytearray(b"ab"), "bytearray, which cannot be stored exactly"),
    (time(9, 30, tzinfo=ZoneInfo("Europe/Berlin")), "whose offset depends on the day"),
    (cycle_of_lists(), "contains itself"),
    (cycle_of_dicts(), "contains itself"),
]


@pytest.mark.parametrize(("value", "message"), REFUSED, ids=[message[:24].replace("\\", "") for _, message in REFUSED])
def test_value_unfit_for_postgresql_or_a_round_trip_is_refused(value: Any, message: str) -> None:
    with pytest.raises(InvalidEntry, match=message):
        codec.encode({"x": [value]})


@pytest.mark.parametrize("value", [Decimal("1E+131071"), Decimal("1E-16383"), Decimal("0E-16383")], ids=str)
def test_numbers_at_the_limits_of_numeric_are_kept(value: Decimal) -> None:
    assert exact(round_trip(value)) == exact(value)


def test_nesting_is_allowed_to_a_limit() -> None:
    value: Any = 1
    for _ in range(60):
        value = [value]
    assert round_trip(value) == value


@pytest.mark.parametrize(
    "value",
    [
        datetime.min.replace(tzinfo=timezone(timedelta(hours=5))),
        datetime.max.replace(tzinfo=timezone(timedelta(hours=-5))),
    ],
    ids=["before year 1", "after year 9999"],
)
def test_a_moment_that_utc_cannot_express_is_refused(value: datetime) -> None:
    with pytest.raises(InvalidEntry, match="args"):
        codec.encode(value)


@pytest.mark.parametrize("kind", [enum.Flag, enum.IntFlag])
@pytest.mark.parametrize("number", [0, 3, 5, 7])
def test_combined_flags_come_back_as_they_were(
    monkeypatch: pytest.MonkeyPatch, kind: type[enum.Flag], number: int
) -> None:
    access = _flags_of(monkeypatch, kind, READ=1, WRITE=2, RUN=4, ALL=7)
    encoded = codec.encode(access(number))
    assert json.loads(encoded[0]) == number
    found = codec.decode(*encoded)
    assert found == access(number)
    assert type(found) is access


def test_flags_keep_their_names_when_the_bits_change(monkeypatch: pytest.MonkeyPatch) -> None:
    access = _flags_of(monkeypatch, enum.Flag, READ=1, WRITE=2)
    encoded = codec.encode(access["READ"] | access["WRITE"])
    access = _flags_of(monkeypatch, enum.Flag, WRITE=8, READ=16)
    assert codec.decode(*encoded) == access["READ"] | access["WRITE"]
    _flags_of(monkeypatch, enum.Flag, READ=1)
    with pytest.raises(ConfigError, match="has no member 'READ|WRITE' any more"):
        codec.decode(*encoded)
    assert codec.decode(*encoded, strict=False) == 3


def test_bits_that_no_flag_names_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    access = _flags_of(monkeypatch, enum.IntFlag, READ=1)
    with pytest.raises(InvalidEntry, match="does not define"):
        codec.encode(access(9))


def _flags_of(monkeypatch: pytest.MonkeyPatch, kind: type[enum.Flag], **bits: int) -> Any:
    make: Any = kind
    made = make("Access", bits, module=__name__, qualname="Access")
    monkeypatch.delitem(registered.enums, f"{__name__}:Access", raising=False)
    monkeypatch.setitem(registered.enums, f"{__name__}:Access", made)
    return made


@pytest.mark.parametrize("name", ["antigravity:fly", "outbox.cli:main", "os:system"])
def test_decoding_imports_and_calls_nothing_that_the_file_names(name: str) -> None:
    types = json.dumps(["enum", name, "x"]).encode()
    before = set(sys.modules)
    with pytest.raises(ConfigError, match=f"{name} is not registered"):
        codec.decode(b'"x"', types)
    assert codec.decode(b'"x"', types, strict=False) == "x"
    assert set(sys.modules) == before


def test_an_unregistered_enum_is_shown_by_its_value_inside_containers() -> None:
    types = json.dumps({"dict": {"side": {"tuple": {"1": ["enum", "gone:Side", "BUY"]}}}}).encode()
    with pytest.raises(ConfigError, match="gone:Side is not registered"):
        codec.decode(b'{"side":[1,"buy"]}', types)
    assert codec.decode(b'{"side":[1,"buy"]}', types, strict=False) == {"side": (1, "buy")}


def test_two_enums_of_one_name_cannot_both_be_registered() -> None:
    assert register_enum(Side) is Side
    twin = enum.Enum("Side", "A", module=Side.__module__, qualname=Side.__qualname__)  # type: ignore[misc]
    with pytest.raises(ConfigError, match="test_codec:Side is already registered"):
        register_enum(twin)
    with pytest.raises(InvalidEntry, match="unregistered"):
        codec.encode(twin["A"])


@bounded
@given(scalars())
def test_results_come_back_exactly(value: Any) -> None:
    assert exact(decode_result(encode_result(value))) == exact(value)


@pytest.mark.parametrize("value", [object(), float("nan"), complex(1), "a\0b"], ids=["object", "nan", "complex", "NUL"])
def test_a_result_that_cannot_be_stored_is_kept_as_its_repr(value: Any) -> None:
    kept = decode_result(encode_result(value))
    assert kept == {"repr": repr(value)}


def _with_repr(answer: Callable[[], str]) -> object:
    class Result:
        def __repr__(self) -> str:
            return answer()

    return Result()


def test_a_long_or_dirty_repr_of_a_result_is_cut_and_cleaned() -> None:
    kept = decode_result(encode_result(_with_repr(lambda: "\0" + "x" * 10_000)))
    assert kept == {"repr": "x" * 500}


@pytest.mark.parametrize("answer", [lambda: "\ud800", lambda: 1 // 0], ids=["surrogate", "raises"])
def test_a_result_whose_repr_is_unusable_is_kept_somehow(answer: Callable[[], str]) -> None:
    kept = decode_result(encode_result(_with_repr(answer)))
    assert kept.keys() == {"repr"}
    assert kept["repr"]


def test_a_repr_that_raises_is_named() -> None:
    kept = decode_result(encode_result(_with_repr(lambda: str(1 // 0))))
    assert kept == {"repr": "<Result, whose repr raises ZeroDivisionError>"}


def test_a_result_that_looks_like_the_internal_form_comes_back() -> None:
    value = {"$value": 1, "$types": {}}
    assert decode_result(encode_result(value)) == value


def test_an_unregistered_enum_in_a_result_is_shown_by_its_value() -> None:
    assert decode_result(b'{"$value":"buy","$types":["enum","gone:Side","BUY"]}') == "buy"


def test_field_names_are_the_top_level_ones() -> None:
    assert codec.field_names(codec.encode({"b": {"c": 1}, "a": 2})[0]) == ("a", "b")


def test_value_that_orjson_cannot_encode_is_an_invalid_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec, "_lower", lambda value, what, depth: (object(), None))
    with pytest.raises(InvalidEntry, match="args cannot be encoded"):
        codec.encode(1)


def test_value_that_json_holds_exactly_is_decoded_without_types() -> None:
    assert codec.decode(b'{"a":[1,null]}') == {"a": [1, None]}
    assert codec.from_json(codec.to_json({"a": [1, None]})) == {"a": [1, None]}
