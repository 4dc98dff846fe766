"""Days of engines that make every kind of call, with values that differ each time."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from .floats import Side as FloatSide
from .nasty import OrmSide, Side

NOW = datetime(2024, 5, 6, 7, 8, 9, 123456, tzinfo=UTC)


@dataclass
class Engine:
    """Makes every kind of call, with values that differ each time; `told` is what its blocks were told."""

    manager: Any
    session_id: int = 0
    made: int = 0
    open: list[int] = field(default_factory=list)
    told: list[Any] = field(default_factory=list)

    def name(self, kind: str) -> str:
        self.made += 1
        return f"{kind}{self.made}"

    def block(self, change: Any, reason: str = "trade") -> None:
        with self.manager.atomic_balance_update(change, reason) as told:
            self.told.append(told)

    def begin(self) -> None:
        raise NotImplementedError

    def work(self, turn: int) -> None:
        raise NotImplementedError


class PaperEngine(Engine):
    def begin(self) -> None:
        self.session_id = self.manager.create_trading_session("s", "IBM", "1d", "paper", Decimal(1000))
        self.manager.update_balance(Decimal("1000.5"), "start")

    def trade(self, position_id: int | None, pnl: Decimal, **more: Any) -> None:
        self.manager.log_trade(
            "IBM", "long", 100, 101, Decimal("0.1"), NOW, NOW + timedelta(hours=1), pnl, "signal", "s",
            position_id=position_id, **more,
        )  # fmt: skip

    def work(self, turn: int) -> None:
        manager, size, price = self.manager, Decimal(turn + 1) / 10, Decimal(100 + 7 * turn) / 3
        for side in ("long", "short"):
            for journalled in (True, False):
                name = self.name("c")
                if journalled:
                    buys = "buy" if side == "long" else "sell"
                    manager.create_order_journal_entry(self.session_id, name, "IBM", buys, "entry", size * 3, "s")
                position_id = manager.log_position(
                    "IBM", side, price, size, "s", f"o-{name}", quantity=Decimal(2 + turn), client_order_id=name
                )
                self.open.append(position_id)
                manager.update_position(position_id, stop_loss=price - turn, current_price=price + turn + 1)
                manager.apply_partial_exit_update(position_id, size / 4, price + 1, turn + 1)
                manager.apply_scale_in_update(position_id, size / 8, price + 2, turn + 2)
                leaves = self.name("x")
                manager.create_order_journal_entry(
                    self.session_id, leaves, "IBM", "sell", "exit", size, "s", position_id=position_id
                )
                manager.update_order_journal(leaves, "submitted", exchange_order_id=f"e-{leaves}")
                if turn % 2:
                    manager.update_order_journal(leaves, "filled", fill_price=price, fill_quantity=size)
        self.manager.update_balance(Decimal(2000 + turn) / 7, "set")
        self.block(Decimal("0.1") * turn + Decimal(1) / 3)
        self.block(Decimal("-1.25") - turn)
        self.trade(self.open.pop(0), Decimal(turn) / 7)
        self.trade(None, Decimal(turn))
        self.manager.close_position(self.open.pop(0), price, NOW, Decimal(1))
        with manager.atomic_position_reconciliation(self.open.pop(0), Decimal(turn + 3) / 9, price, "target") as told:
            assert told.position_id
        manager.update_order_status_new(manager.create_order_journal_entry(
            self.session_id, self.name("s"), "IBM", "buy", "entry", size, "s"), "cancelled")  # fmt: skip


class NastyEngine(Engine):
    def begin(self) -> None:
        self.session_id = self.manager.create_trading_session("day", strategy_config={"a": [1, {"b": None}]})
        self.manager.update_balance(Decimal("1000.5"))

    def work(self, turn: int) -> None:
        for side in (Side.LONG, OrmSide.SHORT):
            for name in (None, self.name("c")):
                self.open.append(self.manager.log_position(side, 1.5 + turn / 3, client_order_id=name))
                self.manager.update_position(self.open[-1], stop_loss=Decimal(turn) / 3)
        self.block(Decimal("-0.25") * turn - Decimal(1) / 7)
        self.block(0.1 + turn)
        self.manager.close_position(self.open.pop(0))
        self.manager.update_balance(Decimal(turn + 500) / 3)


class FloatEngine(Engine):
    def begin(self) -> None:
        self.session_id = self.manager.create_trading_session("s", "BTC", "paper", 1000.0)
        self.manager.update_balance(1000.0, "session_start")

    def work(self, turn: int) -> None:
        manager, price = self.manager, 100 + (turn + 1) / 3
        for side in ("long", FloatSide.SHORT):
            for journalled in (True, False):
                name = self.name("c")
                if journalled:
                    manager.create_order_journal_entry(self.session_id, name, "BTC", side, "entry", price / 7)
                position_id = manager.log_position(
                    "BTC", side, price, (turn + 1) / 11, "s", f"o-{name}", stop_loss=price * 0.97,
                    entry_balance=manager.get_current_balance(), client_order_id=name,
                )  # fmt: skip
                self.open.append(position_id)
                manager.update_position(position_id, current_price=price * 1.01, unrealized_pnl=turn / 9, mfe=price / 8)
                manager.update_position(position_id, stop_loss=price * 0.98, breakeven_triggered=True)
                manager.apply_partial_exit_update(position_id, (turn + 1) / 50, price, turn + 1)
        manager.create_order_journal_entry(self.session_id, self.name("x"), "BTC", "long", "exit", price)
        manager.update_order_journal(f"x{self.made}", "submitted")
        other = self.name("x")
        manager.create_order_journal_entry(self.session_id, other, "BTC", "long", "exit", price)
        manager.update_order_journal(other, "filled", fill_price=price * 1.02)
        for change in (turn / 3 + 0.1, -turn / 7 - 0.01):
            self.block(change)
        manager.log_trade("BTC", "long", turn / 7, "signal", position_id=self.open.pop(0))
        manager.close_position(self.open.pop(0), price)
