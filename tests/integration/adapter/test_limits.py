"""Limits and switches that a manager keeps in its attributes hold while PostgreSQL is away, as a plain manager's do."""

from __future__ import annotations

import random
import threading
from contextvars import copy_context
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from outbox import StoreFull
from outbox.integrations.durable import TRADING_OPERATIONS, ManagerOperation
from tests.unit.fakes.waiting import until

from .small import SmallManager, Trade, scene


class Halting(SmallManager):
    """A kill switch, a limit of a day and its reset, each behind the write."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.halted, self.day_pnl = False, Decimal(0)

    def halt(self, reason: str) -> bool:
        with self.session_factory.begin() as session:
            if session.query(Trade).filter_by(symbol="HALT").count():
                return False
            session.add(Trade(symbol="HALT", note=reason))
        self.halted = True
        return True

    def new_day(self, reason: str) -> bool:
        with self.session_factory.begin() as session:
            if session.query(Trade).filter_by(symbol="DAY").count():
                return False
            session.add(Trade(symbol="DAY", note=reason))
        self.day_pnl = Decimal("0.00")
        return True

    def close_deal(self, symbol: str, pnl: Decimal) -> bool:
        with self.session_factory.begin() as session:
            if session.query(Trade).filter_by(symbol=symbol).count():
                return False
            session.add(Trade(symbol=symbol))
        self.day_pnl += pnl
        return True

    def open_deal(self, symbol: str) -> bool:
        if self.halted or self.day_pnl < -100:
            return False
        with self.session_factory.begin() as session:
            session.add(Trade(symbol=symbol))
        return True


class Strict(SmallManager):
    """Counts what it refuses, and takes its time to keep the count."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.refused = 0

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "refused" and value:
            threading.Event().wait(0.005)
        super().__setattr__(name, value)

    def open_deal(self, symbol: str) -> bool:
        if len(symbol) > 1:
            self.refused += 1
            return False
        with self.session_factory.begin() as session:
            session.add(Trade(symbol=symbol))
        return True


HALTING = (
    *TRADING_OPERATIONS,
    *(ManagerOperation(name, returns=True) for name in ("halt", "new_day", "close_deal", "open_deal")),
)  # fmt: skip


def test_limit_behind_a_refusing_return_holds_in_an_outage(postgres_url: str, outbox_dir: Path) -> None:
    with scene(postgres_url, outbox_dir, Halting, HALTING) as here:
        manager = here.manager
        assert manager.close_deal("A", Decimal(-60))
        assert manager.open_deal("B")
        assert manager.close_deal("C", Decimal(-60))
        assert (manager.day_pnl, manager.open_deal("D")) == (-120, False)
        manager.new_day("midnight")
        assert (manager.day_pnl, manager.open_deal("E")) == (0, True)
        assert manager.halt("by hand")
        assert (manager.halted, manager.open_deal("F")) == (True, False)
        assert here.drain()
        assert (manager.day_pnl, manager.halted, list(here.box.dead_letters())) == (0, True, [])
        assert here.rows("SELECT symbol FROM trades ORDER BY id") == [
            (one,) for one in ("A", "B", "C", "DAY", "E", "HALT")
        ]


def test_what_a_refused_call_would_have_changed_is_taken_back(postgres_url: str, outbox_dir: Path) -> None:
    with scene(postgres_url, outbox_dir, Halting, HALTING) as here:
        manager = here.manager
        with manager.session_factory.begin() as session:
            session.add_all([Trade(symbol="A"), Trade(symbol="HALT")])
        assert manager.close_deal("A", Decimal(-60))
        assert manager.close_deal("B", Decimal(-50))
        assert manager.halt("by hand")
        assert (manager.day_pnl, manager.halted) == (-110, True)
        here.relay.start()
        until(lambda: here.box.status().pending == 0)
        assert here.box.status().dead_letters == 2
        assert (manager.day_pnl, manager.halted) == (-50, False)


def test_refusal_behind_a_reset_does_not_reach_over_it(postgres_url: str, outbox_dir: Path) -> None:
    with scene(postgres_url, outbox_dir, Halting, HALTING) as here:
        manager = here.manager
        with manager.session_factory.begin() as session:
            session.add(Trade(symbol="A"))
        assert manager.close_deal("A", Decimal(-60))
        manager.new_day("midnight")
        assert manager.close_deal("B", Decimal(-5))
        here.relay.start()
        until(lambda: here.box.status().pending == 0)
        assert manager.day_pnl == -5


def test_refused_reset_leaves_what_was_added_behind_it(postgres_url: str, outbox_dir: Path) -> None:
    with scene(postgres_url, outbox_dir, Halting, HALTING) as here:
        manager = here.manager
        with manager.session_factory.begin() as session:
            session.add(Trade(symbol="DAY"))
        assert manager.close_deal("A", Decimal(-60))
        assert manager.new_day("midnight")
        assert manager.close_deal("B", Decimal(-5))
        assert manager.day_pnl == -5
        here.relay.start()
        until(lambda: here.box.status().pending == 0)
        assert manager.day_pnl == -65


def test_call_without_room_changes_no_limit(
    postgres_url: str, outbox_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with scene(postgres_url, outbox_dir, Halting, HALTING) as here:
        manager = here.manager
        assert manager.close_deal("A", Decimal(-60))
        with monkeypatch.context() as full:
            full.setattr(here.box.store._quota, "_reserve_bytes", 1 << 60)
            with pytest.raises(StoreFull):
                manager.close_deal("B", Decimal(-60))
            with pytest.raises(StoreFull):
                manager.halt("by hand")
        assert (manager.day_pnl, manager.halted) == (-60, False)
        assert manager.open_deal("C")
        assert here.drain()
        assert (manager.day_pnl, manager.halted) == (-60, False)
        assert here.rows("SELECT symbol FROM trades ORDER BY id") == [("A",), ("C",)]


def test_calls_of_a_block_that_fails_change_no_limit(postgres_url: str, outbox_dir: Path) -> None:
    with scene(postgres_url, outbox_dir, Halting, HALTING) as here:
        manager = here.manager
        manager.create_trading_session("s", 100)
        with pytest.raises(ZeroDivisionError), manager.atomic_balance_update(5, "fill"):
            manager.close_deal("A", Decimal(-60))
            with manager.atomic_balance_update(5, "another"):
                manager.close_deal("B", Decimal(-60))
                manager.halt("by hand")
            assert (manager.day_pnl, manager.halted) == (-120, True)
            raise ZeroDivisionError
        assert (manager.day_pnl, manager.halted) == (0, False)
        assert here.drain()
        assert (manager.day_pnl, manager.halted) == (0, False)


def test_block_whose_end_fails_changes_no_limit(
    postgres_url: str, outbox_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two coroutines are in blocks of one session, and the store has halted when the first leaves its own."""
    with scene(postgres_url, outbox_dir, Halting, HALTING) as here:
        manager = here.manager
        manager.create_trading_session("s", 100)
        one, two = copy_context(), copy_context()
        block, other = manager.atomic_balance_update(5, "fill"), manager.atomic_balance_update(5, "fee")
        one.run(block.__enter__)
        two.run(other.__enter__)
        one.run(manager.close_deal, "A", Decimal(-60))
        with monkeypatch.context() as halted, pytest.raises(StoreFull):
            halted.setattr(here.box.store, "check_not_halted", lambda: raise_(StoreFull("halted")))
            one.run(block.__exit__, None, None, None)
        assert manager.day_pnl == 0
        two.run(other.__exit__, None, None, None)


def raise_(error: Exception) -> None:
    raise error


def test_block_that_fails_behind_a_reset_does_not_reach_over_it(postgres_url: str, outbox_dir: Path) -> None:
    with scene(postgres_url, outbox_dir, Halting, HALTING) as here:
        manager = here.manager
        manager.create_trading_session("s", 100)
        assert manager.close_deal("A", Decimal(-60))
        with pytest.raises(ZeroDivisionError), manager.atomic_balance_update(5, "fill"):
            manager.close_deal("B", Decimal(-7))
            reset = threading.Thread(target=manager.new_day, args=("midnight",))
            reset.start()
            reset.join()
            assert manager.day_pnl == 0
            raise ZeroDivisionError
        assert manager.day_pnl == 0
        assert here.drain()
        assert manager.day_pnl == 0


@pytest.mark.parametrize("stored", [True, False])
def test_interrupted_call_changes_a_limit_if_it_is_stored(
    postgres_url: str, outbox_dir: Path, monkeypatch: pytest.MonkeyPatch, stored: bool
) -> None:
    with scene(postgres_url, outbox_dir, Halting, HALTING) as here:
        manager, submit = here.manager, here.box.submit
        with manager.session_factory.begin() as session:
            session.add(Trade(symbol="refused"))

        def interrupted(prepared: Any) -> None:
            if stored:
                submit(prepared)
            raise KeyboardInterrupt

        for symbol in ("A", "refused"):
            with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
                patched.setattr(here.box, "submit", interrupted)
                manager.close_deal(symbol, Decimal(-60))
        assert manager.day_pnl == (-120 if stored else 0)
        here.relay.start()
        until(lambda: here.box.status().pending == 0)
        assert manager.day_pnl == (-60 if stored else 0)


class Switching(SmallManager):
    """Sums and assignments of two attributes, each refused where PostgreSQL has the symbol already."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.pnl, self.halted = Decimal(0), False

    def _is_new(self, symbol: str) -> bool:
        with self.session_factory.begin() as session:
            if session.query(Trade).filter_by(symbol=symbol).count():
                return False
            session.add(Trade(symbol=symbol))
        return True

    def add(self, symbol: str, pnl: Decimal) -> bool:
        if not self._is_new(symbol):
            return False
        self.pnl += pnl
        return True

    def reset(self, symbol: str) -> bool:
        if not self._is_new(symbol):
            return False
        self.pnl = Decimal(0)
        return True

    def switch(self, symbol: str, halted: bool) -> bool:
        if not self._is_new(symbol):
            return False
        self.halted = halted
        return True


SWITCHING = (*TRADING_OPERATIONS, *(ManagerOperation(name, returns=True) for name in ("add", "reset", "switch")))


@pytest.mark.parametrize("seed", range(6))
def test_refused_calls_among_others_leave_the_attributes_right(postgres_url: str, outbox_dir: Path, seed: int) -> None:
    rng = random.Random(seed)
    with scene(postgres_url, outbox_dir, Switching, SWITCHING) as here:
        manager = here.manager
        plain: dict[str, Any] = {"pnl": Decimal(0), "halted": False}
        taken = {f"S{number}" for number in range(40) if rng.random() < 0.4}
        with manager.session_factory.begin() as session:
            session.add_all([Trade(symbol=one) for one in sorted(taken)])
        for number in range(40):
            symbol, what = f"S{number}", rng.choice(("add", "add", "add", "reset", "switch"))
            given = {"add": (Decimal(rng.randint(-9, 9)),), "reset": (), "switch": (rng.random() < 0.5,)}[what]
            getattr(manager, what)(symbol, *given)
            if symbol not in taken:
                if what == "switch":
                    plain["halted"] = given[0]
                else:
                    plain["pnl"] = plain["pnl"] + given[0] if what == "add" else Decimal(0)
            if number == 20 and seed % 2:
                # The second half meets calls that are refused meanwhile.
                here.relay.start()
        here.relay.start()
        until(lambda: here.box.status().pending == 0)
        assert {"pnl": manager.pnl, "halted": manager.halted} == plain


def test_threads_count_each_of_their_refused_calls(postgres_url: str, outbox_dir: Path) -> None:
    with scene(postgres_url, outbox_dir, Strict, (ManagerOperation("open_deal", returns=True),)) as here:
        threads = [
            threading.Thread(target=lambda: [here.manager.open_deal("long") for _ in range(10)]) for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert here.manager.refused == 40
