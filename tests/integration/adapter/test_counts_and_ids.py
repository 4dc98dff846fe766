"""A count that a method answers is not taken for an id, though both are 1 in a new database."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import insert, update

from outbox.integrations.durable import TRADING_OPERATIONS, ManagerOperation
from outbox.integrations.view.local_view import UnknownLocally

from .small import SmallManager, Trade, scene


class Counting(SmallManager):
    """Answers how many rows it has written."""

    def annotate(self, trade_id: int, note: str) -> int:
        with self.session_factory.begin() as session:
            found = session.execute(update(Trade).where(Trade.id == trade_id).values(note=note))
            return int(found.rowcount)  # type: ignore[attr-defined]

    def annotate_with(self, trade_id: int, note: str) -> tuple[int, str]:
        return self.annotate(trade_id, note), note

    def log_trades(self, *symbols: str) -> int:
        with self.session_factory.begin() as session:
            session.execute(insert(Trade), [{"symbol": one} for one in symbols])
        return len(symbols)

    def same_trade(self, trade_id: int) -> int:
        self.annotate(trade_id, "same")
        return trade_id


OPERATIONS = (
    *TRADING_OPERATIONS,
    *(ManagerOperation(name) for name in ("annotate", "annotate_with", "log_trades", "same_trade")),
)


def test_count_is_not_answered_as_the_id_that_it_equalled(postgres_url: str, outbox_dir: Path) -> None:
    with scene(postgres_url, outbox_dir, Counting, OPERATIONS, write_behind=True) as here:
        manager = here.manager
        first = [manager.log_trade("A") for _ in range(3)]
        assert first == [1, 2, 3]
        manager.annotate(1, "x")
        manager.annotate_with(1, "x")
        assert here.drain()
        assert manager.annotate(3, "y") is None
        answer = manager.annotate_with(3, "y")
        with pytest.raises(UnknownLocally):
            answer[0]
        assert here.drain()


def test_number_of_rows_is_not_answered_as_an_id(postgres_url: str, outbox_dir: Path) -> None:
    with scene(postgres_url, outbox_dir, Counting, OPERATIONS, write_behind=True) as here:
        for symbols in (["A"], ["B", "C"]):
            here.manager.log_trades(*symbols)
            assert here.drain()
        assert here.manager.log_trades("D", "E") is None
        assert here.drain()


def test_id_that_several_calls_answered_is_answered(postgres_url: str, outbox_dir: Path) -> None:
    with scene(postgres_url, outbox_dir, Counting, OPERATIONS, write_behind=True) as here:
        for _ in range(3):
            here.manager.log_trade("A")
        for id_ in (1, 2):
            here.manager.same_trade(id_)
            assert here.drain()
        assert here.manager.same_trade(3) == 3
        assert here.drain()
