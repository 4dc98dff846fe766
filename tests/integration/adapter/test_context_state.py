"""A replay finds the context variables that its call has read, in the relay's thread and after a restart."""

from __future__ import annotations

import contextvars
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import pytest

from .small import SmallManager, Trade, scene

tenant: ContextVar[str] = ContextVar("tenant")
user: ContextVar[str] = ContextVar("user", default="nobody")


def user_of_the_request() -> str:
    return user.get()


class Audited(SmallManager):
    def log_trade(self, symbol: str, note: Any = None, session_id: int | None = None) -> Any:
        with self.session_factory.begin() as session:
            trade = Trade(symbol=symbol, note=f"{tenant.get()} {user_of_the_request()}")
            session.add(trade)
            session.flush()
            return trade.id


def request(manager: Any, of_tenant: str, by: str, symbol: str) -> None:
    def serve() -> None:
        tenant.set(of_tenant)
        user.set(by)
        manager.log_trade(symbol)

    contextvars.copy_context().run(serve)


@pytest.mark.parametrize("write_behind", [False, True])
def test_context_variable_is_that_of_the_call(write_behind: bool, postgres_url: str, tmp_path: Path) -> None:
    with scene(postgres_url, tmp_path / "outbox", Audited, write_behind=write_behind) as made:
        if not write_behind:
            made.relay.start()
        made.manager.create_trading_session("s", 1000)
        request(made.manager, "first", "ann", "A")
        request(made.manager, "second", "ben", "B")
        with pytest.raises(LookupError):
            made.manager.log_trade("C")
        assert made.drain()
        assert made.rows("SELECT note FROM trades ORDER BY id") == [("first ann",), ("second ben",)]


def test_context_variable_of_a_call_outlives_a_restart(postgres_url: str, tmp_path: Path) -> None:
    with scene(postgres_url, tmp_path / "outbox", Audited, write_behind=True) as made:
        made.manager.create_trading_session("s", 1000)
        request(made.manager, "first", "ann", "A")
    with scene(postgres_url, tmp_path / "outbox", Audited, write_behind=True) as made:
        assert made.drain()
        assert made.rows("SELECT note FROM trades") == [("first ann",)]
        assert user.get() == "nobody"
