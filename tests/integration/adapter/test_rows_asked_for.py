"""Rows are answered in the order, and in the number, for which the code of the read asks."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from outbox.integrations.view.local_view import UnknownLocally

from .small import Scene, scene
from .test_thresholds import BookManager, Lot, shown


class NewestFirst(BookManager):
    def get_active_positions(self, session_id: int | None = None) -> list[dict[str, Any]]:
        with self.session_factory() as session:
            return [shown(lot) for lot in session.scalars(select(Lot).order_by(Lot.id.desc()))]


class ByHiddenColumn(BookManager):
    def get_active_positions(self, session_id: int | None = None) -> list[dict[str, Any]]:
        with self.session_factory() as session:
            lots = session.scalars(select(Lot).order_by(Lot.score.desc()))
            return [{"id": lot.id, "symbol": lot.symbol, "size": lot.size} for lot in lots]


class AtMostTwo(BookManager):
    def get_active_positions(self, session_id: int | None = None) -> list[dict[str, Any]]:
        with self.session_factory() as session:
            return [shown(lot) for lot in session.scalars(select(Lot).order_by(Lot.id).limit(2))]


class Newest(BookManager):
    def get_active_positions(self, session_id: int | None = None) -> list[dict[str, Any]]:
        with self.session_factory() as session:
            return [shown(lot) for lot in session.scalars(select(Lot).order_by(Lot.id.desc()).limit(1))]


class FirstTwo(BookManager):
    SHOWN = 2

    def get_active_positions(self, session_id: int | None = None) -> list[dict[str, Any]]:
        with self.session_factory() as session:
            lots = session.scalars(select(Lot).order_by(Lot.id)).all()
            return [shown(lot) for lot in lots[: self.SHOWN]]


class NoDust(BookManager):
    def get_active_positions(self, session_id: int | None = None) -> list[dict[str, Any]]:
        with self.session_factory() as session:
            return [shown(lot) for lot in session.scalars(select(Lot).where(Lot.size >= 1).order_by(Lot.id))]


class LastOfEach(BookManager):
    def get_active_positions(self, session_id: int | None = None) -> list[dict[str, Any]]:
        with self.session_factory() as session:
            lots = session.scalars(select(Lot).order_by(Lot.id))
            return list({lot.symbol: shown(lot) for lot in lots}.values())


@pytest.fixture
def book(request: pytest.FixtureRequest, postgres_url: str, outbox_dir: Path) -> Iterator[Scene]:
    """Nothing is delivered until `drain`; three lots were opened and sold, one at a time."""
    with scene(postgres_url, outbox_dir, request.param, write_behind=True, wait_s=0.02) as found:
        found.manager.create_trading_session()
        for _ in range(3):
            lot = found.manager.log_position("A", Decimal(2), 0.5)
            assert found.drain()
            found.manager.log_trade(lot, Decimal(2))
            assert found.drain()
        yield found


@pytest.mark.parametrize("book", [NewestFirst], indirect=True)
def test_rows_never_seen_together_are_in_the_order_of_the_code(book: Scene) -> None:
    for symbol in "BCD":
        book.manager.log_position(symbol, Decimal(2), 0.5)
    here = book.manager.get_active_positions()
    assert [row["symbol"] for row in here] == ["D", "C", "B"]
    assert book.drain()
    assert here == book.manager._host.built.get_active_positions()


@pytest.mark.parametrize("book", [ByHiddenColumn], indirect=True)
def test_order_by_a_column_that_is_not_shown_is_not_answered(book: Scene) -> None:
    book.manager.log_position("B", Decimal(2), 0.5)
    assert [row["symbol"] for row in book.manager.get_active_positions()] == ["B"]
    book.manager.log_position("C", Decimal(2), 1.5)
    with pytest.raises(UnknownLocally, match="whether rows of positions are ordered by 'score' was not seen"):
        book.manager.get_active_positions()


@pytest.mark.parametrize("book", [AtMostTwo], indirect=True)
def test_more_rows_than_the_read_shows_are_not_answered(book: Scene) -> None:
    first = book.manager.log_position("B", Decimal(2), 0.5)
    book.manager.log_position("C", Decimal(2), 0.5)
    assert len(book.manager.get_active_positions()) == 2
    third = book.manager.log_position("D", Decimal(2), 0.5)
    with pytest.raises(UnknownLocally, match="the manager shows 2 of them at most"):
        book.manager.get_active_positions()
    assert book.drain()
    # The third is known, though it was not shown.
    book.manager.log_trade(first, Decimal(2))
    here = book.manager.get_active_positions()
    assert [row["id"] for row in here][1] == third
    assert book.drain()
    assert here == book.manager._host.built.get_active_positions()


def _open(book: Scene, *lots: tuple[str, str]) -> Any:
    for symbol, size in lots:
        book.manager.log_position(symbol, Decimal(size), 0.5)
    return book.manager.get_active_positions()


@pytest.mark.parametrize(
    ("book", "new", "why"),
    [
        (Newest, ("C", "2"), "was never seen to show 2"),
        (FirstTwo, ("C", "2"), "shows 2 of them at most"),
        (NoDust, ("C", "0.5"), "no row was shown for which `size >= 1` is False"),
        (LastOfEach, ("A", "2"), "two rows with one symbol were never shown"),
    ],
    indirect=["book"],
)
def test_row_that_the_code_may_leave_out_is_not_answered(book: Scene, new: tuple[str, str], why: str) -> None:
    opened = [("A", "2"), ("B", "2")] if why.startswith("shows") else [("A", "2")]
    assert len(_open(book, *opened)) == len(opened)
    with pytest.raises(UnknownLocally, match=why):
        _open(book, new)
    assert book.drain()
    assert len(book.manager._host.built.get_active_positions()) == len(opened)
