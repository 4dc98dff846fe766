"""A trading day's critical calls, the same for every manager that has them: entries, exits, balances."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from typing import Any

Call = tuple[str, Callable[[], Any]]

# A manager's totals are computed from its session's trades: sessions of a fixed length keep every call alike.
_CYCLES_PER_SESSION = 25
_ENTERED = datetime(2024, 5, 1, 9, 30, tzinfo=UTC)


class Day:
    """Makes the calls of one manager, one trade after the other; the benchmark times each one."""

    def __init__(self, manager: Any, prefix: str, *, amount: Callable[[str], Any], order_side: str) -> None:
        """`prefix` tells its order ids from another day's; `amount` makes the manager's kind of number."""
        self._manager, self._prefix = manager, prefix
        self._amount, self._order_side = amount, order_side
        self._cycle = 0
        self._session: Any = None

    def one_insert(self) -> Call:
        """A call that writes one row."""
        if self._session is None:
            self._begin()
        self._cycle += 1
        return "order", self._order("single")

    def trade(self) -> Iterator[Call]:
        """The nine calls of one trade; the ones that begin its session are not among them."""
        if self._cycle % _CYCLES_PER_SESSION == 0 or self._session is None:
            self._begin()
        self._cycle += 1
        manager, amount, found = self._manager, self._amount, []
        yield "order", self._order("entry")
        yield "fill", self._fill("entry", None)
        yield "position", lambda: found.append(
            manager.log_position(
                "BTC-USD", "long", amount("64250.10"), amount("0.1"), "momentum", f"{self._id('entry')}-at-exchange",
                stop_loss=amount("63000"), quantity=amount("0.0125"), session_id=self._session,
                client_order_id=self._id("entry"),
            )
        )  # fmt: skip
        for price in ("64300.25", "64410.5"):
            stop = amount(price)
            yield "trailing stop", partial(self._trail, found, stop)
        yield "order", self._order("exit", found[0])
        yield "fill", self._fill("exit", found[0])
        yield "trade", lambda: manager.log_trade(
            "BTC-USD", "long", amount("64250.10"), amount("64410.5"), amount("0.1"), _ENTERED,
            _ENTERED + timedelta(hours=1), amount("2"), "signal", "momentum", commission=amount("0.03"),
            exit_order_id=f"{self._id('exit')}-at-exchange", session_id=self._session, position_id=found[0],
        )  # fmt: skip
        yield "balance", self._change

    def _begin(self) -> None:
        self._session = self._manager.create_trading_session(
            "momentum", "BTC-USD", "1m", "paper", self._amount("100000"), {"fast": 3}, f"{self._prefix}-{self._cycle}"
        )
        self._manager.update_balance(self._amount("100000"), "session_start", "engine", self._session)

    def _id(self, what: str) -> str:
        return f"{self._prefix}-{self._cycle}-{what}"

    def _order(self, what: str, position_id: Any = None) -> Callable[[], Any]:
        return lambda: self._manager.create_order_journal_entry(
            self._session, self._id(what), "BTC-USD", self._order_side, "entry", self._amount("0.0125"), "momentum",
            position_id=position_id,
        )  # fmt: skip

    def _fill(self, what: str, position_id: Any) -> Callable[[], Any]:
        return lambda: self._manager.update_order_journal(
            self._id(what), "filled", f"{self._id(what)}-at-exchange", self._amount("64250.10"),
            self._amount("0.0125"), self._amount("0.03"), position_id=position_id,
        )  # fmt: skip

    def _trail(self, found: list[Any], stop: Any) -> Any:
        return self._manager.update_position(found[0], current_price=stop, stop_loss=stop)

    def _change(self) -> None:
        with self._manager.atomic_balance_update(
            self._amount("2"), "trade", "engine", self._session, self._id("balance")
        ):
            pass


def paper(manager: Any, prefix: str) -> Day:
    """A day of the paper engine's manager."""
    return Day(manager, prefix, amount=Decimal, order_side="buy")


def classic(manager: Any, prefix: str) -> Day:
    """A day of the classic manager of the tests, which counts in float."""
    return Day(manager, prefix, amount=float, order_side="long")
