"""Which answers are equal, and which reads are answered after some were not."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest

from outbox.integrations.view.compared import Compared, is_equal

AT = datetime(2024, 5, 1, 9, 30, tzinfo=UTC)
Pair = namedtuple("Pair", "one two")


@dataclass
class Line:
    id: int
    size: Any
    inner: Any = None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (0.1 + 0.2, 0.3),
        ([{"id": 1}, {"id": 2}], [{"id": 2}, {"id": 1}]),
        (Line(1, Decimal("1.50"), [AT]), Line(1, Decimal("1.50"), [AT])),
        ({"id": 1, "at": AT}, {"at": AT, "id": 1}),
        ({1, 2}, {2, 1}),
        (None, None),
    ],
)
def test_equal_answers(one: Any, other: Any) -> None:
    assert is_equal(one, other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, 1.0),
        (1, True),
        (Decimal("1.50"), Decimal("1.5")),
        (0.3, 0.30000001),
        ([], ()),
        ([{"id": 1}], [{"id": 1}, {"id": 1}]),
        (Line(1, 2), Line(1, 3)),
        (Line(1, [1, 2]), Line(1, [2, 1])),
        (Pair(1, 2), (1, 2)),
        (AT, AT.astimezone(timezone(timedelta(hours=2)))),
        (AT, AT.replace(tzinfo=None)),
        ({"id": None}, {}),
        ("none", None),
    ],
)
def test_different_answers(one: Any, other: Any) -> None:
    assert not is_equal(one, other)


def test_objects_that_hold_each_other_are_compared() -> None:
    one, other = Line(1, 2), Line(1, 2)
    one.inner, other.inner = one, other
    assert is_equal(one, other)
    other.size = 3
    assert not is_equal(one, other)


def test_read_is_distrusted_until_twenty_equal_answers() -> None:
    compared = Compared()
    assert not compared.note("get", equal=True)
    assert compared.distrusted("get") is None
    assert compared.note("get", equal=False)
    assert compared.distrusted("other") is None
    changed = [compared.note("get", equal=True) for _ in range(19)]
    assert not any(changed)
    assert compared.distrusted("get") == "1 of 21 answers differed from the manager's, 19 equal since"
    assert compared.all_distrusted().keys() == {"get"}
    assert compared.note("get", equal=True)
    assert compared.all_distrusted() == {}


def test_state_that_was_stored_is_the_same_again() -> None:
    compared = Compared()
    compared.note("get", equal=False)
    again = Compared({read: list(counts) for read, counts in compared.dump().items()})
    assert (
        again.distrusted("get")
        == compared.distrusted("get")
        == "1 of 1 answers differed from the manager's, 0 equal since"
    )
