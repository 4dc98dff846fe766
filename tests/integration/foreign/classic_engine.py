"""The classic engine: a loop over components that hold the manager, which ten errors in a row stop."""

from __future__ import annotations

import logging

from .classic_manager import ClassicManager
from .classic_parts import (
    STRATEGY,
    SYMBOL,
    EventLogger,
    ExecutionEngine,
    KillSwitch,
    PositionTracker,
    Reconciler,
    RiskManager,
)
from .journal import Journal

logger = logging.getLogger("classic.engine")

INITIAL = 10_000.0
MAX_ERRORS = 10
# The engine ends its session here and begins another.
ROLLOVER = 70


class ClassicEngine:
    def __init__(self, db_manager: ClassicManager, journal: Journal, closes: list[float]) -> None:
        self.db_manager = db_manager
        self.call = journal
        self.closes = closes
        self.event_logger = EventLogger(db_manager, journal)
        self.live_position_tracker = PositionTracker(db_manager, journal)
        self.dynamic_risk_manager = RiskManager(db_manager, journal)
        self.kill_switch = KillSwitch(db_manager, journal)
        self.live_execution_engine = ExecutionEngine(
            db_manager, journal, self.live_position_tracker, self.dynamic_risk_manager
        )
        self.reconciler = Reconciler(db_manager, journal, self.live_execution_engine)
        self.close_only: str | None = None
        self.session_id: int | None = None
        self.failed: str | None = None
        self.event_logger.note("ALERT", "engine constructed")

    def _enter_close_only_mode(self, reason: str) -> None:
        """No new entries, exits go on."""
        self.close_only = reason

    @property
    def session(self) -> int:
        assert self.session_id is not None, "the engine has not been started"
        return self.session_id

    def start(self) -> None:
        """Go on with the session that is active, or begin one."""
        found = self.call(self.db_manager.get_active_session_id)
        if found is None:
            self._begin()
        else:
            self._resume(found)

    def _begin(self) -> None:
        self._use(
            self.call(
                self.db_manager.create_trading_session,
                STRATEGY,
                SYMBOL,
                "15m",
                "paper",
                INITIAL,
                {"fast": 3, "w": [0.5]},
            )
        )
        assert self.call(self.db_manager.get_current_balance, self.session) == 0.0
        self.call(self.db_manager.update_balance, INITIAL, "session_start", "system", self.session)
        self.live_position_tracker.positions = {}
        self.dynamic_risk_manager.update(INITIAL)

    def _resume(self, session_id: int) -> None:
        self._use(session_id)
        assert self.call(self.db_manager.get_last_session_id, 24, STRATEGY, SYMBOL) == session_id
        self.db_manager.set_current_session(session_id)
        balance = self.call(self.db_manager.recover_last_balance, session_id)
        self.dynamic_risk_manager.update(balance)
        self.dynamic_risk_manager.recover(session_id)
        self.live_position_tracker.recover(session_id)
        self.event_logger.note("ENGINE_START", "resumed", balance=balance)

    def _use(self, session_id: int) -> None:
        self.session_id = self.event_logger.session_id = session_id

    def run(self, first: int, last: int) -> None:
        """Trade the bars from `first` up to `last`; ten errors in a row stop the engine."""
        errors = 0
        for bar in range(first, last):
            try:
                self._bar(bar, self.closes[bar])
                errors = 0
            except Exception as error:
                logger.exception("bar %d", bar)
                errors += 1
                if errors >= MAX_ERRORS:
                    self.failed = f"bar {bar}: {type(error).__name__}: {error}"
                    return

    def _bar(self, bar: int, price: float) -> None:
        blocked = self.kill_switch.blocks() or self.close_only is not None
        balance = self.call(self.db_manager.get_current_balance, self.session)
        self.dynamic_risk_manager.update(balance)
        blocked = blocked or self.dynamic_risk_manager.forbids
        if bar == ROLLOVER:
            self._roll_over(bar, price)
            balance = self.call(self.db_manager.get_current_balance, self.session)
        if bar % 20 == 0:
            wrong = self.live_position_tracker.verify(self.session)
            if wrong:
                self.event_logger.note("ERROR", f"positions differ: {len(wrong)}")
        if bar % 25 == 10:
            self.reconciler.reconcile(self.session, balance)
        enters = bar % 4 == 3 and not blocked and len(self.live_position_tracker.positions) < 4
        self.event_logger.decision("enter" if enters else "hold", price)
        self._exits(bar, price)
        self.live_position_tracker.mark(bar, price)
        if enters:
            self.live_execution_engine.open(self.session, bar, price, balance)
        self._housekeeping(bar)

    def _exits(self, bar: int, price: float) -> None:
        execution = self.live_execution_engine
        for one in list(self.live_position_tracker.positions.values()):
            age = bar - one.entry_bar
            if age >= 14:
                execution.close(self.session, one, bar, price, "time_exit")
            elif age >= 10 and not one.scale_ins:
                execution.add(one, price)
            elif age >= 5 and not one.partial_exits:
                execution.reduce(one, price)

    def _housekeeping(self, bar: int) -> None:
        risk = self.dynamic_risk_manager
        if bar % 30 == 17:
            with self.call.block(self.db_manager.atomic_balance_update, -1.1, "funding_fee") as told:
                risk.update(told["new_balance"])
        if bar % 50 == 33:
            corrected = risk.balance - 0.125
            self.call(self.db_manager.update_balance, corrected, "balance_sync", "engine", self.session)
            risk.update(corrected)
            self.event_logger.note("BALANCE_ADJUSTMENT", "balance corrected", to=corrected)
        if bar % 10 == 9:
            self.call(
                self.db_manager.log_account_snapshot,
                risk.balance,
                risk.balance,
                len(self.live_position_tracker.positions),
                risk.drawdown,
                session_id=self.session,
            )

    def _close_all(self, bar: int, price: float, reason: str) -> None:
        for one in list(self.live_position_tracker.positions.values()):
            self.live_execution_engine.close(self.session, one, bar, price, reason)

    def _roll_over(self, bar: int, price: float) -> None:
        self.reconciler.reconcile(self.session, self.dynamic_risk_manager.balance)
        self._close_all(bar, price, "rollover")
        self.call(self.db_manager.end_trading_session, self.session, self.dynamic_risk_manager.balance)
        self._begin()

    def stop(self) -> None:
        """Close what is open and end the session, whose balance is asked for once more afterwards."""
        last = len(self.closes) - 1
        self._close_all(last, self.closes[last], "engine_stop")
        self.call(self.db_manager.end_trading_session, self.session, self.dynamic_risk_manager.balance)
        self.call(self.db_manager.get_current_balance)
        self.event_logger.note("ENGINE_STOP", "stopped", dropped=self.reconciler.dropped)
