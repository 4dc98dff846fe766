"""A signal handler may raise, or call, at any point of a call: nothing hangs, and later calls are recorded."""

from __future__ import annotations

import signal
import sys
import threading
from _thread import interrupt_main
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from outbox import Outbox
from outbox.errors import StoreBusy
from outbox.integrations.calls.block import Block, Entering
from outbox.integrations.ids.id_reserve import IdReserve
from outbox.integrations.upkeep import kept_view
from outbox.integrations.upkeep.kept_view import KeptView
from tests.unit.fakes.waiting import LONG

from .small import scene


def _interrupt(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, *, times: int = 1, after: bool = False) -> None:
    """Let a method of a class raise as a signal handler would, before or after it has done its work."""
    original: Any = getattr(owner, name)
    done: list[bool] = []

    def interrupted(*args: Any) -> Any:
        if len(done) == times:
            return original(*args)
        done.append(True)
        if after:
            original(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(owner, name, interrupted)


def test_calls_after_an_interrupted_end_are_recorded(
    postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with scene(postgres_url, tmp_path / "outbox") as here:
        here.manager.create_trading_session("ma", 100)
        # As often as the way out of a block tries to end it.
        _interrupt(monkeypatch, Block, "end", times=2)
        with pytest.raises(KeyboardInterrupt), here.manager.atomic_balance_update(5, "fill"):
            raise ValueError
        here.manager.log_trade("later")
        assert here.drain()
        assert here.rows("SELECT symbol FROM trades") == [("later",)]
        assert here.manager.get_current_balance() == 100


def test_block_that_was_interrupted_while_entered_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = []

    def block() -> Any:
        try:
            yield "told"
        finally:
            ended.append(True)

    made = Entering(block, (), {})
    _interrupt(monkeypatch, Entering.__base__, "__enter__", after=True)
    with pytest.raises(KeyboardInterrupt) as caught:
        made.__enter__()
    assert ended == [True]
    assert not made.is_alive()
    assert caught.tb is not None


def test_calls_after_an_interrupted_enqueue_are_recorded(
    postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with scene(postgres_url, tmp_path / "outbox") as here:
        writer = here.box.store.writer
        assert writer is not None
        commit = writer._commit
        interrupted: list[bool] = []

        def interrupting(items: Any, waits: Any) -> None:
            """The caller waits for this commit in the main thread."""
            if not interrupted:
                interrupted.append(True)
                interrupt_main()
                signal.sigtimedwait([], 0.1)
            commit(items, waits)

        monkeypatch.setattr(writer, "_commit", interrupting)
        with pytest.raises(KeyboardInterrupt):
            here.manager.log_trade("interrupted")
        here.manager.log_trade("later")
        assert here.drain()
        # What was handed to the writer is committed, whatever becomes of its caller.
        assert here.rows("SELECT symbol FROM trades") == [("interrupted",), ("later",)]


@pytest.mark.parametrize(
    ("owner", "name", "after"), [(KeptView, "fold", True), (KeptView, "fold", False), (Outbox, "submit", True)]
)
def test_local_view_has_a_call_that_was_interrupted_while_recorded(
    postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, after: bool
) -> None:
    """It was stored and delivered, and the local view answered without it until the end of the program."""
    with scene(postgres_url, tmp_path / "outbox") as here:
        here.manager.create_trading_session("ma", 100)
        for balance in (80, 90):
            # From these it learns what such calls do.
            here.manager.update_balance(balance, "seen")
            with here.manager.atomic_balance_update(5, "fill"):
                pass
            assert here.drain()
        # Without its thread the call is folded in by the one that looks at the view, which is the one of signals.
        here.manager._adapter.keeper.stop()
        _interrupt(monkeypatch, owner, name, after=after)
        with pytest.raises(KeyboardInterrupt):
            here.manager.update_balance(70, "interrupted")
            here.manager.get_current_balance()
        assert here.manager.get_current_balance() == 70
        with here.manager.atomic_balance_update(5, "fill") as told:
            assert told["old_balance"] == 70
        assert here.drain()
        assert here.manager.get_current_balance() == 75
        assert not here.box.status().alarms


def test_call_that_was_followed_in_part_counts_once(
    postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with scene(postgres_url, tmp_path / "outbox") as here:
        here.manager.create_trading_session("ma", 100)
        here.manager.update_balance(100, "start")
        for _ in range(3):
            with here.manager.atomic_balance_update(5, "fill"):
                pass
            assert here.drain()
        here.manager._adapter.keeper.stop()
        # Between the change of the balance and the end of the fold.
        _interrupt(monkeypatch, kept_view, "fold_beside")
        with pytest.raises(KeyboardInterrupt):
            with here.manager.atomic_balance_update(5, "fill"):
                pass
            here.manager.get_current_balance()
        assert here.manager.get_current_balance() == 120


@pytest.mark.parametrize("name", ["_fold_since", "fold"])
def test_local_view_is_whole_behind_an_interrupted_renewal(
    postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A read has it folded once more, from an older state, and the calls since were missing from then on."""
    with scene(postgres_url, tmp_path / "outbox") as here:
        here.manager.create_trading_session("ma", 100)
        for balance in (80, 90):
            here.manager.update_balance(balance, "seen")
            assert here.drain()
        here.manager.update_balance(70, "queued")
        keeper = here.manager._adapter.keeper
        keeper.kept._folded_with = -1
        _interrupt(monkeypatch, KeptView, name)
        with pytest.raises(KeyboardInterrupt), keeper.view.lock:
            keeper.view.renew()
        assert here.manager.get_current_balance() == 70


def test_handler_that_takes_an_id_in_the_middle_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Outbox.open(tmp_path / "outbox") as box:
        reserve = IdReserve(box, "trades")
        reserve._ranges.append(range(1, 5001))
        told: list[Any] = []

        def interrupted(*_: Any) -> None:
            with pytest.raises(StoreBusy):
                reserve.take()
            told.append(reserve.left())

        monkeypatch.setattr(box.store, "put_meta", interrupted)
        taker = threading.Thread(target=lambda: told.append(reserve.take()), daemon=True)
        taker.start()
        taker.join(LONG)
        assert told == [4936, 1]


def test_handler_may_call_at_any_line_of_a_call(postgres_url: str, tmp_path: Path) -> None:
    """It interrupts a caller that may hold a lock of the adapter's, and makes the same kind of call."""
    with scene(postgres_url, tmp_path / "outbox", write_behind=True, wait_s=0.02) as here:
        here.manager.create_trading_session("ma", 100)
        for _ in range(3):
            with here.manager.atomic_balance_update(1, "seen"):
                pass
            assert here.drain()
        names = (str(number) for number in count())
        met, refused = set[tuple[str, int]](), list[tuple[str, int]]()

        def use() -> None:
            here.manager.create_order_journal_entry(next(names))
            with here.manager.atomic_balance_update(1, "fill"):
                pass
            here.manager.get_current_balance()

        def interrupted(frame: Any, event: str, _: Any) -> Any:
            place = frame.f_code.co_filename, frame.f_lineno
            if "integrations" not in place[0]:
                return None
            if event == "line" and place not in met:
                met.add(place)
                sys.settrace(None)
                try:
                    here.manager.create_order_journal_entry(next(names))
                except StoreBusy:  # in the middle of taking another id
                    refused.append(place)
                sys.settrace(interrupted)
            return interrupted

        def call() -> None:
            for _ in range(2):
                use()
                sys.settrace(interrupted)
                use()
                sys.settrace(None)

        caller = threading.Thread(target=call, daemon=True)
        caller.start()
        caller.join(LONG)
        assert not caller.is_alive()
        assert len(met) > 100
        assert here.drain()
        (orders,) = here.rows("SELECT count(*), count(DISTINCT client_order_id) FROM orders")
        made = len(met) - len(refused) + 4
        assert orders == (made, made)
        assert here.manager.get_current_balance() == 107
