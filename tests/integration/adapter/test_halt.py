"""The engine's halt method is called before a call raises: it may use the manager, wait for others, and fail."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from outbox import ConfigError, DurabilityError, OutboxConfig, StoreFull
from outbox.integrations.trading_engine import wire
from tests.unit.fakes.waiting import LONG

from .small import Scene, SmallManager, scene


@contextmanager
def full(postgres_url: str, outbox_dir: Path, halt: Any) -> Iterator[Scene]:
    """A manager in a session whose store has no room for another call."""
    with scene(postgres_url, outbox_dir) as here:
        here.manager.detach_outbox()
        here.manager.attach_outbox(here.box, on_halt=lambda reason: halt(here.manager, reason))
        here.manager.create_trading_session("s", 100)
        here.box.store._quota._reserve_bytes = 1 << 60
        yield here


def trade(manager: Any) -> None:
    manager.log_trade("A")


def block(manager: Any) -> None:
    with manager.atomic_balance_update(-5, "fee"):
        pass


def call_in_block(manager: Any) -> None:
    with manager.atomic_balance_update(-5, "fee"):
        manager.create_order_journal_entry("A")


def decorated(manager: Any) -> None:
    manager.atomic_balance_update(-5, "fee")(lambda: None)()


CALLS = pytest.mark.parametrize("call", [trade, block, call_in_block, decorated])


@CALLS
def test_halt_method_that_makes_calls_is_called_once(postgres_url: str, outbox_dir: Path, call: Any) -> None:
    reasons: list[str] = []
    refused: list[Exception] = []

    def halt(manager: Any, reason: str) -> None:
        reasons.append(reason)
        manager.log_event("close only")
        with pytest.raises(StoreFull) as caught:
            trade(manager)
        refused.append(caught.value)

    with full(postgres_url, outbox_dir, halt) as here:
        for times in (1, 2):
            with pytest.raises(StoreFull, match="kept for draining"):
                call(here.manager)
            assert (len(reasons), len(refused)) == (times, times)


@CALLS
def test_call_raises_as_ever_where_the_halt_method_fails(
    postgres_url: str, outbox_dir: Path, caplog: pytest.LogCaptureFixture, call: Any
) -> None:
    def halt(*_: Any) -> None:
        raise AttributeError("no such switch")

    with full(postgres_url, outbox_dir, halt) as here:
        with pytest.raises(StoreFull, match="kept for draining"):
            call(here.manager)
        assert here.manager.create_order_journal_entry("out", "exit") is None
    assert "the halt method has failed" in caplog.text
    assert "no such switch" in caplog.text


@CALLS
def test_halt_method_may_wait_for_a_thread_that_makes_a_call(postgres_url: str, outbox_dir: Path, call: Any) -> None:
    ended: list[bool] = []

    def halt(manager: Any, _: str) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        other = threading.Thread(target=manager.log_event, args=("the thread that trades",), daemon=True)
        other.start()
        other.join(LONG / 4)
        ended.append(not other.is_alive())

    with full(postgres_url, outbox_dir, halt) as here, pytest.raises(DurabilityError):
        call(here.manager)
    assert ended == [True]


class Engine:
    """Its halt methods cannot be called with a reason, or a call does not run them."""

    enter_close_only = True

    def __init__(self, db_manager: Any) -> None:
        self.db_manager = db_manager

    async def stop_entries(self, reason: str) -> None: ...

    def without_reason(self) -> None: ...


@pytest.mark.parametrize(
    ("name", "why"),
    [
        (None, "is not callable"),
        ("stop_entries", "is asynchronous"),
        ("without_reason", "does not take 1 positional"),
    ],
)
def test_halt_method_that_a_call_does_not_run_is_refused(
    postgres_url: str, outbox_dir: Path, name: str | None, why: str
) -> None:
    engine = Engine(SmallManager(postgres_url))
    with pytest.raises(ConfigError, match=f"Engine: the halt method .* {why}"):
        wire(engine, config=OutboxConfig(dir=str(outbox_dir), database_url=postgres_url), halt_method=name)
    engine.db_manager.engine.dispose()


def test_events_of_a_full_store_are_warned_of_once(
    postgres_url: str, outbox_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The log may be on the same disk."""
    with full(postgres_url, outbox_dir, lambda *_: None) as here:
        for _ in range(3):
            here.manager.log_event("tick")
        here.box.store._quota._reserve_bytes = 0
        here.manager.log_event("tick")
        here.box.store._quota._reserve_bytes = 1 << 60
        here.manager.log_event("tick")
    warned = [one.message for one in caplog.records if one.message.startswith("calls of log_event are not recorded")]
    assert len(warned) == 2
