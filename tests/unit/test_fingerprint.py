"""Fingerprints: equal values have equal digests in each process, and what cannot be compared is left out."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Integer, String, func, insert, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from outbox.integrations.replay.fingerprint import compared, digest, of_contact, rehearsed_at, stored

AT = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)


class Base(DeclarativeBase):
    pass


class Fill(Base):
    __tablename__ = "fills"
    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    symbol: Mapped[str] = mapped_column("instrument", String)
    note: Mapped[str | None] = mapped_column(String)


class Side(Enum):
    BUY = "buy"


class Minutes(timedelta):
    """As `Timedelta` of pandas."""

    def __str__(self) -> str:
        return "0 days 00:05:00"


class Nanoseconds(datetime):
    """As `Timestamp` of pandas."""

    def isoformat(self, *_: Any, **__: Any) -> str:
        return "2026-01-02T00:00:00.000000001+00:00"

    def astimezone(self, *_: Any) -> Any:
        return self


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, 1.0),
        (Decimal("1.50"), 1.5),
        (True, 1),
        (Side.BUY, "buy"),
        (AT, AT.astimezone(timezone(timedelta(hours=2)))),
        ({"b": 1, "a": [1, 2]}, {"a": (1, 2), "b": 1.0}),
        (float("nan"), Decimal("sNaN")),
        (b"ab", bytearray(b"ab")),
        # The order of a set, which may differ each time.
        ("a, b and c", "c, b and a"),
        ([1, "b"], ("b", 1)),
        # What a library shows otherwise than Python.
        (Minutes(minutes=5), timedelta(minutes=5)),
        (Nanoseconds(2026, 1, 2, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=UTC)),
    ],
)
def test_equal_values_have_one_digest(one: Any, other: Any) -> None:
    assert digest(one) == digest(other) != 0


def test_different_values_have_different_digests() -> None:
    values = [
        None, 0, 1, 2, -1, 0.5, 1.5, Decimal("1.1"), float("nan"), float("inf"), "", "1", "None", b"1",
        AT, AT.replace(tzinfo=None),
        AT.date(), date(1, 1, 1), timedelta(1), UUID(int=1), [], {}, [1], [None], {"a": 1}, ["a", 1], "\ud800",
        "1.25", "1.26", "+1", "-1", "a b", "ab", "x" * 5000, "x" * 5001,
    ]  # fmt: skip
    digests = {digest(value) for value in values}
    # A list and a dict of nothing are one.
    assert len(digests) == len(values) - 1


class Odd(str):
    def encode(self, *_: Any) -> bytes:
        raise RuntimeError


def test_value_whose_code_fails_is_left_out() -> None:
    assert of_contact([], text("x"), {"a": Odd("b"), "b": 1}) == {":a": 0, ":b": digest(1)}


@pytest.mark.parametrize("value", [object(), func.now(), {1, 2}, [object()], list(range(1000))])
def test_what_cannot_be_compared_has_no_digest(value: Any) -> None:
    assert digest(value) == 0


def test_digest_is_the_same_in_another_process() -> None:
    code = (
        "from outbox.integrations.replay.fingerprint import digest\n"
        "from datetime import date\n"
        "print([digest(one) for one in ('a', 1.5, None, date(2026, 1, 2), [1, 'b'])])"
    )
    found = [digest(one) for one in ("a", 1.5, None, date(2026, 1, 2), [1, "b"])]
    said = {
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
        for _ in range(2)
    }
    assert said == {str(found)}


def test_contact_shows_rows_values_and_parameters() -> None:
    rows = [Fill(symbol="BTC"), Fill(symbol="ETH", note="x")]
    assert of_contact(rows) == {
        "fills.instrument": digest("BTC"),
        "fills.instrument 2": digest("ETH"),
        "fills.note": digest("x"),
    }
    statement = insert(Fill).values(symbol="BTC", note=func.now())
    assert of_contact([], statement) == {"fills.instrument": digest("BTC"), "fills.note": 0}
    assert of_contact([], text("x"), [{"a": 1}, {"a": 2}]) == {":a": digest(1), ":a 2": digest(2)}
    assert of_contact([object()], text("x")) == {}
    assert of_contact([], text("x"), {"api_key": "abc", "a": 1}) == {":a": digest(1)}


def test_stored_fingerprint_is_compared_by_value() -> None:
    kept = stored(of_contact([Fill(symbol="BTC", note="x")]), "code", AT)
    assert rehearsed_at(kept) == AT
    found = of_contact([Fill(symbol="BTC", note="y")])
    assert compared(kept, found, "code") == {
        "fills.instrument": (digest("BTC"), digest("BTC")),
        "fills.note": (digest("x"), digest("y")),
    }


def test_fingerprint_of_other_code_or_rows_is_not_compared() -> None:
    kept = stored(of_contact([Fill(symbol="BTC", note="x")]), "code", AT)
    assert compared(kept, of_contact([Fill(symbol="BTC", note="x")]), "other code") == {}
    assert compared(kept, of_contact([Fill(symbol="BTC")]), "code") == {}
    assert compared(kept, of_contact([Fill(symbol="BTC", id=1)]), "code") == {}
    unknown = stored(of_contact([Fill(symbol=object())]), "code", AT)
    assert compared(unknown, of_contact([Fill(symbol="BTC")]), "code") == {}
