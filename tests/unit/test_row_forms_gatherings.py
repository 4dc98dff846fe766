"""Gatherings: what has a manager's rows in an answer is made again, or said to be unknown."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from outbox.integrations.view.explanations import Unknown
from outbox.integrations.view.row_forms import RowForms

A, B = {"id": 1, "no": 1, "symbol": "x"}, {"id": 2, "no": 2, "symbol": "y"}


def seen(*answers: Any) -> RowForms:
    """Forms that have seen these answers, and were stored since."""
    forms = RowForms()
    for answer in answers:
        _, unknown = forms.tables_of(answer, [])
        assert unknown == {}
    again = RowForms()
    again.load(forms.dump())
    return again


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ([[A]], [A, B]),
        ([()], (A, B)),
        ([{"x": A}], {"x": A, "y": B}),
        ([{"1": {"id": 1}}], {"1": A, "2": B}),
        ([None, [A]], [A, B]),
        ([{}, {"x": A}], {"x": A, "y": B}),
    ],
)
def test_rows_come_as_they_were_seen_to_come(answers: list[Any], expected: Any) -> None:
    shown = seen(*answers).answer("positions", [dict(A), dict(B)])
    assert type(shown) is type(expected)
    assert shown == expected


@pytest.mark.parametrize(("answers", "expected"), [([None], None), ([()], ()), ([{"x": A}], {}), ([[A], None], None)])
def test_no_rows_come_as_they_were_seen_to_come(answers: list[Any], expected: Any) -> None:
    shown = seen(*answers).answer("positions", [])
    assert type(shown) is type(expected)
    assert not shown


@pytest.mark.parametrize(
    ("answers", "why"),
    [
        ([{}], "how the manager shows rows was never seen"),
        ([None], "how the manager shows rows was never seen"),
        ([{1: A}], "whether positions are shown by 'id' or 'no'"),
    ],
)
def test_rows_whose_form_was_not_seen_are_not_answered(answers: list[Any], why: str) -> None:
    with pytest.raises(Unknown, match=why):
        seen(*answers).answer("positions", [dict(A), {**B, "no": 3}])


@pytest.mark.parametrize(
    ("first", "second", "why"),
    [
        ([A], {"x": A}, "shown as a list and as a dict"),
        ({"x": A}, {1: A}, "as a dict by no column of theirs"),
        (
            [{"id": 1, "size": "0.5"}],
            [{"id": 1, "size": "a lot"}],
            "size of positions is shown as the text of an amount",
        ),
    ],
)
def test_answer_of_another_form_is_not_understood(first: Any, second: Any, why: str) -> None:
    _, unknown = seen(first).tables_of(second, [])
    assert why in unknown["positions"]


def test_amounts_that_are_shown_as_texts_are_amounts() -> None:
    forms = seen([{"id": 1, "size": "0.50", "stop": None, "ref": "7"}])
    tables, _ = forms.tables_of([{"id": 1, "size": "0.50", "stop": "1E-8", "ref": "7"}], [])
    assert tables["positions"] == {1: {"id": 1, "size": Decimal("0.50"), "stop": Decimal("1E-8"), "ref": "7"}}
    assert forms.answer("positions", [{"id": 1, "size": Decimal("0.25"), "stop": None, "ref": "8"}]) == [
        {"id": 1, "size": "0.25", "stop": None, "ref": "8"}
    ]


def test_key_that_looks_like_an_amount_stays_a_text() -> None:
    forms = seen([{"id": "1.5", "size": "0.50"}, {"id": "2.5"}])
    tables, _ = forms.tables_of([{"id": "1.5", "size": "0.50"}, {"id": "2.5"}], [])
    assert tables["positions"] == {"1.5": {"id": "1.5", "size": Decimal("0.50")}, "2.5": {"id": "2.5"}}


def test_row_without_a_key_of_its_own_has_that_of_the_dict() -> None:
    forms = seen({7: {"side": "long"}})
    tables, _ = forms.tables_of({8: {"side": "short"}}, [])
    assert tables["positions"] == {8: {"(key)": 8, "side": "short"}}
    assert forms.answer("positions", list(tables["positions"].values())) == {8: {"side": "short"}}
