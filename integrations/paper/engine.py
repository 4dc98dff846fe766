"""A paper trading engine: crossover strategies over real bars, every step recorded through a `DatabaseManager`.

It behaves as live engines do.  An order is journalled before it is sent, and not sent when that fails; an exit is
never held up by anything; balances are kept in memory too; and "close only" is a sticky mode without new entries.
It uses the manager's public methods only, so anything with the same methods may stand in its place.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from .market import Bar
from .recording import OnAck, OpenPosition, Recording, as_text, fees_of, rounded
from .strategy import DEFAULT_STRATEGIES, MovingAverageCrossover, Signal

_log = logging.getLogger(__name__)

# A fraction of the price.
_TRAIL = Decimal("0.05")
_SNAPSHOT_EVERY = 50


class PaperEngine(Recording):
    """Trades `strategies` on one symbol, each with at most one position at a time, long or short.

    `fraction` of the balance goes into each position.  `on_ack(kind, record)` is called right after a critical call
    returned, with kind `session`, `balance`, `order`, `fill`, `position`, `position_update`, `trade` or
    `session_end`; amounts in `record` are decimal text with 8 decimals.  `on_begin(kind, record)` is called just before
    a `position_update`, with the record that `on_ack` gets if the call succeeds.  What they raise stops the engine.
    `wait(seconds)` paces `run` and tells by True that it is time to stop; `now` stamps trades.

    One thread runs the engine; `stop` and `enter_close_only` may be called from any other.
    """

    def __init__(
        self,
        db_manager: Any,
        *,
        symbol: str = "IBM",
        strategies: Sequence[MovingAverageCrossover] = DEFAULT_STRATEGIES,
        initial_balance: Decimal = Decimal(100_000),
        fraction: Decimal = Decimal("0.1"),
        trail_every: int = 3,
        on_ack: OnAck | None = None,
        on_begin: OnAck | None = None,
        wait: Callable[[float], bool] | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        names = [strategy.name for strategy in strategies]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"strategies must be at least one and all different, not {names}")
        if not 0 < fraction * len(names) <= 1:
            raise ValueError(f"fraction must share a whole among {len(names)} strategies, not {fraction}")
        if trail_every < 1:
            raise ValueError(f"trail_every must be at least 1 bar, not {trail_every}")
        super().__init__(db_manager, symbol, on_ack, on_begin, now)
        self.strategies = tuple(strategies)
        self.balance = initial_balance
        self.positions: dict[str, OpenPosition] = {}
        self._initial_balance = initial_balance
        self._fraction = fraction
        self._trail_every = trail_every
        self._stop = threading.Event()
        self._wait = wait or self._stop.wait
        self._closes: deque[Decimal] = deque(maxlen=max(strategy.lookback for strategy in strategies))
        self._lock = threading.Lock()
        self._close_only_reason: str | None = None

    @property
    def close_only(self) -> bool:
        """Whether new entries are refused."""
        return self._close_only_reason is not None

    @property
    def close_only_reason(self) -> str | None:
        """Why new entries are refused; None while they are not."""
        return self._close_only_reason

    def enter_close_only(self, reason: str) -> None:
        """Refuse new entries for the rest of this object's life; exits go on.  The first reason is kept."""
        with self._lock:
            if self._close_only_reason is not None:
                return
            self._close_only_reason = reason
        _log.critical("no new entries from now on: %s", reason)

    def start(self, *, resume: bool = True) -> int:
        """Go on with the active session, or open one when there is none or `resume` is False; its id.

        Whatever the manager raises comes through: an engine that cannot learn its state must not trade.
        """
        active: int | None = self.db_manager.get_active_session_id() if resume else None
        if active is not None:
            self._take_over(active)
            return active
        session_id: int = self.db_manager.create_trading_session(
            strategy_name="ma_crossover",
            symbol=self.symbol,
            timeframe="1d",
            mode="paper",
            initial_balance=self._initial_balance,
            strategy_config={"windows": [[one.fast, one.slow] for one in self.strategies], "fraction": self._fraction},
        )
        self.session_id = session_id
        self._ack("session", session_id=session_id, symbol=self.symbol, initial_balance=as_text(self._initial_balance))
        self.balance = self._initial_balance
        if not self.db_manager.update_balance(self.balance, "session_start", "engine", session_id):
            raise RuntimeError(f"the initial balance of session {session_id} was not recorded")
        self._ack_balance(self.balance, None, "session_start", None)
        return session_id

    def stop(self) -> None:
        """Ask `run` to return after the bar at hand.  Positions stay open; safe from other threads and signals."""
        self._stop.set()

    def finish(self, last: Bar) -> None:
        """Leave all positions at the close of `last` and end the session."""
        for held in list(self.positions.values()):
            self._exit(held, last, last.close, "session_end")
        session_id = self._session()
        ok, _ = self._attempt(
            "session_end", lambda: self.db_manager.end_trading_session(session_id, final_balance=self.balance)
        )
        if ok:
            self._ack("session_end", session_id=session_id, final_balance=as_text(self.balance))

    def run(self, bars: Sequence[Bar], *, start: int = 0, bars_per_second: float | None = None) -> int:
        """Trade `bars` from position `start` on until they end or `stop` is called; the position to go on from.

        The bars before `start` only fill the averages.  Without `bars_per_second` there is no pause between bars.
        """
        if not 0 <= start <= len(bars):
            raise ValueError(f"start must be between 0 and {len(bars)}, not {start}")
        if bars_per_second is not None and bars_per_second <= 0:
            raise ValueError(f"bars_per_second must be more than zero, not {bars_per_second}")
        self._closes.clear()
        self._closes.extend(bar.close for bar in bars[max(0, start - (self._closes.maxlen or 0)) : start])
        for at in range(start, len(bars)):
            if self._stop.is_set():
                return at
            self.step(bars[at])
            if bars_per_second is not None and self._wait(1 / bars_per_second):
                return at + 1
        return len(bars)

    def step(self, bar: Bar) -> None:
        """Trade one bar: stops first, then each strategy's signal on the close, then trailing stops."""
        self._session()
        self._closes.append(bar.close)
        closes = list(self._closes)
        for held in list(self.positions.values()):
            price = _stopped_at(held, bar)
            if price is not None:
                self._exit(held, bar, price, "stop_loss")
        for strategy in self.strategies:
            self._follow(strategy, strategy.signal(closes), bar)
        for held in self.positions.values():
            if bar.index > held.entered_at and (bar.index - held.entered_at) % self._trail_every == 0:
                self._trail(held, bar)
        self.stats.bars += 1
        if self.stats.bars % _SNAPSHOT_EVERY == 0:
            self._snapshot(bar)

    def _follow(self, strategy: MovingAverageCrossover, signal: Signal, bar: Bar) -> None:
        if signal is Signal.HOLD:
            return
        side = "long" if signal is Signal.BUY else "short"
        held = self.positions.get(strategy.name)
        if held is not None and held.side != side:
            self._exit(held, bar, bar.close, "signal")
            held = None
        if held is None:
            self._enter(strategy, side, bar)
        self._attempt(
            "strategy_execution",
            lambda: self.db_manager.log_strategy_execution(
                strategy.name, self.symbol, signal.value, side, bar.close, session_id=self.session_id
            ),
        )

    def _enter(self, strategy: MovingAverageCrossover, side: str, bar: Bar) -> None:
        quantity = rounded(self.balance * self._fraction / bar.close)
        client_order_id = self._order_id(strategy.name, bar, "entry")
        if (
            self.close_only
            or quantity <= 0
            or not self._journal(client_order_id, side == "long", "entry", quantity, strategy.name)
        ):
            self.stats.refused_entries += 1
            return
        # From here on the order is filled at the exchange: whatever fails, the position is real.
        held = OpenPosition(
            position_id=None,
            strategy_name=strategy.name,
            side=side,
            entry_price=bar.close,
            size=self._fraction,
            quantity=quantity,
            stop_loss=_trailing_stop(side, bar.close),
            entry_time=self._now(),
            entered_at=bar.index,
        )
        self.positions[strategy.name] = held
        self.stats.entries += 1
        self._fill(client_order_id, bar.close, quantity, None)
        self._record_position(held, client_order_id)

    def _exit(self, held: OpenPosition, bar: Bar, price: Decimal, reason: str) -> None:
        client_order_id = self._order_id(held.strategy_name, bar, reason)
        self._journal(
            client_order_id, held.side == "short", "exit", held.quantity, held.strategy_name, held.position_id
        )
        del self.positions[held.strategy_name]
        self.stats.exits += 1
        self._fill(client_order_id, price, held.quantity, held.position_id)
        fees = fees_of(held, price)
        pnl = held.profit(price) - fees
        self.balance += pnl
        if not self._record_trade(held, client_order_id, price, pnl, fees, reason):
            self._record_balance(pnl, reason, client_order_id)

    def _trail(self, held: OpenPosition, bar: Bar) -> None:
        stop = _trailing_stop(held.side, bar.close)
        if stop <= held.stop_loss if held.side == "long" else stop >= held.stop_loss:
            return
        held.stop_loss = stop
        if held.position_id is None:
            return
        record = {
            "position_id": held.position_id,
            "stop_loss": as_text(stop),
            "current_price": as_text(bar.close),
        }
        self._begin("position_update", **record)
        ok, _ = self._attempt(
            "position_update",
            lambda: self.db_manager.update_position(
                held.position_id,
                stop_loss=stop,
                current_price=bar.close,
                trailing_stop_activated=True,
                trailing_stop_price=stop,
            ),
        )
        if ok:
            self._ack("position_update", **record)

    def _snapshot(self, bar: Bar) -> None:
        open_pnl = sum((held.profit(bar.close) for held in self.positions.values()), Decimal(0))
        self._attempt(
            "snapshot",
            lambda: self.db_manager.log_account_snapshot(
                self.balance,
                self.balance + open_pnl,
                total_pnl=self.balance - self._initial_balance,
                open_positions=len(self.positions),
                session_id=self.session_id,
            ),
        )

    def _take_over(self, session_id: int) -> None:
        positions: dict[str, OpenPosition] = {}
        for row in self.db_manager.get_active_positions(session_id):
            held = OpenPosition(
                position_id=row["id"],
                strategy_name=row["strategy"],
                side=row["side"],
                entry_price=rounded(row["entry_price"]),
                size=rounded(row["size"]),
                quantity=rounded(row["quantity"]),
                stop_loss=rounded(row["stop_loss"]),
                entry_time=row["entry_time"],
                entered_at=-1,
            )
            other = positions.setdefault(held.strategy_name, held)
            if other is not held:
                raise RuntimeError(
                    f"strategy {held.strategy_name} of session {session_id} has two open positions, "
                    f"{other.position_id} and {held.position_id}"
                )
        self.balance = rounded(self.db_manager.get_current_balance(session_id))
        self.positions = positions
        self.session_id = session_id

    def _order_id(self, strategy_name: str, bar: Bar, purpose: str) -> str:
        return f"{strategy_name}-s{self._session()}-b{bar.index}-{purpose}"


def _stopped_at(held: OpenPosition, bar: Bar) -> Decimal | None:
    """The price at which the bar hit the stop, None when it did not; a gap beyond the stop costs the opening price."""
    if held.side == "long":
        return min(bar.open, held.stop_loss) if bar.low <= held.stop_loss else None
    return max(bar.open, held.stop_loss) if bar.high >= held.stop_loss else None


def _trailing_stop(side: str, price: Decimal) -> Decimal:
    return rounded(price * (1 - _TRAIL if side == "long" else 1 + _TRAIL))
