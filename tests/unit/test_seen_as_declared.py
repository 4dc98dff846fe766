"""Calls that leave the shown balance alone are told from the others by their words, and never forgotten for those."""

from __future__ import annotations

import pytest

from outbox.integrations.view.seen import IS_ANY, AsDeclared, Words

USD, EUR = {"currency": "USD"}, {"currency": "EUR"}


def observed(*calls: tuple[Words, bool]) -> AsDeclared:
    found = AsDeclared()
    for words, fits in calls:
        found.observe(words, fits=fits)
    return AsDeclared.load(found.dump())


def test_nothing_is_known_before_a_call() -> None:
    assert AsDeclared().of(USD) is None


def test_word_that_never_fitted_is_remembered_however_many_fit() -> None:
    found = observed((USD, True), (EUR, False), *[(USD, True)] * 20)
    assert (found.of(USD), found.of(EUR), found.of({"currency": "CHF"})) == (True, False, False)
    assert found.is_strange


def test_word_that_fits_later_was_not_the_reason() -> None:
    found = observed((USD | {"why": "fee"}, True), (EUR | {"why": "fx"}, False), (USD | {"why": "fx"}, True))
    assert found.of(USD | {"why": "other"}) is True
    assert found.of(EUR | {"why": "fee"}) is False


def test_call_that_no_word_tells_apart_is_doubted_for_a_while() -> None:
    found = observed((USD, True), (USD, False))
    assert found.of(USD) is False
    for fits in (False, True, True, True):
        assert found.of(USD) is False
        found.observe(USD, fits=fits)
    assert found.of(USD) is True


def test_lasting_contradiction_is_never_forgotten() -> None:
    found = AsDeclared()
    found.observe(USD, fits=False, lasting=True)
    for _ in range(20):
        found.observe(USD, fits=True)
    assert found.of(USD) is False


def test_argument_with_many_values_is_no_choice() -> None:
    found = observed(*(({"ref": str(number)}, True) for number in range(8)))
    assert not found.is_new({"ref": "8"})
    assert found.is_new(USD)
    found.observe({"ref": "9"}, fits=False)
    assert found.of({"ref": "10"}) is False


def test_contradiction_of_one_reference_is_not_that_of_all() -> None:
    found = observed(({"ref": "odd"}, False), *(({"ref": str(number)}, True) for number in range(7)))
    assert (found.of({"ref": "odd"}), found.of({"ref": "8"})) == (False, True)


@pytest.mark.parametrize("earlier", [None, True, False])
def test_state_of_an_earlier_version_is_understood(earlier: bool | None) -> None:
    assert AsDeclared.load(earlier).of(USD) is earlier


def test_fee_that_is_zero_by_default_tells_calls_apart() -> None:
    """A call with a fee takes it from the balance, too; the declared amount does not say so."""
    free, fee = ({"symbol": "A", f"fee{IS_ANY}": value} for value in (0, 1))
    assert observed((free, True)).of(fee) is None
    found = observed((free, True), (fee, False), *[(free, True)] * 20)
    assert (found.of(free), found.of(fee)) == (True, False)
    begun_with_a_fee = observed((fee, False), (free, True))
    assert (begun_with_a_fee.of(free), begun_with_a_fee.of(fee)) == (True, False)


def test_word_that_went_both_ways_explains_no_difference() -> None:
    """A fee in percent is rounded away where the change is small."""
    found = observed(({"why": "fee"}, False), ({"why": "fee"}, True))
    assert found.of({"why": "fee"}) is False
    for _ in range(3):
        found.observe({"why": "fee"}, fits=True)
    assert found.of({"why": "fee"}) is True
