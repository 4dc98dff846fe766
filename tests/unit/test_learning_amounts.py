"""Learning of amounts: one answer leaves open which of several rules made it."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from outbox.integrations.operations import TRADING_OPERATIONS
from outbox.integrations.replay.balance import learn_yield, tell
from outbox.integrations.view.explanations import Space, Unknown
from outbox.integrations.view.learned import Learning
from outbox.integrations.view.learning import observe
from outbox.integrations.view.local_view import UnknownLocally
from outbox.integrations.view.seen import Seen
from outbox.results import decode_result, encode_result


def seen(space: Space, key: str, shown: Any, old: Any, **arguments: Any) -> None:
    observe(space, key, shown, sources(**arguments), old, scales=(8,))


def sources(**arguments: Any) -> dict[str, Any]:
    return {f"arg:{name}": value for name, value in arguments.items()}


NOTHINGS = pytest.mark.parametrize("nothing", [None, 0.0, Decimal("0E-8")])


@NOTHINGS
@pytest.mark.parametrize("argument", ["fill", "filled"])
def test_amount_once_added_to_nothing_is_not_known(nothing: Any, argument: str) -> None:
    space, shown = Space(), Decimal("2.50000000") if isinstance(nothing, Decimal) else 2.5
    seen(space, "filled", shown, nothing, **{argument: Decimal("2.5")})
    assert space.predict(sources(**{argument: Decimal("2.5")}), nothing) == shown
    with pytest.raises(Unknown, match="may become"):
        space.predict(sources(**{argument: Decimal(1)}), shown)


@NOTHINGS
def test_sum_from_nothing_is_known_once_it_went_on(nothing: Any) -> None:
    space, decimals = Space(), isinstance(nothing, Decimal)
    amounts = [Decimal(one) if decimals else float(one) for one in ("2.50000000", "3.75000000", "5.00000000")]
    for old, shown in zip([nothing, *amounts], amounts, strict=False):
        seen(space, "filled", shown, old, fill=Decimal("2.5") if old == nothing else Decimal("1.25"))
    again = Space(*decode_result(encode_result(space.dump())))
    assert again.predict(sources(fill=Decimal(4)), amounts[-1]) == 9
    assert again.predict(sources(fill=Decimal(4)), nothing) == 4
    # What is not given is not added.
    assert again.predict(sources(fill=None), nothing) == nothing


@NOTHINGS
def test_amount_that_replaces_nothing_is_known_once_it_replaced(nothing: Any) -> None:
    space = Space()
    for old, shown in ((nothing, 2.5), (2.5, 1.25)):
        seen(space, "filled", shown, old, filled=shown)
    assert space.predict(sources(filled=7.5), 1.25) == 7.5


@pytest.mark.parametrize("key", ["current_price", "stop_loss", "trailing_stop_price"])
def test_price_is_no_sum(key: str) -> None:
    space = Space()
    seen(space, key, 101.5, None, price=101.5)
    assert space.predict(sources(price=99.5), 101.5) == 99.5


def test_counter_that_begins_at_null_is_no_constant() -> None:
    space = Space()
    seen(space, "exits", 1, None)
    with pytest.raises(Unknown, match="may become"):
        space.predict({}, 1)
    seen(space, "exits", 2, 1)
    assert (space.predict({}, 2), space.predict({}, None)) == (3, 1)


def test_text_of_a_float_is_not_that_of_a_decimal() -> None:
    """Rows that show amounts as texts have Decimals in the view."""
    space = Space()
    observe(space, "current_price", Decimal("569.5"), sources(price=Decimal("569.5")), Decimal(7), scales=(None,))
    assert space.predict(sources(price=Decimal("161.25")), Decimal(7)) == Decimal("161.25")
    with pytest.raises(Unknown, match="may become"):
        space.predict(sources(price=Decimal(516)), Decimal(7))
    observe(space, "current_price", Decimal("814.0"), sources(price=Decimal(814)), Decimal(7), scales=(None,))
    assert str(space.predict(sources(price=Decimal(516)), Decimal(7))) == "516.0"


def order(quantity: float, filled: float, fill: float | None) -> dict[str, Any]:
    return {"row:orders:quantity": quantity, "row:orders:filled": filled, "arg:fill": fill}


def test_rest_of_an_order_is_learned() -> None:
    space = Space()
    observe(space, "remaining", 5.5, order(8.0, 0.0, 2.5), 8.0, scales=(8,))
    # The first fill leaves open of which amount it is taken.
    assert space.predict(order(7.0, 0.0, 2.0), 7.0) == 5.0
    with pytest.raises(Unknown, match="may become"):
        space.predict(order(7.0, 2.0, 3.0), 5.0)
    observe(space, "remaining", 4.0, order(8.0, 2.5, 4.0), 5.5, scales=(8,))
    again = Space(*decode_result(encode_result(space.dump())))
    assert again.predict(order(20.0, 5.0, 7.25), 15.0) == 12.75
    assert again.predict(order(20.0, 5.0, None), 15.0) == 15.0


def test_rest_in_a_new_row_is_that_of_two_columns() -> None:
    space = Space()
    for quantity, filled in ((8, 2), (9, 4)):
        row = {"row:orders:quantity": quantity, "row:orders:filled": filled}
        observe(space, "quantity", quantity - filled, row, scales=(None,))
    assert space.predict({"row:orders:quantity": 20, "row:orders:filled": 5}) == 15


def test_rule_seen_once_after_another_is_not_trusted() -> None:
    """A cumulative fill that is reported twice leaves the rest as it is."""
    space = Space()
    observe(space, "rest", 7.25, {"arg:a": 0.25}, 7.5, scales=(8,), given="a+")
    observe(space, "rest", 7.25, {"arg:a": 0.5}, 7.25, scales=(8,), given="a+")
    with pytest.raises(Unknown, match="once only since"):
        space.predict({"arg:a": 0.75}, 7.25, "a+")
    observe(space, "rest", 7.25, {"arg:a": 0.75}, 7.25, scales=(8,), given="a+")
    assert space.predict({"arg:a": 1.0}, 7.25, "a+") == 7.25


def test_block_that_is_looked_at_twice_was_seen_once() -> None:
    """The manager was asked before the call was made, and was seen again when it was delivered."""
    learning, operation = Learning(), next(one for one in TRADING_OPERATIONS if one.name == "atomic_balance_update")
    for change in ("-15.903", "-15.903"):
        seen_once = Seen(operation, {"balance_change": Decimal(change), "reason": "fee"}, {"session": 1}, {})
        learn_yield(learning, seen_once, {"new_balance": Decimal("984.55")}, Decimal(1000))
    with pytest.raises(UnknownLocally, match="seen once only"):
        tell(learning, seen_once, Decimal(5000))["new_balance"]
