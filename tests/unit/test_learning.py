"""Learning: explanations that agree with every answer are kept, and a value is known while they agree."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum, StrEnum
from typing import Any
from uuid import UUID

import pytest

from outbox.integrations.operations import TRADING_OPERATIONS
from outbox.integrations.replay.balance import Untold, kept, learn_yield, tell, told_before
from outbox.integrations.view.amounts import number
from outbox.integrations.view.explanations import ABSENT, Space, Unknown, alike, convert
from outbox.integrations.view.learned import Learning
from outbox.integrations.view.learning import conversions, observe
from outbox.integrations.view.local_view import UnknownLocally
from outbox.integrations.view.seen import Seen
from outbox.registered import class_named
from outbox.results import decode_result, encode_result

BY_NAME = {operation.name: operation for operation in TRADING_OPERATIONS}
AT = datetime(2024, 5, 6, 7, 8, 9, 123456, tzinfo=timezone(timedelta(hours=2)))
UTC_AT = AT.astimezone(UTC)
NAIVE = AT.astimezone(UTC).replace(tzinfo=None)


class Side(Enum):
    LONG = "long"


class Way(StrEnum):
    LONG = "long"


class Shown(Enum):
    LONG = "LONG"


class Change(dict[str, Any]):
    """A container of a host's own."""


@pytest.mark.parametrize("value", ["much", None, float("nan"), Decimal("Infinity"), "1e"])
def test_value_that_is_no_finite_number_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="number"):
        number(value)


def test_numbers_of_any_type_are_exact() -> None:
    numpy = pytest.importorskip("numpy")
    assert [number(value) for value in (0.1, "0.1", Decimal("0.1"), numpy.float64(0.1))] == [Decimal("0.1")] * 4


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (1 / 3, 0.33333333), (1 / 3, Decimal("0.33333333")), (Decimal(5), 5.0), (5, Decimal("5.00000000")), ("5", 5),
        (Side.LONG, "LONG"), (Side.LONG, "long"), ("Long", "LONG"), ("long", Shown.LONG), (Side.LONG, Shown.LONG),
        (AT, AT), (AT, NAIVE), (AT, AT.astimezone(UTC).isoformat()),
        (AT, NAIVE.replace(microsecond=0)), (UUID(int=7), str(UUID(int=7))), ("entry", "entry"),
        ("abc", "entry-abc"), (True, True), (Way.LONG, Way.LONG), ("long", Way.LONG), (Way.LONG, "long"),
        ((0.5, 2), [Decimal("0.50000000"), Decimal("2.00000000")]), (("a", "b"), ["a", "b"]), ([], []),
        ([0.5, None], (Decimal("0.50000000"), None)), ([Side.LONG], [Shown.LONG]),
    ],
)  # fmt: skip
def test_a_conversion_that_was_seen_is_found(value: Any, shown: Any) -> None:
    found = conversions(value, shown, (8,))
    assert found
    assert all(alike(convert(one, value), shown) for one in found)


@pytest.mark.parametrize(
    ("value", "shown"),
    [(5, 6.0), ("a", 1.0), (None, 0), ("ab", "abc"), (AT, 1.5), (True, 1.0), ({}, "x"), ([1], [1, 2])],
)
def test_value_without_a_conversion_has_none_found(value: Any, shown: Any) -> None:
    assert conversions(value, shown, (8,)) == []


def test_a_type_counts_as_well_as_a_value() -> None:
    assert not alike(1, 1.0)
    assert not alike(Decimal(1), 1)
    assert not alike({"a": [1]}, {"a": [True]})
    assert alike({"a": [1, (2.0,)]}, {"a": [1, (2.0,)]})


def test_time_is_told_in_the_zone_in_which_it_was_shown() -> None:
    """PostgreSQL shows its own zone, whatever the caller's was."""
    space = Space()
    for at in (UTC_AT, AT):
        seen(space, "placed_at", at.astimezone(UTC), at=at)
    assert space.predict(sources(at=AT)).utcoffset() == timedelta()
    other = Space()
    seen(other, "placed_at", AT, at=UTC_AT)
    assert other.predict(sources(at=UTC_AT)) == UTC_AT


def seen(space: Space, key: str, shown: Any, old: Any = ABSENT, **arguments: Any) -> None:
    observe(space, key, shown, sources(**arguments), old, scales=(8,))


def sources(**arguments: Any) -> dict[str, Any]:
    return {f"arg:{name}": value for name, value in arguments.items()}


def test_a_value_is_known_while_all_explanations_agree() -> None:
    space = Space()
    seen(space, "original", 0.5, size=0.5, quantity=0.5)
    assert space.predict(sources(size=2.5, quantity=2.5)) == 2.5
    with pytest.raises(Unknown, match="may become"):
        space.predict(sources(size=2.5, quantity=3.5))
    seen(space, "original", 1.5, size=1.5, quantity=9.0)
    assert space.predict(sources(size=2.5, quantity=3.5)) == 2.5


def test_an_argument_of_the_same_name_explains_best() -> None:
    space = Space()
    seen(space, "size", 0.5, size=0.5, quantity=0.5)
    assert space.predict(sources(size=2.5, quantity=3.5)) == 2.5


def test_an_argument_that_is_not_given_leaves_a_value_as_it_is() -> None:
    space = Space()
    seen(space, "stop", 9.5, 7.5, stop_loss=9.5)
    assert space.predict(sources(stop_loss=None), 3.5) == 3.5
    assert space.predict(sources(stop_loss=4), 3.5) == 4.0


def test_id_that_stays_is_not_that_of_the_session() -> None:
    space = Space()
    observe(space, "position_id", 1, {"note:session": 1}, 1, scales=(8,))
    assert space.predict({"note:session": 1}, 2) == 2


def test_what_was_not_explained_contradicts_a_later_explanation() -> None:
    space = Space()
    for given, shown in (("a+,b+", object()), ("a+", "x"), ("a+", "x"), ("a+", "x")):
        observe(space, "key", shown, {}, scales=(None,), given=given)
    assert space.predict({}, given="a+") == "x"
    with pytest.raises(Unknown, match="other arguments"):
        space.predict({}, given="a+,b+")
    again = Space(*decode_result(encode_result(space.dump())))
    assert again == space


def test_explanation_of_calls_before_an_argument_is_contradicted() -> None:
    space, plain = Space(), {"arg:symbol": "B"}
    for _ in range(5):
        observe(space, "key", "alpha", plain, scales=(None,), given="symbol+")
    more = {**plain, "arg:note": "text"}
    observe(space, "key", "text", more, scales=(None,), new=["arg:note"], given="note+,symbol+")
    assert space.predict(plain, given="symbol+") == "alpha"
    observe(space, "key", "gamma", plain, scales=(None,), given="symbol+")
    with pytest.raises(Unknown, match="other arguments"):
        space.predict(plain, given="symbol+")
    observe(space, "key", "gamma", plain, scales=(None,), given="symbol+")
    assert space.predict(plain, given="symbol+") == "gamma"


def test_counters_and_sums_are_told_apart_from_constants() -> None:
    counter, sum_ = Space(), Space()
    seen(counter, "taken", 1, 0, level=1)
    seen(counter, "taken", 2, 1, level=1)
    assert counter.predict(sources(level=1), 5) == 6
    seen(sum_, "left", 0.25, 0.75, delta=0.5)
    assert sum_.predict(sources(delta=0.25), 2.0) == 1.75


def test_a_contradiction_is_remembered_until_answers_agree_again() -> None:
    space = Space()
    for shown in (3.5, 7.25, 11.125):
        seen(space, "mood", shown, size=2.0)
    with pytest.raises(Unknown, match="cannot be explained"):
        space.predict(sources(size=2.0))
    for _ in range(3):
        seen(space, "mood", 11.125, size=2.0)
    assert space.predict(sources(size=2.0)) == 11.125


@pytest.mark.parametrize(("shown", "other"), [(101.25, 99.5), ("13.00000000", "12.00000000")])
def test_amount_that_was_seen_once_is_no_constant(shown: Any, other: Any) -> None:
    """An average price may be anything after the next call."""
    space = Space()
    seen(space, "average", shown, other, price=3.5)
    with pytest.raises(Unknown, match="seen once only"):
        space.predict(sources(price=4.5), shown)
    seen(space, "average", shown, other, price=7.5)
    assert space.predict(sources(price=4.5), shown) == shown


@pytest.mark.parametrize("arithmetic", [float, Decimal])
def test_product_of_two_amounts_is_learned(arithmetic: Any) -> None:
    space = Space()
    for size, price in (("3", "0.35"), ("0.7", "1.1")):
        call = {"arg:size": arithmetic(size), "arg:price": arithmetic(price), "arg:leverage": 1}
        with pytest.raises(Unknown):
            space.predict(call)
        observe(space, "notional", arithmetic(size) * arithmetic(price), call, scales=(None, 8))
    call = {"arg:size": arithmetic("2.5"), "arg:price": arithmetic("0.3"), "arg:leverage": 1}
    assert alike(space.predict(call), arithmetic("2.5") * arithmetic("0.3"))


def test_product_of_a_row_and_an_argument_is_learned() -> None:
    space, old = Space(), Decimal("1.0")
    for size, price in (("3", "0.35"), ("0.7", "1.1")):
        shown = Decimal(size) * Decimal(price)
        call = {"row:positions:size": Decimal(size), "arg:price": Decimal(price)}
        observe(space, "value", shown, call, old, scales=(None,))
    predicted = space.predict({"row:positions:size": Decimal(4), "arg:price": Decimal("0.25")}, old)
    assert predicted == 1
    assert space.predict({"row:positions:size": Decimal(4), "arg:price": None}, old) == old


def test_id_is_no_product() -> None:
    space = Space()
    for id_ in (6, 12):
        observe(space, "ticket_id", id_, {"arg:lots": 2, "arg:size": id_ // 2}, scales=(None,))
    with pytest.raises(Unknown):
        space.predict({"arg:lots": 2, "arg:size": 4})


@pytest.mark.parametrize("sign", [1, -1])
def test_farthest_amount_so_far_is_learned(sign: int) -> None:
    """A trailing stop that only rises, a lowest price: the argument counts only beyond the former amount."""
    space, best = Space(), 10.0 * sign
    for price in (12.123456789, 11.5, 13.25):
        new = max(best * sign, round(price, 8)) * sign
        seen(space, "best_price", new, best, price=price * sign, level=3)
        best = new
    assert space.predict(sources(price=12.5 * sign, level=3), best) == best
    assert space.predict(sources(price=14.111111119 * sign, level=3), best) == 14.11111112 * sign
    assert space.predict(sources(price=None, level=3), best) == best


def test_only_loaded_classes_are_found_by_name() -> None:
    assert class_named("builtins:ValueError") is ValueError
    assert class_named("antigravity:Anything") is None
    assert class_named("builtins:print") is None


def block(learning: Learning, told: Any, old: Decimal, change: Any) -> None:
    learn_yield(learning, changing(change), told, old)


def changing(change: Any) -> Seen:
    return Seen(BY_NAME["atomic_balance_update"], {"balance_change": change, "reason": "x"}, {"session": 1}, {})


def test_balance_told_at_an_unknown_one_is_no_constant() -> None:
    learning = Learning()
    for _ in range(2):
        learn_yield(learning, changing(-1.5), {"new_balance": 98.5, "reason": "x"}, None)
    told = tell(learning, changing(-2.0), None, "it was never seen")
    assert told["reason"] == "x"
    with pytest.raises(UnknownLocally, match="'new_balance' of the block is not known") as unknown:
        told["new_balance"]
    # It is raised inside the block, where an exception undoes what was recorded.
    assert "nothing of the block is recorded" in (unknown.value.hint or "")


def test_a_block_is_told_in_floats_where_the_manager_yields_floats() -> None:
    learning = Learning()
    for old, change in ((1000.1, 0.2), (7.7, -0.1)):
        yielded = {"old_balance": old, "new_balance": old + change, "change": change}
        block(learning, yielded, Decimal(str(old)), change)
    assert tell(learning, changing(0.3), Decimal("0.1")) == {
        "old_balance": 0.1,
        "new_balance": 0.1 + 0.3,
        "change": 0.3,
    }
    assert type(tell(learning, changing(Decimal(1)), Decimal(1))["new_balance"]) is float


def test_a_block_is_told_in_the_class_that_the_manager_yields() -> None:
    learning = Learning()
    for old, change in ((Decimal(10), Decimal(2)), (Decimal(7), Decimal("-3.5"))):
        block(learning, Change(old_balance=old, new_balance=old + change), old, change)
    told = tell(learning, changing(Decimal(4)), Decimal(5))
    assert type(told) is Change
    assert told == {"old_balance": Decimal(5), "new_balance": Decimal(9)}
    assert told_before({"yielded": kept(told)}) == told


def test_a_block_of_a_kind_that_was_never_seen_raises_when_it_is_read() -> None:
    told = tell(Learning(), changing(1), Decimal(5))
    assert isinstance(told, Untold)
    with pytest.raises(LookupError, match="new_balance"):
        _ = told["new_balance"]
    with pytest.raises(LookupError, match="new_balance"):
        _ = told.new_balance
    assert kept(told) is None
    assert isinstance(told_before({}), Untold)


def test_unexplained_value_of_a_block_is_not_made_up() -> None:
    learning = Learning()
    for token in (17.5, 23.5, 99.5):
        block(learning, {"old_balance": Decimal(7), "token": token}, Decimal(7), Decimal(2))
    told = tell(learning, changing(Decimal(2)), Decimal(8))
    assert isinstance(told, Untold)
    assert told["old_balance"] == 8


def test_a_change_as_it_was_given_is_told_in_its_type() -> None:
    learning = Learning()
    for old, change in ((Decimal(100), 7), (Decimal(107), -0.3), (Decimal("106.7"), Decimal("1.5"))):
        block(learning, {"new_balance": old + number(change), "change": change}, old, change)
    for change in (5, -0.1, Decimal("0.25"), 1e-9):
        told = tell(learning, changing(change), Decimal("0.1"))
        assert alike(told["change"], change)


def test_a_change_of_a_type_that_was_never_seen_is_not_told() -> None:
    learning = Learning()
    block(learning, {"change": -0.25}, Decimal(100), -0.25)
    assert alike(tell(learning, changing(0.5), Decimal(1))["change"], 0.5)
    with pytest.raises(LookupError, match=r"5\.0 or 5"):
        _ = tell(learning, changing(5), Decimal(1))["change"]


# In floats the sum ends below the half of the last decimal place, exactly it is the half.
OLD, TAKEN = 7.2624958, 0.500000005


def test_a_sum_that_depends_on_arithmetic_is_not_known() -> None:
    space = Space()
    seen(space, "left", 0.25, 0.75, delta=0.5)
    assert space.predict(sources(delta=0.125), 2.0) == 1.875
    with pytest.raises(Unknown, match="may become"):
        space.predict(sources(delta=TAKEN), OLD)


@pytest.mark.parametrize("in_floats", [True, False])
def test_a_sum_is_in_the_arithmetic_that_was_seen(in_floats: bool) -> None:
    exact, in_float = number(OLD) - number(TAKEN), number(OLD - TAKEN)
    shown = {sum_: convert(["float", 8], sum_) for sum_ in (exact, in_float)}
    assert len(set(shown.values())) == 2
    used = in_float if in_floats else exact
    by_answer, by_write = Space(), Space()
    seen(by_answer, "left", shown[used], OLD, delta=TAKEN)
    seen(by_write, "left", 0.2, 0.3, delta=0.1)
    by_write.settle({number(0.3 - 0.1) if in_floats else Decimal("0.2")}, sources(delta=0.1), 0.3)
    for space in (by_answer, by_write):
        assert space.predict(sources(delta=TAKEN), OLD) == shown[used]


def test_a_sum_below_zero_is_known_once_it_was_seen() -> None:
    space = Space()
    seen(space, "left", 0.25, 0.75, delta=0.5)
    with pytest.raises(Unknown, match="may become"):
        space.predict(sources(delta=0.5), 0.25)
    seen(space, "left", 0.0, 0.25, delta=0.5)
    assert space.predict(sources(delta=0.5), 0.125) == 0.0


def test_a_balance_is_added_in_the_arithmetic_that_was_seen() -> None:
    operation, old, change = BY_NAME["atomic_balance_update"], number(OLD), -TAKEN
    learning = Learning()
    learning.possible_scales = {8}
    with pytest.raises(Unknown):
        learning.balance_after(operation, old, change)
    written = dataclasses.replace(changing(-0.1), written={number(0.3 - 0.1)})
    learning.learn_balance(written, Decimal("0.3"), 0.2)
    assert learning.balance_after(operation, old, change) == convert(["decimal", 8], OLD - TAKEN)
    again = Learning()
    again.load(learning.dump())
    assert again.sums.possible == {"float"}


def test_a_balance_that_sql_adds_is_known_where_floats_differ() -> None:
    """Nobody sees the arithmetic of `balance = balance + :pnl`: only floats that are not rounded are ruled out."""
    operation, learning = BY_NAME["atomic_balance_update"], Learning()
    learning.learn_balance(changing(Decimal("0.25")), Decimal("0.50"), Decimal("0.75"))
    with pytest.raises(Unknown):
        learning.balance_after(operation, Decimal("0.70"), Decimal("0.10"))
    learning.learn_balance(changing(Decimal("0.20")), Decimal("0.10"), Decimal("0.30"))
    again = Learning()
    again.load(learning.dump())
    assert str(again.balance_after(operation, Decimal("0.70"), Decimal("0.10"))) == "0.80"


def test_side_rows_need_no_comparison_where_all_calls_agree() -> None:
    """Most methods write as many each time; the rows of the session are compared only where that depends on them."""
    learning, operation = Learning(), BY_NAME["log_position"]

    def unasked() -> Seen:
        raise AssertionError("the call was compared with the rows of its session")

    assert not learning.has_sides(operation)
    for side in ("LONG", "SHORT"):
        seen = Seen(operation, {"symbol": "x", "side": side}, {"session": 1}, {})
        learning.learn(seen, {})
        learning.learn_sides(seen, {"orders.id": 1})
    again = Learning()
    again.load(learning.dump())
    for one in (learning, again):
        assert one.has_sides(operation)
        assert one.sides(operation.name, unasked, {}) == {"orders.id": 1}


def test_a_new_kind_of_call_takes_as_many_ids_as_others_did() -> None:
    """So that rows beside the one whose id is told have the same ids whenever the call is replayed."""
    learning, operation = Learning(), BY_NAME["log_position"]

    def call(**more: Any) -> Seen:
        return Seen(operation, {"symbol": "x", **more}, {"session": 1}, {})

    def sides(seen: Seen) -> dict[str, int]:
        return learning.sides(seen.operation.name, lambda: seen, {})

    assert sides(call()) == {}
    learning.learn(call(side="LONG"), {})
    learning.learn_sides(call(side="LONG"), {"orders.id": 2, "legs.id": 1})
    learning.learn(call(side="SHORT"), {})
    learning.learn_sides(call(side="SHORT"), {"orders.id": 1})
    assert sides(call(side="long", stop_loss=1)) == {"orders.id": 2, "legs.id": 1}
    assert sides(call(side="SHORT")) == {"orders.id": 1}
    assert sides(Seen(BY_NAME["log_trade"], {"symbol": "x"}, {"session": 1}, {})) == {}


@pytest.mark.parametrize(("one", "other", "is_one"), [("1.000000004", "1", True), ("1.00000001", "1", False)])
def test_a_balance_that_differs_in_the_last_place_is_another(one: str, other: str, is_one: bool) -> None:
    learning = Learning()
    assert learning.is_balance(Decimal(one), Decimal(other))
    learning.possible_scales = {8}
    assert learning.is_balance(Decimal(one), Decimal(other)) is is_one


def test_amounts_of_other_decimal_places_are_spelled_otherwise() -> None:
    assert not alike(Decimal("-0.3"), Decimal("-0.300000"))
    assert alike([Decimal("1.50")], [Decimal("1.50")])
    assert conversions(Decimal("1.5"), Decimal("1.500000"), (None, 4, 6)) == [["decimal", 6]]
    learning, seen = Learning(), changing(Decimal("1.5"))
    learning.learn_balance(seen, Decimal("2.000000"), Decimal("3.500000"))
    assert learning.possible_scales == {None, 6}
    learning.learn_balance(changing(Decimal("1.1234567")), Decimal("2.000000"), Decimal("3.123457"))
    assert str(learning.balance_after(seen.operation, Decimal("2.000000"), 4)) == "6.000000"


def test_a_computed_change_is_not_told_for_the_one_that_was_given() -> None:
    """Both explain a change that is seen first; where they differ the manager has to be asked."""
    learning, old = Learning(), Decimal("4000.7")
    learn_yield(learning, changing(-0.5), {"change": -0.5}, old)
    assert tell(learning, changing(-0.25), old) == {"change": -0.25}
    with pytest.raises(UnknownLocally, match="it may become"):
        tell(learning, changing(-11.11111111111), old)["change"]
    learn_yield(learning, changing(-11.11111111111), {"change": -11.11111111111}, old)
    assert tell(learning, changing(-0.3), old) == {"change": -0.3}


def test_sum_of_unknown_arithmetic_is_a_float_in_an_outage() -> None:
    learning, old, change = Learning(), Decimal("1001.50285714"), 1.4333333333333333
    block(learning, {"new_balance": 1000 + 1 / 7}, Decimal(1000), 1 / 7)
    with pytest.raises(UnknownLocally, match="1002.9361904733332 or 1002.9361904733333"):
        tell(learning, changing(change), old)["new_balance"]
    assert tell(learning, changing(change), old, asked=False) == {"new_balance": 1002.9361904733332}
    rough = Learning()
    rough.possible_scales = {8}
    block(rough, {"new_balance": 1000.5, "change": 0.5}, Decimal(1000), 0.5)
    told = tell(rough, changing(change), old, asked=False)
    assert told["new_balance"] == 1002.9361904733332
    with pytest.raises(UnknownLocally, match="'change' of the block"):
        told["change"]
    block(learning, {"new_balance": 1002.9361904733333}, old, change)
    assert tell(learning, changing(change), old) == {"new_balance": 1002.9361904733333}


@pytest.mark.parametrize("places", [8, 1], ids=["as the column", "as the text of a float"])
def test_amounts_of_a_block_are_spelled_as_the_manager_has_them(places: int) -> None:
    """However the balance was shown by which the view knows it."""
    learning = Learning()
    for balance, change in (("167", "0.5"), ("167.5", "-0.25"), ("167.2", "0.123456789"), ("160", "2.0")):
        old, amount = Decimal(balance).quantize(Decimal(1).scaleb(-places)), Decimal(change)
        told = {"old_balance": old, "new_balance": old + amount, "change": old + amount - old}
        block(learning, told, Decimal(balance), amount)
    old, amount = Decimal(99).quantize(Decimal(1).scaleb(-places)), Decimal("1.25")
    told = {"old_balance": old, "new_balance": old + amount, "change": old + amount - old}
    assert alike(tell(learning, changing(amount), Decimal("99.000")), told)


def test_call_that_stays_unexplained_is_looked_at_for_a_while() -> None:
    """Each look costs as much as a slow delivery."""
    learning = Learning()
    seen = Seen(BY_NAME["update_position"], {"position_id": 5}, {"session": 1}, {"positions": {5: {"id": 5}}})
    looks = 0
    while learning.wants(seen, sure=False):
        looks += 1
        learning.learn(seen, {"positions": {5: {"id": 5, "mood": f"{looks * 7919 % 1000}"}}, "orders": {}})
    assert 20 < looks < 100
    # Calls with a further argument are new.
    more = Seen(BY_NAME["update_position"], {"position_id": 5, "stop_loss": 1}, {"session": 1}, seen.tables)
    assert learning.wants(more, sure=True)


def test_block_yields_its_keys_in_the_same_order_after_a_restart() -> None:
    learning, told = Learning(), {"old_balance": Decimal(1), "change": Decimal(2), "about": "x"}
    operation = next(one for one in TRADING_OPERATIONS if one.name == "atomic_balance_update")
    learn_yield(learning, Seen(operation, {"balance_change": Decimal(2), "reason": "x"}, {}, {}), told, Decimal(1))
    restarted = Learning()
    restarted.load(decode_result(encode_result(learning.dump())))
    assert list(restarted.yields[operation.name]["keys"]) == list(told)


@pytest.mark.parametrize("unit", ["seconds", "minutes", "hours", "days"])
def test_time_and_a_duration_are_explained_by_their_unit(unit: str) -> None:
    space = Space()
    for amount in (3, 2.5):
        shown = (UTC_AT + timedelta(**{unit: amount})).isoformat()
        observe(space, "due", shown, {"arg:ttl": amount, "arg:id": 7, "note:at": AT}, scales=(None,))
    at = UTC_AT + timedelta(days=400)
    assert space.predict({"arg:ttl": 40, "note:at": at}) == (at + timedelta(**{unit: 40})).isoformat()


def test_time_that_was_once_another_is_not_answered() -> None:
    space = Space()
    for minutes, shown in ((3, 3), (5, 5), (7, 9), (2, 2), (1, 1), (4, 4), (6, 6)):
        sources = {"arg:ttl": minutes, "note:at": AT}
        observe(space, "due", AT + timedelta(minutes=shown), sources, scales=(None,))
    with pytest.raises(Unknown, match="another time was seen"):
        space.predict({"arg:ttl": 8, "note:at": AT})


def test_text_of_its_own_is_no_constant() -> None:
    """A token is another one in each call."""
    space = Space()
    for token in ("a81f", "beef", "c0de"):
        observe(space, "token", token, {}, scales=(None,))
        with pytest.raises(Unknown):
            space.predict({})
    plain = Space()
    observe(plain, "status", "OPEN", {}, scales=(None,))
    assert plain.predict({}) == "OPEN"
