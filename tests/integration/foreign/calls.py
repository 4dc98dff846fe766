"""Random calls of a host, in an order that a seed decides, which a plain manager accepts."""

from __future__ import annotations

import random
from collections.abc import Callable
from decimal import Decimal
from typing import Any

from .classic_models import OrderStatus, OrderType
from .classic_parts import SIDES
from .classic_parts import Side as ClassicSide
from .contract import refused
from .journal import Journal
from .market import bar_time
from .typed_models import Side, State


class Calls:
    """A host that remembers what it was told; the same seed makes the same calls of every manager."""

    def __init__(self, seed: int, call: Journal) -> None:
        self.random = random.Random(seed)
        self.call = call
        self.number = 0
        self.sessions: list[int] = []
        self.positions: list[int] = []
        # Still open, so that a plain manager accepts what is done to them.
        self.open: list[int] = []
        self.orders: list[Any] = []

    def begin(self, manager: Any) -> None:
        raise NotImplementedError

    def kinds(self) -> list[Callable[[Any], None]]:
        raise NotImplementedError

    def warm_up(self, manager: Any) -> None:
        """Make each kind of call a few times, as a day with PostgreSQL up does: a local view learns from it."""
        for _ in range(8):
            for kind in dict.fromkeys(self.kinds()):
                self.number += 1
                kind(manager)

    def step(self, manager: Any) -> None:
        self.number += 1
        self.random.choice(self.kinds())(manager)

    def amount(self) -> float:
        return self.random.choice((0.1, 12.345678912345, 100.0, 1e-8, 7, -0.3, -11.11111111111))

    @property
    def session(self) -> int:
        return self.sessions[-1]

    def any_open(self) -> int | None:
        return self.random.choice(self.open) if self.open else None


class ClassicCalls(Calls):
    def begin(self, manager: Any) -> None:
        self.open = []
        self.sessions.append(
            self.call(manager.create_trading_session, "momentum", "BTCUSDT", "1h", "paper", 5000.0, {"n": self.number})
        )
        self.call(manager.update_balance, 5000.0, "session_start", "system", self.session)
        if self.number == 0:
            self.refusal(manager)

    def kinds(self) -> list[Callable[[Any], None]]:
        often = [self.balance, self.block, self.position, self.order, self.update, self.trade, self.fill, self.read]
        seldom = [self.absolute, self.refusal, self.scale, self.close, self.logs, self.rebook, self.reconciled]
        return often * 3 + seldom * 2 + [self.turn]

    def balance(self, manager: Any) -> None:
        with self.call.block(manager.atomic_balance_update, self.amount(), "trade_pnl", session_id=self.session):
            pass

    def block(self, manager: Any) -> None:
        correlation = f"fill-{self.number}"
        with self.call.block(
            manager.atomic_balance_update, -0.75, "entry_fee", "engine", self.session, correlation
        ) as told:
            self._position(manager, told["new_balance"])

    def _position(self, manager: Any, balance: float) -> None:
        side, quantity = self.random.choice(((ClassicSide.LONG, None), ("SHORT", 0.123456789)))
        position = self.call(
            manager.log_position,
            "BTCUSDT",
            side,
            100 + self.amount(),
            0.5,
            "momentum",
            f"x-{self.number}",
            quantity=quantity,
            entry_balance=balance,
            session_id=self.session,
            client_order_id=f"p-{self.number}",
        )
        self.positions.append(position)
        self.open.append(position)

    def position(self, manager: Any) -> None:
        self._position(manager, 5000.0)

    def order(self, manager: Any) -> None:
        name = f"o-{self.number}"
        exits = self.any_open() if self.random.random() < 0.3 else None
        kind: Any = OrderType.FULL_EXIT
        side: Any = "LONG"
        if exits is None:
            kind, side = self.random.choice((("ENTRY", ClassicSide.LONG), ("entry", "short")))
        key = self.call(
            manager.create_order_journal_entry,
            self.session,
            name,
            "BTCUSDT",
            side,
            kind,
            0.3,
            "momentum",
            price=99.5 if exits is None else None,
            position_id=exits,
        )
        self.orders.append((name, key))

    def fill(self, manager: Any) -> None:
        if self.orders:
            name, key = self.random.choice(self.orders)
            if self.random.random() < 0.5:
                status: Any = self.random.choice(("SUBMITTED", "FILLED", OrderStatus.CANCELLED))
                self.call(manager.update_order_journal, name, status, f"e-{self.number}", fill_price=99.123456789)
            else:
                self.call(manager.update_order_status_new, key, self.random.choice(("FILLED", "submitted")))

    def update(self, manager: Any) -> None:
        position = self.any_open()
        if position is not None:
            changes = self.random.choice(
                (
                    {"current_price": 101.123456789, "unrealized_pnl": 0.5},
                    {"stop_loss": 95.5, "breakeven_triggered": True},
                    {"mfe": 1.5, "mfe_price": 103.0, "mfe_time": bar_time(self.number)},
                    {"unrealized_pnl_percent": -0.1, "mae": -0.1},
                )
            )
            self.call(manager.update_position, position, **changes)

    def scale(self, manager: Any) -> None:
        position = self.any_open()
        if position is not None:
            method = self.random.choice((manager.apply_partial_exit_update, manager.apply_scale_in_update))
            self.call(method, position, 0.01, 101.5, self.number % 3)

    def trade(self, manager: Any) -> None:
        position = self.any_open() if self.random.random() < 0.7 else None
        again = self.random.random() < 0.3
        self.call(
            manager.log_trade,
            "BTCUSDT",
            self.random.choice(SIDES),
            100.0,
            100 + self.amount(),
            0.25,
            bar_time(self.number),
            bar_time(self.number + 3),
            self.amount(),
            "signal",
            "momentum",
            extra={"n": [self.number]},
            session_id=self.session,
            position_id=position,
        )
        if position is not None and not again:
            self.open.remove(position)

    def close(self, manager: Any) -> None:
        position = self.any_open()
        if position is not None:
            self.call(manager.close_position, position, 101.0, pnl=self.amount())
            self.open.remove(position)

    def reconciled(self, manager: Any) -> None:
        position = self.any_open()
        if position is not None:
            data = {"symbol": "BTCUSDT", "side": "LONG", "entry_price": 100.1, "size": 0.4, "entry_time": bar_time(1)}
            with self.call.block(
                manager.atomic_position_reconciliation, position, self.amount(), 110.0, "closed", data, self.session
            ):
                pass
            self.open.remove(position)

    def rebook(self, manager: Any) -> None:
        if self.orders:
            self.call(manager.update_order_journal, self.orders[-1][0], "CANCELLED")

    def absolute(self, manager: Any) -> None:
        self.call(manager.update_balance, 4000 + self.amount(), "sync", session_id=self.session)

    def refusal(self, manager: Any) -> None:
        refused(self.call, manager.atomic_balance_update, -1e7, "too much", session_id=self.session)
        refused(self.call, manager.atomic_balance_update, 1.5, "no fill", session_id=self.session)
        self.call.tried(manager.log_position, "BTCUSDT", "sideways", 1.0, 1.0, "momentum", "x", session_id=self.session)

    def logs(self, manager: Any) -> None:
        self.call(manager.log_event, "ALERT", f"step {self.number}", session_id=self.session)
        self.call(manager.log_strategy_execution, "momentum", "BTCUSDT", "buy", "held", 1.5, session_id=self.session)
        self.call(manager.log_account_snapshot, 5000.0, 5000.5, 1, 0.01, session_id=self.session)

    def turn(self, manager: Any) -> None:
        """End the session; begin another, or end it once more as an engine that was resumed does."""
        self.call(manager.end_trading_session, self.session, self.random.choice((None, 5000.5)))
        self.call(manager.get_current_balance)
        if self.random.random() < 0.3:
            self.call(manager.end_trading_session, self.session, 4999.5)
        self.begin(manager)

    def read(self, manager: Any) -> None:
        for name, arguments in self.reads():
            self.call.known(getattr(manager, name), *arguments)

    def reads(self) -> list[tuple[str, tuple[Any, ...]]]:
        return self.reads_of(self.session)

    def reads_of(self, session: int) -> list[tuple[str, tuple[Any, ...]]]:
        """Names and arguments of the reads that an outage answers."""
        sessions = (session,)
        return [
            ("get_current_balance", sessions),
            ("get_active_positions", sessions),
            ("get_unresolved_orders", sessions),
            ("get_active_session_id", ()),
            ("get_last_session_id", ()),
            ("recover_last_balance", sessions),
            ("get_system_halt", ()),
        ]


class TypedCalls(Calls):
    def begin(self, manager: Any) -> None:
        self.open, self.orders = [], []
        self.sessions.append(
            self.call(manager.open_session, "alpha", "ETH-USD", Decimal("5000.25"), {"n": [self.number]})
        )
        if self.number == 0:
            self.refusal(manager)

    def kinds(self) -> list[Callable[[Any], None]]:
        often = [self.cash, self.block, self.position, self.ticket, self.mark, self.trade, self.move, self.read]
        seldom = [self.absolute, self.refusal, self.reduce, self.fills, self.flatten, self.fill, self.limits]
        return often * 3 + seldom * 2 + [self.turn]

    def money(self) -> Decimal:
        return Decimal(repr(round(self.amount(), 9)))

    def cash(self, manager: Any) -> None:
        with self.call.block(manager.adjust_cash, self.session, self.money(), why="fill"):
            pass

    def block(self, manager: Any) -> None:
        with self.call.block(manager.adjust_cash, self.session, Decimal("-0.5")):
            self.position(manager)
            self.call(manager.save_trade, self.session, Decimal(1), Decimal(2), self.money(), tags=["block"])

    def position(self, manager: Any) -> None:
        position = self.call(
            manager.book_position,
            self.session,
            "ETH-USD",
            self.random.choice(list(Side)),
            Decimal("1.5"),
            100 + self.money(),
            f"b-{self.number}",
            stop=self.random.choice((None, Decimal("90.5"))),
            targets=[Decimal(110), Decimal(120)],
        )
        self.open.append(position)

    def ticket(self, manager: Any) -> None:
        ref = f"t-{self.number}"
        price = self.random.choice((None, Decimal("99.5")))
        self.call(
            manager.place_ticket, self.session, ref, "ETH-USD", Side.BUY, Decimal(1), price, "a", str(self.number)
        )
        self.orders.append(ref)

    def move(self, manager: Any) -> None:
        if self.orders:
            state = self.random.choice((State.WORKING, State.DONE, State.DEAD))
            self.call(manager.move_ticket, self.random.choice(self.orders), state)

    def mark(self, manager: Any) -> None:
        position = self.any_open()
        if position is not None:
            self.call(manager.mark_position, position, 100 + self.money(), self.random.choice((None, Decimal(95))))

    def reduce(self, manager: Any) -> None:
        position = self.any_open()
        if position is not None:
            self.call(manager.reduce_position, position, Decimal("0.01"), Decimal("101.5"))

    def fills(self, manager: Any) -> None:
        position = self.any_open()
        if position is not None:
            self.call(manager.save_fills, position, [(Decimal(100), Decimal("0.5")), (Decimal(101), Decimal("0.25"))])

    def flatten(self, manager: Any) -> None:
        position = self.any_open()
        if position is not None:
            self.call(manager.flatten_position, position, Decimal(101))
            self.open.remove(position)

    def trade(self, manager: Any) -> None:
        self.call(
            manager.save_trade,
            self.session,
            qty=Decimal(1),
            px=Decimal(100),
            amount=self.money(),
            position=self.any_open(),
            ref=self.random.choice((None, f"r-{self.number}")),
            meta={"n": self.number},
        )
        self.call.record("counts", lambda: [manager.trades_today, manager.pnl, manager._n])

    def fill(self, manager: Any) -> None:
        position = self.any_open()
        if position is not None and self.orders:
            ref = self.orders.pop()
            self.call(manager.record_fill, self.session, position, ref, Decimal(1), Decimal(101), self.money())
            self.open.remove(position)

    def absolute(self, manager: Any) -> None:
        self.call(manager.set_cash, self.session, 4000 + self.money(), "custody")

    def refusal(self, manager: Any) -> None:
        refused(self.call, manager.adjust_cash, self.session, Decimal(-(10**7)))
        refused(self.call, manager.adjust_cash, self.session, Decimal("1.5"))

    def limits(self, manager: Any) -> None:
        self.call(manager.put_limit, self.session, self.random.choice(("qty", "loss")), self.money())
        self.call(manager.add_note, f"step {self.number}", n=self.number)

    def turn(self, manager: Any) -> None:
        self.call(manager.close_session, self.session, self.random.choice((None, Decimal("5000.5"))))
        self.begin(manager)

    def read(self, manager: Any) -> None:
        for name, arguments in self.reads():
            self.call.known(getattr(manager, name), *arguments)

    def reads(self) -> list[tuple[str, tuple[Any, ...]]]:
        return self.reads_of(self.session)

    def reads_of(self, session: int) -> list[tuple[str, tuple[Any, ...]]]:
        """Names and arguments of the reads that an outage answers."""
        sessions = (session,)
        return [
            ("get_cash", sessions),
            ("positions_of", sessions),
            ("working_tickets", sessions),
            ("open_desk", ()),
        ]


CALLS: dict[str, type[ClassicCalls | TypedCalls]] = {"classic": ClassicCalls, "typed": TypedCalls}
