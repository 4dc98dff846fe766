"""Roundings: a balance has more decimal places than is shown, or fewer than its column."""

from __future__ import annotations

from decimal import Decimal

import pytest

from outbox.integrations.view.roundings import Roundings
from outbox.results import decode_result, encode_result

FINE, SHOWN = Decimal("10.00400000"), Decimal("10.0")


def hiding() -> Roundings:
    return Roundings(methods=dict.fromkeys({"get_current_balance"}, 0))


@pytest.mark.parametrize(
    ("shown", "exact", "expected"),
    [("10", "10.4", True), ("10.1", "10.096", True), ("10.1", "10.21", False), ("10.4", "10", False), ("9", "9", True)],
)
def test_balance_is_shown_with_fewer_places(shown: str, exact: str, expected: bool) -> None:
    assert hiding().is_shown_as(Decimal(shown), Decimal(exact)) is expected


def test_balance_is_exact_where_no_code_rounds_it() -> None:
    assert not Roundings().hides_balance
    assert not Roundings().is_shown_as(SHOWN, FINE)


def test_known_balance_is_that_which_is_shown() -> None:
    found = hiding()
    assert found.exact(1, SHOWN, FINE) == FINE
    assert found.exact(1, Decimal(12), FINE) is None
    assert found.exact(1, SHOWN, None) is None


def test_written_balance_is_that_which_is_shown() -> None:
    found = hiding()
    found.note(1, SHOWN, [(8, Decimal("10.004")), (8, Decimal(3)), (8, None), (None, FINE)])
    assert found.exact(1, SHOWN, None) == FINE
    assert found.exact(2, SHOWN, None) is None
    # Either may be the balance.
    found.note(1, SHOWN, [(8, FINE), (8, Decimal("10.001"))])
    assert found.exact(1, SHOWN, None) is None


def test_call_whose_code_rounds_may_write_either_balance() -> None:
    found = Roundings(methods=dict.fromkeys({"charge"}, 0))
    found.observe("charge", {None, 2, 8})
    found.observe("pay", {2})
    again = Roundings(methods=dict.fromkeys({"charge"}, 0))
    again.load(decode_result(encode_result(found.dump())))
    assert again.possible == {"charge": {None, 2, 8}}
    assert again.made("charge", Decimal("1.5")) == {Decimal("1.5")}
    assert again.made("charge", Decimal("1.125")) == {Decimal("1.125"), Decimal("1.12"), Decimal("1.13")}
    assert again.made("pay", Decimal("1.125")) == {Decimal("1.125")}
    again.observe("charge", {8})
    assert again.made("charge", Decimal("1.125")) == {Decimal("1.125")}


@pytest.mark.parametrize(
    ("methods", "finer"), [({"charge"}, ["price"]), ({"get_active_positions"}, ["price"]), ({"pay"}, [])]
)
def test_amount_finer_than_any_seen_may_be_rounded(methods: set[str], finer: list[str]) -> None:
    found = Roundings(methods=dict.fromkeys(methods, 0))
    assert found.finer("charge", {"price": 3, "size": 2, "fee": 5}, {"price": 2, "size": 2}) == finer


def test_amount_with_no_more_places_than_code_keeps_is_not_finer() -> None:
    roundings = Roundings(methods={"close_position": 8})
    assert roundings.finer("close_position", {"size": 8}, {"size": 2}) == []
    assert roundings.finer("close_position", {"size": 9}, {"size": 2}) == ["size"]


def test_code_that_keeps_the_places_of_the_columns_rounds_nothing() -> None:
    roundings = Roundings(methods={"charge": 8, "get_current_balance": 2}, scales=lambda: {8, 2})
    assert not roundings.rounds("charge")
    assert roundings.rounds("get_current_balance")
    assert roundings.made("charge", Decimal("1.00000001")) == {Decimal("1.00000001")}


@pytest.mark.parametrize("scales", [set(), {None, 8}, {18}])
def test_code_may_round_what_columns_of_more_places_hold(scales: set[int | None]) -> None:
    assert Roundings(methods={"charge": 8}, scales=lambda: scales).rounds("charge")
