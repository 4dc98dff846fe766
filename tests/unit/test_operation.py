"""Declarations that could never work are refused at once; calls are checked, identified and ordered by them."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from decimal import Decimal
from enum import Enum, StrEnum
from typing import Any, cast
from unittest.mock import Mock
from uuid import UUID

import numpy as np
import pytest
import sqlalchemy as sa

from outbox import ConfigError, InvalidEntry, Operation
from outbox.operation import caller_key, idempotency_hash, operations_by_name, ordering_key, payload_hash, shape_hash


def nothing(*_: Any) -> None:
    """A handler."""


@pytest.mark.parametrize(
    ("declaration", "message"),
    [
        ({}, "must have exactly one effect.*table=... or handler=..."),
        ({"table": "t", "handler": nothing}, "must have exactly one effect"),
        ({"handler": "nothing"}, "handler 'nothing' is not callable"),
        ({"table": "t", "validate": 5}, "validate 5 is not callable"),
        ({"table": ""}, "table '' is not a table's name"),
        ({"table": "a.b.c"}, "table 'a.b.c' is not a table's name.*'schema.table'"),
        ({"table": ".b"}, "table '.b' is not a table's name"),
        ({"table": 5}, "table 5 is not a table's name"),
        ({"table": "t", "identity": ("a", 5)}, "5 is not an argument's name"),
        ({"table": "t", "identity": ("",)}, "'' is not an argument's name"),
        ({"table": "t", "order_by": ""}, "'' is not an argument's name"),
    ],
)
def test_a_declaration_that_cannot_work_is_refused_by_name(declaration: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"operation 'log'.*{message}"):
        Operation("log", **declaration)


@pytest.mark.parametrize(
    "declaration",
    [{"identity": None}, {"identity": 5}, {"order_by": 5}, {"name": "bad name"}, {"name": 5}],
    ids=str,
)
def test_declaration_with_a_wrong_type_is_a_configuration_error(declaration: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Operation(**{"name": "log", "table": "t", **declaration})


@pytest.mark.parametrize("name", ["", "a b", "1a", "a" * 129, "a\n", None, "ä"])
def test_names_are_short_and_plain(name: Any) -> None:
    with pytest.raises(ConfigError, match="not a valid name.*letters, digits"):
        Operation(name, table="t")
    assert Operation("A_b.c:d-9" + "x" * 119, table="t").name


def test_a_declaration_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        Operation("log", table="t").name = "other"  # type: ignore[misc]


def test_names_are_unique_and_only_operations_are_declared() -> None:
    log, note = Operation("log", table="t"), Operation("note", handler=nothing)
    assert operations_by_name([log, note]) == {"log": log, "note": note}
    with pytest.raises(ConfigError, match="'log' is declared twice"):
        operations_by_name([log, Operation("log", table="u")])
    with pytest.raises(ConfigError, match="operations is 'log' alone .allowed: a list"):
        operations_by_name(Operation("log", table="logs"))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="operations contains 'log'"):
        operations_by_name(["log"])  # type: ignore[list-item]


def test_identity_is_the_values_of_its_fields_in_declared_order() -> None:
    assert Operation("log", table="t", identity=("b", "a")).identity_of({"a": 1, "b": 2, "c": 3}) == [2, 1]
    assert Operation("log", table="t", identity="a").identity_of({"a": 1}) == [1]
    once = Operation("log", table="t", identity=(name for name in "ab"))  # type: ignore[arg-type]
    assert [once.identity_of({"a": 1, "b": 2}) for _ in range(2)] == [[1, 2]] * 2
    assert Operation("log", table="t", identity=lambda args: args["a"] + 1).identity_of({"a": 1}) == 2


@pytest.mark.parametrize(
    ("identity", "args"), [((), {"a": 1}), (("a", "b"), {"a": 1, "b": None}), (lambda args: None, {"a": 1})]
)
def test_a_call_without_identity_is_an_intent_of_its_own(identity: Any, args: dict[str, Any]) -> None:
    assert Operation("log", table="t", identity=identity).identity_of(args) is None


def test_a_missing_identity_field_is_named() -> None:
    with pytest.raises(InvalidEntry, match="'log' needs argument 'id' as its identity.*given: 'a'"):
        Operation("log", table="t", identity="id").identity_of({"a": 1})
    with pytest.raises(InvalidEntry, match="needs argument 'symbol' as its ordering key.*given: none"):
        Operation("log", table="t", order_by="symbol").order_of({})


def test_the_ordering_key_comes_from_an_argument_or_a_callable() -> None:
    assert Operation("log", table="t").order_of({"a": 1}) is None
    assert Operation("log", table="t", order_by="a").order_of({"a": "BTC"}) == "BTC"
    assert Operation("log", table="t", order_by=lambda args: f"{args['a']}!").order_of({"a": 1}) == "1!"


class Symbol(StrEnum):
    BTC = "btc"


# As `class Symbol(str, Enum)`, which shows itself as `Symbol.BTC`, unlike a StrEnum.
_Symbol = Enum("_Symbol", {"BTC": "BTC"}, type=str)


class _Shouting(str):
    def __str__(self) -> str:
        return "?"


class _Account(int):
    def __repr__(self) -> str:
        return f"account {int(self)}"


@pytest.mark.parametrize(("value", "equal"), [(_Symbol.BTC, "BTC"), (_Shouting("BTC"), "BTC"), (_Account(7), 7)])
def test_equal_values_of_another_class_are_one_ordering_key(value: Any, equal: Any) -> None:
    assert value == equal
    assert ordering_key(value) == ordering_key(equal)


@pytest.mark.parametrize(
    ("value", "key"),
    [
        (None, None),
        ("BTC", "BTC"),
        (7, "7"),
        (-7, "-7"),
        (np.int64(7), "7"),
        (np.str_("BTC"), "BTC"),
        (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (Symbol.BTC, "btc"),
        ("ä" * 127, "ä" * 127),
        ("a" * 255, "a" * 255),
    ],
)
def test_an_ordering_key_is_short_text_a_number_or_a_uuid(value: Any, key: str | None) -> None:
    assert ordering_key(value) == key


@pytest.mark.parametrize(
    "value",
    ["", "a" * 256, "ä" * 128, True, 1.5, Decimal(1), b"a", ("a",), "a\0", "\ud800", np.float64(1.5)],
    ids=lambda value: ascii(value).replace("\\", ""),
)
def test_other_ordering_keys_are_refused(value: Any) -> None:
    with pytest.raises(InvalidEntry, match="order_by is .*1 to 255 bytes, an integer, a UUID or None"):
        ordering_key(value)


@pytest.mark.parametrize("key", ["", "a" * 1025, 5, b"a", None], ids=repr)
def test_a_callers_key_is_text_of_limited_length(key: Any) -> None:
    with pytest.raises(InvalidEntry, match="key is .*1 to 1024 characters"):
        caller_key(key)
    assert caller_key("a" * 1024) == b"a" * 1024


def test_a_callers_key_is_valid_unicode() -> None:
    with pytest.raises(InvalidEntry, match="not valid Unicode"):
        caller_key("\ud800")


def test_the_idempotency_hash_keeps_its_parts_apart() -> None:
    calls = [("a", "b", "c", b"d"), ("ab", "", "c", b"d"), ("a", "bc", "", b"d"), ("a", "b", "", b"cd")]
    calls += [("b", "b", "c", b"d"), ("a", "b", "c", b"e")]
    hashes = {idempotency_hash(*call) for call in calls}
    assert len(hashes) == len(calls)
    assert {len(one) for one in hashes} == {16}
    assert idempotency_hash("a", "b", "c", b"d") == idempotency_hash("a", "b", "c", b"d")


def test_the_payload_hash_keeps_its_parts_apart() -> None:
    payloads = [("log", b"12", b"3"), ("log", b"1", b"23"), ("lo", b"12", b"3"), ("log", b"12", b"")]
    assert len({payload_hash(*payload) for payload in payloads}) == len(payloads)


def test_rows_with_the_same_columns_have_the_same_shape() -> None:
    assert shape_hash({"a": 1, "b": 2}) == shape_hash({"b": 3, "a": None})
    assert len({shape_hash({"a": 1}), shape_hash({"a": 1, "b": 2}), shape_hash({"ab": 1}), shape_hash({})}) == 4


def test_the_hashes_are_those_that_stores_and_receipts_already_hold() -> None:
    framed = b"\0\0\0\x02ns\0\0\0\x03log\0\0\0\x01k\0\0\0\x02id"
    assert idempotency_hash("ns", "log", "k", b"id") == hashlib.blake2b(framed, digest_size=16).digest()
    assert payload_hash("log", b"{}", b"t") == hashlib.blake2b(b"log\0002\0{}t", digest_size=16).digest()
    assert shape_hash({"b": 1, "a": 2}) == hashlib.blake2b(b'["a","b"]', digest_size=8).digest()


# -- tables

trades = sa.Table(
    "trades",
    sa.MetaData(),
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("symbol", sa.String(4), nullable=False),
    sa.Column("price", sa.Numeric(6, 2)),
    sa.Column("amount", sa.Numeric(38, 8)),
    sa.Column("free", sa.Numeric),
    sa.Column("note", sa.Text),
    sa.Column("made", sa.DateTime, nullable=False, server_default=sa.func.now()),
    sa.Column("number", sa.Integer, sa.Identity(), nullable=False),
)
log_trade = Operation("log_trade", table=trades)


def row(**values: Any) -> dict[str, Any]:
    return {"symbol": "BTC", **values}


@pytest.mark.parametrize(
    "args",
    [
        row(),
        row(price=None, note=None),
        row(price=Decimal("9999.99")),
        row(price=Decimal("-9999.994")),
        row(price=9999),
        row(price=9999.99),
        row(price=Decimal("0.001")),
        row(free=Decimal("1E+100")),
        row(note="x" * 10_000),
        row(symbol="BTCX", id=1, number=5),
    ],
    ids=str,
)
def test_a_row_that_fits_its_table_passes(args: Mapping[str, Any]) -> None:
    log_trade.check(args)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (row(prize=1), "no column 'prize'.*columns: amount, free, id,"),
        ({}, "column 'symbol' must not be empty"),
        (row(symbol=None), "column 'symbol' must not be empty"),
        (row(id=None), "column 'id' must not be empty"),
        (row(made=None), "column 'made' must not be empty"),
        (row(number=None), "column 'number' must not be empty"),
        (row(symbol="BTCUSD"), "'symbol' has 6 characters.*at most 4"),
        (row(price=Decimal(10_000)), r"'price' is 10000, beyond numeric\(6,2\)"),
        (row(price=Decimal("-9999.995")), r"beyond numeric\(6,2\)"),
        (row(price=10_000), r"beyond numeric\(6,2\)"),
        (row(price=1e300), r"beyond numeric\(6,2\)"),
        (row(price=np.float64(10_000)), r"beyond numeric\(6,2\)"),
        (row(amount=Decimal(10) ** 30), r"beyond numeric\(38,8\)"),
    ],
    ids=lambda value: str(value).replace("\\", ""),
)
def test_a_row_that_postgresql_would_refuse_is_refused_by_column(args: Mapping[str, Any], message: str) -> None:
    with pytest.raises(InvalidEntry, match=f"operation 'log_trade'.*{message}"):
        log_trade.check(args)


@pytest.mark.parametrize("price", [np.int64(10_000), np.float32(10_000), np.uint16(10_000)], ids=repr)
def test_numpy_numbers_beyond_the_column_are_refused(price: Any) -> None:
    with pytest.raises(InvalidEntry, match="price"):
        log_trade.check(row(price=price))


def test_the_largest_number_of_a_wide_column_passes() -> None:
    log_trade.check(row(amount=Decimal("9" * 30 + "." + "9" * 8)))


def test_a_bool_for_a_number_is_refused_by_column() -> None:
    with pytest.raises(InvalidEntry, match="price"):
        log_trade.check(row(price=True))


def test_identity_and_order_are_columns_of_a_declared_table() -> None:
    assert Operation("log", table=trades, identity="id", order_by="symbol").table_name == "trades"
    with pytest.raises(ConfigError, match="'ref' is not a column of trades.*columns: amount"):
        Operation("log", table=trades, identity=("id", "ref"))
    with pytest.raises(ConfigError, match="'ref' is not a column of trades"):
        Operation("log", table=trades, order_by="ref")


def test_the_table_is_named_with_its_schema() -> None:
    audit = sa.Table("log", sa.MetaData(), sa.Column("id", sa.Integer), schema="audit")
    assert Operation("log", table=audit).table_name == "audit.log"
    assert Operation("log", table="audit.log").table_name == "audit.log"
    assert Operation("log", handler=nothing).table_name is None


def test_validate_is_asked_last_and_raises_what_it_likes() -> None:
    def validate(args: Mapping[str, Any]) -> None:
        raise LookupError(args["symbol"])

    checked = Operation("log", table=trades, validate=validate)
    with pytest.raises(LookupError, match="BTC"):
        checked.check(row())
    with pytest.raises(InvalidEntry, match="no column"):
        checked.check(row(prize=1))


def test_a_validator_cannot_change_what_is_stored() -> None:
    given = {"a": 1}
    Operation("log", table="log", validate=lambda args: cast(dict[str, int], args).setdefault("b", 2)).check(given)
    assert given == {"a": 1}


async def later(*_: Any) -> None:
    """Runs when somebody awaits it."""


def one_by_one(*_: Any) -> Any:
    """Runs when somebody iterates over it."""
    yield


async def both(*_: Any) -> Any:
    """Runs when somebody iterates over it asynchronously."""
    yield


class Service:
    """Objects that are called, and methods of objects."""

    async def __call__(self, *_: Any) -> None: ...

    async def method(self, *_: Any) -> None: ...

    @staticmethod
    def plain(*_: Any) -> None: ...


DEFERRED = [later, one_by_one, both, Service(), Service().method, functools.partial(later)]


@pytest.mark.parametrize("role", ["handler", "validate", "identity", "order_by"])
@pytest.mark.parametrize("given", DEFERRED, ids=lambda given: type(given).__name__)
def test_callable_that_a_call_does_not_run_is_refused(role: str, given: Any) -> None:
    effect = {} if role == "handler" else {"handler": nothing}
    with pytest.raises(ConfigError, match=f"operation 'log': {role} .* is asynchronous or a generator"):
        Operation("log", **{**effect, role: given})


def test_class_as_a_handler_is_refused() -> None:
    with pytest.raises(ConfigError, match="is a class"):
        Operation("log", handler=Service)


def two_names(a: Any, *, b: Any) -> None:
    """Takes one positional argument."""


def test_handler_of_another_signature_is_refused() -> None:
    with pytest.raises(ConfigError, match="does not take 2 positional arguments"):
        Operation("log", handler=two_names)


@pytest.mark.parametrize("given", [nothing, Service.plain, functools.partial(nothing, 1), Mock()])
def test_plain_callables_are_accepted_as_handlers(given: Any) -> None:
    Operation("log", handler=given)


def test_validate_whose_answer_is_unfinished_stores_nothing() -> None:
    operation = Operation("log", table="t", validate=lambda args: later(args))
    with pytest.raises(ConfigError, match="validate of operation 'log' returned coroutine"):
        operation.check({})
