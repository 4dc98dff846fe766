"""Records each call of the paper engine to its manager, and the answer.

Every write goes through one place that survives whatever the manager raises, and every critical write that
succeeded is handed to `on_ack` as a record of its own, to be compared with the database later.  A write that replaces
the value of an earlier one is handed to `on_begin` first: after a kill both values may be in the database.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

_log = logging.getLogger(__name__)

_STEP = Decimal("0.00000001")
# A fraction of what changes hands.
_FEE_RATE = Decimal("0.0001")

OnAck = Callable[[str, dict[str, Any]], None]


@dataclass(slots=True, kw_only=True)
class OpenPosition:
    """A position as the engine remembers it; `position_id` is None when the manager refused to record it."""

    position_id: int | None
    strategy_name: str
    side: str
    entry_price: Decimal
    size: Decimal
    quantity: Decimal
    stop_loss: Decimal
    entry_time: datetime
    entered_at: int
    """Index of the bar of the entry; -1 when the position was taken over after a restart."""

    def profit(self, price: Decimal) -> Decimal:
        """What leaving at `price` would bring before fees, in the account's currency."""
        move = price - self.entry_price if self.side == "long" else self.entry_price - price
        return rounded(move * self.quantity)


@dataclass(slots=True)
class EngineStats:
    """What one engine object did so far; counts."""

    bars: int = 0
    entries: int = 0
    exits: int = 0
    refused_entries: int = 0
    failed_writes: dict[str, int] = field(default_factory=dict)
    """Calls of the manager that raised or answered False, by the kind of record."""


class Recording:
    """The writing half of the engine; its state is shared with the trading half."""

    def __init__(
        self,
        db_manager: Any,
        symbol: str,
        on_ack: OnAck | None,
        on_begin: OnAck | None,
        now: Callable[[], datetime],
    ) -> None:
        self.db_manager = db_manager
        self.symbol = symbol
        self.session_id: int | None = None
        self.stats = EngineStats()
        self._on_ack, self._on_begin = on_ack, on_begin
        self._now = now

    def _journal(
        self,
        client_order_id: str,
        buys: bool,
        order_type: str,
        quantity: Decimal,
        strategy_name: str,
        position_id: int | None = None,
    ) -> bool:
        order = {
            "session_id": self._session(),
            "client_order_id": client_order_id,
            "symbol": self.symbol,
            "side": "buy" if buys else "sell",
            "order_type": order_type,
            "quantity": quantity,
            "strategy_name": strategy_name,
        }
        ok, order_id = self._attempt(
            "order", lambda: self.db_manager.create_order_journal_entry(**order, position_id=position_id)
        )
        if ok:
            self._ack("order", **{**order, "quantity": as_text(quantity)}, order_id=order_id, position_id=position_id)
        return ok

    def _fill(self, client_order_id: str, price: Decimal, quantity: Decimal, position_id: int | None) -> None:
        commission = rounded(price * quantity * _FEE_RATE)
        exchange_order_id = _exchange_id(client_order_id)
        ok, _ = self._attempt(
            "fill",
            lambda: self.db_manager.update_order_journal(
                client_order_id,
                "filled",
                exchange_order_id=exchange_order_id,
                fill_price=price,
                fill_quantity=quantity,
                commission=commission,
                position_id=position_id,
            ),
        )
        if ok:
            self._ack(
                "fill",
                client_order_id=client_order_id,
                exchange_order_id=exchange_order_id,
                status="filled",
                fill_price=as_text(price),
                fill_quantity=as_text(quantity),
                commission=as_text(commission),
                position_id=position_id,
            )

    def _record_position(self, held: OpenPosition, client_order_id: str) -> None:
        position = {
            "symbol": self.symbol,
            "side": held.side,
            "entry_price": held.entry_price,
            "size": held.size,
            "strategy_name": held.strategy_name,
            "entry_order_id": _exchange_id(client_order_id),
            "stop_loss": held.stop_loss,
            "quantity": held.quantity,
            "session_id": self._session(),
            "client_order_id": client_order_id,
        }
        ok, position_id = self._attempt("position", lambda: self.db_manager.log_position(**position))
        if ok:
            held.position_id = position_id
            self._ack("position", **_all_as_text(position), position_id=position_id)

    def _record_trade(
        self, held: OpenPosition, client_order_id: str, price: Decimal, pnl: Decimal, fees: Decimal, reason: str
    ) -> bool:
        """Record a trade in the same block as the balance that it changes; whether that went well."""
        trade = {
            "symbol": self.symbol,
            "side": held.side,
            "entry_price": held.entry_price,
            "exit_price": price,
            "size": held.size,
            "pnl": pnl,
            "exit_reason": reason,
            "strategy_name": held.strategy_name,
            "quantity": held.quantity,
            "commission": fees,
            "exit_order_id": _exchange_id(client_order_id),
            "session_id": self._session(),
            "position_id": held.position_id,
        }
        exit_time = self._now()

        def record() -> tuple[int, Decimal]:
            with self._balance_change(pnl, reason, client_order_id) as balance:
                trade_id = self.db_manager.log_trade(**trade, entry_time=held.entry_time, exit_time=exit_time)
            return trade_id, rounded(balance.new_balance)

        ok, recorded = self._attempt("trade", record)
        if ok:
            self._ack("trade", **_all_as_text(trade), trade_id=recorded[0])
            self._ack_balance(recorded[1], pnl, reason, client_order_id)
        return ok

    def _record_balance(self, change: Decimal, reason: str, correlation_id: str) -> None:
        def update() -> Decimal:
            with self._balance_change(change, reason, correlation_id) as balance:
                pass
            return rounded(balance.new_balance)

        ok, recorded = self._attempt("balance", update)
        if ok:
            self._ack_balance(recorded, change, reason, correlation_id)

    def _balance_change(self, change: Decimal, reason: str, correlation_id: str) -> AbstractContextManager[Any]:
        block: AbstractContextManager[Any] = self.db_manager.atomic_balance_update(
            change, reason, "engine", session_id=self.session_id, correlation_id=correlation_id
        )
        return block

    def _attempt(self, kind: str, call: Callable[[], Any]) -> tuple[bool, Any]:
        """Whether a call of the manager succeeded, and what it returned; a failure is logged and counted."""
        try:
            value = call()
        except Exception as exc:  # noqa: BLE001 - whatever the manager raises, the exit at hand must go on
            _log.warning("%s was not recorded: %s", kind, exc)
            value = False
        if value is False:
            self.stats.failed_writes[kind] = self.stats.failed_writes.get(kind, 0) + 1
            return False, None
        return True, value

    def _begin(self, kind: str, **record: Any) -> None:
        if self._on_begin is not None:
            self._on_begin(kind, record)

    def _ack(self, kind: str, **record: Any) -> None:
        if self._on_ack is not None:
            self._on_ack(kind, record)

    def _ack_balance(self, balance: Decimal, change: Decimal | None, reason: str, correlation_id: str | None) -> None:
        self._ack(
            "balance",
            session_id=self.session_id,
            balance=as_text(balance),
            change=None if change is None else as_text(change),
            reason=reason,
            correlation_id=correlation_id,
        )

    def _session(self) -> int:
        if self.session_id is None:
            raise RuntimeError("the engine has no session yet: call start() first")
        return self.session_id


def _exchange_id(client_order_id: str) -> str:
    """The id that the simulated exchange gives to an order."""
    return f"paper-{client_order_id}"


def rounded(value: Decimal | float) -> Decimal:
    """`value` with 8 decimals, rounded half away from zero as the database does."""
    return Decimal(str(value)).quantize(_STEP, ROUND_HALF_UP)


def as_text(value: Decimal) -> str:
    """An amount as records show it: decimal text with 8 decimals, never with an exponent."""
    return f"{rounded(value):f}"


def _all_as_text(record: dict[str, Any]) -> dict[str, Any]:
    return {key: as_text(value) if isinstance(value, Decimal) else value for key, value in record.items()}


def fees_of(held: OpenPosition, exit_price: Decimal) -> Decimal:
    """What entering and leaving a position costs."""
    return rounded((held.entry_price + exit_price) * held.quantity * _FEE_RATE)
