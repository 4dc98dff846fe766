"""Components of the classic engine, each of which took the manager in its constructor."""

from __future__ import annotations

import enum
import logging
from datetime import datetime
from typing import Any

from .classic_manager import ClassicManager
from .classic_models import OrderType, PositionSide
from .journal import Journal
from .market import bar_time, exchange_status, is_lost

logger = logging.getLogger("classic.engine")

STRATEGY, SYMBOL = "momentum", "BTCUSDT"


class Side(enum.Enum):
    """The application's own enum; the ORM has another with equal values."""

    LONG = "LONG"
    SHORT = "SHORT"


SIDES: tuple[Any, ...] = (Side.LONG, "SHORT", PositionSide.LONG, "short")


class Component:
    def __init__(self, db_manager: ClassicManager, journal: Journal) -> None:
        self.db_manager = db_manager
        self.call = journal


class EventLogger(Component):
    session_id: int | None = None

    def note(self, kind: str, message: str, **details: Any) -> None:
        try:
            self.call(
                self.db_manager.log_event,
                kind,
                message,
                component="engine",
                details=details,
                session_id=self.session_id,
            )
        except Exception:
            logger.exception("the event was not logged")

    def decision(self, action: str, price: float) -> None:
        """Stands unguarded before the exits."""
        self.call(
            self.db_manager.log_strategy_execution,
            STRATEGY,
            SYMBOL,
            signal_type="none" if action == "hold" else "trade",
            action_taken=action,
            price=price,
            reasons=[f"price_{price:.2f}"],
            session_id=self.session_id,
        )


class Position:
    """What the tracker knows of an open position, from its own entry or from the database."""

    def __init__(self, row: dict[str, Any]) -> None:
        self.id: int = row["id"]
        self.side: str = row["side"]
        self.entry_price: float = row["entry_price"]
        self.size: float = row["current_size"]
        self.entry_balance: float = row["entry_balance"]
        self.entry_time: datetime = row["entry_time"]
        self.entry_bar = int(row["entry_order_id"].split("-")[1])
        self.mfe: float = row["mfe"]
        self.mae: float = row["mae"]
        self.partial_exits: int = row["partial_exits_taken"]
        self.scale_ins: int = row["scale_ins_taken"]
        self.stop_loss: float | None = row["stop_loss"]

    def pnl(self, price: float) -> float:
        move = price - self.entry_price if self.side == "LONG" else self.entry_price - price
        return move * self.size


class PositionTracker(Component):
    positions: dict[int, Position]

    def recover(self, session_id: int) -> None:
        rows = self.call(self.db_manager.get_active_positions, session_id)
        self.positions = {row["id"]: Position(row) for row in rows}

    def verify(self, session_id: int) -> list[int]:
        """Ids on which memory and database do not agree."""
        rows = self.call(self.db_manager.get_active_positions, session_id)
        return sorted({row["id"] for row in rows} ^ self.positions.keys())

    def track(self, session_id: int, position_id: int) -> Position:
        """Take over a position that was just logged, in the words of the database."""
        rows = self.call(self.db_manager.get_active_positions, session_id)
        row = next(row for row in rows if row["id"] == position_id)
        assert row["orders"][0]["order_type"] == "ENTRY", row
        position = self.positions[position_id] = Position(row)
        return position

    def mark(self, bar: int, price: float) -> None:
        for one in self.positions.values():
            pnl = one.pnl(price)
            percent = pnl / one.entry_balance * 100
            changed: dict[str, Any] = {}
            if percent > one.mfe:
                one.mfe = percent
                changed |= {"mfe": percent, "mfe_price": price, "mfe_time": bar_time(bar)}
            if percent < one.mae:
                one.mae = percent
                changed |= {"mae": percent, "mae_price": price, "mae_time": bar_time(bar)}
            if changed or bar % 3 == 0:
                self.call(
                    self.db_manager.update_position,
                    one.id,
                    current_price=price,
                    unrealized_pnl=pnl,
                    unrealized_pnl_percent=percent,
                    **changed,
                )


class RiskManager(Component):
    """Counts in floats, as its tables are; a manager that answers with another type breaks it."""

    peak = 0.0
    balance = 0.0
    # What the database knew of earlier processes' peaks when this one started; it may be old.
    earlier_peak: float | None = None

    def recover(self, session_id: int) -> None:
        try:
            self.earlier_peak = self.call.free(self.db_manager.get_session_peak_balance, session_id)
        except Exception:
            logger.exception("the peak could not be read")

    def update(self, balance: float) -> None:
        self.balance = balance
        self.peak = max(self.peak, balance)

    @property
    def drawdown(self) -> float:
        return (self.peak - self.balance) / self.peak if self.peak else 0.0

    @property
    def forbids(self) -> bool:
        """Whether the session has lost so much that no entry is allowed."""
        return self.balance < max(self.peak, self.earlier_peak or 0.0) * 0.5


class KillSwitch(Component):
    def blocks(self) -> bool:
        """Whether new entries are forbidden; a halt that cannot be read counts as one."""
        try:
            state = self.call(self.db_manager.get_system_halt)
        except Exception:
            logger.exception("the halt could not be read")
            return True
        return bool(state["halted"])


class ExecutionEngine(Component):
    def __init__(
        self, db_manager: ClassicManager, journal: Journal, tracker: PositionTracker, risk: RiskManager
    ) -> None:
        super().__init__(db_manager, journal)
        self.tracker, self.risk = tracker, risk

    def open(self, session_id: int, bar: int, price: float, balance: float) -> None:
        """Journal, exchange, balance, position: in this order."""
        client_order_id = f"c-{bar}"
        side = SIDES[bar // 4 % len(SIDES)]
        kind = OrderType.ENTRY if bar // 4 % 2 else "ENTRY"
        quantity = balance * 0.05 / price
        self.call(
            self.db_manager.create_order_journal_entry,
            session_id,
            client_order_id,
            SYMBOL,
            side,
            kind,
            quantity,
            STRATEGY,
            price=price,
            size_fraction=0.05,
        )
        if is_lost(bar):
            return
        self.filled(session_id, bar, client_order_id, side, quantity, price, balance)

    def filled(
        self, session_id: int, bar: int, client_order_id: str, side: Any, quantity: float, price: float, balance: float
    ) -> Position:
        exchange_id = f"x-{bar}"
        with self.call.block(
            self.db_manager.atomic_balance_update,
            -quantity * price * 0.001,
            "entry_fee",
            "execution",
            session_id,
            correlation_id=f"fee-{client_order_id}",
        ) as told:
            self.risk.update(told["new_balance"])
            position_id = self.call(
                self.db_manager.log_position,
                SYMBOL,
                side,
                price,
                quantity,
                STRATEGY,
                exchange_id,
                stop_loss=price * 0.97,
                take_profit=price * 1.05,
                confidence_score=0.75,
                quantity=quantity,
                entry_balance=balance,
                session_id=session_id,
                client_order_id=client_order_id,
            )
        self.call(
            self.db_manager.update_order_journal,
            client_order_id,
            "FILLED",
            exchange_order_id=exchange_id,
            fill_price=price,
            fill_quantity=quantity,
            commission=0.0,
            position_id=position_id,
        )
        return self.tracker.track(session_id, position_id)

    def place_stop_loss(self, position: Position) -> None:
        self.call(
            self.db_manager.update_position,
            position.id,
            stop_loss=position.entry_price * 0.95,
            stop_loss_order_id=f"sl-{position.entry_bar}",
        )

    def reduce(self, position: Position, price: float) -> None:
        delta = position.size * 0.25
        self.call(self.db_manager.apply_partial_exit_update, position.id, delta, price, position.partial_exits)
        position.size -= delta
        position.partial_exits += 1

    def add(self, position: Position, price: float) -> None:
        delta = position.size * 0.1
        self.call(self.db_manager.apply_scale_in_update, position.id, delta, price, position.scale_ins)
        position.size += delta
        position.scale_ins += 1

    def close(self, session_id: int, position: Position, bar: int, price: float, reason: str) -> None:
        pnl = position.pnl(price)
        if position.entry_bar % 4 == 0:
            self._reconciled(session_id, position, price, pnl)
        else:
            self._traded(session_id, position, bar, price, pnl, reason)
        del self.tracker.positions[position.id]

    def _traded(self, session_id: int, position: Position, bar: int, price: float, pnl: float, reason: str) -> None:
        with self.call.block(
            self.db_manager.atomic_balance_update,
            pnl,
            "trade_pnl",
            "execution",
            session_id,
            correlation_id=f"exit-{position.entry_bar}",
        ) as told:
            self.risk.update(told["new_balance"])
            self.call(
                self.db_manager.log_trade,
                SYMBOL,
                position.side,
                position.entry_price,
                price,
                position.size,
                bar_time(position.entry_bar),
                bar_time(bar),
                pnl,
                reason,
                STRATEGY,
                commission=0.0,
                extra={"drawdown": self.risk.drawdown, "levels": [position.partial_exits, position.scale_ins]},
                exit_order_id=f"xe-{position.entry_bar}",
                session_id=session_id,
                position_id=position.id,
            )

    def _reconciled(self, session_id: int, position: Position, price: float, pnl: float) -> None:
        with self.call.block(
            self.db_manager.atomic_position_reconciliation,
            position.id,
            pnl,
            price,
            "exchange_closed",
            {
                "symbol": SYMBOL,
                "side": position.side,
                "entry_price": position.entry_price,
                "size": position.size,
                "entry_time": bar_time(position.entry_bar),
                "strategy_name": STRATEGY,
            },
            session_id=session_id,
        ) as told:
            self.risk.update(told["new_balance"])


class Reconciler(Component):
    """Asks the exchange about each order whose outcome the journal does not have."""

    def __init__(self, db_manager: ClassicManager, journal: Journal, execution: ExecutionEngine) -> None:
        super().__init__(db_manager, journal)
        self.execution = execution
        self.dropped = 0

    def reconcile(self, session_id: int, balance: float) -> None:
        try:
            self.call.free(self.db_manager.expire_stale_pending_orders, session_id, 24.0)
        except Exception:
            logger.exception("old orders were not expired")
        for order in self.call(self.db_manager.get_unresolved_orders, session_id):
            self._resolve(session_id, order, balance)

    def _resolve(self, session_id: int, order: dict[str, Any], balance: float) -> None:
        client_order_id = order["client_order_id"]
        if exchange_status(client_order_id) != "FILLED":
            self.call(self.db_manager.update_order_status_new, order["id"], "CANCELLED")
        elif order["order_type"] == "ENTRY" and order["replaced_order_id"] is None:
            bar = int(client_order_id.split("-")[1])
            position = self.execution.filled(
                session_id, bar, client_order_id, order["side"], order["quantity"], order["price"], balance
            )
            self.execution.place_stop_loss(position)
        else:
            self.dropped += 1
            self.call(self.db_manager.update_order_journal, client_order_id, "FILLED")
