"""A method that the host replaces in the manager's class while it runs is gone by from then on."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from outbox.integrations.view.local_view import UnknownLocally

from .small import SmallManager, Trade, scene
from .test_upgraded_code import Charging


def manager_class() -> Any:
    """A class of its own for each test, since it is changed."""

    class Changing(SmallManager):
        def __init__(self, url: str) -> None:
            super().__init__(url)
            self.mode = "paper"
            self.logged = 0

        def note(self, symbol: str) -> str:
            return symbol

        def log_trade(self, symbol: str, note: Any = None, session_id: int | None = None) -> int:
            with self.session_factory.begin() as session:
                trade = Trade(symbol=symbol, note=self.note(symbol))
                session.add(trade)
                session.flush()
                return trade.id

    return Changing


def test_attribute_that_a_replaced_method_reads_is_the_calls(postgres_url: str, tmp_path: Path) -> None:
    """What methods read was looked up once for each class."""
    cls = manager_class()
    with scene(postgres_url, tmp_path / "outbox", cls) as made:
        made.manager.log_trade("A")
        assert made.drain()
        cls.note = lambda self, symbol: self.mode
        made.manager.mode = "live"
        made.manager.log_trade("B")
        made.manager.mode = "paper"
        assert made.drain()
        assert made.rows("SELECT note FROM trades ORDER BY id") == [("A",), ("live",)]


def test_sum_of_a_replaced_method_is_there_at_the_call(postgres_url: str, tmp_path: Path) -> None:
    cls = manager_class()
    with scene(postgres_url, tmp_path / "outbox", cls) as made:
        made.manager.log_trade("A")
        assert made.drain()
        plain = cls.log_trade

        def log_trade(self: Any, symbol: str, note: Any = None, session_id: int | None = None) -> int:
            id_: int = plain(self, symbol)
            self.logged += 1
            return id_

        cls.log_trade = log_trade
        made.manager.log_trade("B")
        assert made.manager.logged == 1
        assert made.drain()
        assert made.manager.logged == 1


def test_read_behind_a_replaced_method_is_not_answered_by_the_former(postgres_url: str, tmp_path: Path) -> None:
    cls = manager_class()
    with scene(postgres_url, tmp_path / "outbox", cls) as made:
        session = made.manager.create_trading_session("s", Decimal(100))
        for number in range(3):
            made.manager.update_balance(Decimal(number), "x", session_id=session)
            assert made.drain()
        made.manager.update_balance(Decimal(20), "x", session_id=session)
        assert made.manager.get_current_balance(session) == 20
        cls.update_balance = Charging.update_balance
        made.manager.update_balance(Decimal(30), "x", session_id=session)
        with pytest.raises(UnknownLocally):
            made.manager.get_current_balance(session)
        assert made.drain()
        assert made.rows("SELECT total FROM account_balances ORDER BY id DESC LIMIT 1") == [(Decimal(29),)]


def test_mock_in_place_of_a_method_leaves_what_was_learned(postgres_url: str, tmp_path: Path) -> None:
    cls = manager_class()
    with scene(postgres_url, tmp_path / "outbox", cls) as made:
        session = made.manager.create_trading_session("s", Decimal(100))
        for number in range(3):
            made.manager.update_balance(Decimal(number), "x", session_id=session)
            assert made.drain()
        with mock.patch.object(cls, "note", return_value="mocked"):
            made.manager.log_trade("A")
        made.manager.update_balance(Decimal(20), "x", session_id=session)
        assert made.manager.get_current_balance(session) == 20
